"""Readers and writers of file formats, a module or folder for each; `detect` has the table of all."""
