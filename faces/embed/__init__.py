"""Embeddings: the faces of a folder of photographs in a file, with what they were computed with."""
