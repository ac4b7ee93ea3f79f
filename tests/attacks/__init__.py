"""Harmful files, and the modules that write them; see make.py."""
