"""The TensorFlow side: rebuilds the network, runs a checkpoint's own graph and writes checkpoints.

No other package imports TensorFlow; this one does so when one of its modules is imported.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from typing import Any


def import_tensorflow() -> Any:
    """Import TensorFlow quietly.

    While TensorFlow's C++ code loads, it writes a few lines to file descriptor 2 before it reads its log
    level. The descriptor therefore points to a file during the import. If the import fails, the file's
    content is printed.

    Returns:
        The module `tensorflow`. It logs errors only, unless `TF_CPP_MIN_LOG_LEVEL` is set.

    Raises:
        ImportError: TensorFlow is not installed, or does not load on this machine.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - there is no home folder
        # Keras comes with TensorFlow and would write its settings to a folder called ~ in this one.
        os.environ.setdefault("KERAS_HOME", os.devnull)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        failed = True
        try:
            import tensorflow

            failed = False
        except KeyboardInterrupt:
            failed = False
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            if failed:
                aside.seek(0)
                os.write(2, aside.read())
    return tensorflow
