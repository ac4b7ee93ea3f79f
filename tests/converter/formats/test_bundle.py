"""TensorFlow checkpoints: reading and writing compared with TensorFlow itself."""

from __future__ import annotations

import os
import random
import tracemalloc
from pathlib import Path

import google_crc32c
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from converter.errors import SourceError
from converter.formats.tensorflow import data_types, protos, sstable, sstable_writer
from converter.formats.tensorflow.bundle import TensorBundle
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from converter.formats.tensorflow.partitioned_variables import slice_key
from converter.formats.tensorflow.sstable_writer import BLOCK_SIZE, write_table
from converter.formats.tensorflow.v1_checkpoint import is_v1_checkpoint

NUMERIC = [dtype for dtype in data_types.NUMPY_DTYPES.values() if not dtype.hasobject]
SMALL = {
    "InceptionResnetV1/Bottleneck/weights": np.arange(6, dtype="<f4").reshape(2, 3),
    "InceptionResnetV1/Bottleneck/BatchNorm/beta": np.array([1.5, -0.0, np.nan], "<f4"),
    "global_step": np.array(275, "<i8"),
    "none": np.empty((0, 4), "<f4"),
}


@pytest.fixture(scope="module")
def tf():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return pytest.importorskip("tensorflow")


def random_array(dtype, shape, seed=0):
    """Draw arbitrary bits, NaN payloads and subnormals included; booleans are 0 or 1."""
    rng = np.random.default_rng(seed)
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(bool)
    count = int(np.prod(shape, dtype=int)) * dtype.itemsize
    return np.frombuffer(rng.bytes(count), np.uint8).view(dtype).reshape(shape)


def same_bits(a, b):
    a, b = np.asarray(a), np.asarray(b)
    same = a.tolist() == b.tolist() if a.dtype.hasobject else a.tobytes() == b.tobytes()
    return a.dtype == b.dtype and a.shape == b.shape and same


def read_all(prefix):
    with TensorBundle(prefix) as bundle:
        return {name: bundle[name] for name in bundle}


def tensorflow_saves(tf, prefix, tensors, slices=None):
    names = sorted(tensors, key=str.encode)
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=[name.encode() for name in names],
        shape_and_slices=slices or [""] * len(names),
        tensors=[tf.constant(tensors[name]) for name in names],
    )
    return prefix


def assert_as_tensorflow_reads(tf, prefix):
    reader = tf.train.load_checkpoint(str(prefix))
    shapes = reader.get_variable_to_shape_map()
    with TensorBundle(prefix) as bundle:
        assert list(bundle) == sorted(shapes, key=str.encode)
        for name, array in bundle.items():
            expected = reader.get_tensor(name)
            if isinstance(expected, bytes):
                expected = np.array(expected, object)
            assert same_bits(array, expected), name
            assert bundle.info[name].shape == array.shape == tuple(shapes[name])
            assert bundle.info[name].dtype == array.dtype
            assert not array.flags.writeable


# The descriptions are TensorFlow's


def test_messages_are_described_as_tensorflow_does(tf):
    from tensorflow.core.protobuf import tensor_bundle_pb2

    def compare(ours, theirs):
        for field in ours.fields:
            other = theirs.fields_by_name[field.name]
            for attribute in ("number", "type", "is_repeated", "full_name"):
                assert getattr(field, attribute) == getattr(other, attribute), field.full_name
            oneofs = [field.containing_oneof is None, other.containing_oneof is None]
            assert oneofs[0] == oneofs[1]
            if field.message_type and field.full_name not in seen:
                seen.add(field.full_name)
                compare(field.message_type, other.message_type)
        assert ours.GetOptions().map_entry == theirs.GetOptions().map_entry

    seen = set()
    compare(protos.BundleHeaderProto.DESCRIPTOR, tensor_bundle_pb2.BundleHeaderProto.DESCRIPTOR)
    compare(protos.BundleEntryProto.DESCRIPTOR, tensor_bundle_pb2.BundleEntryProto.DESCRIPTOR)
    compare(protos.GraphDef.DESCRIPTOR, tf.compat.v1.GraphDef.DESCRIPTOR)
    assert {"tensorflow.TensorSliceProto.extent", "tensorflow.AttrValue.tensor"} <= seen


def test_element_types_are_tensorflows(tf):
    for data_type in data_types.DataType:
        if data_type != data_types.DataType.DT_INVALID:
            assert tf.as_dtype(data_type.value).as_datatype_enum == data_type
            assert f"DT_{tf.as_dtype(data_type.value).name.upper()}" in {
                data_type.name,
                data_type.name.replace("FLOAT", "FLOAT32").replace("DOUBLE", "FLOAT64"),
                data_type.name.replace("HALF", "FLOAT16"),
            }
    for data_type, dtype in data_types.NUMPY_DTYPES.items():
        assert tf.as_dtype(data_type.value).as_numpy_dtype == dtype
        assert data_types.data_type(dtype) == data_type
        assert data_types.numpy_dtype(data_type.value) == dtype


# What TensorFlow writes


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0, 2), (2, 3, 5)])
def test_reads_every_dtype(tf, tmp_path, shape):
    tensors = {f"{dtype.name}/x": random_array(dtype, shape) for dtype in NUMERIC}
    prefix = tensorflow_saves(tf, tmp_path / "model.ckpt-1", tensors)
    assert_as_tensorflow_reads(tf, prefix)
    assert all(same_bits(array, tensors[name]) for name, array in read_all(prefix).items())


def test_reads_strings(tf, tmp_path):
    tensors = {
        "scalar": np.array(b"graph", object),
        "empty": np.array(b"", object),
        "none": np.empty((0, 2), object),
        "table": np.array([[b"", b"a"], [b"b" * 127, b"c" * 128], [b"\0\xff", b"d" * 20_000]], object),
        "weights": np.ones(3, "<f4"),
    }
    prefix = tensorflow_saves(tf, tmp_path / "m", tensors)
    assert_as_tensorflow_reads(tf, prefix)
    assert all(same_bits(array, tensors[name]) for name, array in read_all(prefix).items())


def test_reads_an_index_of_many_blocks(tf, tmp_path):
    tensors = {f"{i:05d}/" + "layer/" * 30: np.float32(i) for i in range(5000)}
    prefix = tensorflow_saves(tf, tmp_path / "m", tensors)
    assert Path(f"{prefix}.index").stat().st_size > 3 * BLOCK_SIZE
    assert_as_tensorflow_reads(tf, prefix)
    write_tensor_bundle(tmp_path / "ours", tensors)
    assert (tmp_path / "ours.index").read_bytes() == (tmp_path / "m.index").read_bytes()


def test_reads_several_shards(tf, tmp_path):
    everything = {}
    parts = []
    for shard in range(3):
        tensors = {f"v{i}": random_array(np.dtype("<f4"), (i, 2), i) for i in range(shard, 12, 3)}
        part = tf.raw_ops.ShardedFilename(basename=str(tmp_path / "part"), shard=shard, num_shards=3)
        parts.append(part.numpy().decode())
        tensorflow_saves(tf, parts[-1], tensors)
        everything |= tensors
    prefix = tmp_path / "merged"
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(prefix))
    with TensorBundle(prefix) as bundle:
        assert [path.name for path in bundle.files] == [
            "merged.index",
            *(f"merged.data-0000{i}-of-00003" for i in range(3)),
        ]
    assert_as_tensorflow_reads(tf, prefix)
    assert all(same_bits(array, everything[name]) for name, array in read_all(prefix).items())

    (tmp_path / "merged.data-00001-of-00003").unlink()
    with pytest.raises(SourceError, match=r"merged.data-00001-of-00003: there is no such file"):
        TensorBundle(prefix)


def test_reads_partitioned_variables(tf, tmp_path):
    v1 = tf.compat.v1
    values = {f"axis{axis}": random_array(np.dtype("<f4"), (7, 5, 130), axis) for axis in range(3)}
    with tf.Graph().as_default(), v1.Session() as session:
        for axis, (name, value) in enumerate(values.items()):
            partitioner = v1.fixed_size_partitioner(3, axis=axis)
            v1.get_variable(name, initializer=tf.constant(value), partitioner=partitioner, use_resource=False)
        v1.get_variable("whole", initializer=2.5, use_resource=False)
        session.run(v1.global_variables_initializer())
        prefix = Path(v1.train.Saver().save(session, str(tmp_path / "model.ckpt"), global_step=3))
    assert_as_tensorflow_reads(tf, prefix)
    read = read_all(prefix)
    assert read.pop("whole") == np.float32(2.5)
    assert read.keys() == values.keys()
    assert all(same_bits(read[name], values[name]) for name in values)


def test_slices_on_a_grid_and_beyond(tf, tmp_path):
    """Offsets of every length in ordered code, and slices along two axes."""
    whole = np.arange(9 * 20_000, dtype="<i4").reshape(9, 20_000)
    rows, columns = [(0, 4), (4, 9)], [(0, 63), (63, 64), (64, 8191), (8191, 8192), (8192, 20_000)]
    for number, (top, bottom) in enumerate(rows):
        for left, right in columns:
            tensorflow_saves(
                tf,
                tmp_path / f"part{number}-{left}",
                {"w": whole[top:bottom, left:right]},
                [f"9 20000 {top},{bottom - top}:{left},{right - left}"],
            )
    parts = sorted(str(path)[: -len(".index")] for path in tmp_path.glob("*.index"))
    prefix = tmp_path / "merged"
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(prefix))
    assert same_bits(read_all(prefix)["w"], whole)
    assert_as_tensorflow_reads(tf, prefix)


def test_v1_checkpoint_is_told_apart(tf, tmp_path):
    tf.raw_ops.Save(filename=str(tmp_path / "v1.ckpt"), tensor_names=["w"], data=[tf.constant([1.0, 2.0])])
    assert is_v1_checkpoint(tmp_path / "v1.ckpt")
    with pytest.raises(SourceError, match="V1 checkpoint"):
        TensorBundle(tmp_path / "v1.ckpt")
    (tmp_path / "renamed.index").write_bytes((tmp_path / "v1.ckpt").read_bytes())
    with pytest.raises(SourceError, match="V1 checkpoint"):
        TensorBundle(tmp_path / "renamed")
    write_tensor_bundle(tmp_path / "v2", SMALL)
    for other in ("v2.index", "v2.data-00000-of-00001", "nowhere", "."):
        assert not is_v1_checkpoint(tmp_path / other)
    (tmp_path / "empty").touch()
    assert not is_v1_checkpoint(tmp_path / "empty")


# What is written here


@pytest.mark.parametrize("count", [1, 15, 16, 17, 33, 492, 2000])
def test_files_equal_tensorflows(tf, tmp_path, count):
    rng = random.Random(count)
    shapes = [(), (0,), (3, 3, 2, 1), (300,)]
    tensors = {
        f"InceptionResnetV1/Repeat_{i % 3}/block{rng.randrange(10**6)}/{i}": random_array(
            rng.choice(NUMERIC), rng.choice(shapes), i
        )
        for i in range(count)
    }
    tensorflow_saves(tf, tmp_path / "theirs", tensors)
    index, data = write_tensor_bundle(tmp_path / "ours", tensors)
    assert index.read_bytes() == (tmp_path / "theirs.index").read_bytes()
    assert data.read_bytes() == (tmp_path / "theirs.data-00000-of-00001").read_bytes()


@pytest.mark.slow
@settings(max_examples=40)
@given(
    st.sets(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=50),
        min_size=1,
        max_size=40,
    )
)
def test_index_of_any_names_equals_tensorflows(tf, tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("names")
    tensors = {name: np.float32(len(name)) for name in names}
    tensorflow_saves(tf, folder / "theirs", tensors)
    write_tensor_bundle(folder / "ours", tensors)
    assert (folder / "ours.index").read_bytes() == (folder / "theirs.index").read_bytes()
    assert list(TensorBundle(folder / "theirs")) == sorted(names, key=str.encode)


def test_tensorflow_reads_what_is_written(tf, tmp_path):
    tensors = {f"{dtype.name}/x": random_array(dtype, (2, 3)) for dtype in NUMERIC} | SMALL
    write_tensor_bundle(tmp_path / "m", tensors)
    assert_as_tensorflow_reads(tf, tmp_path / "m")
    reader = tf.train.load_checkpoint(str(tmp_path / "m"))
    assert all(same_bits(reader.get_tensor(name), tensors[name]) for name in tensors)


def test_saver_restores_what_is_written(tf, tmp_path):
    v1 = tf.compat.v1
    weights, step = random_array(np.dtype("<f4"), (3, 3, 4, 8)), np.array(90, "<i8")
    write_tensor_bundle(tmp_path / "model.ckpt-90", {"net/weights": weights, "global_step": step})
    with tf.Graph().as_default(), v1.Session() as session:
        variable = v1.get_variable("net/weights", weights.shape, tf.float32, use_resource=False)
        counter = v1.get_variable("global_step", (), tf.int64, use_resource=False)
        v1.train.Saver().restore(session, str(tmp_path / "model.ckpt-90"))
        assert same_bits(session.run(variable), weights)
        assert same_bits(session.run(counter), step)


ARRAYS = st.builds(
    random_array,
    st.sampled_from(NUMERIC),
    st.lists(st.integers(0, 5), max_size=4).map(tuple),
    st.integers(0, 1000),
)


@settings(max_examples=100)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20), ARRAYS
    )
)
def test_round_trip(tmp_path_factory, tensors):
    folder = tmp_path_factory.mktemp("round")
    first = write_tensor_bundle(folder / "first", tensors)
    read = read_all(folder / "first")
    assert list(read) == sorted(tensors, key=str.encode)
    assert all(same_bits(read[name], tensors[name]) for name in tensors)
    again = write_tensor_bundle(folder / "again", dict(reversed(read.items())))
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in first]


@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">i8", ">c16", ">f2"])
def test_byte_order_and_layout_do_not_matter(tmp_path, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    write_tensor_bundle(
        tmp_path / "m", {"a": array.T, "b": array[:, ::-1, ::2], "c": np.asfortranarray(array)}
    )
    read = read_all(tmp_path / "m")
    little = array.dtype.newbyteorder("<")
    assert same_bits(read["a"], array.T.astype(little, order="C"))
    assert same_bits(read["b"], array[:, ::-1, ::2].astype(little))
    assert same_bits(read["c"], array.astype(little))


@pytest.mark.parametrize(
    ("name", "array"),
    [("", np.ones(1)), ("\0a", np.ones(1)), ("a", np.array([b"x"], object)), ("a", np.array(["x"]))],
)
def test_writer_refuses(tmp_path, name, array):
    with pytest.raises(ValueError, match=r"cannot be written|no TensorFlow element type"):
        write_tensor_bundle(tmp_path / "m", {name: array})


@pytest.mark.parametrize("suffix", [".index", ".data-00000-of-00001"])
def test_writer_overwrites_nothing(tmp_path, suffix):
    existing = tmp_path / f"m{suffix}"
    existing.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        write_tensor_bundle(tmp_path / "m", SMALL)
    assert existing.read_bytes() == b"mine"


# Reading behaves


def test_views_outlive_the_source_and_a_closed_source_reads_nothing(tmp_path):
    write_tensor_bundle(tmp_path / "m", SMALL)
    with TensorBundle(tmp_path / "m") as bundle:
        weights = bundle["InceptionResnetV1/Bottleneck/weights"]
        bundle.release()
        assert bundle.naming == "tensorflow"
        assert len(bundle) == len(SMALL)
        with pytest.raises(KeyError):
            bundle["InceptionResnetV1/Bottleneck"]
        with pytest.raises(ValueError, match="read-only"):
            weights[0, 0] = 1
    assert same_bits(weights, SMALL["InceptionResnetV1/Bottleneck/weights"])
    bundle.release()
    with pytest.raises(ValueError, match="closed"):
        bundle["global_step"]


def resident_bytes(path):
    """Add up what /proc says is resident of the maps of a file."""
    total, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split()
        if not fields[0].endswith(":"):
            here = fields[-1] == str(path)
        elif here and fields[0] == "Rss:":
            total += int(fields[1]) * 1024
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs /proc")
def test_release_lets_go_of_the_pages(tmp_path):
    array = random_array(np.dtype("<f4"), (1 << 20,))
    _, data = write_tensor_bundle(tmp_path.resolve() / "m", {"a": array, "b": array})
    with TensorBundle(tmp_path.resolve() / "m") as bundle:
        assert resident_bytes(data) < array.nbytes / 2
        view = bundle["a"]
        assert array.nbytes <= resident_bytes(data) < 1.5 * array.nbytes
        bundle.release()
        assert resident_bytes(data) == 0
        assert same_bits(view, array)


# Damage


@pytest.fixture
def small(tmp_path):
    write_tensor_bundle(tmp_path / "m", SMALL)
    return tmp_path / "m"


def test_every_changed_bit_of_an_index_is_seen(small):
    index = Path(f"{small}.index")
    good = index.read_bytes()
    assert len(good) < 500
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        index.write_bytes(bad)
        with pytest.raises(SourceError, match=r"m\.index"):
            read_all(small)
    index.write_bytes(good)
    assert len(read_all(small)) == len(SMALL)


def test_every_truncation_of_an_index_is_seen(small):
    index = Path(f"{small}.index")
    good = index.read_bytes()
    for length in range(len(good)):
        index.write_bytes(good[:length])
        with pytest.raises(SourceError, match=r"Download or copy it again"):
            TensorBundle(small)


def test_every_changed_bit_of_the_data_is_seen(tf, tmp_path):
    strings = np.array([b"one", b"", b"x" * 130], object)
    flags = np.array([True, False, True])
    prefix = tensorflow_saves(tf, tmp_path / "m", {**SMALL, "strings": strings, "flags": flags})
    data = tmp_path / "m.data-00000-of-00001"
    good = data.read_bytes()
    assert len(read_all(prefix)) == len(SMALL) + 2
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        data.write_bytes(bad)
        with TensorBundle(prefix) as bundle:
            failed = []
            for name in bundle:
                try:
                    bundle[name]
                except SourceError as error:
                    assert error.tensor == name
                    assert repr(name) in str(error)
                    assert str(data) in str(error)
                    failed.append(name)
        assert len(failed) == 1


def test_every_truncation_of_the_data_is_seen(small):
    data = Path(f"{small}.data-00000-of-00001")
    good = data.read_bytes()
    for length in range(len(good)):
        data.write_bytes(good[:length])
        with pytest.raises(SourceError, match=f"{len(good) - length} fewer than the index says.*again"):
            TensorBundle(small)


def test_missing_files_and_folders(small):
    with pytest.raises(SourceError, match=r"n\.index: there is no such file"):
        TensorBundle(small.with_name("n"))
    Path(f"{small}.data-00000-of-00001").unlink()
    with pytest.raises(SourceError, match=r"m\.data-00000-of-00001: there is no such file"):
        TensorBundle(small)
    Path(f"{small}.data-00000-of-00001").mkdir()
    with pytest.raises(SourceError, match="cannot be read"):
        TensorBundle(small)


# Hostile checkpoints: every checksum is right, so that only the meaning can be refused

DATA = bytes(range(64))


def entry(dtype=1, shape=(2,), offset=0, size=8, shard_id=0, data=DATA, slices=(), **fields):
    crc = sstable.mask(google_crc32c.value(data[offset : offset + size])) if 0 <= offset < 1000 else 0
    proto = protos.BundleEntryProto(
        dtype=dtype, offset=offset, size=size, shard_id=shard_id, crc32c=crc, slices=slices, **fields
    )
    proto.shape.SetInParent()
    for extent in shape:
        proto.shape.dim.add(size=extent)
    return proto


def header(num_shards=1, **fields):
    return protos.BundleHeaderProto(num_shards=num_shards, version={"producer": 1, **fields})


def hostile(folder, entries, head=None, data=DATA):
    """Write a checkpoint with correct table and checksums, and return its prefix."""
    messages = {b"": header() if head is None else head, **entries}
    table = sorted((k, v if isinstance(v, bytes) else v.SerializeToString()) for k, v in messages.items())
    with (folder / "h.index").open("wb") as file:
        write_table(file, table)
    (folder / "h.data-00000-of-00001").write_bytes(data)
    return folder / "h"


def test_hostile_control(tmp_path):
    """The control: the checkpoint that the next tests change is read."""
    prefix = hostile(
        tmp_path, {b"a": entry(), b"b": entry(offset=8, shape=(2, 1)), b"c": entry(10, (2,), 0, 2)}
    )
    with pytest.raises(SourceError, match="overlap"):
        TensorBundle(prefix)
    prefix = hostile(tmp_path, {b"a": entry(), b"b": entry(offset=8, shape=(2, 1))})
    assert read_all(prefix)["b"].tobytes() == DATA[8:16]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (entry(offset=4), "overlap"),
        (entry(offset=0), "overlap"),
        (entry(offset=60), "4 fewer than the index says"),
        (entry(offset=1 << 62), "fewer than the index says"),
        (entry(offset=-8), "starts at byte -8"),
        (entry(offset=8, size=4), "has 4 bytes, but float32 of shape"),
        (entry(offset=8, size=12), "has 12 bytes"),
        (entry(offset=8, size=-8), "-8 bytes"),
        (entry(offset=8, shape=(-2,)), "negative dimension"),
        (entry(offset=8, shape=(-1, -2)), "negative dimension"),
        (entry(offset=8, shape=(1 << 40, 1 << 40)), "overflows"),
        (entry(offset=8, shape=(0, 1 << 62), size=0), "overflows"),
        (entry(offset=8, shape=(1,) * 33, size=4), "33 dimensions"),
        (entry(offset=8, shape=(1 << 40,), size=1 << 42), "fewer than the index says"),
        (entry(offset=8, shard_id=1), "data file 1 of 1"),
        (entry(offset=8, shard_id=-1), "data file -1 of 1"),
        (entry(offset=8, dtype=0), "DT_INVALID is not supported"),
        (entry(offset=8, dtype=21), "DT_VARIANT is not supported"),
        (entry(offset=8, dtype=99), "number 99 is unknown"),
        (entry(offset=8, dtype=7, shape=(1 << 40,)), "too few for"),
        (entry(offset=8, dtype=7, shape=()), "lengths of its strings do not match|not valid"),
        (entry(offset=8, dtype=10, shape=(8,)), "neither 0 nor 1"),
        (entry(offset=8, data=bytes(64)), "do not match their checksum"),
        (b"\xff\xff", "its entry in the index is damaged"),
    ],
)
def test_hostile_entries_are_refused_by_name(tmp_path, bad, problem):
    prefix = hostile(tmp_path, {b"a": entry(), b"bad": bad})
    with pytest.raises(SourceError, match=problem) as error:
        read_all(prefix)
    assert error.value.tensor == "bad"


def test_unknown_rank_is_refused(tmp_path):
    bad = entry()
    bad.shape.unknown_rank = True
    with pytest.raises(SourceError, match="shape is unknown"):
        TensorBundle(hostile(tmp_path, {b"a": bad}))


def test_name_that_is_not_text_is_refused(tmp_path):
    with pytest.raises(SourceError, match="not UTF-8"):
        TensorBundle(hostile(tmp_path, {b"\xff\xfe": entry()}))


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        (protos.BundleHeaderProto(num_shards=1, endianness=1), "big-endian"),
        (header(num_shards=0), "claims to have 0 data files"),
        (header(num_shards=-3), "claims to have -3 data files"),
        (header(num_shards=2), "data-00000-of-00002: there is no such file"),
        (header(num_shards=(1 << 31) - 1), "claims to have 2147483647 data files"),
        (header(min_consumer=2), "only version 1 is supported"),
        (header(bad_consumers=[1]), "only version 1 is supported"),
        (header(producer=-1), "only version 1 is supported"),
        (b"\xff", "the header is damaged"),
    ],
)
def test_hostile_headers_are_refused(tmp_path, head, problem):
    with pytest.raises(SourceError, match=problem):
        TensorBundle(hostile(tmp_path, {b"a": entry()}, head))


def test_table_that_is_no_checkpoint_is_refused(tmp_path):
    prefix = hostile(tmp_path, {})
    for entries in ([], [(b"a", b"1")]):
        with Path(f"{prefix}.index").open("wb") as file:
            write_table(file, entries)
        with pytest.raises(SourceError, match="this is not the index of a checkpoint"):
            TensorBundle(prefix)


def test_no_memory_is_asked_for_on_the_word_of_a_header(tmp_path):
    terabytes = [
        entry(shape=(1 << 40,), size=1 << 42),
        entry(dtype=7, shape=(1 << 40,), size=60),
        entry(shape=(1 << 40,), size=0, slices=[{"extent": [{"start": 0, "length": 1 << 40}]}]),
    ]
    for bad in terabytes:
        prefix = hostile(tmp_path, {b"a": bad})
        tracemalloc.start()
        with pytest.raises(SourceError):
            read_all(prefix)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 20


def test_snappy_is_refused_with_a_way_out(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sstable_writer, "RAW", sstable.SNAPPY)
        prefix = hostile(tmp_path, {b"a": entry()})
    with pytest.raises(SourceError, match=r"compressed with Snappy.*save it again with tf\.train\.Saver"):
        TensorBundle(prefix)


def test_an_index_too_large_is_refused(tmp_path, monkeypatch):
    prefix = hostile(tmp_path, {b"a": entry()})
    monkeypatch.setattr("converter.formats.tensorflow.bundle_index.MAX_INDEX_BYTES", 100)
    with pytest.raises(SourceError, match="more than any index"):
        TensorBundle(prefix)


def partitioned(boxes, shape=(2, 2), **changes):
    """Make the entries of a float32 variable of which each box (start, stop of each axis) is a slice."""
    messages = [
        protos.TensorSliceProto(extent=[{"start": a, "length": b - a} for a, b in box]) for box in boxes
    ]
    entries = {b"v": entry(shape=shape, size=0, slices=messages)}
    offset = 0
    for message, box in zip(messages, boxes, strict=True):
        extents = tuple(b - a for a, b in box)
        size = 4 * int(np.prod(extents))
        entries[slice_key(b"v", message)] = entry(shape=extents, offset=offset, size=size)
        offset += size
    return entries


TOP, BOTTOM, LEFT, RIGHT = ((0, 1), (0, 2)), ((1, 2), (0, 2)), ((0, 2), (0, 1)), ((0, 2), (1, 2))


@pytest.mark.parametrize("boxes", [[TOP, BOTTOM], [BOTTOM, TOP], [LEFT, RIGHT]])
def test_partitioned_control(tmp_path, boxes):
    array = read_all(hostile(tmp_path, partitioned(boxes)))["v"]
    expected = np.empty((2, 2), "<f4")
    for box, values in zip(boxes, np.frombuffer(DATA[:16], "<f4").reshape(2, 2), strict=True):
        region = tuple(slice(*extent) for extent in box)
        expected[region] = values.reshape(expected[region].shape)
    assert same_bits(array, expected)


@pytest.mark.parametrize(
    ("boxes", "shape", "problem"),
    [
        ([TOP], (2, 2), "gap"),
        ([TOP, LEFT], (2, 2), "overlap"),
        ([TOP, BOTTOM, LEFT, RIGHT], (2, 2), "overlap"),
        ([((0, 1), (0, 1)), ((1, 2), (0, 2))], (2, 2), "gap"),
        ([TOP, ((1, 3), (0, 2))], (2, 2), "outside"),
        ([TOP, ((1, 2), (-1, 2))], (2, 2), "outside"),
        ([TOP, BOTTOM], (2, 2, 1), "2 dimensions, not 3"),
        (
            [((0, 1), (0, 2)), ((1, 3), (0, 1)), ((0, 2), (2, 3)), ((2, 3), (1, 3)), ((1, 2), (1, 2))],
            (3, 3),
            "grid",
        ),
    ],
)
def test_slices_that_do_not_make_up_the_variable_are_refused(tmp_path, boxes, shape, problem):
    with pytest.raises(SourceError, match=problem) as error:
        TensorBundle(hostile(tmp_path, partitioned(boxes, shape)))
    assert error.value.tensor == "v"


def test_slices_that_contradict_the_table_are_refused(tmp_path):
    good = partitioned([TOP, BOTTOM])
    first, second = sorted(key for key in good if key.startswith(b"\0"))
    negative = {"extent": [{"start": 1, "length": -1}, {"start": 0, "length": 2}]}
    cases = [
        ({k: v for k, v in good.items() if k != second}, "missing", "v"),
        ({k: v for k, v in good.items() if k != b"v"}, "belongs to no variable", "v"),
        (good | {first: entry(shape=(2,))}, "stored as float32 of shape", "v"),
        (good | {first: entry(dtype=3, shape=(1, 2))}, "stored as int32", "v"),
        (good | {first: entry(shape=(1, 2), slices=good[b"v"].slices)}, "has slices itself", "v"),
        (good | {first: entry(shape=(1, 2), offset=8)}, "overlap", "v"),
        (good | {b"v": entry(shape=(2, 2), size=16, slices=good[b"v"].slices)}, "bytes of its own", "v"),
        (good | {b"v": entry(shape=(2, 2), size=0, slices=[*good[b"v"].slices] * 2)}, "listed twice", "v"),
        (good | {b"v": entry(shape=(2, 2), size=0, slices=[negative])}, "outside", "v"),
        (good | {b"w": good[b"v"]}, "missing", "w"),
        (good | {b"\0x\0\1": entry(offset=32)}, "belongs to no variable", "x"),
        (good | {b"\0\xfe\0\1": entry(offset=32)}, "not UTF-8", None),
    ]
    for entries, problem, tensor in cases:
        with pytest.raises(SourceError, match=problem) as error:
            TensorBundle(hostile(tmp_path, entries))
        assert tensor is None or error.value.tensor == tensor


@pytest.mark.slow
def test_mutations_behind_right_checksums_raise_nothing_else(tmp_path):
    """Any bytes as keys and messages give tensors or a SourceError."""
    rng = random.Random(11)
    good = {key: value.SerializeToString() for key, value in partitioned([TOP, BOTTOM]).items()}
    good |= {b"a": entry(offset=16).SerializeToString(), b"s": entry(7, (), 24, 8).SerializeToString()}
    good |= {b"t": entry(7, (2,), 32, 9).SerializeToString(), b"": header().SerializeToString()}
    outcomes = {"read": 0, "refused": 0}
    for _ in range(2000):
        table = dict(good)
        key = rng.choice(list(table))
        value = bytearray(table.pop(key))
        for _ in range(rng.randint(1, 2)):
            value[rng.randrange(len(value))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        if key and rng.random() < 0.2:
            key = key[: rng.randrange(1, len(key) + 1)] + rng.randbytes(rng.randint(0, 3))
        table[key] = bytes(value)
        prefix = hostile(tmp_path, table, table.pop(b""))
        try:
            with TensorBundle(prefix) as bundle:
                for name in bundle.keys() - {"s", "t"}:
                    bundle[name]
            outcomes["read"] += 1
        except SourceError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 10


@pytest.mark.slow
@settings(max_examples=200)
@given(st.binary(min_size=4, max_size=60), st.integers(0, 6))
def test_any_bytes_as_strings_raise_nothing_else(tmp_path_factory, data, count):
    prefix = hostile(
        tmp_path_factory.mktemp("strings"), {b"s": entry(7, (count,), 0, len(data), data=data)}, data=data
    )
    with pytest.raises(SourceError):
        read_all(prefix)


def test_bfloat16_is_that_of_ml_dtypes(tmp_path):
    write_tensor_bundle(tmp_path / "m", {"x": np.array([1.5, -2], ml_dtypes.bfloat16)})
    assert TensorBundle(tmp_path / "m").info["x"].dtype == ml_dtypes.bfloat16
