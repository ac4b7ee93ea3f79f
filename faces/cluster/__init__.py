"""The faces of a folder, sorted into people."""
