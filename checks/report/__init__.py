"""Reports: what a command found, as one self-contained page."""
