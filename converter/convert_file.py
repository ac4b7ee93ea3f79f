"""From a file to a verified file: open, plan, convert, write, read back, compare, and only then appear."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from converter.atomic import AtomicFiles, sync
from converter.catalog import CHECKPOINTS, PUBLISHED
from converter.convert import (
    LeftOut,
    MappingError,
    Plan,
    Weights,
    convert_rows,
    describe,
    plan,
    to_pytorch,
    to_tensorflow,
)
from converter.errors import DifferenceError, RequirementError, SourceError, UsageError
from converter.formats.tensor_bundle import TensorBundle, write_tensor_bundle
from converter.layer_map import Converted, Row
from converter.manifest import build_manifest, describe_source, file_digest, tensor_digest
from converter.naming import tensorflow_tensors
from converter.sources import open_source
from converter.tensor_source import TensorSource

OutputFormat = Literal["pt", "safetensors", "tensorflow"]
Progress = Callable[[int, int], None]
"""Told how many bytes are done, of how many."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion did.

    Attributes:
        source: What was opened.
        source_format: Its format in words.
        source_digests: Name of each file read to its SHA-256.
        published: Name of the published checkpoint that the digests prove the source to be, or None.
        plan: What became of every tensor.
        left_out: Every source tensor that is not in the output, with the reason.
        outputs: Every file written to its SHA-256, manifests included.
        digests: state_dict key to the SHA-256 of the PyTorch tensor.
    """

    source: Path
    source_format: str
    source_digests: Mapping[str, str]
    published: str | None
    plan: Plan
    left_out: tuple[LeftOut, ...]
    outputs: Mapping[Path, str]
    digests: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Target:
    """One state_dict to write: the name without folder, and what of the table goes in."""

    name: str
    rows: tuple[Row, ...]


def model_name(source: TensorSource) -> str:
    """The model's name in the name of its file: `model-NAME.ckpt-STEP` and `NAME.pb` give NAME."""
    name = source.path.name
    match = re.fullmatch(r"model-(?P<name>.+)\.ckpt(-\d+)?", name)
    if match:
        return match["name"]
    return name if isinstance(source, TensorBundle) else source.path.stem


def default_output(source: TensorSource, output_format: OutputFormat) -> Path:
    """The name that a conversion gets unasked, in the current folder: `<model>-<dataset>.pt`.

    The data set is known for the published checkpoints only; otherwise the model's name stands alone.
    """
    name = model_name(source)
    if output_format == "tensorflow":
        return Path(f"model-{name}.ckpt-0")
    published = PUBLISHED.get(name)
    return Path(f"{name}-{published.dataset}.{output_format}" if published else f"{name}.{output_format}")


def identify(digests: Mapping[str, str]) -> str | None:
    """Name the published checkpoint whose files have these digests.

    Args:
        digests: File name to SHA-256.

    Returns:
        The checkpoint's name, or None where the weights' digest is not a published one or another differs.
    """
    for checkpoint in CHECKPOINTS:
        known = {
            digest == expected
            for ending, expected in checkpoint.sha256.items()
            for name, digest in digests.items()
            if name.endswith(ending)
        }
        if known == {True}:
            return checkpoint.name
    return None


def convert_file(
    path: Path | str,
    output: Path | None = None,
    *,
    output_format: OutputFormat = "pt",
    parts: bool = False,
    weights: Weights = "variable",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a checkpoint and write the result with a manifest beside it.

    Args:
        path: Anything that `open_source` takes.
        output: The file to write, for `tensorflow` the checkpoint prefix; None takes `default_output`.
        output_format: A PyTorch state_dict, the same as safetensors, or a TensorFlow checkpoint.
        parts: Also write `-features` and `-logits`, the state_dict in two.
        weights: As in `convert.plan`.
        overwrite: Whether files that exist may be replaced.
        progress: Told of progress.

    Raises:
        SourceError: The source is unreadable or corrupt.
        MappingError: The source is not this network.
        UsageError: An output exists, its folder does not, its ending says another format, or parts of what
            has no parts are asked for.
        RequirementError: An output cannot be written, for example because the disk is full.
        DifferenceError: What was written does not read back as it was.

    Whatever is raised, nothing is left behind.
    """
    if output is not None:
        _check_ending(output, output_format)
    # Hashing lets go of the interpreter: digests are made beside the conversion and collected at the end.
    with open_source(path) as source, ThreadPoolExecutor(2) as pool:
        source_hashes = {file.name: pool.submit(file_digest, file) for file in source.files}
        try:
            tensors = tensorflow_tensors(source)
            decided = plan(describe(tensors), weights=weights)
        except MappingError as error:
            raise error.named(source.path) from None
        destination = output or default_output(source, output_format)
        targets = _targets(decided, destination, output_format, parts)
        read_back = sum(_row_bytes(row) for target in targets for row in target.rows)
        meter = _Meter(progress, sum(map(_row_bytes, decided.rows)) + read_back)
        with AtomicFiles(destination.parent, overwrite=overwrite) as files:
            staged = {target: _stage(files, target, output_format) for target in targets}
            state_dict: dict[str, NDArray[Any]] = {}
            hashes: dict[str, Future[str]] = {}
            for row, array in convert_rows(tensors, decided):
                state_dict[row.key] = array
                hashes[row.key] = pool.submit(tensor_digest, array)
                meter.advance(_row_bytes(row))
            if isinstance(source, TensorBundle):
                source.release()
            left_out = decided.left_out + _changed(source, decided)
            output_hashes: dict[_Target, dict[str, Future[str]]] = {}
            for target, paths in staged.items():
                part = {row.key: state_dict[row.key] for row in target.rows}
                with _writing(destination):
                    _write(paths, part, decided, output_format)
                output_hashes[target] = {file.name: pool.submit(file_digest, file) for file in paths.files}
                for file in paths.files:
                    pool.submit(sync, file)  # the disk is slow: `commit` finds this done
                _read_back(paths, part, output_format, meter)
            source_digests = _results(source_hashes)
            published = identify(source_digests)
            described = describe_source(source.path, source.format, source_digests, published)
            digests = _results(hashes)
            written: dict[Path, str] = {}
            for target, paths in staged.items():
                files_digests = _results(output_hashes[target])
                with _writing(destination):
                    paths.manifest.write_bytes(
                        build_manifest(described, decided, files_digests, target.rows, digests, left_out)
                    )
                files_digests[paths.manifest.name] = file_digest(paths.manifest)
                written |= {destination.with_name(name): digest for name, digest in files_digests.items()}
            with _writing(destination):
                files.commit()
    return Conversion(
        source.path, source.format, source_digests, published, decided, left_out, written, digests
    )


@dataclass(frozen=True, slots=True)
class _Paths:
    """Where a target is written before it appears: its file or prefix, its files, its manifest."""

    path: Path
    files: tuple[Path, ...]
    manifest: Path


def _results(futures: Mapping[str, Future[str]]) -> dict[str, str]:
    return {name: future.result() for name, future in futures.items()}


class _Meter:
    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def advance(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def _row_bytes(row: Row) -> int:
    return int(np.prod(row.shape)) * (4 if isinstance(row, Converted) else np.dtype(row.dtype).itemsize)


def _check_ending(output: Path, output_format: OutputFormat) -> None:
    endings = {
        ".pt": "pt",
        ".pth": "pt",
        ".safetensors": "safetensors",
        ".index": "a prefix",
        ".meta": "a prefix",
    }
    said = endings.get(output.suffix, output_format)
    if said != output_format:
        raise UsageError(
            f"{output}: the ending says {said}, and {output_format} is to be written. Change one of them."
        )


def _targets(
    decided: Plan, destination: Path, output_format: OutputFormat, parts: bool
) -> tuple[_Target, ...]:
    whole = _Target(destination.name, decided.rows)
    if not parts:
        return (whole,)
    if output_format == "tensorflow":
        raise UsageError("--parts splits a state_dict; it does not go with --to tensorflow.")
    if decided.variant.num_classes is None:
        raise UsageError("--parts: this checkpoint has no Logits to write apart. Leave the option out.")
    logits = tuple(row for row in decided.rows if row.key.startswith("logits."))
    features = tuple(row for row in decided.rows if not row.key.startswith("logits."))
    stem, suffix = destination.stem, destination.suffix
    return whole, _Target(f"{stem}-features{suffix}", features), _Target(f"{stem}-logits{suffix}", logits)


def _stage(files: AtomicFiles, target: _Target, output_format: OutputFormat) -> _Paths:
    manifest = files.stage(f"{target.name}.json")
    if output_format == "tensorflow":
        index = files.stage(f"{target.name}.index")
        data = files.stage(f"{target.name}.data-00000-of-00001")
        return _Paths(index.with_name(target.name), (index, data), manifest)
    path = files.stage(target.name)
    return _Paths(path, (path,), manifest)


@contextmanager
def _writing(destination: Path) -> Iterator[None]:
    """Say what a failure to write means; the hidden file that the system names tells a user nothing."""
    try:
        yield
    except OSError as error:
        raise RequirementError(
            f"{destination}: cannot be written ({error.strerror or error}); nothing was kept. Make room on "
            "the disk, or give another name with -o."
        ) from error


def _write(
    paths: _Paths, part: Mapping[str, NDArray[Any]], decided: Plan, output_format: OutputFormat
) -> None:
    if output_format == "tensorflow":
        write_tensor_bundle(paths.path, to_tensorflow(part, variant=decided.variant))
    elif output_format == "safetensors":
        from converter.formats.safetensors_file import write_safetensors

        write_safetensors(paths.path, part)
    else:
        from converter.formats.state_dict_file import write_state_dict

        with paths.path.open("wb") as file:
            write_state_dict(file, part)


def _read_back(
    paths: _Paths, part: Mapping[str, NDArray[Any]], output_format: OutputFormat, meter: _Meter
) -> None:
    failing = "The disk or the memory may be failing; nothing was kept."
    name = paths.path.name
    try:
        with _open_written(paths, output_format) as source:
            again: Mapping[str, NDArray[Any]] = (
                to_pytorch(source) if output_format == "tensorflow" else source
            )
            if set(again) != set(part):
                raise DifferenceError(f"{name}: what was written reads back with other tensors. {failing}")
            for key, array in part.items():
                if not same_bits(again[key], array):
                    problem = f"tensor {key!r} reads back different from what was written"
                    raise DifferenceError(f"{name}: {problem}. {failing}")
                meter.advance(array.nbytes)
    except (SourceError, MappingError) as error:
        raise DifferenceError(f"{name}: what was written does not read back. {failing} {error}") from error


def _open_written(paths: _Paths, output_format: OutputFormat) -> TensorSource:
    if output_format != "pt":
        return open_source(paths.files[0])
    from converter.formats.state_dict_file import StateDictFile

    return StateDictFile(paths.path, verify=False)


def same_bits(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two arrays have the same dtype, shape and bits: -0.0 differs from 0.0, a NaN equals itself."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits = f"u{one.itemsize}" if one.itemsize in (1, 2, 4, 8) else "u1"
    return np.array_equal(
        np.ascontiguousarray(one).reshape(-1).view(bits), np.ascontiguousarray(other).reshape(-1).view(bits)
    )


def _changed(source: TensorSource, decided: Plan) -> tuple[LeftOut, ...]:
    """Entries of a state_dict that TensorFlow has no place for and that are not what would be synthesised."""
    if source.naming != "pytorch":
        return ()
    return tuple(
        LeftOut(row.key, f"{source[row.key].item()} batches counted; written as {row.fill}")
        for row in decided.synthesised
        if row.dtype == "int64" and source[row.key].item() != row.fill
    )
