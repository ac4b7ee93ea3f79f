"""`python -m tests.fuzz`: mutants of every format, damaged networks, flipped bits, killed programs."""

from __future__ import annotations

import sys

from tests.fuzz.command import main

if __name__ == "__main__":
    sys.exit(main())
