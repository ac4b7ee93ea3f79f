"""The fuzzing and fault suite: `python -m tests.fuzz`, or `make fuzz` for the large budget."""
