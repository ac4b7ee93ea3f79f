"""Threads that run networks side by side, each on its own cores.

A core for each piece of work is faster than all cores for one piece after the other: between the layers of
these networks the cores would wait for each other, and long if other programs keep them busy.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


@contextmanager
def network_threads(count: int, each: int = 1) -> Iterator[ThreadPoolExecutor]:
    """Start threads that run networks.

    Args:
        count: The number of threads.
        each: The number of threads that PyTorch uses in each of them.
    """
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(each,)) as pool:
            try:
                yield pool
            except BaseException:  # Ctrl-C too does not wait for what has not begun
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(before)  # each of the threads has changed it for the others
