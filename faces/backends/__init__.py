"""The runtimes that compute embeddings: PyTorch, ONNX Runtime and LiteRT."""
