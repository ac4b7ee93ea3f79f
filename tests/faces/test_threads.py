"""Threads that run networks: an interrupt does not wait for work that has not begun."""

from __future__ import annotations

import threading

import pytest
import torch

from faces.threads import network_threads


def test_an_interrupt_cancels_what_waits():
    before, begun, release = torch.get_num_threads(), threading.Event(), threading.Event()
    with pytest.raises(KeyboardInterrupt), network_threads(1, each=3) as pool:
        assert pool.submit(torch.get_num_threads).result() == 3
        running = pool.submit(lambda: begun.set() or release.wait(10))
        waiting = pool.submit(pytest.fail)
        assert begun.wait(10)  # what has not begun would be cancelled as well
        threading.Timer(0.1, release.set).start()
        raise KeyboardInterrupt
    assert running.result()
    assert waiting.cancelled()
    assert torch.get_num_threads() == before
