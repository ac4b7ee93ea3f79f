"""Files that crash a reader, keep it busy or fill the memory: each is refused by name."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from converter.errors import RequirementError, SourceError
from converter.formats.hdf5.keras import KerasHdf5
from converter.formats.numpy_arrays import NumpyPickle
from converter.formats.safetensors import SafetensorsFile
from converter.formats.tensorflow import sstable
from converter.formats.tensorflow.bundle import TensorBundle
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from converter.formats.tensorflow.frozen_graph import FrozenGraph
from converter.formats.tensorflow.protos import GraphDef
from converter.formats.torch.state_dict import StateDictFile
from tests.conftest import same_bits

MEMORY = 100 << 20
WEIGHT = np.arange(24, dtype=np.float32).reshape(4, 6)


def read_all(source):
    with source:
        return {name: source[name].copy() for name in source}


def refuses(opened, problem):
    """Check that a file is refused, without memory that its size does not justify."""
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match=problem) as caught:
            read_all(opened())
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 2000
    return caught.value


# HDF5


def keras(path, add=lambda group: group.create_dataset("kernel:0", data=WEIGHT), **options):
    with h5py.File(path, "w", **options) as file:
        file.attrs["layer_names"] = [b"a"]
        group = file.create_group("a")
        group.attrs["weight_names"] = [b"kernel:0"]
        add(group)
    return path


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"chunks": (3, 4)},
        {"chunks": (3, 4), "compression": "gzip", "shuffle": True, "fletcher32": True},
        {"dtype": ">f4"},
        {"dtype": ">f4", "chunks": True},
        {"dtype": "<f8"},
    ],
)
@pytest.mark.parametrize("options", [{}, {"userblock_size": 1024}, {"libver": "latest"}])
def test_every_way_to_store_a_weight_is_read(tmp_path, settings, options):
    path = keras(
        tmp_path / "k.h5", lambda group: group.create_dataset("kernel:0", data=WEIGHT, **settings), **options
    )
    array = read_all(KerasHdf5(path))["a/kernel:0"]
    assert same_bits(array, WEIGHT.astype(settings.get("dtype", "<f4")))


def test_a_weight_inside_its_header_and_a_scalar_are_read(tmp_path):
    def compact(group):
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple(WEIGHT.shape)
        dataset = h5py.h5d.create(group.id, b"kernel:0", h5py.h5t.IEEE_F32LE, space, properties)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, WEIGHT)

    assert same_bits(read_all(KerasHdf5(keras(tmp_path / "c.h5", compact)))["a/kernel:0"], WEIGHT)
    scalar = keras(tmp_path / "s.h5", lambda group: group.create_dataset("kernel:0", data=np.float32(5)))
    assert same_bits(read_all(KerasHdf5(scalar))["a/kernel:0"], np.float32(5))


def test_a_file_on_which_libhdf5_never_ends_is_refused(tmp_path):
    path = keras(tmp_path / "loop.h5")
    content = bytearray(path.read_bytes())
    heap = content.index(b"GCOL")  # the names are here; the free space behind them gets the size zero
    free = content.index(b"kernel:0", heap) + 8 + 8
    content[free : free + 8] = bytes(8)
    path.write_bytes(content)
    refuses(lambda: KerasHdf5(path), r"this HDF5 file is damaged \(libhdf5 does not come to an end")


def test_a_file_on_a_busy_machine_is_not_called_damaged_alone(tmp_path, monkeypatch):
    path = keras(tmp_path / "k.h5")
    monkeypatch.setattr("converter.formats.hdf5.keras._SECONDS", 1e-3)  # a process needs longer to start
    with pytest.raises(RequirementError, match=r"k\.h5: libhdf5 gives no answer .* too busy, or"):
        KerasHdf5(path)


def unstored(group):
    group.create_dataset("kernel:0", (1 << 20, 1 << 20), np.float32)


def unstored_chunks(group):
    group.create_dataset("kernel:0", (1 << 20, 1 << 10), np.float32, chunks=(1 << 10, 1 << 10))


def unstored_compressed(group):
    group.create_dataset("kernel:0", (1 << 20, 1 << 10), np.float32, chunks=(1 << 10, 1 << 10), compression=9)


def one_chunk_missing(group):
    group.create_dataset("kernel:0", (4, 6), np.float32, chunks=(2, 6), compression=9)[:2] = WEIGHT[:2]


def compressed_zeros(group):
    dataset = group.create_dataset("kernel:0", (100 << 20,), np.uint8, chunks=(25 << 20,), compression=9)
    for start in range(0, 100 << 20, 25 << 20):
        dataset[start : start + (25 << 20)] = np.zeros(25 << 20, np.uint8)


def other_filter(group):
    group.create_dataset("kernel:0", data=WEIGHT, compression="lzf")


def soft_link(group):
    group["elsewhere"] = WEIGHT
    group["kernel:0"] = h5py.SoftLink("/a/elsewhere")


def external_link(group):
    group["kernel:0"] = h5py.ExternalLink("/dev/zero", "/a")


def other_float(group):
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_ebias(100)
    space = h5py.h5s.create_simple(WEIGHT.shape)
    h5py.h5d.create(group.id, b"kernel:0", kind, space).write(h5py.h5s.ALL, h5py.h5s.ALL, WEIGHT)


def references(group):
    group.create_dataset("kernel:0", data=[group.ref], dtype=h5py.ref_dtype)


def pieces(group):
    group.create_dataset("kernel:0", (2,), h5py.vlen_dtype(np.float32))


def odd_name(group):
    group.attrs["weight_names"] = np.array([b"\xff\xfe"], "S2")


def long_name(group):
    name = b"n" * 39_998 + b":0"
    group.attrs["weight_names"] = [name]
    group.create_dataset(name, data=WEIGHT)


@pytest.mark.parametrize(
    ("add", "problem"),
    [
        (unstored, "not all of its data is stored"),
        (unstored_chunks, "not all of its data is stored"),
        (unstored_compressed, "not all of its data is stored"),
        (one_chunk_missing, "not all of its data is stored"),
        (compressed_zeros, "the tensors claim 104857600 bytes"),
        (other_filter, "filter number 32000; only gzip, shuffle, fletcher32 are supported"),
        (soft_link, "a soft or external link"),
        (external_link, "a soft or external link"),
        (other_float, "not a standard integer or float"),
        (references, "not a number"),
        (pieces, "not a number"),
        (odd_name, "not UTF-8"),
        (long_name, "a name of 40002 characters"),
    ],
)
def test_hostile_keras_weights_are_refused(tmp_path, add, problem):
    path = keras(tmp_path / "k.h5", add)
    assert refuses(lambda: KerasHdf5(path), problem).path == path


def descendants():
    processes = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            process, _, rest = status.read_text().rpartition(")")
        except OSError:
            continue
        processes.append((int(process.split()[0]), int(rest.split()[1])))
    below, more = {os.getpid()}, True
    while more:
        more = {child for child, parent in processes if parent in below} - below
        below |= more
    return below - {os.getpid()}


@pytest.fixture
def children():
    """A function that returns the processes that the test has started, by their ids."""
    before = descendants()
    return lambda: descendants() - before


def chunked(group):
    group.create_dataset("kernel:0", data=WEIGHT, chunks=True)


def test_the_death_of_the_process_that_reads_is_an_error_and_the_next_file_is_read(children, tmp_path):
    path = keras(tmp_path / "k.h5", chunked)
    for number in (signal.SIGSEGV, signal.SIGKILL):
        with KerasHdf5(path) as source:
            (child,) = children()
            os.kill(child, number)
            with pytest.raises(SourceError, match=rf"libhdf5 crashes \({number.name}\)") as error:
                source["a/kernel:0"]
            assert error.value.tensor == "a/kernel:0"
    assert children() == set()
    assert same_bits(read_all(KerasHdf5(path))["a/kernel:0"], WEIGHT)


def test_neither_a_closed_source_nor_a_refused_file_leaves_a_process(children, tmp_path):
    good, bad = keras(tmp_path / "good.h5"), keras(tmp_path / "bad.h5", unstored)
    with warnings.catch_warnings(action="error"):
        read_all(KerasHdf5(good))
        with pytest.raises(SourceError):
            KerasHdf5(bad)
    assert children() == set()


SCRIPT = """
import sys, threading
from pathlib import Path
from converter.formats.hdf5.keras import KerasHdf5

def read():
    with KerasHdf5(Path(sys.argv[1])) as source:
        assert source["a/kernel:0"].sum() == 276

threads = [threading.Thread(target=read) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("h5py" in sys.modules)
for path in Path("/proc/self/task").glob("*/children"):
    print(path.read_text())
"""


def test_a_script_without_a_main_guard_reads_in_threads_and_leaves_nothing(tmp_path):
    path = keras(tmp_path / "k.h5", chunked)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, str(path)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    # libhdf5 never comes into the process of the user, and no process is left.
    assert run.stdout.split() == ["False"]


# PyTorch


def repack(path, change):
    """Rewrite a PyTorch file with changed members and correct checksums."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    folder = next(iter(members)).partition("/")[0]
    change(members, folder)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def with_pickle(path, build):
    torch.save({"w": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        original = archive.read(f"{path.stem}/data.pkl")
    return repack(path, lambda members, folder: members.update({f"{folder}/data.pkl": build(original)}))


def test_repacked_control(tmp_path):
    path = with_pickle(tmp_path / "s.pt", lambda original: original)
    assert read_all(StateDictFile(path))["w"].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("shape", [(1 << 40,), (5,), (1 << 30, 1 << 30)])
def test_a_tensor_larger_than_its_storage_is_refused(tmp_path, shape, legacy):
    expanded = torch.zeros(4).as_strided(shape, (0,) * len(shape))
    torch.save({"w": expanded}, tmp_path / "s.pt", _use_new_zipfile_serialization=not legacy)
    refuses(lambda: StateDictFile(tmp_path / "s.pt"), "it has more elements than are stored")


def doubled(depth):
    """A pickle whose only key is a tuple of tuples, each twice in the next: 2**depth leaves."""
    steps = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(depth))
    return b"\x80\x02}" + b")" + steps + b"K\x01s."


@pytest.mark.parametrize(
    ("build", "problem"),
    [
        (lambda _: doubled(60), "its keys are not names"),
        pytest.param(
            lambda _: b"\x80\x02" + b"(" * 3_000_000 + b".",
            "larger than any of a network",
            marks=pytest.mark.slow,
        ),
        (lambda _: b"\x80\x02" + b"X\xff\xff\xff\x7f" + b".", "damaged"),
        (lambda _: b"\x80\x02r\xff\xff\xff\xff.", "damaged"),
        (lambda _: b"\x80\x02\x8b\xff\xff\xff\x7f.", "damaged"),
        (lambda original: original.replace(b"K\x04t", b"K\x05t"), "does not have the size"),
        (lambda original: original[:-2], "damaged"),
        (lambda _: b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\0\0\0\0\0\x01\x85R.", "holds a tensor or array"),
        (lambda _: b"\x80\x02ctorch\nTensor\n\x8a\x06\0\0\0\0\0\x01\x85R.", "holds a tensor or array"),
    ],
)  # fmt: skip
def test_hostile_pickles_are_refused(tmp_path, build, problem):
    path = with_pickle(tmp_path / "s.pt", build)
    refuses(lambda: StateDictFile(path), problem)


def test_a_key_that_is_there_twice_is_refused(tmp_path):
    torch.save({"w": torch.zeros(4), "x": torch.ones(4)}, tmp_path / "s.pt")

    def change(members, folder):
        name = f"{folder}/data.pkl"
        members[name] = members[name].replace(b"X\x01\0\0\0x", b"X\x01\0\0\0w")

    path = repack(tmp_path / "s.pt", change)
    refuses(lambda: StateDictFile(path), "key 'w' appears twice")


def test_a_big_endian_file_is_refused(tmp_path):
    torch.save({"w": torch.zeros(4)}, tmp_path / "s.pt")
    path = repack(tmp_path / "s.pt", lambda members, folder: members.update({f"{folder}/byteorder": b"big"}))
    refuses(lambda: StateDictFile(path), "not little-endian")


def test_a_storage_of_another_size_is_refused(tmp_path):
    torch.save({"w": torch.zeros(4)}, tmp_path / "s.pt")
    path = repack(tmp_path / "s.pt", lambda members, folder: members.update({f"{folder}/data/0": bytes(12)}))
    refuses(lambda: StateDictFile(path), "does not have the size that the pickle says")


def test_two_archives_in_one_file_are_refused(tmp_path):
    torch.save({"w": torch.zeros(4)}, tmp_path / "one.pt")
    torch.save({"w": torch.ones(4)}, tmp_path / "two.pt")
    path = tmp_path / "both.pt"
    path.write_bytes((tmp_path / "one.pt").read_bytes() + (tmp_path / "two.pt").read_bytes())
    refuses(lambda: StateDictFile(path), "a damaged zip archive")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["s/data/0", "s/DATA/0", "other/data/0"])
def test_a_member_that_is_there_twice_is_refused(tmp_path, name):
    torch.save({"w": torch.zeros(4)}, tmp_path / "s.pt")
    with zipfile.ZipFile(tmp_path / "s.pt") as old, zipfile.ZipFile(tmp_path / "t.pt", "w") as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
        new.writestr(name, bytes(16))
    refuses(lambda: StateDictFile(tmp_path / "t.pt"), "twice")


def test_members_that_overlap_are_refused(tmp_path):
    path = with_pickle(tmp_path / "s.pt", lambda original: original)
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    spans = []
    while content[directory : directory + 4] == b"PK\x01\x02":
        lengths = struct.unpack_from("<3H", content, directory + 28)
        spans.append(directory)
        directory += 46 + sum(lengths)
    sizes = struct.pack("<2L", 10_000, 10_000)
    content[spans[0] + 20 : spans[0] + 28] = sizes
    path.write_bytes(content)
    refuses(lambda: StateDictFile(path), "its members overlap")


def test_an_old_file_whose_storages_are_not_there_is_refused(tmp_path):
    path = tmp_path / "s.pt"
    torch.save({"w": torch.zeros(4)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    huge = b"\x8a\x07" + (1 << 50).to_bytes(7, "little")
    claimed = content.replace(b"K\x04N", huge + b"N", 1)
    assert claimed != content
    path.write_bytes(claimed)
    refuses(lambda: StateDictFile(path), "does not have the size that the pickle says")
    path.write_bytes(content + b"\0")
    refuses(lambda: StateDictFile(path), "its storages end at byte")


# Frozen graphs


def message(number, content):
    return sstable.encode_varint(number << 3 | 2) + sstable.encode_varint(len(content)) + content


def constant(tensor, name=b"w"):
    value = message(5, message(1, b"value") + message(2, message(8, tensor)))
    const = message(1, message(1, name) + message(2, b"Const") + value)
    return const + message(1, message(1, name + b"/read") + message(2, b"Identity") + message(3, name))


FLOAT, INT8, INT64 = b"\x08\x01", b"\x08\x06", b"\x08\x09"


def shape(*extents):
    return message(2, b"".join(message(2, b"\x08" + sstable.encode_varint(extent)) for extent in extents))


def test_wire_control(tmp_path):
    (tmp_path / "g.pb").write_bytes(constant(FLOAT + shape(2) + message(4, WEIGHT.tobytes()[:8])))
    assert read_all(FrozenGraph(tmp_path / "g.pb"))["w"].tolist() == [0, 1]
    assert len(GraphDef.FromString((tmp_path / "g.pb").read_bytes()).node) == 2


def nested(depth):
    content = b""
    for level in range(depth):
        content = message(8 if level % 2 else 1, content)
    return content


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(b"\x0a\x00" * 1_000_000, "more fields than any graph has", marks=pytest.mark.slow),
        pytest.param(
            message(1, b"\x1a\x00" * 1_000_000), "more fields than any graph has", marks=pytest.mark.slow
        ),
        (constant(FLOAT + message(2, b"\x12\x00" * 1_000_000)), "33 dimensions"),
        (constant(INT64 + shape(1 << 23) + message(10, bytes(1 << 23))), "larger than it should be"),
        (b"".join(constant(FLOAT + shape(1 << 24), b"%d" % i) for i in range(100)), "the tensors claim"),
        (constant(FLOAT + shape(0, 1 << 62)), "overflows"),
        (constant(FLOAT + shape(1) + b"\x5d\x00\x00"), "not a TensorFlow graph"),
        (constant(nested(5000)), "DT_INVALID is not supported"),
        (constant(FLOAT + shape(1) + message(4, bytes(4)) * 2), "larger than it should be"),
        (constant(INT8 + shape(1) + message(7, b"\xff\x7f")), "a value is outside the range of int8"),
        (message(1, b"\x80" * 11), "not a TensorFlow graph"),
        (message(1, message(1, b"\xff")), "not UTF-8"),
        (b"\x0b", "unknown type 3"),
        (constant(FLOAT + shape(1), b"n" * 5000), "a name of 5000 characters"),
    ],
)
def test_hostile_graphs_are_refused(tmp_path, content, problem):
    (tmp_path / "g.pb").write_bytes(content)
    error = refuses(lambda: FrozenGraph(tmp_path / "g.pb"), ".")
    assert problem in f"{error} {error.__cause__}"
    for term in ("wire", "byte ", "node at", "message"):
        assert term not in str(error)


# safetensors


def tensors_file(path, header, data=b""):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return path


def entry(dtype="F32", shape=(1,), stop=4):
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, stop]}


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (b'{"a":%b,"a":%b}' % (json.dumps(entry()).encode(), json.dumps(entry("I32")).encode()), "twice"),
        (b"[" * 1_000_000, "this safetensors file is damaged"),
        (b'{"a":' * 500_000, "this safetensors file is damaged"),
        (b"7", "this safetensors file is damaged"),
        ({str(i): entry(shape=[0], stop=0) for i in range(30_000)}, "more than 20000 tensors"),
        ({"a": entry(shape=[1] * 100_000)}, "100000 dimensions"),
        ({"a": entry(shape=[0, 1 << 62], stop=0)}, "overflows"),
        ({"a": entry(shape=[1 << 62])}, "this safetensors file is damaged"),
        ({"a": entry("F4", [8])}, r"F4 is not converted|not a readable"),
        ({"n" * 5000: entry()}, "a name of 5000 characters"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + b" " * (5 << 20), "more than any"),
    ],
)
def test_hostile_safetensors_are_refused(tmp_path, header, problem):
    size = 0 if b"[0, 0]" in repr(header).encode() else 4
    path = tensors_file(tmp_path / "s.safetensors", header, bytes(size))
    refuses(lambda: SafetensorsFile(path), problem)


# What is no regular file, and what becomes shorter


READERS = [KerasHdf5, StateDictFile, FrozenGraph, SafetensorsFile, NumpyPickle]


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "pipe", tmp_path / "loop", tmp_path, tmp_path / "nothing", Path("/dev/zero")):
        assert refuses(lambda path=path: reader(path), "not a regular file|cannot be read").path == path


def test_a_checkpoint_of_pipes_is_refused_at_once(tmp_path):
    write_tensor_bundle(tmp_path / "m", {"w": WEIGHT})
    (tmp_path / "m.data-00000-of-00001").unlink()
    os.mkfifo(tmp_path / "m.data-00000-of-00001")
    refuses(lambda: TensorBundle(tmp_path / "m"), "not a regular file")
    (tmp_path / "m.index").unlink()
    os.mkfifo(tmp_path / "m.index")
    refuses(lambda: TensorBundle(tmp_path / "m"), "not a regular file")


def test_a_file_that_becomes_shorter_while_it_is_open_ends_in_an_error(tmp_path):
    big = np.zeros(1 << 16, np.float32)
    write_tensor_bundle(tmp_path / "m", {"w": big})
    save_file({"w": big}, tmp_path / "s.safetensors")
    keras(tmp_path / "k.h5", lambda group: group.create_dataset("kernel:0", data=big))
    for opened, path in (
        (TensorBundle(tmp_path / "m"), tmp_path / "m.data-00000-of-00001"),
        (SafetensorsFile(tmp_path / "s.safetensors"), tmp_path / "s.safetensors"),
        (KerasHdf5(tmp_path / "k.h5"), tmp_path / "k.h5"),
    ):
        os.truncate(path, path.stat().st_size - 8192)
        with opened, pytest.raises(SourceError, match=r"cut off|behind the end") as error:
            read_all(opened)
        assert error.value.path == path
