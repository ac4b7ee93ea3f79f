"""Networks in .npy files: read as NumPy reads them, or refused with the reason, and never run."""

from __future__ import annotations

import io
import os
import pickle
import tracemalloc
from random import Random

import numpy as np
import pytest

from converter.errors import SourceError
from converter.formats.detect import open_source
from converter.formats.limits import MAX_TENSORS
from converter.formats.numpy_arrays import NumpyPickle
from tests.attacks.attack import ATTACKS, FOLDER, MARK
from tests.attacks.make import readme
from tests.conftest import random_bits, same_bits
from tests.support.numpy_files import (
    OBJECT_HEADER,
    around,
    array,
    by_numpy,
    by_python2,
    flat,
    items,
    npy,
    small_network,
    string,
)

MEMORY = 30 << 20
NETWORK = small_network()
WRITERS = {
    "protocol 4": lambda network: by_numpy(network, 4),
    "protocol 3": lambda network: by_numpy(network, 3),
    "protocol 2": lambda network: by_numpy(network, 2),
    "Python 2": by_python2,
}


def read(path):
    with open_source(path) as source:
        assert isinstance(source, NumpyPickle)
        return {name: source[name] for name in source}


def written(tmp_path, content):
    path = tmp_path / "det.npy"
    path.write_bytes(content)
    return path


def refuses(path, problem):
    """Check that a file is refused with this message, without memory that its size does not justify."""
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match=problem) as caught:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    assert caught.value.path == path
    assert len(str(caught.value)) < 1000
    return caught.value


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_a_network_is_read_as_numpy_reads_it(tmp_path, writer):
    content = writer(NETWORK)
    judge = flat(np.load(io.BytesIO(content), allow_pickle=True, encoding="latin1").item())
    path = written(tmp_path, content)
    actual = read(path)
    assert list(actual) == list(judge) == list(flat(NETWORK))
    assert all(same_bits(actual[name], judge[name]) for name in judge)
    assert all(value.flags.c_contiguous and value.flags.writeable for value in actual.values())
    with open_source(path) as source:
        assert source.naming == "tensorflow"
        for name, info in source.info.items():
            assert (info.dtype, info.shape) == (judge[name].dtype, judge[name].shape)


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_every_bit_of_a_weight_is_kept(tmp_path, writer):
    """NaNs with a payload, in C and in Fortran order; Python 2 writes short strings unlike long ones."""
    network = {"conv1": {"weights": random_bits((3, 3, 4, 10), 0), "small": random_bits((4, 4), 1)}}
    network["fortran"] = {name: np.asfortranarray(values) for name, values in network["conv1"].items()}
    actual = read(written(tmp_path, writer(network)))
    for layer in network:
        assert all(same_bits(actual[f"{layer}/{name}"], network[layer][name]) for name in network[layer])


def test_numpy_save_itself(tmp_path):
    np.save(tmp_path / "saved.npy", NETWORK, allow_pickle=True)
    actual = read(tmp_path / "saved.npy")
    assert all(same_bits(actual[name], values) for name, values in flat(NETWORK).items())


def test_an_empty_array(tmp_path):
    for writer in ("protocol 4", "protocol 3", "Python 2"):
        actual = read(written(tmp_path, WRITERS[writer]({"fc": {"weights": np.zeros((0, 4), np.float32)}})))
        assert actual["fc/weights"].shape == (0, 4)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_header(tmp_path, version):
    content = npy(pickle.dumps(np.array(NETWORK, dtype=object), 3), version=version)
    assert np.load(io.BytesIO(content), allow_pickle=True).item().keys() == NETWORK.keys()
    assert set(read(written(tmp_path, content))) == set(flat(NETWORK))


# Refusals


def layer(**arrays):
    return around(
        items({string(b"conv1"): items({string(name.encode()): made for name, made in arrays.items()})})
    )


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (np.zeros((2, 3), np.float32), "it holds one array, not a network"),
        (np.array([None, None]), "it holds one array, not a network"),
        (np.array([1], dtype=[("a", "<f4")]), "NumPy writes another header for a network"),
        (np.array("text", dtype=object), "of type str, not a dict of layers"),
        (np.array({}, dtype=object), "there are no arrays in it"),
        (np.array({"conv1": {}}, dtype=object), "there are no arrays in it"),
        (np.array({"conv1": np.zeros(2)}, dtype=object), "layer 'conv1' is of type array, not a dict"),
        (np.array({7: {"weights": np.zeros(2)}}, dtype=object), "'7' is not the name"),
        (np.array({"": {"weights": np.zeros(2)}}, dtype=object), "'' is not the name"),
        (np.array({"a b": {"weights": np.zeros(2)}}, dtype=object), "'a b' is not the name"),
        (np.array({"a": {"n" * 5000: np.zeros(2)}}, dtype=object), "'n+' is not the name"),
        (np.array({b"conv1": {"weights": np.zeros(2)}}, dtype=object), "a key of type bytes' is not"),
        (np.array({("a",): {"weights": np.zeros(2)}}, dtype=object), "a key of type tuple' is not"),
        (np.array({"conv1": {"weights": 7}}, dtype=object), "tensor 'conv1/weights': it is of type int"),
        (np.array({"conv1": {"weights": [1.0, 2.0]}}, dtype=object), "it is of type list, not an array"),
        (np.array({"conv1": {"weights": np.float32(7)}}, dtype=object), "asks for more than arrays"),
        (np.array({"conv1": {"w": np.zeros(2, ">f4")}}, dtype=object), "'conv1/w': its elements are '>f4'"),
        (np.array({"conv1": {"w": np.zeros(2, "c8")}}, dtype=object), "its elements are '<c8'"),
        (np.array({"conv1": {"w": np.zeros(2, bool)}}, dtype=object), "its elements are '|b1'"),
        (np.array({"conv1": {"w": np.zeros(2, "U3")}}, dtype=object), "its elements are '<U3'"),
        (np.array({"conv1": {"w": np.zeros(2, "M8[s]")}}, dtype=object), "its elements are '<M8'"),
        (np.array({"conv1": {"w": np.zeros(2, "f4,i4")}}, dtype=object), "its elements are '|V8'"),
        (np.array({"conv1": {"w": np.array([{}])}}, dtype=object), "its elements are '|O8'"),
        (np.array({"conv1": {"w": np.ma.zeros(2)}}, dtype=object), "asks for more than arrays"),
    ],
)  # fmt: skip
def test_what_numpy_saves_and_is_no_network(tmp_path, values, problem):
    np.save(tmp_path / "det.npy", values, allow_pickle=True)
    assert refuses(tmp_path / "det.npy", problem)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (layer(w=array((4,), string(bytes(12)))), "'conv1/w': it has 12 bytes, but its shape .4,. takes 16"),
        (layer(w=array((4,), b"X\x10\0\0\0" + "é".encode() * 8)), "it has 8 bytes"),
        (layer(w=array((4,), b"X\x20\0\0\0" + "Ā".encode() * 16)), "stored as a text that is not Latin-1"),
        (layer(w=array((4,), b"K\x07")), "NumPy does not describe an array like this"),
        (layer(w=array((4,), string(bytes(16)), "<i1")), "NumPy does not describe an array like this"),
        (layer(w=array((4,), string(bytes(16)), "|f4")), "NumPy does not describe an array like this"),
        (layer(w=array((4,), string(bytes(16)), "<g16")), "its elements are '<g16'"),
        (layer(w=b"h\x01h\x02K\0\x85U\x01b\x87R"), "NumPy does not describe an array like this"),
        (layer(w=b"h\x01h\x02K\x05\x85U\x01b\x87R"), "asks for more than arrays"),
        (layer(w=array((4,), string(bytes(16))) + b"(K\x01tb"), "asks for more than arrays"),
        (around(b"}"), "there are no arrays in it"),
        (around(b"}}"), "damaged"),
        (npy(b"\x80\x02}."), "its pickle does not fit its header"),
        (npy(b"\x80\x02" + b"(" * 600_000 + b"."), "larger than any of a network"),
        (npy(b""), "the pickle inside: "),
        (npy(b"", header=OBJECT_HEADER.replace(b"()", b"(2,)")), "it holds one array"),
        (npy(b"", header=OBJECT_HEADER + b" # and more"), "NumPy writes another header for a network"),
        (npy(b"", header=b" " * 20_000), "its header has 200"),
        (b"\x93NUMPY", "it does not start as a .npy file"),
        (b"\x93NUMPY\x01\0", "its header has 0 bytes"),
    ],
)
def test_what_numpy_never_writes(tmp_path, content, problem):
    assert refuses(written(tmp_path, content), problem)


def test_more_bytes_or_arrays_than_any_network(tmp_path):
    path = written(tmp_path, by_python2(NETWORK))
    os.truncate(path, 65 << 20)
    refuses(path, "it has over 64 MiB, more than any network of this format")
    one = array((), string(bytes(4)))
    for count in (MAX_TENSORS, MAX_TENSORS + 1):
        arrays = [string(b"%d" % n) + (b"h\x40" if n else one + b"q\x40") for n in range(count)]
        path = written(tmp_path, around(b"}(" + string(b"conv1") + b"}(" + b"".join(arrays) + b"uu"))
        if count == MAX_TENSORS:
            assert len(read(path)) == count
        else:
            refuses(path, f"it holds more than {MAX_TENSORS} arrays")


ATTACK_PROBLEMS = {
    "runs-a-command": "it was not run",
    "stack-global": "it was not run",
    "dtype-of-a-function": "it was not run",
    "reconstructs-another-class": "it was not run",
    "makes-an-array": "it was not run",
    "two-pickles": "its pickle ends at byte 356, but it has 388 bytes",
    "evaluates": "NumPy writes another header",
    "objects-inside": "'conv1/weights': its elements are '|O8'",
    "metadata": "'conv1/weights': NumPy does not describe",
    "shape-of-terabytes": "'conv1/weights': it has 16 bytes",
    "product-overflows": "'conv1/weights': it has 0 bytes",
    "negative-extent": "'conv1/weights': NumPy does not describe",
    "empty-and-endless": "'conv1/weights': the shape .* overflows",
    "rank-of-thousands": "'conv1/weights': NumPy does not describe",
    "big-endian": "'conv1/weights': its elements are '>f4'",
    "two-byte-orders": "it was not run",
    "key-twice": "key 'weights' appears twice",
    "slashes": "'a/b' is not the name",
    "no-text": "'1' is not the name",
    "string-of-gigabytes": "damaged",
    "memo-of-billions": "its pickle does not fit its header",
    "nested-lists": "of type list, not a dict of layers",
    "billion-laughs": "of type list, not a dict of layers",
    "tuple-of-tuples": "a key of type tuple' is not the name",
    "byte-order-of-tuples": "'conv1/weights': NumPy does not describe",
    "encoded-10000-times": "of type list, not a dict of layers",
    "million-arrays": "it holds more than 20000 arrays",
    "header-without-end": "its header has 4294967295 bytes",
    "nested-header": "NumPy writes another header",
    "fields": "NumPy writes another header",
    "future-version": "version 9.0",
    "array-of-terabytes": "it holds one array",
}


@pytest.mark.parametrize("name", ATTACK_PROBLEMS)
def test_an_attack_is_refused_for_what_it_tries(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    refuses(FOLDER / f"{name}.npy", ATTACK_PROBLEMS[name].replace("|", r"\|"))
    assert list(tmp_path.iterdir()) == []


def test_every_attack_says_what_it_tries():
    assert {name for name in ATTACKS if name.endswith(".npy")} == {f"{name}.npy" for name in ATTACK_PROBLEMS}
    assert readme().count(".npy |") == len(ATTACK_PROBLEMS)


def test_what_runs_code_would_run_it(tmp_path, monkeypatch):
    """The control: with NumPy's own unpickling the attack succeeds."""
    monkeypatch.chdir(tmp_path)
    np.load(FOLDER / "runs-a-command.npy", allow_pickle=True)
    assert (tmp_path / MARK).exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_no_cut_and_no_changed_bit_does_harm(tmp_path, writer):
    """Each is refused with a SourceError, or read as arrays of other numbers or names."""
    whole = writer(NETWORK)
    random = Random(0)
    flips = [(random.randrange(len(whole)), 1 << random.randrange(8)) for _ in range(1000)]
    for length in range(len(whole)):
        with pytest.raises(SourceError):
            NumpyPickle(written(tmp_path, whole[:length]))
    refused = 0
    for position, bit in flips:
        changed = bytearray(whole)
        changed[position] ^= bit
        try:
            source = NumpyPickle(written(tmp_path, bytes(changed)))
            arrays = {name: source[name] for name in source}
            assert sum(values.nbytes for values in arrays.values()) <= len(whole)
        except SourceError as error:
            assert len(str(error)) < 1000
            refused += 1
    assert 0 < refused < len(flips)
