"""Every threshold of the checks, and why it is what it is."""

from __future__ import annotations

MAPPING = 1e-13
"""Largest distance in float64: of the embeddings (Frobenius) and, as relative L2, of every activation.

Two correct float64 implementations differ by rounding alone, about 1e-14 at the worst activation through this
network's 132 convolutions. A single weight that is one float32 step off already shows: a test plants one.
"""

GRADIENT = 1e-10
"""Largest relative L2 of any gradient in float64, of the images or of a parameter."""

GRADIENT_FLOOR = 1e-5
"""A parameter's gradient counts as at least this share of the norm of all parameters' gradients together.

Where a gradient vanishes in exact arithmetic, as that of a bias does whose effect the next BatchNorm takes
away in training, either side is left with its own rounding, and the relative L2 of one from the other means
nothing. Within GRADIENT of this floor is within 1e-15 of the whole gradient, a few of float64's roundoffs.
"""

TRAINING_STEPS = 1e-9
"""Largest relative L2 in float64 of any weight or running statistic after ten training steps, and of what the
steps changed in it."""

CHANGE_FLOOR = 1e-5
"""What training steps change in a tensor counts as at least this share of its norm: the change is the
difference of two float64 tensors, and rounding each step leaves some 1e-16 of the tensor in it."""

ROUNDING = 2.0
"""How many times further from the float64 result PyTorch's float32 may be than TensorFlow's, at any activation."""

ROUNDING_FEW_VALUES = 4.0
"""The same on inputs of few distinct values, where rounding errors repeat and do not average out."""

FEW_VALUES = 32
"""An image with fewer distinct values than this has few of them; photographs have over a hundred."""

UNIT_ROUNDOFF = 2.0**-24
"""Relative error of one float32 rounding (IEEE 754). TensorFlow's error counts as at least this much: it can
be zero by luck on a constant image, and no implementation could stay below a multiple of zero."""

FOLDED_ROUNDINGS = 8.0
"""Audit: how many unit roundoffs a value with a BatchNorm folded into it may be from the float64 result,
where no formula gives it to the last bit. Sum, root, quotient, product and difference round five times; this
is twice what that adds up to, about four."""

RUNTIME = 4.0
"""Audit: how many times further from the float64 result, with the same weights, a graph's embeddings may be
than PyTorch's, as its runtime runs it by default; on inputs of few values twice as much. XNNPACK and its like
add up products one after another, and their errors grow faster than those of blocked sums."""

PREPARED = {"float32": 1e-5, "float16": 2e-3}
"""Audit: largest relative L2 of the images that a graph prepares itself, by its arithmetic. The mean and the
standard deviation over an image of 76,800 numbers, summed one after another in float32, take most of it."""

GRAPH_DISTANCE = {"float32": 5e-6, "float16": 2e-2}
"""Audit: largest distance of a graph's five embeddings from those of the source's weights in float64, by the
precision that it stores weights in. float32 allows for a folded BatchNorm's rounding besides its own."""

HALF_ROUNDOFF = 2.0**-11
"""Relative error of one float16 rounding (IEEE 754)."""

HEADLINE = 2e-6
"""Largest float32 distance (Frobenius) of five embeddings; the field quotes 1.287e-06 for its own port."""

HEADLINE_ROW = 1e-6
"""Largest float32 distance of a single embedding among them."""

PLACES = 0.95
"""Controls: least share of the faults at which the first divergence is where the fault is."""

CAUSES = 0.80
"""Controls: least share of the faults whose cause the diagnosis names."""

CONVERT_RATIO = 1.5
"""Benchmark: time of `python -m converter` over that of `import torch`."""

CONVERT_MEMORY = 2.5
"""Benchmark: peak memory of the converter above that of `import torch`, in sizes of the checkpoint."""

LARGE_RATIO = 1.3
"""Benchmark: time for a checkpoint with averages and optimiser slots over that for the same without."""

COMPARE_SECONDS = 40.0
"""Benchmark: seconds that `checks.compare --every-layer` takes for a .pb."""

PRETRAINED_RATIO = 1.3
"""Benchmark: time of `InceptionResnetV1(pretrained=...)` from the cache, verified, over torch.load."""
