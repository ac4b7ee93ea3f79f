"""Export a network to ONNX or TFLite, audited against its source before the file appears."""
