"""Threads that run networks side by side, each on its own cores.

A core for each piece of work is faster than all cores for one piece after the other: between the layers of
these networks the cores would wait for each other, and long if other programs keep them busy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

MOST_THREADS = 8
"""Threads that run networks beside each other, at most."""

Work = TypeVar("Work")
Result = TypeVar("Result")


class CallingThread(Executor):
    """Runs work in the thread that submits it, when it does: one thread more would only wait for this one."""

    def submit(self, function: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Run a function; its exceptions are raised here."""
        future: Future[Result] = Future()
        future.set_result(function(*args, **kwargs))
        return future


def run_side_by_side(
    threads: int, function: Callable[[Work], Result], works: Iterable[Work]
) -> Iterator[Result]:
    """Run a function on pieces of work in threads that have a core each; results come in the order of work.

    At most one piece more than threads is taken from `works` before its result is: it waits for a thread.

    Args:
        threads: The number of threads. One runs all in the calling thread, with all of its cores.
        function: The function.
        works: The pieces of work, which the calling thread makes.
    """
    if threads == 1:
        yield from map(function, works)
        return
    with network_threads(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        for work in works:
            waiting.append(pool.submit(function, work))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


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
