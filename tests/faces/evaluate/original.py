"""The functions of davidsandberg/facenet that evaluate embeddings, from its own code."""

from __future__ import annotations

import ast
import math
import os
import types
import zipfile

import numpy as np
from scipy.interpolate import BSpline, interp1d
from scipy.optimize import brentq
from sklearn import metrics
from sklearn.model_selection import KFold

from tests.conftest import fetch
from tests.support.package_index import FACENET

METRICS = {"squared-euclidean": 0, "arc-cosine": 1}
"""Distance to the original's number of it."""

_FUNCTIONS = {
    "facenet": {
        "distance",
        "calculate_roc",
        "calculate_accuracy",
        "calculate_val",
        "calculate_val_far",
        "prewhiten",
    },
    "lfw": {"evaluate", "get_paths", "add_extension", "read_pairs"},
}


def load_original() -> types.SimpleNamespace:
    """Give the functions of facenet.py and lfw.py, without the modules' imports of TensorFlow 1."""
    wheel = zipfile.ZipFile(fetch(FACENET))
    space = {
        "np": np,
        "os": os,
        "math": math,
        "KFold": KFold,
        "interpolate": types.SimpleNamespace(interp1d=_interp1d),
    }
    for name, functions in _FUNCTIONS.items():
        source = wheel.read(f"facenet/src/{name}.py")
        tree = ast.parse(source)
        tree.body = [
            node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in functions
        ]
        assert len(tree.body) == len(functions)
        exec(compile(tree, f"{name}.py", "exec"), space)
        space[name] = types.SimpleNamespace(**{function: space[function] for function in functions})
    return types.SimpleNamespace(**space["facenet"].__dict__, **space["lfw"].__dict__)


def _interp1d(x, y, kind):
    """`interp1d(..., kind="slinear")` of the SciPy of 2018, where an abscissa may occur several times."""
    assert kind == "slinear"
    return BSpline(np.r_[x[0], x, x[-1]], y, 1)


def area_and_equal_error(tpr, fpr):
    """The lines of validate_on_lfw.py."""
    auc = metrics.auc(fpr, tpr)
    return auc, brentq(lambda x: 1.0 - x - interp1d(fpr, tpr)(x), 0.0, 1.0)


def original_measurement(original, embeddings, pairs, settings):
    """tpr, fpr, accuracy by fold, val, its deviation, far, auc and eer, always at a FAR of 1e-3.

    They are those of `evaluate` in lfw.py and of validate_on_lfw.py.
    """
    interleaved = np.zeros((2 * len(pairs), embeddings.shape[1]))
    interleaved[0::2], interleaved[1::2] = embeddings[pairs.first], embeddings[pairs.second]
    tpr, fpr, accuracy, val, val_std, far = original.evaluate(
        interleaved,
        pairs.same,
        nrof_folds=settings.fold_count,
        distance_metric=METRICS[settings.distance],
        subtract_mean=settings.subtract_mean,
    )
    return tpr, fpr, accuracy, val, val_std, far, *area_and_equal_error(tpr, fpr)
