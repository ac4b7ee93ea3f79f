"""The known causes of a difference between a port and TensorFlow."""

from enum import StrEnum


class Cause(StrEnum):
    """A known cause; its value is the text that users read.

    A state_dict can be repaired if the cause is in the weights. A cause in the modules is in the port's
    code, a cause in the input is in its preprocessing. A cause in training shows in gradients and training
    steps only.
    """

    # Weights: the tensors of a state_dict
    HEIGHT_WIDTH = "height and width exchanged"
    FLIPPED = "kernel flipped"
    IN_OUT = "inputs and outputs exchanged"
    RESHAPED = "reshaped instead of transposed"
    FLATTENED = "inputs flattened in another order"
    OTHER_TENSOR = "another tensor of the same shape"
    AVERAGES = "averages for weights"
    STATISTICS = "BatchNorm tensors exchanged"
    STANDARD_DEVIATION = "standard deviation for variance"
    UNLOADED = "not loaded from the checkpoint"
    PRECISION = "stored in lower precision"
    VALUES = "single values changed"
    PERMUTED = "channels in another order"
    FOLDED = "scaled by another BatchNorm"

    # Modules: the arithmetic of the layers
    EPSILON = "another epsilon"
    EPSILON_PLACE = "epsilon outside the root"
    RESIDUAL_SCALE = "another residual scale"
    SCALED_SHORTCUT = "shortcut scaled instead"
    BRANCH_ORDER = "branch order"
    RELU = "a ReLU too many, too few or another one"
    RELU_ORDER = "ReLU before BatchNorm"
    BATCH_STATISTICS = "batch statistics in inference"
    BATCH_NORM = "BatchNorm left out"
    PADDING = "another padding"
    POOLING = "another pooling"
    NORMALISATION = "another normalisation of the embedding"
    CLASSIFIER_INPUT = "logits of another input"
    DROPOUT = "dropout in inference"

    # Arithmetic: how PyTorch multiplies
    TF32 = "products in TF32"

    # Input: the images that reach the first layer
    CHANNEL_ORDER = "RGB and BGR exchanged"
    STANDARDISATION = "another standardisation of the input"
    ORIENTATION = "image flipped or transposed"
    IMAGE_LAYOUT = "NHWC read as NCHW"
    INPUT_PRECISION = "input in lower precision"

    # Training: the gradients and the training steps
    MOMENTUM = "another momentum"
    RUNNING_VARIANCE = "biased running variance"
    DROPOUT_RATE = "another dropout"
    FROZEN = "frozen in training"
    OPTIMISER = "another optimiser or learning rate"
    GRADIENT_SCALE = "another reduction of the loss"


Explanation = tuple[Cause, str]
"""A cause, and a statement with values, such as "BatchNorm's epsilon is 1e-05, not 0.001"."""
