"""Faults in kernels: a state_dict that loads strictly and holds other numbers than the checkpoint."""

from __future__ import annotations

import numpy as np

from checks.controls.faults.change_port import (
    exchanged,
    in_every,
    in_variable,
    in_variables,
    in_weights,
    planted,
)
from checks.controls.faults.fault import Fault, Site, activation_of
from checks.controls.port_pipeline import Pipeline
from checks.core.types import Array, Arrays
from checks.diagnosis.causes import Cause
from converter.layer_map import NETWORK_SCOPE
from converter.layouts import CONVOLUTION, FULLY_CONNECTED

# Kernels


def _reshaped(values: Array) -> Array:
    layout = CONVOLUTION if values.ndim == 4 else FULLY_CONNECTED
    return layout.inverse.apply(values).reshape(values.shape)


def _blocks_exchanged(first: str, second: str) -> Site:
    def changes(port: Pipeline) -> Arrays:
        scopes = (f"{NETWORK_SCOPE}/{first}/", f"{NETWORK_SCOPE}/{second}/")
        keys = {row.variable: row.key for row in port.plan.converted}
        return {
            keys[variable]: port.state(keys[variable.replace(here, there)]).copy()
            for here, there in (scopes, scopes[::-1])
            for variable in keys
            if variable.startswith(here)
        }

    return Site(f"{first} and {second}", activation_of(f"{first}/Branch_0/Conv2d_1x1"), planted(changes))


def _regrouped(variable: str, *sizes: int) -> Site:
    def change(kernel: Array) -> Array:
        groups = np.split(kernel, np.cumsum(sizes)[:-1], axis=1)
        return np.concatenate(groups[::-1], axis=1)

    return in_variable(change, variable)


# Precision


def _int8(values: Array) -> Array:
    scale = np.abs(values).max() / 127 or 1.0
    quantised: Array = np.clip(np.round(values / scale), -128, 127) * scale
    return quantised


# Single values


def _one_step(values: Array) -> Array:
    flat = values.reshape(-1)
    # The largest value: a step of a tiny one may not show even in float64.
    index = int(np.abs(flat).argmax())
    flat[index] = np.nextafter(flat[index], np.float32(np.inf))
    return values


def _flipped_bit(values: Array) -> Array:
    values[len(values) // 2 :][:1].view(np.uint32)[:] ^= np.uint32(1 << 20)  # a bit of the fraction
    return values


def _not_a_number(values: Array) -> Array:
    values.reshape(-1)[-1] = np.nan
    return values


WEIGHTS: tuple[Fault, ...] = (
    in_weights(
        "kernel-height-width",
        "A transposition (3, 2, 1, 0) for (3, 2, 0, 1) reverses all four axes, which is what numpy's .T "
        "does: square kernels keep their shape.",
        Cause.HEIGHT_WIDTH,
        lambda kernel: kernel.transpose(0, 1, 3, 2),
        "Conv2d_2a_3x3/weights",
        "Repeat/block35_3/Branch_2/Conv2d_0c_3x3/weights",
        "Mixed_7a/Branch_2/Conv2d_0b_3x3/weights",
    ),
    in_weights(
        "kernel-flipped",
        "Theano convolves and TensorFlow correlates: converters from Theano flip every kernel, and Keras "
        "carried such a helper for years.",
        Cause.FLIPPED,
        lambda kernel: kernel[:, :, ::-1, ::-1],
        "Conv2d_1a_3x3/weights",
        "Repeat_1/block17_6/Branch_1/Conv2d_0b_1x7/weights",
        "Repeat_2/block8_2/Branch_1/Conv2d_0c_3x1/weights",
    ),
    in_weights(
        "kernel-inputs-outputs",
        "A transposition (2, 3, 0, 1) for (3, 2, 0, 1) loads wherever a layer has as many inputs as outputs.",
        Cause.IN_OUT,
        lambda kernel: kernel.swapaxes(0, 1),
        "Conv2d_2a_3x3/weights",
        "Repeat_1/block17_9/Branch_1/Conv2d_0c_7x1/weights",
        "Block8/Branch_1/Conv2d_0b_1x3/weights",
    ),
    in_weights(
        "reshaped",
        "`reshape` or `view` to PyTorch's shape in the place of a transposition is a beginner's port of "
        "every kernel: the shapes are correct and the numbers are not.",
        Cause.RESHAPED,
        _reshaped,
        "Conv2d_4a_3x3/weights",
        "Repeat_1/block17_2/Branch_1/Conv2d_0b_1x7/weights",
        "Bottleneck/weights",
        "Logits/weights",
    ),
    Fault(
        "another-layers-tensor",
        "weights",
        "A port that fills the state_dict by position, or by whatever shape fits, takes a sibling's tensor: "
        "TensorFlow lists variables by name and PyTorch by creation.",
        Cause.OTHER_TENSOR,
        (
            exchanged(
                "Repeat/block35_2/Branch_1/Conv2d_0b_3x3/weights",
                "Repeat/block35_2/Branch_2/Conv2d_0b_3x3/weights",
            ),
            exchanged(
                "Repeat_1/block17_4/Branch_0/Conv2d_1x1/weights",
                "Repeat_1/block17_4/Branch_1/Conv2d_0a_1x1/weights",
            ),
            exchanged("Mixed_7a/Branch_0/Conv2d_0a_1x1/weights", "Mixed_7a/Branch_1/Conv2d_0a_1x1/weights"),
            exchanged("Repeat_2/block8_1/Conv2d_1x1/biases", "Repeat_2/block8_4/Conv2d_1x1/biases"),
        ),
    ),
    Fault(
        "blocks-exchanged",
        "weights",
        "Two residual blocks of a repeat exchanged move the embeddings by 1 - cos = 2.8e-5, which passes a "
        "gate on cosines.",
        Cause.OTHER_TENSOR,
        (
            _blocks_exchanged("Repeat/block35_2", "Repeat/block35_4"),
            _blocks_exchanged("Repeat_1/block17_5", "Repeat_1/block17_8"),
            _blocks_exchanged("Repeat_2/block8_1", "Repeat_2/block8_3"),
        ),
    ),
    in_weights(
        "outputs-permuted",
        "Classes shifted by one for a background class, as TF-slim's ImageNet models have, and channels "
        "reordered for a runtime's packing and not back.",
        Cause.PERMUTED,
        lambda kernel: np.roll(kernel, 1, axis=0),
        "Conv2d_2b_3x3/weights",
        "Repeat_1/block17_7/Branch_1/Conv2d_0c_7x1/weights",
        "Bottleneck/weights",
        "Logits/weights",
    ),
    Fault(
        "concatenation-in-weights",
        "weights",
        "A port that concatenates its branches in another order, and rearranges its weights to fit, exports "
        "a state_dict that no other port can use.",
        Cause.BRANCH_ORDER,
        (
            _regrouped("Repeat/block35_4/Conv2d_1x1/weights", 32, 32, 32),
            _regrouped("Repeat_1/block17_1/Conv2d_1x1/weights", 128, 128),
            _regrouped("Repeat_2/block8_3/Conv2d_1x1/weights", 192, 192),
        ),
    ),
    Fault(
        "stored-as-float16",
        "weights",
        "Re-exports of FaceNet for other runtimes come in half precision, and the way back to float32 keeps "
        "the loss.",
        Cause.PRECISION,
        (
            *in_variables(
                lambda values: values.astype(np.float16),
                "Repeat_2/block8_4/Branch_1/Conv2d_0b_1x3/weights",
                "Bottleneck/weights",
            ),
            in_every(lambda values: values.astype(np.float16), "every tensor"),
        ),
    ),
    Fault(
        "eight-decimals",
        "weights",
        "Weights that went through text with eight decimals, as C headers, CSV and numpy.savetxt('%.8f') do.",
        Cause.PRECISION,
        (
            *in_variables(
                lambda values: np.round(values.astype(np.float64), 8),
                "Repeat_1/block17_10/Branch_1/Conv2d_0b_1x7/weights",
                "Mixed_6a/Branch_1/Conv2d_1a_3x3/weights",
            ),
            in_every(lambda values: np.round(values.astype(np.float64), 8), "every tensor"),
        ),
    ),
    in_weights(
        "stored-as-int8",
        "Networks for phones are quantised to eight bits a tensor, and converters back to float32 multiply "
        "the scale in again.",
        Cause.PRECISION,
        _int8,
        "Conv2d_1a_3x3/weights",
        "Mixed_7a/Branch_0/Conv2d_1a_3x3/weights",
        "Bottleneck/weights",
    ),
    in_weights(
        "one-ulp",
        "One float32 step in one weight: the trace of a different libm, a round trip through text, or a fold "
        "and unfold.",
        Cause.VALUES,
        _one_step,
        "Repeat_1/block17_5/Branch_1/Conv2d_0b_1x7/weights",
        "Mixed_7a/Branch_1/Conv2d_1a_3x3/BatchNorm/beta",
        "Bottleneck/weights",
        "Logits/biases",
    ),
    in_weights(
        "flipped-bit",
        "A .pb, an .h5 and a .safetensors carry no checksum: a flipped bit on disk or in memory loads in "
        "silence.",
        Cause.VALUES,
        _flipped_bit,
        "Conv2d_2a_3x3/BatchNorm/moving_variance",
        "Repeat_1/block17_8/Branch_1/Conv2d_0a_1x1/BatchNorm/moving_mean",
        "Repeat_2/block8_5/Branch_0/Conv2d_1x1/BatchNorm/moving_variance",
    ),
    in_weights(
        "not-a-number",
        "One NaN in one channel: comparisons such as max(abs(a - b)) > limit are false for NaN and pass it, "
        "and a ReLU written as a maximum can swallow it.",
        Cause.VALUES,
        _not_a_number,
        "Conv2d_4a_3x3/weights",
        "Repeat/block35_1/Branch_2/Conv2d_0c_3x3/BatchNorm/beta",
        "Repeat_2/block8_1/Conv2d_1x1/biases",
    ),
)
"""Every class of faults in kernels and single values."""
