"""The TensorFlow side: the network rebuilt, a checkpoint's own graph run, a checkpoint written.

Only this package imports TensorFlow, and only when one of its modules is imported.
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
    log level, so the descriptor is redirected to a file during the import. If the import fails, the contents
    of that file are shown.

    Returns:
        The module `tensorflow`. It logs errors only; a value of `TF_CPP_MIN_LOG_LEVEL` is left as it is.

    Raises:
        ImportError: TensorFlow is not installed, or does not load on this machine.
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
