"""Files that were made to do harm, and the modules that make them; see make.py."""
