"""Conversion of one file: open, plan, convert, write, read back and compare; only then does a file appear."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from converter.atomic import AtomicFiles
from converter.broken_values import NEXT_STEP, BrokenValues, count_broken_values, state_broken_values
from converter.casting import Cast, state_casts
from converter.convert import convert_tensors, names_in_file, plan_tensors
from converter.errors import SourceError, UsageError
from converter.formats.detect import open_source
from converter.formats.source import Naming, TensorSource
from converter.formats.tensorflow.bundle import TensorBundle
from converter.hub.identify import find_namesake, identify
from converter.hub.locate import LocalModel, find_model
from converter.layer_map import ConvertedRow, Row
from converter.manifest import file_digest, stated_standardisation, tensor_digest
from converter.mtcnn_layer_map import MtcnnNetwork
from converter.network_names import NetworkTensors, check_ignore
from converter.output_names import (
    OutputFormat,
    check_ending,
    check_network,
    check_reserved,
    default_output,
    model_name,
    part_paths,
)
from converter.plan import LeftOut, Plan, Weights
from converter.write_output import Output, explain_write_errors

Progress = Callable[[int, int], None]
"""Called with the bytes that are done and the bytes of the whole work."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """Result of a conversion.

    Attributes:
        source: The file, folder or prefix that was opened.
        source_format: Its format, for people.
        source_naming: The kind of its names; with `output_format` it tells the direction.
        output_format: The format of the outputs.
        source_key: The entry of a training file that the tensors are from; empty without one.
        prefix: The prefix that was taken off the source's names; empty without one.
        names: A sentence for everything that was done to find the tensors in the source.
        notes: Those of them on what the source leaves open.
        source_digests: Name of each file read to its SHA-256.
        model: The published model whose files they are, if the source was given by its name.
        published: Name of the published checkpoint with the same digests, or None.
        namesake: Name of the published checkpoint with the same name but other digests; None if there is
            none, or its digests are not known.
        plan: The plan that was carried out.
        standardisation: The standardisation of images that the caller or the source's own manifest states;
            None for that of the model.
        names_in_file: Variable to the name of its tensor in the source.
        absent: Keys of the network that a state_dict may lack, and this source does.
        left_out: Every source tensor that is not in the output, with the reason.
        casts: Name in the source of each tensor that was cast to float32 to the effect of the cast.
        broken: Name in the source of each tensor with values that no network computes with to their numbers.
        outputs: Every file written, manifests included, to its SHA-256.
        digests: state_dict key to the SHA-256 of the PyTorch tensor.
    """

    source: Path
    source_format: str
    source_naming: Naming
    output_format: OutputFormat
    source_key: str
    prefix: str
    names: tuple[str, ...]
    notes: tuple[str, ...]
    source_digests: Mapping[str, str]
    model: LocalModel | None
    published: str | None
    namesake: str | None
    plan: Plan
    standardisation: str | None
    names_in_file: Mapping[str, str]
    absent: frozenset[str]
    left_out: tuple[LeftOut, ...]
    casts: Mapping[str, Cast]
    broken: Mapping[str, BrokenValues]
    outputs: Mapping[Path, str]
    digests: Mapping[str, str]

    @property
    def cast_statements(self) -> tuple[str, ...]:
        """A sentence for each dtype that was cast to float32: how many tensors, and what changed."""
        return state_casts(self.casts)

    @property
    def warning(self) -> str:
        """A sentence on the source's broken values and one on the next step; empty without such values."""
        if not self.broken:
            return ""
        return f"{self.source}: {state_broken_values(self.broken, len(self.plan.sources))}. {NEXT_STEP}."


def convert_file(
    path: Path | str,
    output: Path | str | None = None,
    *,
    output_format: OutputFormat = "pt",
    parts: bool = False,
    weights: Weights = "variable",
    step: int | None = None,
    sha256: Collection[str] = (),
    model: LocalModel | None = None,
    ignore: Sequence[str] = (),
    strict: bool = False,
    standardisation: str | None = None,
    overwrite: bool = False,
    reserved: Path | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a checkpoint and write the result with a manifest beside it; an error leaves no file behind.

    Args:
        path: Anything that `open_source` takes, or the name of a published model.
        output: The file to write, for `tensorflow` the checkpoint prefix; None takes `default_output`.
        output_format: A state_dict of PyTorch or safetensors, or TensorFlow's checkpoint; of MTCNN its .npy.
        parts: Also write the state_dict in two parts, `-features` and `-logits`.
        weights: As in `plan_conversion`.
        step: As in `open_source`.
        sha256: The expected SHA-256 of each file of the source, in hexadecimal; empty expects nothing.
        model: The published model that `path` belongs to, for the manifest; found if `path` is a name.
        ignore: Shell patterns of tensors of the source to leave out.
        strict: Whether to refuse a source with values that are not finite, or with negative variances.
        standardisation: The standardisation of the images of the source, `FIXED` or `PER_IMAGE` of
            `converter.hub.catalog_entry`, for the manifest. None takes that of the model, or that in the
            manifest of a source that was converted or trained before.
        overwrite: Whether to replace existing files.
        reserved: A file that the caller is going to write; no output may take its name.
        progress: Progress callback.

    Raises:
        SourceError: The source is unreadable or corrupt, a SHA-256 is not expected, or `strict` refuses it.
        MappingError: The source is not this network, or a value of it is beyond float32.
        UsageError: An output exists or has no folder, an option does not fit, or the source has two networks.
        RequirementError: An output cannot be written, for example because the disk is full.
        DifferenceError: An output reads back different from what was written.
    """
    expected = _check_options(output, output_format, sha256)
    if model is None and (model := find_model(path)) is not None:
        path = model.path
    with open_source(path, step=step) as source, ThreadPoolExecutor(2) as pool:  # the pool computes digests
        source_hashes = {file.name: pool.submit(file_digest, file) for file in source.files}
        named, tensors, plan = _plan(source, weights, ignore)
        output_format, rows_of = _plan_outputs(source, plan, output, output_format, parts, reserved)
        meter = _Meter(progress, [plan.rows, *rows_of.values()])
        with AtomicFiles(next(iter(rows_of)).parent, overwrite=overwrite) as files:
            outputs = [Output(path, rows, output_format, files) for path, rows in rows_of.items()]
            converted = _convert(named, tensors, plan, pool, meter)
            _check_source(source, plan, source_hashes, expected, converted.broken if strict else {})
            for part in outputs:
                part.write(converted.state_dict, plan.network, pool)
                part.read_back(converted.state_dict, meter.advance)
            result = _describe(named, source_hashes, model, output_format, plan, converted, standardisation)
            written = [part.write_manifest(result) for part in outputs]
            with explain_write_errors(outputs[0].destination):
                files.commit()
    return replace(result, outputs={path: digest for digests in written for path, digest in digests.items()})


def _plan_outputs(
    source: TensorSource,
    plan: Plan,
    output: Path | str | None,
    output_format: OutputFormat,
    parts: bool,
    reserved: Path | None,
) -> tuple[OutputFormat, dict[Path, tuple[Row, ...]]]:
    """Plan the format and the outputs: the path of each, the whole first, to its rows of the layer map."""
    output_format = check_network(None if output is None else Path(output), output_format, plan.network)
    destination = default_output(source, output_format, plan.network) if output is None else Path(output)
    if output is None and destination.resolve() in {file.resolve() for file in source.files}:
        raise UsageError(f"{destination} is the source itself. Give another name with -o.")
    rows_of = _split(plan, destination, output_format, parts)
    check_reserved(rows_of, output_format, reserved)
    return output_format, rows_of


def _plan(
    source: TensorSource, weights: Weights, ignore: Sequence[str]
) -> tuple[NetworkTensors, Mapping[str, NDArray[Any]], Plan]:
    named = NetworkTensors(source, ignore)
    check_ignore(ignore, named)
    return named, *plan_tensors(named, weights, views=True)


def _check_options(
    output: Path | str | None, output_format: OutputFormat, sha256: Collection[str]
) -> frozenset[str]:
    """Check the options that need no source; returns the expected digests in lower case."""
    if output is not None:
        check_ending(Path(output), output_format)
    for digest in sha256:
        if not re.fullmatch("[0-9A-Fa-f]{64}", digest):
            raise UsageError(f"{digest!r} is not a SHA-256, which has 64 hexadecimal digits.")
    return frozenset(digest.lower() for digest in sha256)


def _split(
    plan: Plan, destination: Path, output_format: OutputFormat, parts: bool
) -> dict[Path, tuple[Row, ...]]:
    """Path of each output to the rows of the layer map that go into it."""
    if not parts:
        return {destination: plan.rows}
    if output_format in ("tensorflow", "npy"):
        raise UsageError("--parts splits a state_dict; it does not go with --to tensorflow.")
    if isinstance(plan.network, MtcnnNetwork) or plan.network.num_classes is None:
        raise UsageError("--parts needs a source with logits, and this one has none. Leave the option out.")
    features, logits = part_paths(destination)
    return {
        destination: plan.rows,
        features: tuple(row for row in plan.rows if not row.key.startswith("logits.")),
        logits: tuple(row for row in plan.rows if row.key.startswith("logits.")),
    }


def _check_source(
    source: TensorSource,
    plan: Plan,
    hashes: Mapping[str, Future[str]],
    expected: frozenset[str],
    refused: Mapping[str, BrokenValues],
) -> None:
    """Check the source's digests against those that the user expects, if any, and refuse broken values."""
    digests = _results(hashes) if expected else {}
    for file in source.files if expected else ():
        if digests[file.name] not in expected:
            raise SourceError(
                file,
                f"its SHA-256 is {digests[file.name]}, not {' or '.join(sorted(expected))} as expected",
                next_step="Download it again from where the digest is from; every file that is read "
                f"({', '.join(digests)}) needs one",
            )
    if refused:
        problem = state_broken_values(refused, len(plan.sources))
        raise SourceError(source.path, problem, next_step=NEXT_STEP)


@dataclass(frozen=True, slots=True)
class _Converted:
    """The state_dict in memory, the digests of its tensors, which threads compute; casts, broken values."""

    state_dict: Mapping[str, NDArray[Any]]
    names: Mapping[str, str]
    hashes: Mapping[str, Future[str]]
    casts: Mapping[str, Cast]
    broken: Mapping[str, BrokenValues]


def _convert(
    named: NetworkTensors,
    tensors: Mapping[str, NDArray[Any]],
    plan: Plan,
    pool: ThreadPoolExecutor,
    meter: _Meter,
) -> _Converted:
    names = names_in_file(named, plan)
    state_dict: dict[str, NDArray[Any]] = {}
    hashes: dict[str, Future[str]] = {}
    casts: dict[str, Cast] = {}
    broken: dict[str, BrokenValues] = {}
    with named.naming_errors():
        for tensor in convert_tensors(tensors, plan):
            row = tensor.row
            state_dict[row.key] = tensor.array
            hashes[row.key] = pool.submit(tensor_digest, tensor.array)
            if isinstance(row, ConvertedRow):
                name = names[row.variable]
                if tensor.cast is not None:
                    casts[name] = tensor.cast
                if (values := count_broken_values(row, tensor.array)) is not None:
                    broken[name] = values
            meter.advance(tensor.array.nbytes)
    if isinstance(named.source, TensorBundle):
        named.source.release()
    return _Converted(state_dict, names, hashes, casts, broken)


def _describe(
    source: NetworkTensors,
    source_hashes: Mapping[str, Future[str]],
    model: LocalModel | None,
    output_format: OutputFormat,
    plan: Plan,
    converted: _Converted,
    standardisation: str | None,
) -> Conversion:
    """The result without its outputs."""
    digests = _results(source_hashes)
    is_state_dict = source.naming == "pytorch"
    return Conversion(
        source=source.path,
        source_format=source.format,
        source_naming=source.naming,
        output_format=output_format,
        source_key=source.key,
        prefix=source.prefix,
        names=source.statements,
        notes=source.notes,
        source_digests=digests,
        model=model,
        published=identify(digests),
        namesake=find_namesake(model_name(source), digests),
        plan=plan,
        standardisation=standardisation or stated_standardisation(source.path, digests),
        names_in_file=converted.names,
        absent=frozenset(row.key for row in plan.rows if is_state_dict and row.key not in source),
        left_out=_left_out(source, plan),
        casts=converted.casts,
        broken=converted.broken,
        outputs={},
        digests=_results(converted.hashes),
    )


def _left_out(source: NetworkTensors, plan: Plan) -> tuple[LeftOut, ...]:
    """List every tensor of the source that is not in the output, under the source's names."""
    planned = (LeftOut(source.original(item.name), item.reason) for item in plan.left_out)
    ignored = (LeftOut(name, f"--ignore {pattern!r}") for name, pattern in source.ignored.items())
    return (*planned, *ignored, *_batch_counts(source, plan))


def _batch_counts(source: NetworkTensors, plan: Plan) -> tuple[LeftOut, ...]:
    """List the batch counters of a state_dict that are not zero; TensorFlow has no variables for them."""
    if source.naming != "pytorch":
        return ()
    counters = (row for row in plan.synthesised if row.dtype == "int64" and row.key in source)
    return tuple(
        LeftOut(
            source.original(row.key),
            f"{count:.15g} {'batch' if count == 1 else 'batches'} counted; written as {row.fill}",
        )
        for row in counters
        if (count := float(source[row.key])) != row.fill
    )


def _results(futures: Mapping[str, Future[str]]) -> dict[str, str]:
    return {name: future.result() for name, future in futures.items()}


class _Meter:
    """Counts the bytes of several passes over rows: one to convert, and one to read back each output."""

    def __init__(self, progress: Progress | None, passes: Sequence[Sequence[Row]]) -> None:
        self._progress, self._done = progress, 0
        self._total = sum(row.info.nbytes for rows in passes for row in rows)

    def advance(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)
