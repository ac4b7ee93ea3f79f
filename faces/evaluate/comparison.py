"""Compare an exported file with its weights: the figures, the embeddings and the decisions of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checks.core.render import Row, Table
from faces.evaluate.judge import FIGURES
from faces.evaluate.measure import Measurement
from faces.evaluate.pairs import FoundPairs
from faces.model import ModelFacts


@dataclass(frozen=True, slots=True)
class FigureChange:
    """A figure of both sides; None where it cannot be computed.

    Attributes:
        name: The figure.
        weights: That of the weights.
        export: That of the exported file.
    """

    name: str
    weights: float | None
    export: float | None


@dataclass(frozen=True, slots=True)
class ChangedPair:
    """A pair that the two sides decide differently.

    Attributes:
        files: Its images.
        same: Whether it shows the same person.
        weights: The distance by the weights.
        export: The distance by the exported file.
    """

    files: tuple[str, str]
    same: bool
    weights: float
    export: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """An exported file beside the weights, run by PyTorch on the same faces, or beside another exported file.

    Attributes:
        weights: The weights, or the other file.
        states_others: Whether the exported file says that it was made from other weights.
        figures: The figures of both.
        worst_cosine: The smallest cosine of a face's two embeddings, 1 for equal ones.
        worst_file: The image of that face.
        threshold: The threshold of the weights at the false accept rate, by which pairs are decided on both
            sides; None without one.
        changed: Every pair whose decision changes.
        pairs: The number of pairs.
    """

    weights: ModelFacts
    states_others: bool
    figures: tuple[FigureChange, ...]
    worst_cosine: float
    worst_file: str
    threshold: float | None
    changed: tuple[ChangedPair, ...]
    pairs: int

    def as_json(self) -> dict[str, Any]:
        """The comparison in the form that `--json` writes."""
        return asdict(self)


def compare_export(
    found: FoundPairs,
    export: ModelFacts,
    weights: ModelFacts,
    sides: tuple[NDArray[Any], NDArray[Any]],
    measured: tuple[Measurement, Measurement],
) -> Comparison:
    """Compare an exported file with its weights.

    Args:
        found: The pairs.
        export: The exported file.
        weights: The weights.
        sides: (N, E) embeddings of the exported file, and of the weights.
        measured: The figures of both.
    """
    ours, theirs = (side.astype(np.float64) for side in sides)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    cosines = np.sum(ours * theirs, axis=1) / lengths
    worst = int(np.argmin(cosines))
    actual, expected = measured
    changed: Sequence[int] = []
    if expected.threshold is not None:
        decided = [side.distances < expected.threshold for side in measured]
        changed = np.flatnonzero(decided[0] != decided[1]).tolist()
    images, pairs = found.images, found.pairs
    return Comparison(
        weights=weights,
        states_others=export.backend.stated_weights not in (None, weights.sha256),
        figures=tuple(FigureChange(name, of(expected), of(actual)) for name, of in FIGURES.items()),
        worst_cosine=float(cosines[worst]),
        worst_file=str(images[worst].file),
        threshold=expected.threshold,
        changed=tuple(
            ChangedPair(
                (str(images[pairs.first[place]].file), str(images[pairs.second[place]].file)),
                bool(pairs.same[place]),
                float(expected.distances[place]),
                float(actual.distances[place]),
            )
            for place in changed
        ),
        pairs=len(pairs),
    )


def change_table(comparison: Comparison) -> Table:
    """Tabulate the figures of both sides."""
    rows = []
    for figure in comparison.figures:
        values = (figure.weights, figure.export)
        apart = None if None in values else figure.export - figure.weights  # type: ignore[operator]
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        rows.append(Row(figure.name, (*cells, "-" if apart is None else f"{apart:+.4f}")))
    return Table("figure", ("weights", "export", "change"), tuple(rows))


def pair_table(comparison: Comparison) -> Table:
    """Tabulate the pairs whose decision changes."""
    rows = tuple(
        Row(
            " and ".join(pair.files),
            (
                f"{pair.weights:.4f}",
                f"{pair.export:.4f}",
                f"{'same' if pair.same else 'different'}, now decided "
                f"{'rightly' if (pair.export < (comparison.threshold or 0)) == pair.same else 'wrongly'}",
            ),
        )
        for pair in comparison.changed
    )
    return Table("pair", ("weights", "export", "people"), rows, text_columns=1)


def describe_comparison(comparison: Comparison) -> tuple[str, ...]:
    """The worst cosine and the changed decisions in sentences."""
    cosine = f"The smallest cosine of a face's two embeddings is {comparison.worst_cosine:.6f}, of "
    sentences = [cosine + f"{comparison.worst_file}."]
    if comparison.states_others:
        sentences.insert(
            0, f"By its metadata, the file was made from other weights than {comparison.weights.name}."
        )
    if comparison.threshold is not None:
        sentences.append(
            f"At the weights' threshold, {comparison.threshold:.4f}, {len(comparison.changed):,} of "
            f"{comparison.pairs:,} pairs are decided otherwise{':' if comparison.changed else '.'}"
        )
    return tuple(sentences)
