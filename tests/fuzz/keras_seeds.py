"""Keras files to mutate, written with h5py in the layouts of Keras 2 and 3."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import h5py
import numpy as np

from tests.fuzz.seeds import UNIT, Seed, small_tensors


def keras_seeds(folder: Path) -> list[Seed]:
    """Keras weights in the old and the new layout of HDF5, one data set of them compressed."""
    tensors = {
        "Conv2d_1a_3x3/kernel:0": small_tensors()[f"{UNIT}/weights"],
        "Conv2d_1a_3x3_BatchNorm/beta:0": np.arange(8, dtype=np.float32),
        "Conv2d_1a_3x3_BatchNorm/moving_mean:0": np.arange(8, dtype=np.float64),
        "Bottleneck/kernel:0": np.arange(64, dtype=np.float32).reshape(8, 8),
    }
    seeds = []
    for libver, root_name in (("earliest", "model_weights"), ("latest", "/")):
        path = folder / f"{libver}.h5"
        with h5py.File(path, "w", libver=libver) as file:
            root = file.require_group(root_name)
            layers = dict.fromkeys(name.partition("/")[0] for name in tensors)
            root.attrs["layer_names"] = [layer.encode() for layer in layers]
            for layer in layers:
                names = [name for name in tensors if name.startswith(f"{layer}/")]
                group = root.create_group(layer)
                group.attrs["weight_names"] = [name.encode() for name in names]
                for name in names:
                    packed = {"chunks": (4, 8), "compression": "gzip"} if layer == "Bottleneck" else {}
                    group.create_dataset(name, data=tensors[name], **packed)
        seeds.append(Seed(path, tensors))
    return seeds


def keras_archive_seeds(folder: Path) -> list[Seed]:
    """Archives of Keras 3: one stored, one compressed and with the names of layers in config.json alone."""
    stem = small_tensors()[f"{UNIT}/weights"]
    variables = {"conv2d": [stem], "batch_normalization": [np.arange(8, dtype=np.float32) - 4] * 3}
    names = {"conv2d": "Conv2d_1a_3x3", "batch_normalization": "Conv2d_1a_3x3_BatchNorm"}
    roles = {"conv2d": ["kernel"], "batch_normalization": ["beta", "moving_mean", "moving_variance"]}
    classes = {"conv2d": "Conv2D", "batch_normalization": "BatchNormalization"}
    tensors, seeds = {}, []
    for kind, arrays in variables.items():
        tensors |= {f"{names[kind]}/{role}:0": a for role, a in zip(roles[kind], arrays, strict=True)}
    config = [
        {"class_name": classes[kind], "config": {"name": names[kind], "scale": False}} for kind in variables
    ]
    for name, method in (("stored", zipfile.ZIP_STORED), ("deflated", zipfile.ZIP_DEFLATED)):
        weights = io.BytesIO()
        with h5py.File(weights, "w") as file:
            for kind, arrays in variables.items():
                group = file.create_group(f"layers/{kind}/vars")
                if name == "stored":
                    group.attrs["name"] = names[kind]
                for number, array in enumerate(arrays):
                    group[str(number)] = array
        members = {
            "metadata.json": b'{"keras_version": "3.15.1"}',
            "config.json": json.dumps({"config": {"name": "facenet", "layers": config}}).encode(),
            "model.weights.h5": weights.getvalue(),
        }
        with zipfile.ZipFile(folder / f"{name}.keras", "w") as archive:
            for member, content in members.items():
                archive.writestr(zipfile.ZipInfo(member), content, method)
        seeds.append(Seed(folder / f"{name}.keras", tensors))
    return seeds
