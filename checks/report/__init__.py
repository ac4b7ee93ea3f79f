"""The kit that the commands' pages are built with."""
