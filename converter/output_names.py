"""Names of output files: their defaults, and the endings of each format."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from converter.errors import UsageError
from converter.formats.source import TensorSource
from converter.formats.tensorflow.bundle import TensorBundle
from converter.formats.tensorflow.checkpoint_state import Snapshot
from converter.hub.catalog import BUILT_IN_BY_NAME

OutputFormat = Literal["pt", "safetensors", "tensorflow"]

_MODEL = re.compile(r"model-(?P<name>.+)\.ckpt(-\d+)?")  # the checkpoints of facenet's training scripts
_ENDINGS = {
    ".pt": "pt",
    ".pth": "pt",
    ".safetensors": "safetensors",
    ".index": "a prefix",
    ".meta": "a prefix",
}


def model_name(source: TensorSource) -> str:
    """Read the model's name from the name of its file: `model-NAME.ckpt-STEP` and `NAME.pb` give NAME."""
    name = source.path.name
    match = _MODEL.fullmatch(name)
    if match:
        return match["name"]
    return name if isinstance(source, TensorBundle) else source.path.stem


def default_output(source: TensorSource, output_format: OutputFormat) -> Path:
    """Name the output of a conversion: `<model>-<dataset>.pt` in the current folder.

    Only published checkpoints have a known dataset; the name of any other model is `<model>.pt`.
    """
    name = model_name(source)
    if output_format == "tensorflow":
        return Path(f"model-{name}.ckpt-0")
    return Path(f"{_with_dataset(name)}.{output_format}")


def step_output(snapshot: Snapshot, output_format: OutputFormat) -> Path:
    """Name the output for a checkpoint of a training folder: `<model>-<dataset>-<step>.pt`."""
    match = _MODEL.fullmatch(snapshot.model)
    name = match["name"] if match else snapshot.model
    step = "" if snapshot.step is None else f"-{snapshot.step}"
    if output_format == "tensorflow":
        return Path(f"model-{name}.ckpt{step}")
    return Path(f"{_with_dataset(name)}{step}.{output_format}")


def check_ending(output: Path, output_format: OutputFormat) -> None:
    """Refuse a file name with the ending of another format.

    Raises:
        UsageError: The ending contradicts the format.
    """
    ending = _ENDINGS.get(output.suffix, output_format)
    if ending != output_format:
        raise UsageError(
            f"{output}: the ending says {ending}, but the format is {output_format}. Change one of them."
        )


def _with_dataset(name: str) -> str:
    published = BUILT_IN_BY_NAME.get(name)
    return f"{name}-{published.dataset}" if published else name
