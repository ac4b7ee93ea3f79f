"""One module a file format: reading it, writing it where the converter writes it, and nothing else."""
