"""The detector against the code of its authors."""
