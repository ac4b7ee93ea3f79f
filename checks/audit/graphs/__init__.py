"""Ports that are graphs: read their files, find their layers, and run them."""
