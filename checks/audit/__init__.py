"""The audit of a port: compare its tensors with the source's, and run it if it is a graph."""
