"""Shared fixtures: a small set of tensors, the real weights, and files of both.

A test run writes the files of a fixture once, whatever the number of processes, and only reads them.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import re
import signal
import zipfile
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import settings
from safetensors.numpy import save_file

from converter.convert import tensorflow_tensors, to_numpy_state_dict
from converter.errors import RequirementError
from converter.formats.detect import open_source
from converter.layer_map import NETWORK_SCOPE, ConvertedRow, Variant, table
from converter.mtcnn_layer_map import NETWORKS
from tests.fuzz.sandbox import Sandbox
from tests.support.main_job import read_main_job, run_main_job
from tests.support.numpy_files import by_python2
from tests.support.package_index import (
    FACENET_MTCNN,
    KERAS_FACENET,
    PEER,
    download,
    extract,
    extract_people,
)
from tests.support.shared_files import shared_folder

# A shell that runs the tests in the background makes them ignore Ctrl-C, and nohup the end of its terminal.
# The processes that the tests stop would then ignore these signals too.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

# An example that takes long on a busy machine is no failure.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# TensorFlow makes millions of objects: looking for garbage among them as often as Python does by default
# takes a tenth of the time of the tests that build graphs.
gc.set_threshold(50_000, 20, 10)

LONGEST = (
    "checks/controls/test_controls.py",
    "faces/training/test_train.py",
    "checks/audit/test_graphs.py",
    "checks/audit/test_real_ports.py",
    "checks/audit/test_quantised.py",
    "checks/gradients/test_gradients.py",
    "checks/audit/test_audit.py",
    "docs/test_pages.py",
    "checks/compare/test_compare.py",
    "checks/report/test_report.py",
    "checks/compare/test_real_weights.py",
    "checks/compare/test_slim_judge.py",
    "examples/test_notebooks.py",
    "faces/detect/test_original.py",
    "checks/audit/test_onnx_files.py",
    "checks/core/test_own_graphs.py",
    "faces/backends/test_backends.py",
    "converter/test_convert_file.py",
    "checks/diagnosis/test_compare_diagnoses.py",
    "faces/export/test_faults.py",
    "fuzz/test_killed_writers.py",
    "faces/controls/test_controls.py",
)
"""The files whose tests take longest, longest first."""


DOWNLOADED = {"keras_archive", "mtcnn_archive", "mtcnn_files", "detector_code"}
"""Fixtures that come from a package index; a test that takes one is marked `real`."""


def pytest_ignore_collect(collection_path, config):
    """Do not import a file whose tests are all left out: TensorFlow alone takes seconds."""
    if collection_path.suffix != ".py" or not re.fullmatch(r"not \w+( and not \w+)*", config.option.markexpr):
        return None
    marks = re.search(r"^pytestmark = .*", collection_path.read_text(), re.MULTILINE)
    left_out = "|".join(re.findall(r"not (\w+)", config.option.markexpr))
    return True if marks and re.search(rf"mark\.({left_out})\b", marks[0]) else None


def pytest_collection_modifyitems(items):
    """Begin with the longest files, so that the processes of a run end at about the same time."""
    tests = Path(__file__).parent
    places = {tests / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
    for item in items:
        if DOWNLOADED & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.real)


def pytest_collection_finish():
    """Leave what is imported by now out of every search for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def pytorch_as_it_was():
    """A test leaves PyTorch no more threads, for which another process would wait, and no slower mode."""
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    yield
    left, left_mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    torch.set_num_threads(min(left, threads))  # for the tests after it
    torch.set_deterministic_debug_mode(mode)
    assert left <= threads
    assert left_mode == mode


CLASSES = 7
MODEL = "20990101-000000"
STEP = 90


def random_bits(shape, seed):
    """Draw float32 with random bits, which include NaNs with a payload, infinities, subnormals and -0.0."""
    return np.random.default_rng(seed).integers(0, 1 << 32, shape, np.uint32).view(np.float32)


def same_bits(actual, expected):
    """Return whether dtype, shape and every bit are the same."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return False
    if actual.dtype.kind not in "biuf":
        return actual.tobytes() == expected.tobytes()
    unsigned = f"u{actual.dtype.itemsize}"  # whose equal numbers have equal bits; no copy is made
    return np.array_equal(actual.view(unsigned), expected.view(unsigned))


def keras_layer(scope):
    """Name the layer of a TensorFlow scope as facenet_keras.h5 does, independently of the converter."""
    parts = [part for part in scope.removeprefix(f"{NETWORK_SCOPE}/").split("/") if part[:6] != "Repeat"]
    if parts[0] == "Block8":
        parts[0] = "block8_6"
    if parts[0].startswith("block"):
        parts[0] = parts[0].capitalize()
    return "_".join(parts)


def write_keras(path, tensors, *, full_model=True, rename=lambda layer: layer):
    """Write tensors with h5py as Keras 2 does: `model.save` (full model) or `save_weights`.

    The names are built independently of the converter, from the scopes alone, so that they test its names.
    """
    ends = {"weights": "kernel", "biases": "bias"}
    layers = {}
    for name, array in tensors.items():
        scope, _, leaf = name.rpartition("/")
        layer = rename(keras_layer(scope))
        layers.setdefault(layer, {})[f"{layer}/{ends.get(leaf, leaf)}:0"] = array
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if full_model else file
        # The reader must not depend on h5py's order of layers, nor stumble over one without weights.
        names = [*reversed(layers), "Dropout"]
        root.attrs["layer_names"] = [name.encode() for name in names]
        for layer in names:
            weights = layers.get(layer, {})
            group = root.create_group(layer)
            group.attrs["weight_names"] = np.array([name.encode() for name in weights], "S")
            for name, array in weights.items():
                group.create_dataset(name, data=array)
    return path


@pytest.fixture(scope="session")
def tensors():
    """Seeded weights for 7 classes whose activations stay near one, by TensorFlow name."""
    generator = np.random.default_rng(0)
    drawn = {}
    for row in table(Variant(num_classes=CLASSES)):
        if not isinstance(row, ConvertedRow):
            continue
        leaf = row.variable.rpartition("/")[2]
        if leaf == "moving_variance":
            drawn[row.variable] = generator.uniform(0.5, 1.5, row.shape).astype(np.float32)
        else:
            scale = np.sqrt(2 / np.prod(row.shape[:-1])) if leaf == "weights" else 0.1
            drawn[row.variable] = generator.standard_normal(row.shape, np.float32) * np.float32(scale)
    return drawn


@dataclass(frozen=True)
class Checkpoint:
    """The files of a checkpoint by TensorFlow, named as in `facenet_tf.checkpoint.CheckpointFiles`."""

    prefix: Path
    index: Path
    data: Path
    meta: Path
    frozen: Path


def written_by_tensorflow(factory, tensors, model, step):
    """Have TensorFlow write a model folder: .meta, .index, .data and frozen .pb.

    Only the process that writes imports TensorFlow.
    """
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed")

    def write(folder):
        from facenet_tf.checkpoint import write_checkpoint

        write_checkpoint(folder, tensors, model_name=model, step=step)

    folder = shared_folder(factory, model, write)
    prefix = f"model-{model}.ckpt-{step}"
    return Checkpoint(
        prefix=folder / prefix,
        index=folder / f"{prefix}.index",
        data=folder / f"{prefix}.data-00000-of-00001",
        meta=folder / f"model-{model}.meta",
        frozen=folder / f"{model}.pb",
    )


@pytest.fixture(scope="session")
def sandbox():
    """A process that has imported the converter, and forks to run it or a program."""
    opened = Sandbox()
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def checkpoint(tensors, tmp_path_factory):
    """A model folder as TensorFlow writes it: .meta, .index, .data and frozen .pb."""
    return written_by_tensorflow(tmp_path_factory, tensors, MODEL, STEP)


@pytest.fixture(scope="session")
def archive(checkpoint, tmp_path_factory):
    """The checkpoint zipped as the published ones are, without the frozen graph, which is half of them."""

    def write(folder):
        with zipfile.ZipFile(folder / f"{MODEL}.zip", "w") as file:
            for member in (checkpoint.data, checkpoint.index, checkpoint.meta):
                file.write(member, f"{MODEL}/{member.name}")

    return shared_folder(tmp_path_factory, "archive", write) / f"{MODEL}.zip"


@pytest.fixture(scope="session")
def archive_digest(archive):
    """The SHA-256 of the archive."""
    return hashlib.sha256(archive.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def single_files(tensors, tmp_path_factory):
    """The same tensors as .h5, .pt and .safetensors."""

    def write(folder):
        state_dict = to_numpy_state_dict(tensors)
        torch.save({key: torch.from_numpy(array) for key, array in state_dict.items()}, folder / "weights.pt")
        save_file(state_dict, folder / "weights.safetensors")
        write_keras(folder / "weights.h5", tensors)

    return shared_folder(tmp_path_factory, "single-files", write)


@pytest.fixture(scope="session")
def small_source(tmp_path_factory):
    """P-Net in a .npy file, for tests of what does not depend on the network: its 26 kB take milliseconds."""

    def write(folder):
        layers = {}
        for seed, row in enumerate(NETWORKS["P-Net"]):
            layer, _, parameter = row.variable.partition("/")
            values = np.random.default_rng(seed).standard_normal(row.shape, np.float32)
            layers.setdefault(layer, {})[parameter] = values
        (folder / "p-net.npy").write_bytes(by_python2(layers))

    return shared_folder(tmp_path_factory, "p-net", write) / "p-net.npy"


# Network, its file in davidsandberg/facenet, its file in facenet-pytorch, and the SHA-256 of both.
MTCNN_FILES = {
    "P-Net": (
        "det1.npy",
        "3285cf7a3de2651c5784cb9e32013f5919aae95fd1ed1bc371dd9691affb39af",
        "pnet.pt",
        "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f",
    ),
    "R-Net": (
        "det2.npy",
        "716b8b83e42476791c9096f14dbb09fefc88bf5c7ec876b1683f9acd52b3f39c",
        "rnet.pt",
        "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86",
    ),
    "O-Net": (
        "det3.npy",
        "396ead803d85d3443307ff8f45fb6aed2536579b415a4f4d4cb8f93ea6b1476a",
        "onet.pt",
        "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d",
    ),
}


KERAS_SHA256 = "6acdd8fb3a3fb2b54257abdd1879246a3fcbe18fbe53a41c751e141abe63a0af"


def fetch(package):
    """Download the file of a package; skip the test if no index serves it."""
    try:
        return download(package)
    except RequirementError as error:
        if "is another one" in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def keras_archive():
    return fetch(KERAS_FACENET)


@pytest.fixture(scope="session")
def mtcnn_archive():
    return fetch(FACENET_MTCNN)


@pytest.fixture(scope="session")
def keras(keras_archive, tmp_path_factory):
    """facenet_keras.h5, the real weights of 20170512-110547."""

    def write(folder):
        (path,) = extract(keras_archive, folder, "/model/facenet_keras.h5")
        path = path.rename(folder / "facenet_keras.h5")
        assert hashlib.sha256(path.read_bytes()).hexdigest() == KERAS_SHA256

    return shared_folder(tmp_path_factory, "keras", write) / "facenet_keras.h5"


@pytest.fixture(scope="session")
def photographs(keras_archive, tmp_path_factory):
    """A folder with two photographs of each of five people."""

    def write(folder):
        extracted = extract(keras_archive, folder, "/5-celebrity-faces-dataset/val/")  # five of each
        assert len(extracted) == 25
        for number, path in enumerate(extracted):
            if number % 5 > 1:
                path.unlink()

    return shared_folder(tmp_path_factory, "photographs", write)


@pytest.fixture(scope="session")
def people(keras_archive, tmp_path_factory):
    """118 photographs of five people, a folder for each: the set that `photographs` is a part of."""
    return shared_folder(tmp_path_factory, "people", lambda folder: extract_people(keras_archive, folder))


@pytest.fixture(scope="session")
def real_tensors(keras):
    """The real weights by TensorFlow name."""
    with open_source(keras) as source:
        return {name: np.array(array) for name, array in tensorflow_tensors(source).items()}


@pytest.fixture(scope="session")
def real_checkpoint(real_tensors, tmp_path_factory):
    """The folder of the real weights as a TensorFlow 1 checkpoint, written by TensorFlow."""
    return written_by_tensorflow(tmp_path_factory, real_tensors, "20170512-110547", 250000).prefix.parent


@pytest.fixture(scope="session")
def main_job(tmp_path_factory):
    """`facenet-port compare`, with an empty cache."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed")
    return read_main_job(shared_folder(tmp_path_factory, "main-job", run_main_job))


@pytest.fixture(scope="session")
def mtcnn_files(tmp_path_factory):
    """Network to facenet's file and the peer's."""

    def write(folder):
        originals = extract(fetch(FACENET_MTCNN), folder, "/crop/model/det")
        with zipfile.ZipFile(fetch(PEER)) as wheel:
            for original, (npy, npy_digest, pt, pt_digest) in zip(
                originals, MTCNN_FILES.values(), strict=True
            ):
                original = original.rename(folder / npy)
                port = folder / pt
                port.write_bytes(wheel.read(f"facenet_pytorch/data/{pt}"))
                for path, digest in ((original, npy_digest), (port, pt_digest)):
                    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest

    folder = shared_folder(tmp_path_factory, "mtcnn", write)
    return {name: (folder / npy, folder / pt) for name, (npy, _, pt, _) in MTCNN_FILES.items()}
