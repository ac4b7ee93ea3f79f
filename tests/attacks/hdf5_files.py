"""Attacks on the readers of Keras files: .h5 and .keras."""

from __future__ import annotations

import io
import json
import marshal
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.attacks.attack import MARK, attack


def hdf5(fill: Callable[[h5py.Group], object], names: list[bytes]) -> bytes:
    """Keras weights of one layer, whose group is filled by a function."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.h5"
        with h5py.File(path, "w") as file:
            file.attrs["layer_names"] = [b"Conv2d_1a_3x3"]
            group = file.create_group("Conv2d_1a_3x3")
            group.attrs["weight_names"] = names
            fill(group)
        return path.read_bytes()


def keras_archive(
    fill: Callable[[h5py.Group], object], config: bytes = b"{}", member: str = "model.weights.h5"
) -> bytes:
    """An archive of Keras 3 with one layer, whose variables are filled by a function."""
    weights, archive = io.BytesIO(), io.BytesIO()
    with h5py.File(weights, "w") as file:
        group = file.create_group("layers/conv2d/vars")
        group.attrs["name"] = "Conv2d_1a_3x3"
        fill(group)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in (("config.json", config), (member, weights.getvalue())):
            file.writestr(zipfile.ZipInfo(name), content)
    return archive.getvalue()


def make_keras_archive_attacks() -> None:
    """Add the attacks on `.keras`."""

    def one(name: str, tries: str, *arguments: Any, **options: Any) -> None:
        attack(name, tries, keras_archive(*arguments, **options), exact=False)

    def kernel(group: h5py.Group) -> None:
        group["0"] = np.zeros((3, 3, 3, 8), np.float32)

    code = marshal.dumps(compile(f"open({MARK!r}, 'w')", "lambda", "eval")).hex()
    function = {"class_name": "__lambda__", "config": {"code": code, "defaults": None, "closure": None}}
    layer = {"class_name": "Lambda", "config": {"name": "run", "function": function}}
    one(
        "marshalled-lambda.keras",
        "marshalled code in a Lambda layer, and a module to import",
        kernel,
        json.dumps({"module": "os", "class_name": "system", "config": {"layers": [layer]}}).encode(),
    )
    one(
        "external-link.keras",
        "a link to a data set in another file",
        lambda group: group.__setitem__("0", h5py.ExternalLink("/etc/passwd", "secret")),
    )
    one(
        "shape-of-terabytes.keras",
        "a data set of 4 TiB of which nothing is stored",
        lambda group: group.create_dataset("0", (1 << 20, 1 << 20), "f4", chunks=(1, 1024)),
    )
    one("nested-json.keras", "a configuration nested 100,000 deep", kernel, b"[" * 100_000)
    one("weights-outside.keras", "weights under a name that leads out", kernel, member="../model.weights.h5")


def make_hdf5_attacks() -> None:
    """Add the attacks of this format: a flat list, over 60 lines because it has one call for each."""
    name = "Conv2d_1a_3x3/kernel:0"

    def one(
        tries: str, title: str, fill: Callable[[h5py.Group], object], names: list[bytes] | None = None
    ) -> None:
        attack(title, tries, hdf5(fill, names or [name.encode()]), exact=False)

    def virtual(group: h5py.Group) -> None:
        layout = h5py.VirtualLayout((4,), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "secret", (4,))
        group.create_virtual_dataset(name, layout)

    def lambda_layer(group: h5py.Group) -> None:
        code = marshal.dumps(compile(f"open({MARK!r}, 'w')", "lambda", "eval"))
        config = {"class_name": "Lambda", "config": {"function": [code.hex(), None, None]}}
        group.file.attrs["model_config"] = json.dumps({"config": {"layers": [config]}})
        group[name] = np.zeros((3, 3, 3, 8), np.float32)

    def cycle(group: h5py.Group) -> None:
        group["Conv2d_1a_3x3"] = group

    def put(group: h5py.Group, target: object) -> None:
        group[name] = target

    one(
        "a link to a data set in another file",
        "external-link.h5",
        lambda group: put(group, h5py.ExternalLink("/etc/passwd", "secret")),
    )
    one(
        "a data set whose bytes are those of /etc/passwd",
        "external-data.h5",
        lambda group: group.create_dataset(name, (4,), "f4", external=[("/etc/passwd", 0, 16)]),
    )
    one("a data set put together from another file", "virtual-data.h5", virtual)
    one(
        "a link to itself",
        "link-to-itself.h5",
        lambda group: put(group, h5py.SoftLink("/Conv2d_1a_3x3/Conv2d_1a_3x3/kernel:0")),
    )
    one("a layer that holds itself", "group-in-itself.h5", cycle)
    one("marshalled code in a Lambda layer", "marshalled-lambda.h5", lambda_layer)
    one(
        "a data set of 4 TiB of which nothing is stored",
        "shape-of-terabytes.h5",
        lambda group: group.create_dataset(name, (1 << 20, 1 << 20), "f4", chunks=(1, 1024)),
    )
    one(
        "a contiguous data set of 4 TiB of which nothing is stored",
        "contiguous-terabytes.h5",
        lambda group: group.create_dataset(name, (1 << 20, 1 << 20), "f4"),
    )
    one(
        "one chunk of 16 MB, compressed to 16 KB",
        "compressed-bomb.h5",
        lambda group: group.create_dataset(
            name,
            data=np.zeros(1 << 22, np.float32),
            chunks=(1 << 22,),
            compression="gzip",
            compression_opts=9,
        ),
    )
    one(
        "strings of any length for weights",
        "strings.h5",
        lambda group: group.create_dataset(name, data=["text"] * 4, dtype=h5py.string_dtype()),
    )
    one(
        "references to objects for weights",
        "references.h5",
        lambda group: group.create_dataset(name, (4,), h5py.ref_dtype),
    )
    one(
        "elements of 1,000 bytes that hold other elements",
        "compound.h5",
        lambda group: group.create_dataset(name, (4,), [("a", "f4", (250,))]),
    )
    one(
        "one weight named 500 times",
        "named-500-times.h5",
        lambda group: put(group, np.zeros((3, 3, 3, 8), np.float32)),
        [name.encode()] * 500,
    )
    one(
        "a name that leads out of its layer",
        "name-leads-out.h5",
        lambda group: put(group, np.zeros(4, np.float32)),
        [b"../../Conv2d_1a_3x3/kernel:0"],
    )
    one("a weight that is a group", "group-for-weight.h5", lambda group: group.create_group(name))
