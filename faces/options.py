"""The command-line options that the commands on photographs share: the detector's, and --device."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from converter.errors import RequirementError

SMALLEST_FACE = 20
"""Side of the smallest face that the detector looks for, in pixels. This and the next two are facenet's."""
THRESHOLDS = (0.6, 0.7, 0.7)
"""Probability of a face that P-Net, R-Net and O-Net ask for."""
FACTOR = 0.709
"""Ratio of two scales of the detector's pyramid that follow each other."""

_DEVICES = ("cpu", "cuda", "mps")


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


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument(
        "--device",
        choices=_DEVICES,
        default="cpu",
        help="where the networks run (default: cpu)",
    )


def check_device(device: str) -> None:
    """Refuse a device that PyTorch cannot use here.

    Raises:
        RequirementError: It cannot.
    """
    import torch

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[device]:
        usable = " or ".join(name for name, is_available in available.items() if is_available)
        raise RequirementError(f"--device {device}: PyTorch finds no such device here. Give {usable}.")


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
