"""What tensors look like whose right values cannot be had from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from checks.core.network import EPSILON, NetworkLayer
from checks.diagnosis.causes import Cause
from checks.diagnosis.channel_fit import ROUNDED, Fit, fit_bias
from checks.diagnosis.tensor_causes import FRESH, is_fresh

_FEW_CHANNELS = 0.1  # share of a layer's channels that single values can spoil


class Correction(NamedTuple):
    """What would make a layer agree.

    Attributes:
        cause: The cause.
        words: What is the matter.
        tensors: Role to the corrected tensor, float64; empty where its values are lost.
    """

    cause: Cause
    words: str
    tensors: Mapping[str, Tensor]


def lost_values(
    layer: NetworkLayer, tensors: Mapping[str, Tensor], linear: Tensor, wanted: Tensor, fit: Fit
) -> Correction | None:
    """What the tensors look like, where the right values cannot be had from them."""
    bad = ~fit.good
    suspects = ["weight"]
    if not fit.tells:
        suspects = list(tensors)
    elif "gamma" in tensors and bool(fit.near.all()):
        scale = tensors["gamma"] / (tensors["variance"] + EPSILON).sqrt()
        summand = tensors["beta"] - scale * tensors["mean"]
        other_scale = fit.seen & ~torch.isclose(fit.factor, scale, rtol=ROUNDED, atol=0)
        level = float(summand.abs().max())
        other_summand = fit.seen & ~torch.isclose(fit.summand, summand, rtol=ROUNDED, atol=ROUNDED * level)
        if float(other_scale.double().mean()) > _FEW_CHANNELS and not bool(other_summand.any()):
            factors = (scale / fit.factor)[fit.seen]
            words = f"the kernel is scaled by {float(factors.min()):.6g} to {float(factors.max()):.6g}"
            return Correction(Cause.FOLDED, words, {})
        if fit.holds:
            bad = other_scale | other_summand
            suspects = ["variance", "gamma"] if bool(other_scale.any()) else ["beta", "mean"]
            implied = torch.square(tensors["gamma"] / fit.factor) - EPSILON
            for role in ("mean", "beta"):
                if torch.allclose(tensors[role].abs()[fit.seen], implied[fit.seen], rtol=1e-6):
                    return Correction(Cause.STATISTICS, f"the {role} is the variance", {})
    elif fit.holds and "bias" in tensors:
        bad = ~torch.isclose(fit_bias(linear, wanted), tensors["bias"], rtol=1e-7, atol=1e-9)
        suspects = ["bias"]
    for role in suspects:
        told = _look(role, tensors[role])
        if told is not None:
            return told
    count = int(bad.sum())
    if 0 < count <= max(2, _FEW_CHANNELS * bad.numel()):
        words = f"values of {count} of {bad.numel()} output channels are wrong, the first channel is "
        return Correction(Cause.VALUES, words + str(int(bad.nonzero()[0])), {})
    return None


def _look(role: str, tensor: Tensor) -> Correction | None:
    values = tensor.numpy()
    what = "kernel" if role == "weight" else role
    if (values == values.flat[0]).all():
        if role == "gamma" and values.flat[0] == 1:
            return None
        words = f"the {what} is {values.flat[0]:g} throughout"
        return Correction(Cause.UNLOADED, words, {})
    single = values.astype(np.float32)
    bits = np.ascontiguousarray(single).view(np.uint32)
    for name, zeros in (("bfloat16", 16), ("float16", 13)):
        if not (bits & np.uint32((1 << zeros) - 1)).any():
            return Correction(Cause.PRECISION, f"the {what} was stored as {name}", {})
    for decimals in range(2, 9):
        if _has_decimals(single, decimals) and not _has_decimals(
            np.nextafter(single, np.float32(9)), decimals
        ):
            return Correction(Cause.PRECISION, f"the {what} was stored with {decimals} decimals", {})
    if values.size > 1000 and (distinct := np.unique(single).size) <= values.size // 4:
        return Correction(Cause.PRECISION, f"the {what} has only {distinct} distinct values", {})
    if role == "weight" and is_fresh(single):
        return Correction(Cause.UNLOADED, f"the {what} {FRESH}", {})
    return None


def _has_decimals(values: NDArray[Any], decimals: int) -> bool:
    """Whether float32 values are what is read back after rounding to so many decimals."""
    return np.array_equal(np.round(values.astype(np.float64), decimals).astype(np.float32), values)
