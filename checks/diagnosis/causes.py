"""Why a layer of a port differs from TensorFlow's: the known causes, each by its name."""

from enum import StrEnum


class Cause(StrEnum):
    """A known reason for which a port's layer differs, by where it lies; the value is how a reader is told.

    The causes of the weights can be repaired in a state_dict. Those of the modules lie in the port's code,
    those of the input in its preprocessing, and those of training show in gradients and training steps only.
    """

    # Weights: the tensors of a state_dict.
    HEIGHT_WIDTH = "height and width exchanged"
    FLIPPED = "kernel flipped"
    IN_OUT = "inputs and outputs exchanged"
    RESHAPED = "reshaped instead of transposed"
    OTHER_TENSOR = "another tensor of the same shape"
    AVERAGES = "averages for weights"
    STATISTICS = "BatchNorm tensors exchanged"
    STANDARD_DEVIATION = "standard deviation for variance"
    UNLOADED = "not loaded from the checkpoint"
    PRECISION = "stored in lower precision"
    VALUES = "single values changed"
    PERMUTED = "channels in another order"
    FOLDED = "scaled by another BatchNorm"

    # Modules: what the layers compute.
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

    # Input: what the port feeds its first layer.
    CHANNEL_ORDER = "RGB and BGR exchanged"
    STANDARDISATION = "another standardisation of the input"
    ORIENTATION = "image flipped or transposed"
    IMAGE_LAYOUT = "NHWC read as NCHW"
    INPUT_PRECISION = "input in lower precision"

    # Training: what gradients and training steps show.
    MOMENTUM = "another momentum"
    RUNNING_VARIANCE = "biased running variance"
    DROPOUT_RATE = "another dropout"
    FROZEN = "frozen in training"
    OPTIMISER = "another optimiser or learning rate"
    GRADIENT_SCALE = "another reduction of the loss"
