"""Seeded inputs of the stages that need no photograph: the same on every machine, to the last bit.

Only `random.Random.random` is drawn from, whose sequence Python promises to keep; NumPy's may change with a
release.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray

from checks.core.inputs import IMAGE_SIZE
from checks.core.types import Array
from faces.distance import Floats
from faces.evaluate.measure import Settings
from faces.evaluate.pairs import all_pairs
from faces.evaluate.protocol import Pairs

_PHOTOGRAPHS = 12
_STEPS = 1 << 11  # of a drawn number between 0 and 1: sums of its squares are exact in float64


@dataclass(frozen=True, slots=True, eq=False)
class ProtocolCase:
    """Embeddings, pairs of them and options of the protocol.

    Attributes:
        name: The name, for messages.
        embeddings: (N, E).
        pairs: Pairs among them.
        settings: The options.
    """

    name: str
    embeddings: Array
    pairs: Pairs
    settings: Settings


def photographs_with_boxes() -> list[tuple[NDArray[np.uint8], Floats]]:
    """Make photographs of 90 to 260 pixels a side: each (height, width, 3), with one to three boxes (n, 4).

    Some boxes reach over the edge.
    """
    random = _seeded(0)
    made = []
    for number in range(_PHOTOGRAPHS):
        height, width = (90 + int(170 * random.random()) for _ in range(2))
        pixels = _pattern(random, height, width)
        boxes = []
        for _ in range(1 + number % 3):
            side = [25 + (0.7 * min(height, width) - 25) * random.random() for _ in range(2)]
            left, top = (-12 + (0.6 * min(height, width) + 12) * random.random() for _ in range(2))
            boxes.append([left, top, left + side[0], top + side[1]])
        made.append((pixels, np.array(boxes)))
    return made


def crops() -> NDArray[np.uint8]:
    """Make a crop for the network: (1, 160, 160, 3)."""
    return _pattern(_seeded(1), IMAGE_SIZE, IMAGE_SIZE)[None]


def _seeded(seed: int) -> Random:
    return Random(seed)  # noqa: S311 - nothing secret is drawn


def _pattern(random: Random, height: int, width: int) -> NDArray[np.uint8]:
    """Draw slopes and a saddle that wrap at 256, other ones in each channel: smooth areas and edges."""
    rows, columns = np.ogrid[:height, :width]
    channels = []
    for _ in range(3):
        across, down, saddle = (1 + int(5 * random.random()) for _ in range(3))
        channels.append((across * columns + down * rows + columns * rows // (15 * saddle)) % 256)
    return np.stack(channels, axis=2).astype(np.uint8)


def pairs_of_embeddings() -> tuple[Array, Pairs]:
    """Draw embeddings of two people, four of each, and all pairs of them."""
    embeddings, people = _embeddings(_seeded(2), people=2, each=4)
    return embeddings, all_pairs(people)


def protocol_cases() -> tuple[ProtocolCase, ...]:
    """Draw the cases that the protocol is judged on: each fault of it shows on one."""
    random = _seeded(3)
    embeddings, people = _embeddings(random)
    near, _ = _embeddings(random, spread=0.25)
    aside, _ = _embeddings(random, offset=0.75)
    pairs = all_pairs(people)
    mean = Settings(4, distance="arc-cosine", subtract_mean=True)
    return (
        ProtocolCase("all pairs as listed", embeddings, pairs, Settings()),
        ProtocolCase("people far apart", near, _shuffled(random, pairs), Settings(4)),
        ProtocolCase("arc cosine, mean subtracted", aside, _shuffled(random, pairs), mean),
        _dense_distances(random),
    )


def _embeddings(
    random: Random, *, people: int = 9, each: int = 5, spread: float = 1.0, offset: float = 0.0
) -> tuple[Array, list[str]]:
    """Draw embeddings of length one in 16 numbers, float32, around a centre for each person, and the people.

    Every sum is of numbers with few bits and therefore exact, whatever its order.
    """
    rows = []
    for _ in range(people):
        centre = _uniform(random) + offset
        rows += [centre + spread * _uniform(random) for _ in range(each)]
    faces = np.array(rows)
    faces /= np.sqrt(np.sum(np.square(faces), axis=1, keepdims=True))
    return faces.astype(np.float32), [f"person {number // each}" for number in range(len(rows))]


def _uniform(random: Random) -> Floats:
    """Draw 16 numbers between -1 and 1."""
    return np.array([int(_STEPS * random.random()) for _ in range(16)]) * (2 / _STEPS) - 1


def _dense_distances(random: Random) -> ProtocolCase:
    """Draw 600 pairs of the same person that are up to 0.01 apart, among 600 others of all distances."""
    count = 1200
    distances = [(0.01 if pair < count // 2 else 3.9) * random.random() for pair in range(count)]
    embeddings = np.zeros((2 * count, 2))
    embeddings[1::2, 0] = np.sqrt(distances)
    pairs = Pairs(np.arange(0, 2 * count, 2), np.arange(1, 2 * count, 2), np.arange(count) < count // 2)
    return ProtocolCase("distances close together", embeddings, _shuffled(random, pairs), Settings(4))


def _shuffled(random: Random, pairs: Pairs) -> Pairs:
    keys = [random.random() for _ in range(len(pairs))]
    order = np.argsort(keys)
    return Pairs(pairs.first[order], pairs.second[order], pairs.same[order])
