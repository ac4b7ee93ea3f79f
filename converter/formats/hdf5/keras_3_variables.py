"""The weights of a Keras 3 file: `.weights.h5`, and the archive `.keras` around one.

Such a file has no index. Each layer is a group whose path says how the layers are nested and counts those of
a class (`layers/conv2d_3`). Its variables are in a group `vars`, under their numbers, in the order of the
layer's class. An attribute of `vars` holds the name of the layer or model; before Keras 3.4 it stands in
config.json alone, which only the archive has. See keras/src/saving/saving_lib.py: _save_state,
_save_container_state, H5IOStore.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from converter.child_process import AnswerError
from converter.counts import counted
from converter.free_names import free_name

WEIGHTS = "model.weights.h5"
"""The member of the archive that holds the weights."""

_MOST_CONFIG = 16 << 20  # bytes of config.json; 450 layers take 0.3 MB
_MOST_DEPTH = 16  # of nested models, two groups for each
_BATCH_NORM = "batch_normalization"
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
            if absent := {WEIGHTS, "config.json"} - set(names):
                raise AnswerError(f"this zip archive is no .keras file: there is no {min(absent)} in it")
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
        raise AnswerError("this .keras archive is damaged or cut off") from error
    start = member.header_offset + 30 + sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2))
    return io.BytesIO(weights), parsed, start if member.compress_type == zipfile.ZIP_STORED else None


def is_keras_3(file: h5py.File) -> bool:
    """Return whether an HDF5 file has the layout of Keras 3 instead of an index."""
    return any(name in file for name in _CONTAINERS)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer with variables.

    Attributes:
        place: The path of its group.
        name: Its name, after those of the models around it; empty if a name is missing.
        kind: Its class, as Keras writes it in paths, such as `batch_normalization`.
        variables: The group of its variables.
        settings: Its settings in config.json; empty without them.
    """

    place: str
    name: str
    kind: str
    variables: Any
    settings: dict[str, Any]


def find_variables(
    file: h5py.File, config: Any, get: Callable[[Any, str], Any]
) -> tuple[list[tuple[str, Any]], list[str]]:
    """Find the name of every weight, as Keras 2 writes it (`Conv2d_1a_3x3/kernel:0`), and its data.

    Args:
        file: The open file.
        config: The parsed config.json; None without one.
        get: Returns an object of a group, and refuses one behind a link.

    Returns:
        The names with their data, and those of the data that may be a gamma instead of a beta.

    Raises:
        AnswerError: Layers have no names, or a variable has no known role in its layer.
    """
    layers = list(_walk(file, get, dict(_layers_of_config(config, "")), "", (), _MOST_DEPTH))
    nameless = [layer.place for layer in layers if not layer.name]
    if nameless:
        names = "name of 1 layer is" if len(nameless) == 1 else f"names of {len(nameless)} layers are"
        more = ", ..." if len(nameless) > 3 else ""
        raise AnswerError(
            f"the {names} missing ({', '.join(nameless[:3])}{more}): Keras before 3.4 writes them into "
            "config.json alone, and a layer is not found by its number",
            next_step=f"Load it into its model with load_weights and save the whole model: {_save_line()}",
        )
    found = [pair for layer in layers for pair in _name_variables(layer, get)]
    return found, [f"{layer.name}/beta:0" for layer in layers if _leaves_open(layer)]


def _walk(
    group: Any,
    get: Callable[[Any, str], Any],
    known: dict[str, tuple[str, dict[str, Any]]],
    path: str,
    outer: tuple[str, ...],
    depth: int,
) -> Iterator[_Layer]:
    """Yield every layer with variables below a group, after those around it.

    Args:
        group: The group.
        get: As for `find_variables`.
        known: The path of every layer of config.json, to its name and settings.
        path: The path of the group; empty for the file.
        outer: The names of the models around the group.
        depth: The number of groups below it at most.
    """
    if depth < 0:
        raise AnswerError("its models are nested too deeply")
    place = path.replace("_layer_checkpoint_dependencies/", "layers/")
    name, settings = known.get(place, ("", {}))
    variables = get(group, "vars") if path and "vars" in group else None
    if isinstance(variables, h5py.Group):
        own = variables.attrs.get("name", name)
        name = own if isinstance(own, str) else ""
        if len(variables):
            full = "/".join((*outer, name)) if name else ""
            kind = re.sub(r"_\d+$", "", place.rpartition("/")[2])
            yield _Layer(path, full, kind, variables, settings)
    for inner in group:
        if inner == "vars" or re.sub(r"_\d+$", "", inner) in _TRAINING:
            continue
        below = get(group, inner)
        if isinstance(below, h5py.Group):
            around = (*outer, name) if name else outer
            yield from _walk(below, get, known, f"{path}/{inner}" if path else inner, around, depth - 1)


def _name_variables(layer: _Layer, get: Callable[[Any, str], Any]) -> list[tuple[str, h5py.Dataset]]:
    """Name the variables of one layer after their roles, which its class gives to their numbers."""
    count = len(layer.variables)
    roles = _VARIABLES.get(layer.kind, ())[:count]
    if layer.kind == _BATCH_NORM:
        # The order of BatchNormalization.build; with three variables `settle_betas` excludes a gamma.
        scale = bool(layer.settings.get("scale", count == 4))
        center = bool(layer.settings.get("center", True))
        roles = ("gamma",) * scale + ("beta",) * center + ("moving_mean", "moving_variance")
    if len(roles) != count or set(layer.variables) != {str(number) for number in range(count)}:
        kind = layer.kind or "its class"
        raise AnswerError(
            f"a layer of {counted(count, 'variable')}, of which {kind} is not known to have so many",
            tensor=layer.name,
        )
    return [(f"{layer.name}/{role}:0", get(layer.variables, str(i))) for i, role in enumerate(roles)]


def _leaves_open(layer: _Layer) -> bool:
    """Return whether the first of a BatchNorm's three variables may be a beta or a gamma."""
    return layer.kind == _BATCH_NORM and len(layer.variables) == 3 and "scale" not in layer.settings


def settle_betas(betas: Mapping[str, h5py.Dataset]) -> list[str]:
    """Check that what may be a gamma is a beta: a gamma is positive as a rule, and not all betas are.

    Args:
        betas: Name to data of the first variables of three, from `find_variables`.

    Returns:
        The clause that says what was taken for granted, if there are such variables.

    Raises:
        AnswerError: All of their values are positive.
    """
    if not betas:
        return []
    layers = counted(len(betas), "BatchNorm")
    open_question = f"the file does not say whether the first of three variables of {layers} is beta or gamma"
    if all(bool((data[()] > 0).all()) for data in betas.values()):
        raise AnswerError(
            f"{open_question}; the values are all positive, as those of gamma are, and this network has beta",
            tensor=next(iter(betas)),
            next_step=f"Save the whole model, which says it: {_save_line()}",
        )
    return [f"{open_question}; beta is taken, as in this network, and some of the values are not positive"]


def _save_line() -> str:
    return f'model.save("{free_name("facenet.keras")}")'


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
