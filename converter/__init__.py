"""Weights in, weights out: TensorFlow FaceNet checkpoints to PyTorch state_dicts, without TensorFlow."""

__version__ = "0.1.0"
