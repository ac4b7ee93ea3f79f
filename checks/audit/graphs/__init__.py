"""Ports that are graphs: read into neutral terms, their layers found by walking, and run."""
