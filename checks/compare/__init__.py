"""Compares a PyTorch port with its TensorFlow checkpoint: four judgements, causes, a repair."""
