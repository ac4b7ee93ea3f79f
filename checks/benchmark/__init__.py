"""The benchmark: the time and memory that converting and comparing take."""
