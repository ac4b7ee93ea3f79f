"""The decision whether two photographs show the same person."""
