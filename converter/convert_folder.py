"""Conversion of several networks: every checkpoint of a training folder, or those of a published model."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from converter.convert_file import Conversion, Progress, convert_file
from converter.errors import PortError, RequirementError, SourceError, UsageError
from converter.formats.tensorflow.checkpoint_state import Snapshot, choose_model, find_snapshots, find_state
from converter.hub.locate import LocalModel
from converter.manifest import manifest_path
from converter.mtcnn_layer_map import NETWORKS, MtcnnNetwork
from converter.output_names import OutputFormat, check_reserved, step_output
from converter.plan import Weights

MOST_JOBS = 8
"""Default limit on conversions at a time; eight of a published checkpoint take some 2 GB of memory."""

_WHOLE = 1000  # units of progress for each checkpoint


@dataclass(frozen=True, slots=True)
class StepConversion:
    """Result for a checkpoint of the folder; either `conversion` or `error` is None.

    Attributes:
        snapshot: The checkpoint.
        output: The file to write, for `tensorflow` the prefix.
        conversion: The result of the conversion.
        error: The reason for a failure, which writes no file.
    """

    snapshot: Snapshot
    output: Path
    conversion: Conversion | None
    error: PortError | None


@dataclass(frozen=True, slots=True)
class FolderConversion:
    """Result for a whole folder.

    Attributes:
        steps: A result for each checkpoint, in ascending order of steps.
    """

    steps: tuple[StepConversion, ...]

    @property
    def failed(self) -> tuple[StepConversion, ...]:
        """Checkpoints that were not converted."""
        return tuple(step for step in self.steps if step.error is not None)

    @property
    def exit_code(self) -> int:
        """0 if all were converted, otherwise the highest exit code of the errors."""
        return max((step.error.exit_code for step in self.steps if step.error is not None), default=0)


def convert_folder(
    folder: Path | str,
    output_folder: Path | str,
    *,
    jobs: int | None = None,
    output_format: OutputFormat = "pt",
    weights: Weights = "variable",
    ignore: Sequence[str] = (),
    strict: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> FolderConversion:
    """Convert every checkpoint of a training folder; an interruption leaves each output whole or absent.

    The name of an output has the step at its end: `<model>-<step>.pt`, for a published model
    `<model>-<dataset>-<step>.pt`, for a checkpoint `model-<model>.ckpt-<step>`. If a checkpoint fails, the
    others are still converted. Threads convert several at a time; each takes about 2.2 times the memory of
    its checkpoint.

    Args:
        folder: A folder with the checkpoints of one model, or of several if its `checkpoint` file names one.
        output_folder: Folder for the outputs.
        jobs: Number of conversions at a time. None takes one for every two processors, at least two and at
            most `MOST_JOBS`, because a conversion keeps about two processors busy.
        output_format: As in `convert_file`.
        weights: As in `plan_conversion`.
        ignore: As in `convert_file`.
        strict: As in `convert_file`.
        overwrite: Whether to replace existing files. Otherwise their checkpoints fail.
        progress: Progress callback; called from several threads, one at a time.

    Raises:
        UsageError: A folder does not exist, `folder` holds several models, or `jobs` is below one.
        SourceError: `folder` holds no checkpoint, or its `checkpoint` file is damaged.
    """
    folder, output_folder = Path(folder), Path(output_folder)
    if jobs is not None and jobs < 1:
        raise UsageError(f"jobs is {jobs}; give 1 or more.")
    outputs = plan_folder(folder, output_folder, output_format)
    meter = _Meter(progress, len(outputs))
    convert = partial(
        convert_file,
        output_format=output_format,
        weights=weights,
        ignore=ignore,
        strict=strict,
        overwrite=overwrite,
    )
    # Reading a state_dict back silences warnings for a moment, and threads could leave them silenced.
    with warnings.catch_warnings(), ThreadPoolExecutor(jobs or _default_jobs()) as pool:
        futures = []
        for number, (snapshot, output) in enumerate(outputs.items()):
            advance = partial(meter.advance, number)
            futures.append(pool.submit(_convert_step, convert, snapshot, output, advance))
        _wait(futures, meter, pool)
    return FolderConversion(tuple(future.result() for future in futures))


def convert_networks(
    model: LocalModel,
    output_folder: Path | str = Path(),
    *,
    output_format: OutputFormat = "pt",
    weights: Weights = "variable",
    strict: bool = False,
    overwrite: bool = False,
    reserved: Path | None = None,
) -> tuple[Conversion, ...]:
    """Convert each network of a published model under its published name: det1.npy becomes pnet.pt.

    Args:
        model: MTCNN, as `hub.locate.find_model("mtcnn")` gives it.
        output_folder: Folder for the outputs.
        output_format: "pt" or "safetensors".
        weights: As in `plan_conversion`.
        strict: As in `convert_file`.
        overwrite: Whether to replace existing files.
        reserved: As in `convert_file`.

    Raises:
        UsageError: The folder does not exist, a file in it does, or the format is TensorFlow's.
        SourceError, MappingError, RequirementError, DifferenceError: As for `convert_file`.
    """
    folder = Path(output_folder)
    _check_folder(folder, "Give a folder for the outputs.")
    if output_format in ("tensorflow", "npy"):
        raise UsageError(f"The files of {model.entry.name} are TensorFlow's own: {model.path}.")
    names = {network.npy_name: network.state_dict_stem for network in map(MtcnnNetwork, NETWORKS)}
    outputs = {name: folder / f"{names[name]}.{output_format}" for name in model.entry.networks}
    check_reserved(outputs.values(), output_format, reserved)
    for output in outputs.values():
        for path in (output, manifest_path(output)):
            if path.exists() and not overwrite:  # before the first is written
                raise UsageError(f"{path} exists. Give another folder, or --overwrite to replace it.")
    return tuple(
        convert_file(
            model.files[name],
            output,
            output_format=output_format,
            weights=weights,
            model=model,
            strict=strict,
            overwrite=overwrite,
        )
        for name, output in outputs.items()
    )


def plan_folder(folder: Path, output_folder: Path, output_format: OutputFormat) -> dict[Snapshot, Path]:
    """Map each checkpoint of a folder to the file that `convert_folder` writes, in ascending order of steps.

    Args and errors are those of `convert_folder`.
    """
    _check_folder(output_folder, "Give a folder for the outputs.")
    return {
        snapshot: output_folder / step_output(snapshot, output_format) for snapshot in _find_snapshots(folder)
    }


def _wait(futures: Sequence[Future[StepConversion]], meter: _Meter, pool: ThreadPoolExecutor) -> None:
    """Wait for every conversion; an error or an interruption ends the others."""
    try:
        for future in as_completed(futures):
            future.result()
    except BaseException:
        meter.stop()
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _convert_step(
    convert: Callable[..., Conversion], snapshot: Snapshot, output: Path, progress: Progress
) -> StepConversion:
    """Convert one checkpoint; the result has the error if there is one."""
    try:
        conversion = convert(snapshot.path, output, progress=progress)
    except PortError as error:
        return StepConversion(snapshot, output, None, error)
    except OSError as error:
        return StepConversion(snapshot, output, None, RequirementError(f"{output}: {error}"))
    return StepConversion(snapshot, output, conversion, None)


def _check_folder(folder: Path, next_step: str) -> None:
    if not folder.is_dir():
        what = "this is a file" if folder.exists() else "there is no such folder"
        raise UsageError(f"{folder}: {what}. {next_step}")


def _find_snapshots(folder: Path) -> tuple[Snapshot, ...]:
    _check_folder(folder, "Give the folder that holds the checkpoints.")
    try:
        snapshots = find_snapshots(folder)
        if not snapshots:
            raise SourceError(
                folder,
                "no checkpoint in this folder",
                next_step="Give the folder that holds the .index and .data files",
            )
        return choose_model(snapshots, folder, state=find_state(folder))
    except OSError as error:
        raise SourceError(folder, f"cannot be read ({error.strerror or error})") from error


def _default_jobs() -> int:
    return min(MOST_JOBS, max(2, (os.cpu_count() or 1) // 2))


class _Meter:
    """Adds up the progress of several conversions, each reported by its own thread."""

    def __init__(self, progress: Progress | None, count: int) -> None:
        self._progress = progress
        self._parts = [0] * count
        self._lock = threading.Lock()
        self._stopped = False

    def advance(self, number: int, done: int, total: int) -> None:
        """Record the progress of one conversion, or end it after `stop`."""
        with self._lock:
            if self._stopped:
                raise CancelledError
            part = _WHOLE * done // total
            if part != self._parts[number]:
                self._parts[number] = part
                if self._progress is not None:
                    self._progress(sum(self._parts), _WHOLE * len(self._parts))

    def stop(self) -> None:
        """End every conversion at its next step, which removes the files that it has begun."""
        self._stopped = True
