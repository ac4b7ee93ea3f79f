"""The formats to fuzz: the seeds of each, its own mutations, and the allowed outcomes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from checks.audit.graphs.graph import Graph
from checks.audit.graphs.onnx_file import read_onnx
from checks.audit.graphs.tflite_file import read_tflite
from converter.formats.detect import open_source
from converter.formats.tensorflow.checkpoint_state import read_latest
from converter.hub.archive import unpack
from converter.hub.catalog import all_entries
from converter.hub.user_catalog import VARIABLE
from converter.manifest import read_manifest
from tests.fuzz import format_mutations, graph_seeds, keras_seeds, seeds
from tests.fuzz.blind_mutations import Mutation, flip_bit, havoc, splice
from tests.fuzz.seeds import Seed, Tensors

FULL_RUN = 100_000
"""Number of mutants of a format in a full run."""

Read = Callable[[Path, Tensors], bool]
"""Function that reads a whole file and returns whether it holds these tensors, or raises a PortError."""


@dataclass(frozen=True)
class Target:
    """A format under attack.

    Attributes:
        name: Its name in the command and in the names of cases.
        seeds: Writes the seeds into a folder.
        read: Reads a file as the converter reads a user's file.
        mutations: Mutations that know the format and may damage its checksums.
        signed: Mutations that write a sound file of other content, with new checksums.
        checksummed: Whether the format has checksums, so that no unsigned mutant may read as other tensors.
            Without checksums only the file's SHA-256 reports the difference.
    """

    name: str
    seeds: Callable[[Path], list[Seed]]
    read: Read
    mutations: Sequence[Mutation] = ()
    signed: Sequence[Mutation] = ()
    checksummed: bool = False

    def mutant(self, rng: Random, data: bytes, others: Sequence[bytes]) -> tuple[bytes, bool]:
        """Change a seed.

        Returns:
            The mutant, which differs from `data`, and whether its checksums are new.
        """
        own = (*self.mutations, *self.signed)
        changed, signed = data, False
        if own and rng.random() < 0.6:
            mutation = rng.choice(own)
            changed, signed = mutation(rng, data), mutation in self.signed
            if rng.random() < 0.1:
                mutation = rng.choice(own)
                changed, signed = _again(mutation, rng, changed), signed or mutation in self.signed
        elif rng.random() < 0.15:
            changed = splice(rng, data, others)
        else:
            changed = havoc(rng, data)
        return (changed, signed) if changed != data else (flip_bit(rng, data), False)


def _again(mutation: Mutation, rng: Random, data: bytes) -> bytes:
    """Apply a second mutation, if the first one has left a structure to mutate."""
    try:
        return mutation(rng, data)
    except Exception:
        return data


def read_source(path: Path, tensors: Tensors) -> bool:
    """Open a source of any format, and compare every tensor bit for bit."""
    with open_source(path) as source:
        same = set(source) == set(tensors)
        for name in source:
            same &= _same_bits(source[name], tensors.get(name))
        return same


def _same_bits(one: Any, other: Any) -> bool:
    if other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bool(
        one.tolist() == other.tolist() if one.dtype == np.dtype(object) else one.tobytes() == other.tobytes()
    )


def _read_graph(read: Callable[[Path], Graph], path: Path, tensors: Tensors) -> bool:
    """Read a graph as an audit does, and compare every constant bit for bit."""
    constants = read(path).constants
    return set(constants) == set(tensors) and all(
        _same_bits(array, tensors[name]) for name, array in constants.items()
    )


class _Parse:
    """Reads a file without tensors; the first file is a seed, whose content is the expected one."""

    def __init__(self, parse: Callable[[Path], object]) -> None:
        self._parse = parse
        self._first: dict[str, object] = {}

    def __call__(self, path: Path, tensors: Tensors) -> bool:
        content = self._parse(path)
        return content == self._first.setdefault(path.name, content)


def _unpack(archive: Path) -> object:
    folder = archive.with_name("unpacked")
    try:
        return unpack(archive, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read_catalog(path: Path) -> object:
    os.environ[VARIABLE] = str(path)
    return all_entries()


_TARGETS = (
    Target(
        "index",
        partial(seeds.checkpoint_seeds, ending=".index"),
        read_source,
        signed=(
            format_mutations.mutate_block,
            format_mutations.mutate_entries,
            format_mutations.mutate_entries,
        ),
        checksummed=True,
    ),
    Target(
        "data", partial(seeds.checkpoint_seeds, ending=".data-00000-of-00001"), read_source, checksummed=True
    ),
    Target("pb", seeds.graph_seeds, read_source, (format_mutations.mutate_message,)),
    Target("h5", keras_seeds.keras_seeds, read_source, (format_mutations.mutate_hdf5,)),
    Target(
        "keras",
        keras_seeds.keras_archive_seeds,
        read_source,
        (format_mutations.mutate_zip_headers,),
        (format_mutations.mutate_archive,),
        checksummed=True,
    ),
    Target(
        "pt",
        partial(seeds.pytorch_seeds, legacy=False),
        read_source,
        (format_mutations.mutate_zip_headers,),
        (format_mutations.mutate_archive, format_mutations.mutate_archive),
        checksummed=True,
    ),
    Target(
        "pt-legacy", partial(seeds.pytorch_seeds, legacy=True), read_source, (format_mutations.mutate_pickle,)
    ),
    Target("safetensors", seeds.safetensors_seeds, read_source, (format_mutations.mutate_header,)),
    Target("npy", seeds.numpy_seeds, read_source, (format_mutations.mutate_numpy_pickle,)),
    Target(
        "zip",
        seeds.archive_seeds,
        _Parse(_unpack),
        (format_mutations.mutate_zip_headers,),
        (format_mutations.mutate_archive,),
        checksummed=True,
    ),
    Target(
        "onnx", graph_seeds.onnx_seeds, partial(_read_graph, read_onnx), (format_mutations.mutate_message,)
    ),
    Target("tflite", graph_seeds.tflite_seeds, partial(_read_graph, read_tflite)),
    Target("manifest", seeds.manifest_seeds, _Parse(read_manifest), (format_mutations.mutate_text,)),
    Target("checkpoint", seeds.state_seeds, _Parse(read_latest), (format_mutations.mutate_text,)),
    Target("toml", seeds.catalog_seeds, _Parse(_read_catalog), (format_mutations.mutate_text,)),
)

TARGETS: Mapping[str, Target] = {target.name: target for target in _TARGETS}
