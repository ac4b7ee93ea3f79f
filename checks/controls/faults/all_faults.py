"""All classes of faults, in the order in which they are run."""

from __future__ import annotations

from checks.controls.faults.fault import Fault
from checks.controls.faults.hyperparameters import HYPERPARAMETERS
from checks.controls.faults.layer_map import LAYER_MAP
from checks.controls.faults.preprocessing import PREPROCESSING
from checks.controls.faults.statistics import STATISTICS
from checks.controls.faults.structure import STRUCTURE
from checks.controls.faults.training import TRAINING
from checks.controls.faults.weights import WEIGHTS

ALL_FAULTS: tuple[Fault, ...] = (
    *WEIGHTS,
    *STATISTICS,
    *LAYER_MAP,
    *HYPERPARAMETERS,
    *STRUCTURE,
    *PREPROCESSING,
    *TRAINING,
)
"""Every class of faults."""
