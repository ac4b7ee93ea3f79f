"""Compares gradients and training steps of PyTorch and TensorFlow."""
