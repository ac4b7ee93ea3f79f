"""TensorFlow's formats: checkpoints and frozen graphs."""
