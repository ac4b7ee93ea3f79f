"""Every threshold of the checks, with its source."""

from __future__ import annotations

MAPPING = 1e-13
"""Largest distance in float64: of the embeddings (Frobenius) and, as relative L2, of every activation.

Two correct float64 implementations differ by rounding only: about 1e-14 at the worst activation, through 132
convolutions. A single weight that is one float32 step off exceeds it: a test plants one.
"""

GRADIENT = 1e-10
"""Largest relative L2 of any gradient in float64, of the images or of a parameter."""

GRADIENT_FLOOR = 1e-5
"""A parameter's gradient counts as at least this share of the norm of all parameters' gradients together.

Some gradients vanish in exact arithmetic, such as that of a bias whose effect the next BatchNorm removes in
training. Each side then holds only its own rounding, and their relative L2 means nothing. A gradient within
GRADIENT of this floor is within 1e-15 of the whole gradient, a few of float64's roundoffs.
"""

TRAINING_STEPS = 1e-9
"""Largest relative L2 in float64, after ten training steps, of a weight or statistic and of its change."""

CHANGE_FLOOR = 1e-5
"""A tensor's change over the training steps counts as at least this share of the tensor's norm: the change is
a difference of two float64 tensors, and each step's rounding leaves some 1e-16 of the tensor in it."""

ROUNDING = 4.0
"""Largest root mean square of the rounding errors of a layer, in standard deviations that
`checks.core.rounding` computes from the layer's own input. Sums in any order stay below one; products in TF32
or half precision come to more than sixteen at every layer."""

FEW_VALUES = 32
"""An image has few distinct values if it has fewer than this; photographs have over a hundred."""

UNIT_ROUNDOFF = 2.0**-24
"""Relative error of one float32 rounding (IEEE 754). TensorFlow's error counts as at least this much: it can
be zero by luck on a constant image, and no implementation stays below a multiple of zero."""

FOLDED_ROUNDINGS = 8.0
"""Audit: largest distance, in unit roundoffs, of a value with a folded BatchNorm from the float64 result, if
no formula gives it to the last bit. Sum, root, quotient, product and difference round five times, which adds
up to about four; this is twice as much."""

RUNTIME = 8.0
"""Audit: largest ratio of the error of a graph's embeddings, in its runtime's default settings, to PyTorch's
error; both from the float64 result with the same weights. Twice as much on inputs of few values. XNNPACK and
its like add up products one after another, and their errors grow faster than those of blocked sums: they come
to 2.4 times PyTorch's on published weights."""

PREPARED = {"float32": 1e-5, "float16": 2e-3, "int8": 1e-5}
"""Audit: largest relative L2 of the images that a graph prepares itself, by the precision of its arithmetic.
Most of it is for the mean and the standard deviation of an image, 76,800 numbers summed one after another in
float32."""

GRAPH_DISTANCE = {"float32": 1e-5, "float16": 2e-2}
"""Audit: largest distance of a graph's five embeddings from those of the source's weights in float64, by the
precision of its stored weights. float32 includes the rounding of a folded BatchNorm; TFLite's runtime comes
to 3e-6 on published weights."""

INTEGER_STEP = 0.01
"""Audit: largest distance, beyond half a step, of an integer from the float64 result of the integers before
it, in steps. A kernel of integers sums exactly; the factor, the quotient and the zero point round numbers of
at most 255 steps in float32, which comes to 5e-5 of a step. The least fault is a step."""

LOST_BITS = 0.25
"""Audit: largest number of bits that a channel of integers loses to a scale that is larger than its weights
need. A right file loses 3e-7. With one scale for all channels, the channel that loses most loses 0.8 to 5."""

BIAS_SCALE = 1e-6
"""Audit: largest relative distance of the scale of a bias from the product of the scales of the input and of
the weights: a product in float32 is within 6e-8."""

INPUT_CLIPPED = 0.05
"""Audit: largest share of standardised pixels beyond the range of the first quantisation. A range that was
calibrated on faces leaves out less than a hundredth, and one of -1 to 1 a third of the pixels of images that
are standardised one by one."""

INPUT_UNUSED = 0.25
"""Audit: largest share of the range of the first quantisation that no pixel reaches. Images that are
standardised one by one reach 2.5 to 4, and leave half of the range of others unused."""

QUANTISED_COSINE = 0.02
"""Audit: largest distance from 1 of the cosine of an int8 embedding of a face and the source's. Right files
with 8 bits come to a quarter; calibrated on images of another standardisation, to ten times as much."""

SEEDED_COSINE = 0.1
"""Audit: largest distance from 1 of the cosine of an int8 embedding of a seeded image and the source's.
Right files with 8 bits come to a seventh, and with 7 bits to less than a half, because their scales are not
for such images. Where one scale is a twentieth, it comes to four times as much."""

QUANTISED_DECISIONS = 0.005
"""Audit: largest share of the pairs of faces that a graph of integers decides otherwise than the source; of
few pairs, two. On 6,903 pairs a right file comes to 0.0014, one calibrated on other images to 0.014."""

HALF_ROUNDOFF = 2.0**-11
"""Relative error of one float16 rounding (IEEE 754)."""

HEADLINE = 4e-6
"""Largest float32 distance (Frobenius) of five embeddings. facenet-pytorch quotes 1.287e-06 for its port, and
right ports come to 1.43e-06 here; the bound is over twice as much, so that none passes or fails by luck."""

HEADLINE_ROW = 2e-6
"""Largest float32 distance of a single embedding among them."""

FACE_DISTANCE = 1e-5
"""Evaluate: largest difference of the distance of two faces from TensorFlow's on the same crops. Two right
float32 networks stay below half of it. It is for decisions; `compare` finds smaller faults."""

FACE_FIGURE = 1e-4
"""Evaluate: largest difference of an accuracy, a rate or an area from TensorFlow's: a step of the last
digit that is shown. One pair of 5,000 decided otherwise exceeds it."""

FACE_BOX = 0.01
"""Detector: largest difference of a side of a box from the original's, in pixels. The rounding of TensorFlow
and PyTorch comes to 0.00005; another candidate of the same face is pixels away."""

FACE_LANDMARK = 0.05
"""Detector: largest difference of a coordinate of a landmark, in pixels. Landmarks are float32 shares of a
whole crop, and a box moves little in the last step."""

FACE_EMBEDDING = 1e-5
"""Face controls: largest distance of an embedding from that of TensorFlow's graph on the original's
standardisation of the same crop. Two right float32 networks come to a tenth of it."""

BACKEND_DISTANCE = 1e-5
"""Backends: largest Euclidean distance of a runtime's embedding from PyTorch's, on seeded images.
ONNX Runtime comes to 1.7e-6 on real weights."""

FACE_PROTOCOL = 1e-12
"""Face controls: largest difference of a distance or a figure of the protocol from the original's: float64
rounds to 1e-16, and a figure of some thousand pairs changes by steps of 1e-4."""

MARGIN = 2.0
"""Controls: smallest margin of a judgement, on both sides of its bound."""

PLACES = 0.95
"""Controls: smallest share of the faults whose place is the first divergence."""

CAUSES = 0.90
"""Controls: smallest share of the faults whose cause the diagnosis names."""

CONVERT_RATIO = 1.5
"""Benchmark: time of `facenet-port convert` over that of `import torch`."""

CONVERT_MEMORY = 2.5
"""Benchmark: peak memory of the converter minus that of `import torch`, in sizes of the checkpoint."""

LARGE_RATIO = 1.3
"""Benchmark: time for a checkpoint with averages and optimiser slots over the time without them."""

COMPARE_SECONDS = 40.0
"""Benchmark: seconds of `facenet-port compare --every-layer` for a .pb."""

COMPARE_RATIO = 3.0
"""Benchmark: time of `facenet-port compare` over that of importing both frameworks in one process."""

DETECT_RATIO = 1.5
"""Benchmark: smallest ratio of the photographs a second that are searched to facenet-pytorch's."""

EMBED_RATIO = 2.5
"""Benchmark: smallest ratio of the photographs a second that are embedded to facenet-pytorch's, in int8
too."""

BARE_RATIO = 0.97
"""Benchmark: smallest ratio of the faces a second of a model in ONNX Runtime to those of a bare loop."""

NETWORK_RATIO = 1.7
"""Benchmark: smallest ratio of the faces a second of a model in ONNX Runtime to facenet-pytorch's network."""

INT8_RATIO = 3.0
"""Benchmark: smallest ratio of the faces a second of an int8 model to those of the same model in float32,
both in ONNX Runtime and run in the same way."""

INT8_NETWORK_RATIO = 5.5
"""Benchmark: smallest ratio of the faces a second of an int8 model to facenet-pytorch's network."""

EMBED_MEMORY = 1.1
"""Benchmark: peak memory of `facenet-port embed` on four times as many photographs."""

TRAIN_RATIO = 0.9
"""Benchmark: smallest ratio of the faces a second of `facenet-port train` to those of a bare loop."""

TRAIN_WAITING = 0.1
"""Benchmark: share of a training's time that waits for data."""

PRETRAINED_RATIO = 1.3
"""Benchmark: time of `InceptionResnetV1(pretrained=...)` from the cache, verified, over torch.load."""
