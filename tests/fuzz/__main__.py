"""`python tests/fuzz`: mutants of every format, damaged networks, flipped bits and killed writers."""

from __future__ import annotations

import sys
from pathlib import Path

# Run as a folder, the package's own folder comes first on the path: put the two that hold the packages there.
sys.path[:1] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from fuzz.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
