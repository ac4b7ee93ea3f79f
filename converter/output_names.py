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
_NUMBERED = re.compile(r"(?<=^\.ckpt|^\.data)-\d+(-of-\d+)?$")
_OTHER_FORMATS = {
    ".pb": "a TensorFlow graph",
    ".pbtxt": "a TensorFlow graph",
    ".h5": "Keras",
    ".hdf5": "Keras",
    ".keras": "Keras",
    ".tflite": "TFLite",
    ".onnx": "ONNX",
    ".pt2": "torch.export",
    ".ptl": "TorchScript",
    ".torchscript": "TorchScript",
    ".mlmodel": "Core ML",
    ".mlpackage": "Core ML",
    ".xml": "OpenVINO",
    ".caffemodel": "Caffe",
    ".engine": "TensorRT",
    ".trt": "TensorRT",
    ".msgpack": "Flax",
    ".gguf": "GGUF",
    ".pdparams": "PaddlePaddle",
    ".mat": "MATLAB",
    ".joblib": "pickle",
    ".npz": "NumPy",
    ".pkl": "pickle",
    ".pickle": "pickle",
    ".zip": "an archive",
    ".gz": "an archive",
    ".json": "JSON",
}
"""The endings of formats that the converter does not write, and their names in messages."""


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
    """Refuse a file name with the ending of another format.

    Raises:
        UsageError: The ending contradicts the format.
    """
    suffix = _NUMBERED.sub("", output.suffix.lower())
    if suffix in (".index", ".data", ".meta"):
        raise UsageError(
            f"{output}: the ending says one file of a checkpoint. Give its prefix, such as {output.stem}, "
            "with --to tensorflow."
        )
    if suffix in _OTHER_FORMATS:
        raise UsageError(
            f"{output}: the ending says {_OTHER_FORMATS[suffix]}, which the converter does not write. Give a "
            "name that ends in .pt or .safetensors, or with --to tensorflow a checkpoint prefix."
        )
    ending = _ENDINGS.get(suffix, output_format)
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


def _with_dataset(name: str) -> str:
    published = BUILT_IN_BY_NAME.get(name)
    return f"{name}-{published.dataset}" if published else name
