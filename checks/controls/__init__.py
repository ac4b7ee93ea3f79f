"""The checks, checked: faults planted in a clean port, and clean ports judged the same way."""
