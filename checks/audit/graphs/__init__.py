"""Ports that are graphs: their files are read, their layers are found, and they are run."""
