"""The proofs: each command holds the PyTorch side against TensorFlow and says whether they agree."""
