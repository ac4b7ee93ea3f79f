"""Names of output files: their defaults, the endings of each format, and the files of an output."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from converter.errors import UsageError
from converter.formats.source import TensorSource
from converter.formats.tensorflow.bundle import TensorBundle
from converter.formats.tensorflow.checkpoint_state import Snapshot
from converter.hub.catalog import BUILT_IN_BY_NAME
from converter.manifest import manifest_path
from converter.mtcnn_layer_map import MtcnnNetwork, Network

OutputFormat = Literal["pt", "safetensors", "tensorflow", "npy"]
"""Formats of outputs; of a network of MTCNN, "npy" is TensorFlow's."""

_MODEL = re.compile(r"model-(?P<name>.+)\.ckpt(-\d+)?")  # the checkpoints of facenet's training scripts
_ENDINGS = {
    ".pt": "pt",
    ".pth": "pt",
    ".bin": "pt",
    ".safetensors": "safetensors",
    ".ckpt": "tensorflow",
    ".npy": "npy",
}
_OF_A_CHECKPOINT = (".index", ".data", ".meta")
_NUMBERED = re.compile(r"(?<=^\.ckpt|^\.data)-\d+(-of-\d+)?$")
_VERSION = re.compile(r"\.v?\d.*")  # of a name such as facenet-1.2 or facenet.v2, which has no ending


def model_name(source: TensorSource) -> str:
    """Read the model's name from the name of its file: `model-NAME.ckpt-STEP` and `NAME.pb` give NAME."""
    name = source.path.name
    match = _MODEL.fullmatch(name)
    if match:
        return match["name"]
    return name if isinstance(source, TensorBundle) else source.path.stem


def default_output(source: TensorSource, output_format: OutputFormat, network: Network) -> Path:
    """Name the output of a conversion: `<model>-<dataset>.pt` in the current folder.

    Only published checkpoints have a known dataset; the name of any other model is `<model>.pt`. Networks of
    MTCNN have the published names, such as pnet.pt and det1.npy.
    """
    if isinstance(network, MtcnnNetwork):
        is_npy = output_format == "npy"
        return Path(network.npy_name if is_npy else f"{network.state_dict_stem}.{output_format}")
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
    """Refuse a file name with the ending of another format, or with one that no output has.

    Raises:
        UsageError: The ending is unknown or contradicts the format.
    """
    suffix = _NUMBERED.sub("", output.suffix.lower())
    if not suffix or _VERSION.fullmatch(suffix):
        return
    if suffix in _OF_A_CHECKPOINT:
        raise UsageError(
            f"{output}: the ending says one file of a checkpoint. Give its prefix, such as {output.stem}, "
            "with --to tensorflow."
        )
    if suffix not in _ENDINGS:
        raise UsageError(
            f"{output}: the converter writes no file that ends in {suffix}. Give a name that ends in .pt, "
            ".pth, .bin or .safetensors, or with --to tensorflow a checkpoint prefix, such as "
            f"{output.stem}.ckpt. A network of MTCNN may end in .npy."
        )
    ending = _ENDINGS[suffix]
    if ending != output_format and (ending, output_format) != ("npy", "tensorflow"):
        advice = (
            "Add --to tensorflow, or change the ending" if ending == "tensorflow" else "Change one of them"
        )
        raise UsageError(f"{output}: the ending says {ending}, but the format is {output_format}. {advice}.")


def check_network(output: Path | None, output_format: OutputFormat, network: Network) -> OutputFormat:
    """Find the format of a network: TensorFlow's is a checkpoint, but .npy for a network of MTCNN.

    Args:
        output: The file that the user named, which `check_ending` has checked; None without one.
        output_format: The format that the user asked for.
        network: The network that is written.

    Raises:
        UsageError: TensorFlow's format of this network is another one.
    """
    if output_format not in ("tensorflow", "npy"):
        return output_format
    is_npy = output_format == "npy" or (output is not None and output.suffix.lower() == ".npy")
    if isinstance(network, MtcnnNetwork):
        if output is not None and not is_npy:
            raise UsageError(
                f"{output}: facenet's detector reads {network} from a .npy file, not a checkpoint. Give a "
                f"name such as {network.npy_name}."
            )
        return "npy"
    if is_npy:
        raise UsageError(
            f"{output or 'npy'}: .npy is the format of MTCNN's networks. For Inception-ResNet-v1 give a "
            "checkpoint prefix, such as model.ckpt-0, with --to tensorflow."
        )
    return output_format


def part_paths(destination: Path) -> tuple[Path, Path]:
    """The paths of a state_dict's two parts: `-features` and `-logits`."""
    stem, suffix = destination.stem, destination.suffix
    features, logits = (destination.with_name(f"{stem}-{part}{suffix}") for part in ("features", "logits"))
    return features, logits


def output_files(destination: Path, output_format: OutputFormat) -> tuple[Path, ...]:
    """The files of one output without its manifest, in the order in which they appear.

    A process that is killed in between leaves no index without its data.
    """
    endings = (".data-00000-of-00001", ".index") if output_format == "tensorflow" else ("",)
    return tuple(destination.with_name(destination.name + ending) for ending in endings)


def check_reserved(outputs: Iterable[Path], output_format: OutputFormat, reserved: Path | None) -> None:
    """Refuse outputs of which a file, or the manifest, is one that the caller is going to write.

    Args:
        outputs: The file of each output, for `tensorflow` its prefix.
        output_format: Their format.
        reserved: The caller's file; None without one.

    Raises:
        UsageError: One of the files is the caller's.
    """
    if reserved is None:
        return
    for output in outputs:
        files = (*output_files(output, output_format), manifest_path(output))
        if reserved.resolve() in {file.resolve() for file in files}:
            raise UsageError(f"{reserved}: the conversion writes this file itself. Give --json another name.")


def _with_dataset(name: str) -> str:
    published = BUILT_IN_BY_NAME.get(name)
    return f"{name}-{published.dataset}" if published else name
