"""The TensorFlow side: rebuilds the network, runs a checkpoint's own graph and writes checkpoints.

No other package imports TensorFlow; this one does so when one of its modules is imported.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LEGACY_KERAS = "TF_USE_LEGACY_KERAS"
_STDERR = threading.RLock()


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
    # TensorFlow ends its import with that of Keras, a third of the time, which no module here uses. It tries
    # tf_keras instead if this is set, goes on without it, and loads Keras when tf.keras is first used.
    is_keras_put_off = LEGACY_KERAS not in os.environ and importlib.util.find_spec("tf_keras") is None
    if is_keras_put_off:
        os.environ[LEGACY_KERAS] = "1"
    try:
        with stderr_aside():
            import tensorflow
    finally:
        if is_keras_put_off:
            del os.environ[LEGACY_KERAS]
    return tensorflow


@contextmanager
def stderr_aside() -> Iterator[None]:
    """Point file descriptor 2 to a file, for C++ code that always logs; after an error, print the file.

    One thread at a time does so: a second one would take the first one's file for the terminal.
    """
    with _STDERR, tempfile.TemporaryFile() as aside:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(aside.fileno(), 2)
        failed = True
        try:
            yield
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
