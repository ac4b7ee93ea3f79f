"""Faults that ports have had or easily come by, each a small change of a port that can be taken back."""
