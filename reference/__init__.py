"""The PyTorch side: the networks for the converted weights."""

from reference.inception_resnet_v1 import MINIMUM_IMAGE_SIZE, InceptionResnetV1
from reference.weights import load, load_mtcnn, load_weights

__all__ = ["MINIMUM_IMAGE_SIZE", "InceptionResnetV1", "load", "load_mtcnn", "load_weights"]
