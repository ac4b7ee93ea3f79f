"""The weights of a Keras 3 file: `.weights.h5`, and the archive `.keras` around one.

Such a file has no index. Each layer is a group whose path says how the layers are nested and counts those of
a class (`layers/conv2d_3`). Its variables are in a group `vars`, under their numbers, in the order of the
layer's class. An attribute of `vars` holds the layer's name; before Keras 3.4 it stands in config.json alone,
which only the archive has. See keras/src/saving/saving_lib.py: _save_state, _save_container_state, H5IOStore.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py

from converter.child_process import AnswerError

WEIGHTS = "model.weights.h5"
"""The member of the archive that holds the weights."""

_MOST_CONFIG = 16 << 20  # bytes of config.json; 450 layers take 0.3 MB
_MOST_DEPTH = 16  # of nested models, two groups for each
_VARIABLES = {"conv2d": ("kernel", "bias"), "dense": ("kernel", "bias")}
_TRAINING = ("optimizer", "seed_generator", "metrics", "compile_metrics", "loss_tracker")
_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")  # the second in Keras 2.12 to 2.15


def open_archive(path: Path, most_bytes: int) -> tuple[io.BytesIO, Any, int | None]:
    """Read the weights and the configuration of a .keras file.

    Args:
        path: The file.
        most_bytes: Limit on the size of the weights.

    Returns:
        The HDF5 file, the parsed config.json, and the position of the HDF5 file in the archive; None if it is
        compressed there.

    Raises:
        AnswerError: The archive is damaged, too large, or holds a name twice.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len(set(names)) != len(names):
                raise AnswerError("this .keras archive holds a file twice")
            member, config = archive.getinfo(WEIGHTS), archive.getinfo("config.json")
            if member.file_size > most_bytes or config.file_size > _MOST_CONFIG:
                raise AnswerError("this .keras archive claims more data than its size justifies")
            parsed = json.loads(archive.read(config))
            weights = archive.read(member)
            with path.open("rb") as file:
                file.seek(member.header_offset + 26)  # APPNOTE.TXT 4.3.7: the lengths of name and extra field
                lengths = file.read(4)
    except (
        zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, KeyError, zlib.error,
        struct.error,
    ) as error:  # fmt: skip
        raise AnswerError(f"this .keras archive is damaged ({str(error)[:200]})") from None
    start = member.header_offset + 30 + sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2))
    return io.BytesIO(weights), parsed, start if member.compress_type == zipfile.ZIP_STORED else None


def is_keras_3(file: h5py.File) -> bool:
    """Return whether an HDF5 file has the layout of Keras 3 instead of an index."""
    return any(name in file for name in _CONTAINERS)


def find_variables(
    file: h5py.File, config: Any, get: Callable[[Any, str], Any]
) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield the name of every weight, as Keras 2 writes it (`Conv2d_1a_3x3/kernel:0`), and its data.

    Args:
        file: The open file.
        config: The parsed config.json; None without one.
        get: Returns an object of a group, and refuses one behind a link.

    Raises:
        AnswerError: Layers have no names, or a variable has no known role in its layer.
    """
    layers = dict(_layers_of_config(config, ""))
    settings_of = dict(layers.values())
    nameless: list[str] = []
    found: list[tuple[str, h5py.Dataset]] = []
    for place, variables in _groups_of_variables(file, get, "", _MOST_DEPTH):
        path = place.replace("_layer_checkpoint_dependencies/", "layers/")
        name = variables.attrs.get("name") or (layers[path][0] if path in layers else None)
        if not isinstance(name, str):
            nameless.append(place)
            continue
        kind = re.sub(r"_\d+$", "", path.rpartition("/")[2])
        found += _name_variables(name, kind, variables, settings_of.get(name, {}), get)
    if nameless:
        raise AnswerError(
            f"the names of {len(nameless)} layers are missing ({', '.join(nameless[:3])}, ...): Keras before "
            "3.4 writes them into config.json alone, and a layer is not found by its number",
            next_step="Load it into its model with load_weights and save the whole model: "
            'model.save("facenet.keras")',
        )
    yield from found


def _groups_of_variables(
    group: Any, get: Callable[[Any, str], Any], path: str, depth: int
) -> Iterator[tuple[str, Any]]:
    """Yield the path and the group `vars` of every layer that has variables."""
    if depth < 0:
        raise AnswerError("its models are nested too deeply")
    for name in group:
        if re.sub(r"_\d+$", "", name) in _TRAINING:
            continue
        inner = get(group, name)
        if not isinstance(inner, h5py.Group):
            continue
        if name == "vars":
            if len(inner):
                yield path, inner
        else:
            yield from _groups_of_variables(inner, get, f"{path}/{name}" if path else name, depth - 1)


def _name_variables(
    layer: str, kind: str, variables: Any, settings: dict[str, Any], get: Callable[[Any, str], Any]
) -> list[tuple[str, h5py.Dataset]]:
    """Name the variables of one layer after their roles, which its class gives to their numbers."""
    count = len(variables)
    roles = _VARIABLES.get(kind, ())[:count]
    if kind == "batch_normalization":
        # This network's BatchNorm has an offset; with three variables it has no scale, unless config.json
        # says otherwise.
        scale = bool(settings.get("scale", count == 4))
        center = bool(settings.get("center", True))
        roles = ("gamma",) * scale + ("beta",) * center + ("moving_mean", "moving_variance")
    if len(roles) != count or set(variables) != {str(number) for number in range(count)}:
        raise AnswerError(
            f"a layer of {count} variables, of which {kind or 'it'} is not known to have so many",
            tensor=layer,
        )
    return [(f"{layer}/{role}:0", get(variables, str(number))) for number, role in enumerate(roles)]


def _layers_of_config(config: Any, path: str) -> Iterator[tuple[str, tuple[str, dict[str, Any]]]]:
    """Yield the path of every layer of a model, counted by class as Keras does, its name and its settings."""
    model = config.get("config") if isinstance(config, dict) else None
    layers = model.get("layers") if isinstance(model, dict) else None
    counts: dict[str, int] = {}
    for layer in layers if isinstance(layers, list) else ():
        settings = layer.get("config") if isinstance(layer, dict) else None
        if not isinstance(settings, dict) or not isinstance(layer.get("class_name"), str):
            continue
        kind = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", layer["class_name"])
        kind = re.sub(r"([a-z])([A-Z])", r"\1_\2", kind).lower()
        number = counts[kind] = counts.get(kind, -1) + 1
        place = f"{path}layers/{kind}_{number}" if number else f"{path}layers/{kind}"
        yield place, (str(settings.get("name")), settings)
        yield from _layers_of_config(layer, f"{place}/")
