"""Checks the checks: plants faults in a clean port, and judges clean ports the same way."""
