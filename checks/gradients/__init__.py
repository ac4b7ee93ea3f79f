"""Compares gradients and training steps of both sides."""
