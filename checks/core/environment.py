"""The date, the machine and the versions that a check ran with."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from checks.core.tensorflow_process import tensorflow_version

DATE = "date"
MACHINE = ("platform", "processor", "cores", "threads")
"""The keys of `machine`."""


def environment() -> dict[str, Any]:
    """Describe where and when a check runs.

    Returns:
        `date`, and all that `machine` and `versions` give.
    """
    return {DATE: current_date(), **machine(), **versions()}


def current_date() -> str:
    """The time in UTC, such as 2026-01-31T12:00:00Z.

    The environment variable SOURCE_DATE_EPOCH, in seconds since 1970, replaces the clock
    (https://reproducible-builds.org/specs/source-date-epoch/): two runs then write the same bytes.
    """
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    now = datetime.fromtimestamp(int(fixed), UTC) if fixed.isdigit() else datetime.now(UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")


def machine() -> dict[str, Any]:
    """Describe the machine.

    Returns:
        `platform`: the operating system and the architecture. `processor`: the model of the CPU.
        `cores`: how many this process may use. `threads`: how many PyTorch is set to.
    """
    allowed = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    cores = len(allowed(0)) if allowed else os.cpu_count() or 1
    described = (platform.platform(), _processor(), cores, torch.get_num_threads())
    return dict(zip(MACHINE, described, strict=True))


def describe_device(device: str) -> str:
    """Name a device, with the model of a GPU."""
    return f"cuda ({torch.cuda.get_device_name()})" if device == "cuda" else device


def versions() -> dict[str, str]:
    """The versions of Python, torch and numpy, and of TensorFlow if it has run, here or in its process."""
    result = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    imported = sys.modules.get("tensorflow")
    tensorflow = tensorflow_version() if imported is None else imported.__version__
    if tensorflow is not None:
        result["tensorflow"] = tensorflow
    return result


def _processor() -> str:
    """The model of the CPU, or its architecture if the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()  # Linux; `platform` does not read it
    except OSError:
        lines = []
    for line in lines:
        key, _, model = line.partition(":")
        if key.strip() == "model name":
            return model.strip()
    return platform.processor() or platform.machine()
