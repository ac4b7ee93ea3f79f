"""The runtimes that compute embeddings and run the detector's networks: PyTorch, ONNX Runtime and LiteRT."""
