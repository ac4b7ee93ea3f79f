"""The audit of a port that somebody made: its tensors are compared with the source's, and a graph is run."""
