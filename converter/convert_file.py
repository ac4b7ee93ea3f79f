"""From a file to a verified file: open, plan, convert, write, read back, compare, and only then appear."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from converter.atomic import AtomicFiles, sync
from converter.casting import Cast, state_casts
from converter.convert import convert_tensors, tensorflow_tensors, to_numpy_state_dict, to_tensorflow
from converter.errors import DifferenceError, RequirementError, SourceError, UsageError
from converter.formats.detect import open_source
from converter.formats.source import TensorSource
from converter.formats.tensorflow.bundle import TensorBundle
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from converter.formats.tensorflow.checkpoint_state import Snapshot
from converter.hub.catalog import BUILT_IN, BUILT_IN_BY_NAME
from converter.hub.catalog_entry import CatalogEntry
from converter.hub.locate import locate
from converter.layer_map import Converted, Row
from converter.manifest import build_manifest, describe_source, file_digest, manifest_path, tensor_digest
from converter.plan import LeftOut, MappingError, Plan, Weights, describe, plan_conversion

OutputFormat = Literal["pt", "safetensors", "tensorflow"]
Progress = Callable[[int, int], None]
"""Told how many bytes are done, of how many."""

_MODEL = re.compile(r"model-(?P<name>.+)\.ckpt(-\d+)?")  # as facenet's training scripts call checkpoints


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion did.

    Attributes:
        source: What was opened.
        source_format: Its format in words.
        source_digests: Name of each file read to its SHA-256.
        archive_sha256: SHA-256 of the archive that they were unpacked from, if the caller named one.
        published: Name of the published checkpoint that the digests prove the source to be, or None.
        namesake: Name of the published checkpoint that the source is called after although its digests are
            others; None where it is the published one, has a name of its own, or no digest is known.
        plan: What became of every tensor.
        left_out: Every source tensor that is not in the output, with the reason.
        casts: Name of each source tensor that was cast to float32 to what that did.
        outputs: Every file written to its SHA-256, manifests included.
        digests: state_dict key to the SHA-256 of the PyTorch tensor.
    """

    source: Path
    source_format: str
    source_digests: Mapping[str, str]
    archive_sha256: str | None
    published: str | None
    namesake: str | None
    plan: Plan
    left_out: tuple[LeftOut, ...]
    casts: Mapping[str, Cast]
    outputs: Mapping[Path, str]
    digests: Mapping[str, str]

    @property
    def cast_statements(self) -> tuple[str, ...]:
        """What was cast to float32 and what that changed, a sentence for each dtype."""
        return state_casts(self.casts)


@dataclass(frozen=True, slots=True)
class _Target:
    """One state_dict to write: the name without folder, and what of the table goes in."""

    name: str
    rows: tuple[Row, ...]


def model_name(source: TensorSource) -> str:
    """The model's name in the name of its file: `model-NAME.ckpt-STEP` and `NAME.pb` give NAME."""
    name = source.path.name
    match = _MODEL.fullmatch(name)
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
    return Path(f"{_with_dataset(name)}.{output_format}")


def step_output(snapshot: Snapshot, output_format: OutputFormat) -> Path:
    """The name that a checkpoint gets among those of its training: the step stands behind it."""
    match = _MODEL.fullmatch(snapshot.model)
    name = match["name"] if match else snapshot.model
    behind = "" if snapshot.step is None else f"-{snapshot.step}"
    if output_format == "tensorflow":
        return Path(f"model-{name}.ckpt{behind}")
    return Path(f"{_with_dataset(name)}{behind}.{output_format}")


def _with_dataset(name: str) -> str:
    published = BUILT_IN_BY_NAME.get(name)
    return f"{name}-{published.dataset}" if published else name


def identify(digests: Mapping[str, str]) -> str | None:
    """Name the published checkpoint whose files have these digests.

    Args:
        digests: File name to SHA-256.

    Returns:
        The checkpoint's name, or None where the weights' digest is not a published one or another differs.
    """
    return next((known.name for known in BUILT_IN if _is_published(known, digests)), None)


def find_namesake(name: str, digests: Mapping[str, str]) -> str | None:
    """Name the published checkpoint that a source is called after without being it.

    Args:
        name: The source's name, as `model_name` gives it.
        digests: File name to SHA-256.

    Returns:
        The checkpoint's name; None where the name is none of theirs, or no published digest contradicts it.
    """
    known = next((checkpoint for checkpoint in BUILT_IN if checkpoint.name == name), None)
    return None if known is None or _is_published(known, digests) is not False else known.name


def _is_published(known: CatalogEntry, digests: Mapping[str, str]) -> bool | None:
    """Whether files are those of a published checkpoint; None where no digest of theirs was published."""
    verdicts = [digest in stated for name, digest in digests.items() if (stated := known.digests(name))]
    return all(verdicts) if verdicts else None


def convert_file(
    path: Path | str,
    output: Path | str | None = None,
    *,
    output_format: OutputFormat = "pt",
    parts: bool = False,
    weights: Weights = "variable",
    step: int | None = None,
    sha256: Collection[str] = (),
    archive_sha256: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a checkpoint and write the result with a manifest beside it.

    Args:
        path: Anything that `open_source` takes, or the name of a published model.
        output: The file to write, for `tensorflow` the checkpoint prefix; None takes `default_output`.
        output_format: A PyTorch state_dict, the same as safetensors, or a TensorFlow checkpoint.
        parts: Also write `-features` and `-logits`, the state_dict in two.
        weights: As in `plan.plan_conversion`.
        step: As in `open_source`.
        sha256: The SHA-256 that the source is expected to have, one for each of its files, in hexadecimal;
            empty expects nothing.
        archive_sha256: SHA-256 of the archive that the source was unpacked from, for the manifest.
        overwrite: Whether files that exist may be replaced.
        progress: Told of progress.

    Raises:
        SourceError: The source is unreadable or corrupt, or a file of it has none of the expected SHA-256.
        MappingError: The source is not this network, or a value of it is beyond float32.
        UsageError: An output exists, its folder does not, its ending says another format, parts of what has
            no parts are asked for, or what is expected is no SHA-256.
        RequirementError: An output cannot be written, for example because the disk is full.
        DifferenceError: What was written does not read back as it was.

    Whatever is raised, nothing is left behind.
    """
    output = None if output is None else Path(output)
    if output is not None:
        _check_ending(output, output_format)
    expected = _normalise_digests(sha256)
    # Hashing lets go of the interpreter: digests are made beside the conversion and collected at the end.
    with open_source(locate(path), step=step) as source, ThreadPoolExecutor(2) as pool:
        source_hashes = {file.name: pool.submit(file_digest, file) for file in source.files}
        with _naming(source.path):
            tensors = tensorflow_tensors(source)
            plan = plan_conversion(describe(tensors), weights=weights)
        destination = output or default_output(source, output_format)
        targets = _targets(plan, destination, output_format, parts)
        meter = _Meter(progress, [plan.rows, *(target.rows for target in targets)])
        with AtomicFiles(destination.parent, overwrite=overwrite) as files:
            staged = {target: _stage(files, target, output_format) for target in targets}
            with _naming(source.path):
                made = _make(tensors, plan, pool, meter)
            if isinstance(source, TensorBundle):
                source.release()
            if expected:
                _check_source(source, _results(source_hashes), expected)
            hashes: dict[_Target, dict[str, Future[str]]] = {}
            for target, paths in staged.items():
                part = {row.key: made.state_dict[row.key] for row in target.rows}
                with _writing(destination):
                    _write(paths, part, plan, output_format)
                hashes[target] = _hash_and_sync(paths, pool)
                _read_back(paths, part, output_format, meter)
            conversion = _describe(source, _results(source_hashes), archive_sha256, plan, made)
            written: dict[Path, str] = {}
            for target, paths in staged.items():
                with _writing(destination):
                    digests = _write_manifest(paths, target, conversion, _results(hashes[target]))
                written |= {destination.with_name(name): digest for name, digest in digests.items()}
            with _writing(destination):
                files.commit()
    return replace(conversion, outputs=written)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say which file it is whose tensors are not those of the network."""
    try:
        yield
    except MappingError as error:
        raise error.named(path) from None


def _normalise_digests(sha256: Collection[str]) -> frozenset[str]:
    for digest in sha256:
        if not re.fullmatch("[0-9A-Fa-f]{64}", digest):
            raise UsageError(f"{digest!r} is no SHA-256, which has 64 hexadecimal digits.")
    return frozenset(digest.lower() for digest in sha256)


def _check_source(source: TensorSource, digests: Mapping[str, str], expected: frozenset[str]) -> None:
    """Hold every file of the source to the digests that the user expects."""
    for file in source.files:
        if digests[file.name] not in expected:
            raise SourceError(
                file,
                f"its SHA-256 is {digests[file.name]}, not {' or '.join(sorted(expected))} as expected",
                next_step="Download it again from where the digest is from; every file that is read "
                f"({', '.join(digests)}) needs one",
            )


@dataclass(frozen=True, slots=True)
class _Made:
    """The state_dict in memory, the digests of its tensors in the making, and what was cast for it."""

    state_dict: Mapping[str, NDArray[Any]]
    hashes: Mapping[str, Future[str]]
    casts: Mapping[str, Cast]


def _make(tensors: Mapping[str, NDArray[Any]], plan: Plan, pool: ThreadPoolExecutor, meter: _Meter) -> _Made:
    state_dict: dict[str, NDArray[Any]] = {}
    hashes: dict[str, Future[str]] = {}
    casts: dict[str, Cast] = {}
    for entry in convert_tensors(tensors, plan):
        state_dict[entry.row.key] = entry.array
        hashes[entry.row.key] = pool.submit(tensor_digest, entry.array)
        if isinstance(entry.row, Converted) and entry.cast is not None:
            casts[plan.sources[entry.row.variable]] = entry.cast
        meter.advance(entry.row.entry.nbytes)
    return _Made(state_dict, hashes, casts)


def _hash_and_sync(paths: _Paths, pool: ThreadPoolExecutor) -> dict[str, Future[str]]:
    hashes = {file.name: pool.submit(file_digest, file) for file in paths.files}
    for file in paths.files:
        pool.submit(sync, file)  # the disk is slow: `commit` finds this done
    return hashes


def _describe(
    source: TensorSource,
    digests: Mapping[str, str],
    archive_sha256: str | None,
    plan: Plan,
    made: _Made,
) -> Conversion:
    """The conversion, but for what it will have written."""
    return Conversion(
        source=source.path,
        source_format=source.format,
        source_digests=digests,
        archive_sha256=archive_sha256,
        published=identify(digests),
        namesake=find_namesake(model_name(source), digests),
        plan=plan,
        left_out=plan.left_out + _changed(source, plan),
        casts=made.casts,
        outputs={},
        digests=_results(made.hashes),
    )


def _write_manifest(
    paths: _Paths, target: _Target, conversion: Conversion, digests: Mapping[str, str]
) -> dict[str, str]:
    """Write the manifest of one output; returns the digests of its files and of the manifest."""
    described = describe_source(
        conversion.source,
        conversion.source_format,
        conversion.source_digests,
        conversion.published,
        conversion.archive_sha256,
    )
    manifest = build_manifest(
        described,
        conversion.plan,
        digests,
        target.rows,
        conversion.digests,
        conversion.left_out,
        conversion.casts,
    )
    paths.manifest.write_bytes(manifest)
    return {**digests, paths.manifest.name: file_digest(paths.manifest)}


@dataclass(frozen=True, slots=True)
class _Paths:
    """Where a target is written before it appears: its file or prefix, its files, its manifest."""

    path: Path
    files: tuple[Path, ...]
    manifest: Path


def _results(futures: Mapping[str, Future[str]]) -> dict[str, str]:
    return {name: future.result() for name, future in futures.items()}


class _Meter:
    """Counts bytes towards the sum of several passes over rows: one to make them, one to read each back."""

    def __init__(self, progress: Progress | None, passes: Sequence[Sequence[Row]]) -> None:
        self._progress, self._done = progress, 0
        self._total = sum(row.entry.nbytes for rows in passes for row in rows)

    def advance(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


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


def _targets(plan: Plan, destination: Path, output_format: OutputFormat, parts: bool) -> tuple[_Target, ...]:
    whole = _Target(destination.name, plan.rows)
    if not parts:
        return (whole,)
    if output_format == "tensorflow":
        raise UsageError("--parts splits a state_dict; it does not go with --to tensorflow.")
    if plan.variant.num_classes is None:
        raise UsageError("--parts: this checkpoint has no Logits to write apart. Leave the option out.")
    logits = tuple(row for row in plan.rows if row.key.startswith("logits."))
    features = tuple(row for row in plan.rows if not row.key.startswith("logits."))
    stem, suffix = destination.stem, destination.suffix
    return whole, _Target(f"{stem}-features{suffix}", features), _Target(f"{stem}-logits{suffix}", logits)


def _stage(files: AtomicFiles, target: _Target, output_format: OutputFormat) -> _Paths:
    # In the order in which they appear: a process that is killed in between leaves no manifest without its
    # output, and no index without its data.
    endings = (".data-00000-of-00001", ".index") if output_format == "tensorflow" else ("",)
    outputs = tuple(files.stage(target.name + ending) for ending in endings)
    manifest = files.stage(manifest_path(Path(target.name)).name)
    return _Paths(outputs[0].with_name(target.name), outputs, manifest)


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


def _write(paths: _Paths, part: Mapping[str, NDArray[Any]], plan: Plan, output_format: OutputFormat) -> None:
    if output_format == "tensorflow":
        write_tensor_bundle(paths.path, to_tensorflow(part, variant=plan.variant))
    elif output_format == "safetensors":
        from converter.formats.safetensors import write_safetensors

        write_safetensors(paths.path, part)
    else:
        from converter.formats.torch.state_dict import write_state_dict

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
                to_numpy_state_dict(source) if output_format == "tensorflow" else source
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
    from converter.formats.torch.state_dict import StateDictFile

    return StateDictFile(paths.path, verify=False)


def same_bits(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two arrays have the same dtype, shape and bits: -0.0 differs from 0.0, a NaN equals itself."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits = f"u{one.itemsize}" if one.itemsize in (1, 2, 4, 8) else "u1"
    return np.array_equal(
        np.ascontiguousarray(one).reshape(-1).view(bits), np.ascontiguousarray(other).reshape(-1).view(bits)
    )


def _changed(source: TensorSource, plan: Plan) -> tuple[LeftOut, ...]:
    """Entries of a state_dict that TensorFlow has no place for and that are not what would be synthesised."""
    if source.naming != "pytorch":
        return ()
    counters = (row for row in plan.synthesised if row.dtype == "int64")
    return tuple(
        LeftOut(row.key, f"{count:.15g} batches counted; written as {row.fill}")
        for row in counters
        if (count := float(source[row.key])) != row.fill
    )
