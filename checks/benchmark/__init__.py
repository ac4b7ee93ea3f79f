"""Measures what converting and comparing cost."""
