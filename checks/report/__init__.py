"""The kit that the commands' pages are built with."""

import logging

# Without a home folder matplotlib warns, while it is imported, that it makes its cache anew.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
