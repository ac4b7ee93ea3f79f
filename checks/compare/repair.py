"""Corrects the tensors that a diagnosis finds wrong, and writes the state_dict."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from checks.core.network import short_name
from checks.core.types import Array, Arrays
from checks.diagnosis.result import Diagnosis
from converter.atomic import AtomicFiles
from converter.errors import DifferenceError, RequirementError, UsageError
from converter.formats.detect import open_source
from converter.formats.safetensors import write_safetensors
from converter.formats.torch.state_dict import write_state_dict
from converter.same_bits import same_bits

_ENDINGS = (".pt", ".pth", ".safetensors")


def check_output(path: Path) -> None:
    """Refuse a path that cannot be written, before the long work starts.

    Raises:
        UsageError: It exists, its folder does not, or its suffix is not that of a state_dict.
    """
    if path.exists():
        raise UsageError(f"{path} exists. Give another name to --repair.")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}. Create it first.")
    if path.suffix not in _ENDINGS:
        raise UsageError(f"{path}: --repair writes {', '.join(_ENDINGS)}. Give one of these endings.")


def correct_tensors(arrays: Arrays, diagnosis: Diagnosis) -> dict[str, Array] | str:
    """Put the corrected tensors of a diagnosis into the state_dict; if there are none, say why."""
    faults = [finding for finding in diagnosis.findings if finding.in_weights]
    if not faults:
        return "no cause was found in the weights"
    lost = [finding for finding in faults if not finding.repair]
    if lost:
        others = f", and {len(lost) - 1} more" if len(lost) > 1 else ""
        return (
            f"the source's tensors do not make {short_name(lost[0].activation)} agree "
            f"({lost[0].statement}){others}"
        )
    return {key: diagnosis.repair.get(key, array) for key, array in arrays.items()}


def write_state_dict_file(path: Path, arrays: Arrays) -> None:
    """Write a state_dict, read it back and compare it bit for bit before it appears.

    Raises:
        UsageError: The file has appeared in the meantime.
        RequirementError: It cannot be written, for example because the disk is full.
        DifferenceError: The file reads back different.
    """
    with AtomicFiles(path.parent, overwrite=False) as files:
        hidden = files.stage(path.name)
        try:
            if path.suffix == ".safetensors":
                write_safetensors(hidden, arrays)
            else:
                with hidden.open("wb") as file:
                    write_state_dict(file, arrays)
        except OSError as error:
            raise RequirementError(
                f"{path}: cannot be written ({error.strerror or error}). Make room on the disk, or give "
                "another name to --repair."
            ) from error
        with open_source(hidden) as again:
            if set(again) != set(arrays) or not all(
                same_bits(np.asarray(again[key]), array) for key, array in arrays.items()
            ):
                raise DifferenceError(
                    f"{path}: the file reads back different from what was written, and was removed. The disk "
                    "or the memory may be failing."
                )
        files.commit()
