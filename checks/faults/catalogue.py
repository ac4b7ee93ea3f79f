"""All classes of faults, in the order in which they are run."""

from __future__ import annotations

from checks.faults.fault import Fault
from checks.faults.hyperparameters import HYPERPARAMETERS
from checks.faults.layer_map import LAYER_MAP
from checks.faults.preprocessing import PREPROCESSING
from checks.faults.statistics import STATISTICS
from checks.faults.structure import STRUCTURE
from checks.faults.training import TRAINING
from checks.faults.weights import WEIGHTS

CATALOGUE: tuple[Fault, ...] = (
    *WEIGHTS,
    *STATISTICS,
    *LAYER_MAP,
    *HYPERPARAMETERS,
    *STRUCTURE,
    *PREPROCESSING,
    *TRAINING,
)
"""Every class of faults."""
