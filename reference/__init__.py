"""The PyTorch side: the network that the converted weights are loaded into."""

from reference.inception_resnet_v1 import MINIMUM_IMAGE_SIZE, InceptionResnetV1
from reference.weights import load_weights

__all__ = ["MINIMUM_IMAGE_SIZE", "InceptionResnetV1", "load_weights"]
