"""The table of Inception-ResNet-v1: every TensorFlow variable and its PyTorch key.

Each layer is stated once, in a block below: TensorFlow scope, PyTorch module, kernel and channels.
`table(variant)` expands the layers into tensors, in the order of the published state_dicts. TensorFlow names
are those of davidsandberg/facenet (`src/models/inception_resnet_v1.py`), PyTorch names those of
facenet-pytorch 2.2.9.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from converter.formats.source import TensorInfo
from converter.layouts import CONVOLUTION, FULLY_CONNECTED, VECTOR, Layout

NETWORK_SCOPE = "InceptionResnetV1"
BOTTLENECK_SCOPES = (f"{NETWORK_SCOPE}/Bottleneck", "Bottleneck")  # the second before 2017-05-09
LOGITS_SCOPE = "Logits"
BOTTLENECK_INPUTS = 1792
_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True, slots=True)
class Layer:
    """Layer with weights.

    Attributes:
        scope: TensorFlow variable scope, inside the block's.
        module: Dotted path of the PyTorch module, inside the block's.
        kernel: (height, width).
        inputs: Input channels.
        outputs: Output channels.
        batch_norm: Whether BatchNorm follows; a layer without it has biases.
    """

    scope: str
    module: str
    kernel: tuple[int, int]
    inputs: int
    outputs: int
    batch_norm: bool = True


STEM = (
    Layer("Conv2d_1a_3x3", "conv2d_1a", (3, 3), 3, 32),
    Layer("Conv2d_2a_3x3", "conv2d_2a", (3, 3), 32, 32),
    Layer("Conv2d_2b_3x3", "conv2d_2b", (3, 3), 32, 64),
    Layer("Conv2d_3b_1x1", "conv2d_3b", (1, 1), 64, 80),
    Layer("Conv2d_4a_3x3", "conv2d_4a", (3, 3), 80, 192),
    Layer("Conv2d_4b_3x3", "conv2d_4b", (3, 3), 192, 256),
)
BLOCK35 = (
    Layer("Branch_0/Conv2d_1x1", "branch0", (1, 1), 256, 32),
    Layer("Branch_1/Conv2d_0a_1x1", "branch1.0", (1, 1), 256, 32),
    Layer("Branch_1/Conv2d_0b_3x3", "branch1.1", (3, 3), 32, 32),
    Layer("Branch_2/Conv2d_0a_1x1", "branch2.0", (1, 1), 256, 32),
    Layer("Branch_2/Conv2d_0b_3x3", "branch2.1", (3, 3), 32, 32),
    Layer("Branch_2/Conv2d_0c_3x3", "branch2.2", (3, 3), 32, 32),
    Layer("Conv2d_1x1", "conv2d", (1, 1), 96, 256, batch_norm=False),
)
MIXED_6A = (
    Layer("Branch_0/Conv2d_1a_3x3", "branch0", (3, 3), 256, 384),
    Layer("Branch_1/Conv2d_0a_1x1", "branch1.0", (1, 1), 256, 192),
    Layer("Branch_1/Conv2d_0b_3x3", "branch1.1", (3, 3), 192, 192),
    Layer("Branch_1/Conv2d_1a_3x3", "branch1.2", (3, 3), 192, 256),
)
BLOCK17 = (
    Layer("Branch_0/Conv2d_1x1", "branch0", (1, 1), 896, 128),
    Layer("Branch_1/Conv2d_0a_1x1", "branch1.0", (1, 1), 896, 128),
    Layer("Branch_1/Conv2d_0b_1x7", "branch1.1", (1, 7), 128, 128),
    Layer("Branch_1/Conv2d_0c_7x1", "branch1.2", (7, 1), 128, 128),
    Layer("Conv2d_1x1", "conv2d", (1, 1), 256, 896, batch_norm=False),
)
MIXED_7A = (
    Layer("Branch_0/Conv2d_0a_1x1", "branch0.0", (1, 1), 896, 256),
    Layer("Branch_0/Conv2d_1a_3x3", "branch0.1", (3, 3), 256, 384),
    Layer("Branch_1/Conv2d_0a_1x1", "branch1.0", (1, 1), 896, 256),
    Layer("Branch_1/Conv2d_1a_3x3", "branch1.1", (3, 3), 256, 256),
    Layer("Branch_2/Conv2d_0a_1x1", "branch2.0", (1, 1), 896, 256),
    Layer("Branch_2/Conv2d_0b_3x3", "branch2.1", (3, 3), 256, 256),
    Layer("Branch_2/Conv2d_1a_3x3", "branch2.2", (3, 3), 256, 256),
)
BLOCK8 = (
    Layer("Branch_0/Conv2d_1x1", "branch0", (1, 1), 1792, 192),
    Layer("Branch_1/Conv2d_0a_1x1", "branch1.0", (1, 1), 1792, 192),
    Layer("Branch_1/Conv2d_0b_1x3", "branch1.1", (1, 3), 192, 192),
    Layer("Branch_1/Conv2d_0c_3x1", "branch1.2", (3, 1), 192, 192),
    Layer("Conv2d_1x1", "conv2d", (1, 1), 384, 1792, batch_norm=False),
)

# (TensorFlow scope, PyTorch module, layers): a repeated block counts from 1 in TensorFlow, from 0 in PyTorch.
BLOCKS: tuple[tuple[str, str, tuple[Layer, ...]], ...] = (
    ("", "", STEM),
    *((f"Repeat/block35_{n}", f"repeat_1.{n - 1}", BLOCK35) for n in range(1, 6)),
    ("Mixed_6a", "mixed_6a", MIXED_6A),
    *((f"Repeat_1/block17_{n}", f"repeat_2.{n - 1}", BLOCK17) for n in range(1, 11)),
    ("Mixed_7a", "mixed_7a", MIXED_7A),
    *((f"Repeat_2/block8_{n}", f"repeat_3.{n - 1}", BLOCK8) for n in range(1, 6)),
    ("Block8", "block8", BLOCK8),
)


def _join(separator: str, *parts: str) -> str:
    return separator.join(part for part in parts if part)


CONVOLUTIONS: tuple[Layer, ...] = tuple(
    Layer(
        _join("/", NETWORK_SCOPE, scope, layer.scope),
        _join(".", module, layer.module),
        layer.kernel,
        layer.inputs,
        layer.outputs,
        layer.batch_norm,
    )
    for scope, module, layers in BLOCKS
    for layer in layers
)
"""All 132 convolutions with full names, in the order of the state_dict."""


@dataclass(frozen=True, slots=True)
class Variant:
    """The properties in which checkpoints of this network differ.

    Attributes:
        embedding_size: Outputs of the Bottleneck.
        num_classes: Outputs of the classifier; None without a classifier.
        gamma: Whether BatchNorm has a scale; the published checkpoints have none.
        bottleneck_scope: Full TensorFlow scope of the Bottleneck, one of `BOTTLENECK_SCOPES`.
    """

    embedding_size: int = 512
    num_classes: int | None = None
    gamma: bool = False
    bottleneck_scope: str = BOTTLENECK_SCOPES[0]


@dataclass(frozen=True, slots=True)
class ConvertedRow:
    """A row for a float32 tensor of both TensorFlow and PyTorch.

    Attributes:
        key: PyTorch state_dict key.
        variable: TensorFlow variable.
        layout: The change from TensorFlow's order of axes to PyTorch's.
        shape: The variable's shape in TensorFlow.
        scope: TensorFlow scope that owns the variable.
    """

    key: str
    variable: str
    layout: Layout
    shape: tuple[int, ...]
    scope: str

    @property
    def info(self) -> TensorInfo:
        """Dtype and shape in the state_dict."""
        return TensorInfo(_FLOAT32, self.layout.shape(self.shape))


@dataclass(frozen=True, slots=True)
class SynthesisedRow:
    """A row for a tensor that PyTorch needs and TensorFlow does not have.

    Attributes:
        key: PyTorch state_dict key.
        dtype: NumPy name of its dtype.
        shape: Its shape in PyTorch.
        fill: The value of every element.
        reason: Why this value does not change the network.
    """

    key: str
    dtype: Literal["float32", "int64"]
    shape: tuple[int, ...]
    fill: int
    reason: str

    @property
    def info(self) -> TensorInfo:
        """Dtype and shape in the state_dict."""
        return TensorInfo(np.dtype(self.dtype), self.shape)


Row = ConvertedRow | SynthesisedRow


def _batch_norm(layer: Layer, module: str, gamma: bool) -> Iterator[Row]:
    def converted(key: str, variable: str) -> ConvertedRow:
        name = f"{layer.scope}/BatchNorm/{variable}"
        return ConvertedRow(f"{module}.{key}", name, VECTOR, (layer.outputs,), layer.scope)

    if gamma:
        yield converted("weight", "gamma")
    else:
        shape = (layer.outputs,)
        yield SynthesisedRow(
            f"{module}.weight", "float32", shape, 1, "slim's BatchNorm was built without a scale"
        )
    yield converted("bias", "beta")
    yield converted("running_mean", "moving_mean")
    yield converted("running_var", "moving_variance")
    yield SynthesisedRow(
        f"{module}.num_batches_tracked", "int64", (), 0, "PyTorch counts batches, TensorFlow does not"
    )


def _convolution(layer: Layer, gamma: bool) -> Iterator[Row]:
    module = f"{layer.module}.conv" if layer.batch_norm else layer.module
    shape = (*layer.kernel, layer.inputs, layer.outputs)
    yield ConvertedRow(f"{module}.weight", f"{layer.scope}/weights", CONVOLUTION, shape, layer.scope)
    if layer.batch_norm:
        yield from _batch_norm(layer, f"{layer.module}.bn", gamma)
    else:
        biases = f"{layer.scope}/biases"
        yield ConvertedRow(f"{module}.bias", biases, VECTOR, (layer.outputs,), layer.scope)


def table(variant: Variant) -> tuple[Row, ...]:
    """List every tensor of the state_dict of one variant, in the published order.

    With logits and without gamma: 492 converted rows and 224 synthesised ones.
    """
    rows: list[Row] = []
    for layer in CONVOLUTIONS:
        rows.extend(_convolution(layer, variant.gamma))
    size = variant.embedding_size
    scope = variant.bottleneck_scope
    rows.append(
        ConvertedRow(
            "last_linear.weight",
            f"{scope}/weights",
            FULLY_CONNECTED,
            (BOTTLENECK_INPUTS, size),
            scope,
        )
    )
    bottleneck = Layer(scope, "last_bn", (1, 1), BOTTLENECK_INPUTS, size)
    rows.extend(_batch_norm(bottleneck, "last_bn", variant.gamma))
    if variant.num_classes is not None:
        classes = variant.num_classes
        weights, biases = f"{LOGITS_SCOPE}/weights", f"{LOGITS_SCOPE}/biases"
        rows.append(ConvertedRow("logits.weight", weights, FULLY_CONNECTED, (size, classes), LOGITS_SCOPE))
        rows.append(ConvertedRow("logits.bias", biases, VECTOR, (classes,), LOGITS_SCOPE))
    return tuple(rows)


def _check_table() -> None:
    """Check the table against the published counts, so that a wrong row fails at import."""
    rows = table(Variant(num_classes=8631))
    converted = [row for row in rows if isinstance(row, ConvertedRow)]
    keys, variables = {row.key for row in rows}, {row.variable for row in converted}
    counts = (len(CONVOLUTIONS), len(rows), len(keys), len(converted), len(variables))
    if counts != (132, 716, 716, 492, 492):
        raise AssertionError(f"the layer map is broken: {counts} rows, not (132, 716, 716, 492, 492)")


_check_table()
