"""`python -m checks`: lists the commands, as `facenet-port --help` does."""

from __future__ import annotations

import sys

from facenet_port import main

if __name__ == "__main__":
    sys.exit(main(["--help"] if len(sys.argv) == 1 else None))
