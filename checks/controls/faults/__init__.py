"""Faults of real ports, each a small change of a port that can be taken out again."""
