"""All classes of faults, in the order in which they are run."""

from __future__ import annotations

from checks.controls.faults.batch_norm_faults import STATISTICS
from checks.controls.faults.fault import Fault
from checks.controls.faults.kernel_faults import WEIGHTS
from checks.controls.faults.layer_faults import HYPERPARAMETERS
from checks.controls.faults.layer_map_faults import LAYER_MAP
from checks.controls.faults.preprocessing_faults import PREPROCESSING
from checks.controls.faults.structure_faults import STRUCTURE
from checks.controls.faults.training_faults import TRAINING

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
