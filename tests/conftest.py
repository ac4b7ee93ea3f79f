"""What several tests share: one small set of tensors and the files that hold it."""

from __future__ import annotations

import signal
import zipfile

import h5py
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from converter.convert import to_pytorch
from converter.layer_map import NETWORK_SCOPE, Converted, Variant, table

# A shell that runs the tests in the background has them ignore Ctrl-C, and they would hand that on to the
# processes that they interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

CLASSES = 7
MODEL = "20990101-000000"
STEP = 90


def random_bits(shape, seed):
    """Float32 with every bit random: NaNs with a payload, infinities, subnormals and -0.0 among them."""
    return np.random.default_rng(seed).integers(0, 1 << 32, shape, np.uint32).view(np.float32)


def same_bits(one, other):
    one, other = np.asarray(one), np.asarray(other)
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def write_keras(path, tensors, *, full_model=True, rename=lambda layer: layer):
    """Write tensors with h5py as Keras 2 does: `model.save` (full model) or `save_weights`.

    The names are spelled here once more, from the scopes alone, so that the converter's own are judged.
    """
    ends = {"weights": "kernel", "biases": "bias"}
    layers = {}
    for name, array in tensors.items():
        scope, _, leaf = name.rpartition("/")
        batch_norm = scope.endswith("/BatchNorm")
        scope = scope.removesuffix("/BatchNorm").removeprefix(f"{NETWORK_SCOPE}/")
        parts = [part for part in scope.split("/") if not part.startswith("Repeat")]
        if parts[0] == "Block8":
            parts[0] = "block8_6"
        if parts[0].startswith("block"):
            parts[0] = parts[0].capitalize()
        layer = rename("_".join(parts) + ("_BatchNorm" if batch_norm else ""))
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
        if not isinstance(row, Converted):
            continue
        leaf = row.variable.rpartition("/")[2]
        if leaf == "moving_variance":
            drawn[row.variable] = generator.uniform(0.5, 1.5, row.shape).astype(np.float32)
        else:
            scale = np.sqrt(2 / np.prod(row.shape[:-1])) if leaf == "weights" else 0.1
            drawn[row.variable] = generator.standard_normal(row.shape, np.float32) * np.float32(scale)
    return drawn


@pytest.fixture(scope="session")
def checkpoint(tensors, tmp_path_factory):
    """A model folder as TensorFlow writes it: .meta, .index, .data and frozen .pb."""
    pytest.importorskip("tensorflow")
    from facenet_tf.checkpoint import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp(MODEL), tensors, model_name=MODEL, step=STEP)


@pytest.fixture(scope="session")
def archive(checkpoint, tmp_path_factory):
    """The checkpoint zipped as the published ones are."""
    path = tmp_path_factory.mktemp("archive") / f"{MODEL}.zip"
    with zipfile.ZipFile(path, "w") as file:
        for member in sorted(checkpoint.prefix.parent.iterdir()):
            file.write(member, f"{MODEL}/{member.name}")
    return path


@pytest.fixture(scope="session")
def single_files(tensors, tmp_path_factory):
    """The same tensors as .h5, .pt and .safetensors."""
    folder = tmp_path_factory.mktemp("single-files")
    state_dict = to_pytorch(tensors)
    torch.save({key: torch.from_numpy(array) for key, array in state_dict.items()}, folder / "weights.pt")
    save_file(state_dict, folder / "weights.safetensors")
    write_keras(folder / "weights.h5", tensors)
    return folder
