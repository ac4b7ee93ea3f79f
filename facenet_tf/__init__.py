"""The TensorFlow side: the network rebuilt, a checkpoint's own graph run, a checkpoint written.

This package alone imports TensorFlow, and only once one of its modules is imported.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from typing import Any


def import_tensorflow() -> Any:
    """Import TensorFlow quietly.

    TensorFlow's C++ part writes a few lines to file descriptor 2 while it loads, before it has read its own
    log level, so the descriptor itself is turned aside for that moment. If the import fails, what was
    written is shown after all.

    Returns:
        The module `tensorflow`. It logs errors only; for its C++ part, `TF_CPP_MIN_LOG_LEVEL` goes first.

    Raises:
        ImportError: TensorFlow is not installed, or not usable here.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        loaded = False
        try:
            import tensorflow

            loaded = True
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            if not loaded:
                aside.seek(0)
                os.write(2, aside.read())
    return tensorflow
