"""Work in another process: arrays return bit for bit, and every end of the child is one clear error."""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np
import pytest

from converter.child_process import AnswerError, ChildError, ChildProcess
from converter.errors import RequirementError
from tests.conftest import random_bits, same_bits

CHILD = """
import os, signal, sys, time
import numpy as np
from converter.child_process import AnswerError, allow_processor_time, limit_memory, serve

def answer(message, arrays):
    if message == "echo":
        return [message, sys.argv[1:]], arrays
    if message == "refuse":
        raise AnswerError("no such weight", tensor="a/b", number=3)
    if message == "raise":
        raise ValueError("two\\nlines")
    if message == "silent exception":
        raise KeyError
    if message == "unspeakable":
        return object(), ()
    if message == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if message == "exit":
        os._exit(7)
    if message == "spin":
        allow_processor_time(0.1)
        while True:
            pass
    if message == "memory":
        limit_memory(64 << 20)
        return np.ones(1 << 28).size, ()
    if message == "sleep":
        time.sleep(60)
    if message == "ones":
        return None, [np.ones(1 << 20), np.zeros((0, 3)), np.arange(3)]
    if message == "zeros":
        return None, [np.zeros(1000)]
    if isinstance(message, dict):
        os.write(0, bytes.fromhex(message["write"]))
        time.sleep(60)
    return os.getsid(0) == os.getpid(), ()

serve(answer, shared=SHARED)
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
    write_child(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with ChildProcess("a_child", "one", tmp_path, seconds=5) as process:
        yield process


@pytest.fixture
def sharing_child(tmp_path, monkeypatch):
    """The same child, with which arrays are exchanged in shared memory."""
    write_child(tmp_path, shared=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    with ChildProcess("a_child", "one", tmp_path, seconds=5, shared=True) as process:
        yield process


def write_child(folder, code=CHILD, *, shared=False):
    (folder / "a_child.py").write_text(code.replace("SHARED", str(shared)))


def is_alive(process):
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("kind", ["child", "sharing_child"])
def test_arrays_and_arguments_arrive_bit_for_bit(kind, tmp_path, request):
    child = request.getfixturevalue(kind)
    arrays = [
        random_bits((3, 5), 1),
        random_bits((4, 6), 2)[::2, ::3],
        np.array(-0.0),
        np.zeros((0, 3), np.int8),
        np.arange(5, dtype=">i4"),
        np.array([np.nan, np.inf], np.float16),
        np.array([True, False]),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    ]
    for _ in range(2):
        (message, arguments), received = child.ask("echo", arrays)
        assert (message, arguments) == ("echo", ["one", str(tmp_path)])
        assert all(same_bits(one, other) for one, other in zip(arrays, received, strict=True))
        assert all(array.flags.c_contiguous and array.flags.writeable for array in received)


def test_an_array_larger_than_a_socket_buffer_arrives(child):
    large = random_bits((3 << 20,), 3)
    assert same_bits(child.ask("echo", [large])[1][0], large)


def test_requests_wait_in_turn_and_each_has_its_answer(sharing_child):
    """Larger than what a socket holds: without shared memory both sides would wait for ever."""
    large = np.ones(1 << 20)
    requests = [sharing_child.send("echo", [large * number]) for number in range(4)]
    refused, ones = sharing_child.send("refuse"), sharing_child.send("ones")
    assert [array.shape for array in ones.wait()[1]] == [(1 << 20,), (0, 3), (3,)]
    with pytest.raises(AnswerError, match="no such weight"):
        refused.wait()
    for number in (2, 0, 3, 1):
        (_, [received]) = requests[number].wait()
        assert same_bits(received, large * number)
    received[:] = 7  # stays in this process
    assert same_bits(sharing_child.ask("echo", [large])[1][0], large)


def test_a_crash_ends_every_request(sharing_child):
    requests = [sharing_child.send(message) for message in ("echo", "crash", "echo")]
    assert requests[0].wait()[0][0] == "echo"
    for request in requests[1:]:
        with pytest.raises(ChildError, match=r"^crashes \(SIGSEGV\)$"):
            request.wait()
    assert not sharing_child.is_open


def test_what_the_child_raises_is_raised_and_it_lives_on(child):
    with pytest.raises(AnswerError, match=r"^no such weight$") as caught:
        child.ask("refuse")
    assert caught.value.details == {"tensor": "a/b", "number": 3}
    for message, problem in (
        ("raise", "^two lines$"),
        ("silent exception", "^KeyError$"),
        ("unspeakable", "not JSON serializable"),
    ):
        with pytest.raises(AnswerError, match=problem):
            child.ask(message)
    assert child.ask("own session") == (True, [])


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ("crash", r"^crashes \(SIGSEGV\)$"),
        ("exit", r"^ends without an answer \(exit code 7\)$"),
        ("spin", "^does not come to an end in the processor time that it may take$"),
    ],
)
def test_the_end_of_the_child_is_one_error(child, message, problem):
    with pytest.raises(ChildError, match=problem):
        child.ask(message)
    assert not is_alive(child)
    with pytest.raises(ChildError):
        child.ask("echo")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much memory there is now")
def test_memory_beyond_the_limit_is_refused(child):
    with pytest.raises(AnswerError, match=r"more memory than it may take|Unable to allocate"):
        child.ask("memory")
    assert child.ask("own session")[0] is True


def test_a_silent_child_is_ended(tmp_path, monkeypatch):
    write_child(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with ChildProcess("a_child", seconds=1) as child:
        start = time.monotonic()
        with pytest.raises(ChildError, match=r"^gives no answer within 1 s$"):
            child.ask("sleep")
        assert time.monotonic() - start < 5
        assert not is_alive(child)


def frame(text, length=None):
    encoded = text.encode()
    return (len(encoded) if length is None else length).to_bytes(4, "little") + encoded


@pytest.mark.parametrize(
    "content",
    [
        frame("", (16 << 20) + 1),
        frame("{"),
        frame("[" * 100_000 + "]" * 100_000),
        frame("[]"),
        frame("3"),
        frame('{"message": 1, "arrays": 3}'),
        frame('{"message": 1, "arrays": [["<f4"]]}'),
        frame('{"message": 1, "arrays": [["<f4", 3]]}'),
        frame('{"message": 1, "arrays": [["<f4", [-1]]]}'),
        frame('{"message": 1, "arrays": [["<f4", [true]]]}'),
        frame('{"message": 1, "arrays": [["<f4", [1e300]]]}'),
        frame('{"message": 1, "arrays": [["|O", [1]]]}'),
        frame('{"message": 1, "arrays": [["O,O", [1]]]}'),
        frame('{"message": 1, "arrays": [["<f4", [1099511627776, 1099511627776]]]}'),
        b"\xff\xff\xff\xff",
        b"\xff" * 100,
    ],
    ids=lambda content: repr(content[:50]),
)
def test_a_broken_frame_is_one_error(child, content):
    with pytest.raises(ChildError, match=r"^answers nonsense"):
        child.ask({"write": content.hex()})
    assert not is_alive(child)


@pytest.mark.parametrize(
    "content",
    [b"\x01", frame("{}", 3), frame('{"message": 1, "arrays": [["<f4", [4]]]}') + b"1234"],
)
def test_a_frame_that_is_cut_off_is_one_error(tmp_path, monkeypatch, content):
    write_child(tmp_path, CHILD.replace("time.sleep(60)", "os._exit(0)"))
    monkeypatch.syspath_prepend(str(tmp_path))
    with (
        ChildProcess("a_child", seconds=5) as child,
        pytest.raises(ChildError, match="ends without an answer"),
    ):
        child.ask({"write": content.hex()})


def test_an_answer_larger_than_expected_is_not_received(child):
    assert child.ask("zeros", most_bytes=8000)[1][0].size == 1000
    with pytest.raises(ChildError, match="8000 bytes, 7999 at most"):
        child.ask("zeros", most_bytes=7999)


def test_a_module_that_cannot_be_run_is_a_requirement(tmp_path, monkeypatch):
    (tmp_path / "broken_child.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(str(tmp_path))
    with ChildProcess("broken_child", seconds=5) as child:
        with pytest.raises(RequirementError, match="'import broken_child'"):
            child.ask("echo")
        assert not is_alive(child)


def test_an_interruption_ends_the_child(child):
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        child.ask("echo")
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            child.ask("sleep")
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert not is_alive(child)


def test_the_child_ends_when_the_parent_closes_its_end(child):
    child.ask("echo")
    child.close()
    child.close()
    assert not is_alive(child)
