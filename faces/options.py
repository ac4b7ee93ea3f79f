"""The command-line options that the commands on photographs share: of the detector, network and device."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

from checks.core.options import add_device_option
from converter import command_line
from converter.errors import RequirementError

if TYPE_CHECKING:
    from faces.crops import CropMethod
    from faces.embedder import Embedder
    from faces.model import ModelFacts

SMALLEST_FACE = 20
"""Side of the smallest face that the detector looks for, in pixels. This and the next two are facenet's."""
THRESHOLDS = (0.6, 0.7, 0.7)
"""Probability of a face that P-Net, R-Net and O-Net ask for."""
FACTOR = 0.709
"""Ratio of two scales of the detector's pyramid that follow each other."""
DEFAULT_MODEL = "20170512-110547"
"""The published model that is taken if none is named: a package index serves it."""
MANY_IMAGES = 5000
"""Images for which the default of --backend exports the network: it then saves the time that this takes."""
MANY_PHOTOGRAPHS = 500
"""Photographs for which it exports the detector: its files take 3 s once, and save 2 to 6 ms a photograph."""


def add_detector_options(parser: argparse.ArgumentParser) -> None:
    """Add --smallest-face, --thresholds, --factor, --device and --offline."""
    parser.add_argument(
        "--smallest-face",
        metavar="PIXELS",
        type=_pixels,
        default=SMALLEST_FACE,
        help=f"side of the smallest face to look for (default: {SMALLEST_FACE})",
    )
    parser.add_argument(
        "--thresholds",
        metavar=("P", "R", "O"),
        nargs=3,
        type=_probability,
        default=THRESHOLDS,
        help="probability of a face that P-Net, R-Net and O-Net ask for "
        f"(default: {' '.join(map(str, THRESHOLDS))})",
    )
    parser.add_argument(
        "--factor",
        type=_factor,
        default=FACTOR,
        help=f"ratio of two scales of the pyramid; nearer to 1 is slower and finds more (default: {FACTOR})",
    )
    add_device_option(parser)
    parser.add_argument("--offline", action="store_true", help="never use the network")


def add_crop_option(parser: argparse.ArgumentParser) -> None:
    """Add --crop."""
    parser.add_argument(
        "--crop",
        choices=("scaled", "facenet"),
        default="scaled",
        help="scaled (default): the largest face with a margin of 0.2 of its box, 160x160 pixels; facenet: "
        "the original's crop, pixel by pixel, 182x182",
    )


def add_standardise_option(parser: argparse.ArgumentParser) -> None:
    """Add --standardise."""
    parser.add_argument(
        "--standardise",
        dest="standardisation",
        choices=("fixed", "per-image"),
        help="the standardisation of the images (default: the model's own, by the catalog or its manifest)",
    )


def add_embedder_options(parser: argparse.ArgumentParser, model: str = DEFAULT_MODEL) -> None:
    """Add --model, --standardise, --crop, --backend and the detector's options, which `make_embedder` takes.

    Args:
        parser: The command's parser.
        model: What is taken without --model, in words.
    """
    parser.add_argument(
        "--model",
        metavar="NAME|FILE",
        help="a published model, or a state_dict, a TensorFlow file, or an exported .onnx or .tflite "
        f"(default: {model})",
    )
    add_standardise_option(parser)
    add_crop_option(parser)
    add_backend_option(parser)
    add_detector_options(parser)


def add_backend_option(parser: argparse.ArgumentParser) -> None:
    """Add --backend."""
    parser.add_argument(
        "--backend",
        choices=("torch", "onnxruntime", "litert"),
        help="what runs the network and the detector; the others are checked against torch. onnxruntime and "
        "litert run exported files, which are made once, audited and kept in the cache. Those of litert need "
        "TensorFlow to be made, the detector's too if there are photographs (default: onnxruntime, if it is "
        f"installed, where its files are in the cache, for the network also with {MANY_IMAGES:,} images or "
        f"more, and for the detector with {MANY_PHOTOGRAPHS} or more; otherwise torch)",
    )


def add_detector_backend_option(parser: argparse.ArgumentParser) -> None:
    """Add --backend of the detector."""
    parser.add_argument(
        "--backend",
        choices=("torch", "onnxruntime", "litert"),
        help="what runs the detector's networks; onnxruntime and litert run exported files, which are made "
        "once, those of litert with TensorFlow, audited, checked against torch and kept in the cache. Their "
        "boxes differ from torch's by float32 rounding (default: onnxruntime, if it is installed, once its "
        f"files are in the cache or for {MANY_PHOTOGRAPHS} photographs or more; otherwise torch)",
    )


def add_threshold_option(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --threshold.

    Args:
        parser: The command's parser.
        default: What is taken without it.
    """
    parser.add_argument(
        "--threshold",
        metavar="FILE.json",
        type=command_line.path,
        help="the threshold that `facenet-port evaluate --json FILE.json` measured with this model "
        f"(default: {default})",
    )


def print_no_threshold(arguments: argparse.Namespace, network: ModelFacts, crop: CropMethod) -> None:
    """Print on stderr that no threshold is known, and how to measure one."""
    from faces.threshold import explain_no_threshold

    command_line.print_error(f"{arguments.program}: {explain_no_threshold(network, crop)}")


def make_embedder(arguments: argparse.Namespace) -> Embedder:
    """Make the embedder that the options of `add_embedder_options` describe.

    Raises:
        RequirementError: As for `Embedder`.
    """
    from faces.embedder import Embedder  # with PyTorch, which takes seconds

    return Embedder(
        arguments.model,
        standardisation=arguments.standardisation,
        crop=arguments.crop,
        device=arguments.device,
        backend=getattr(arguments, "backend", None),
        smallest_face=arguments.smallest_face,
        thresholds=tuple(arguments.thresholds),
        factor=arguments.factor,
        offline=arguments.offline,
    )


def require_packages(command: str, **packages: str) -> None:
    """Refuse to start without packages of the extra `faces`.

    Args:
        command: The command that needs them.
        packages: Module to the name of its package.

    Raises:
        RequirementError: Some are not installed.
    """
    missing = [name for module, name in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise RequirementError(
            f"{command} needs {' and '.join(missing)}, not installed here: pip install 'facenet-port[faces]'."
        )


def positive_number(text: str) -> int:
    """Parse an argument that is a whole number, 1 or above."""
    number = command_line.natural_number(text)
    if number == 0:
        raise argparse.ArgumentTypeError("give 1 or more")
    return number


def _pixels(text: str) -> float:
    return _number(text, lambda value: 1 <= value < float("inf"), "a number of pixels from 1 on")


def _probability(text: str) -> float:
    return _number(text, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def _factor(text: str) -> float:
    return _number(text, lambda value: 0 < value < 1, "a number between 0 and 1")


def _number(text: str, accepts: Callable[[float], bool], description: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not accepts(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {description}")
    return value
