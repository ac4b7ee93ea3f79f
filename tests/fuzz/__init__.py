"""The fuzzing and fault suite: `python tests/fuzz`, or `make fuzz` for the large budget."""
