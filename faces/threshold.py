"""A threshold on the distance of two faces, and what it was measured on: never a bare number."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from converter.errors import SourceError, UsageError
from converter.formats.limits import read_whole
from faces.distance import Distance

_MOST_BYTES = 64 << 20  # a result of `evaluate` has a few thousand


@dataclass(frozen=True, slots=True)
class Threshold:
    """A distance below which two faces count as the same person's.

    Attributes:
        value: The distance.
        far: The false accept rate that it was chosen for.
        distance: The measure of distance.
        subtract_mean: Whether the mean of the embeddings was subtracted.
        mirrored: Whether embeddings of mirrored images are part of the embeddings.
        model: The name of the network, or its file.
        model_sha256: `faces.model.weights_digest` of the network.
        standardisation: The standardisation of its images.
        pairs: The number of pairs that it was measured on.
        different: How many of them show different people.
        source: The list or table of the pairs.
    """

    value: float
    far: float
    distance: Distance
    subtract_mean: bool
    mirrored: bool
    model: str
    model_sha256: str
    standardisation: str
    pairs: int
    different: int
    source: str

    def as_json(self) -> dict[str, Any]:
        """The threshold in the form that `evaluate --json` writes."""
        return asdict(self)

    @property
    def basis(self) -> str:
        """The false accept rate and the pairs that it rests on, in a clause."""
        return (
            f"at a false accept rate of {self.far:g}, measured on {self.pairs:,} pairs of {self.source}, "
            f"{self.different:,} of different people"
        )

    def check(self, *, model: str, model_sha256: str, distance: Distance, mirrored: bool) -> None:
        """Refuse to be applied to other distances than it was measured on.

        Raises:
            UsageError: The network or the distance is another one.
        """
        again = "Measure it for this one with `facenet-port evaluate --json`."
        if model_sha256 != self.model_sha256:
            raise UsageError(
                f"the threshold {self.value:.4g} was measured with {self.model}, not {model}. {again}"
            )
        if distance != self.distance or mirrored != self.mirrored:
            mine, other = (
                f"{measure}{' of mirrored images too' if both else ''}"
                for measure, both in ((self.distance, self.mirrored), (distance, mirrored))
            )
            raise UsageError(
                f"the threshold {self.value:.4g} is of the distance {mine}, not {other}. {again}"
            )


DEFAULT_THRESHOLD = Threshold(
    value=1.339549,
    far=0.001,
    distance="squared-euclidean",
    subtract_mean=False,
    mirrored=False,
    model="20170512-110547",
    model_sha256="0aacbe14c51311757425411cc35ba5723b1bd93e6c043873edb7bdc5e56a1fc6",
    standardisation="per-image",
    pairs=6903,
    different=5549,
    source="118 photographs of five people",
)
"""The threshold for the default model with `--crop scaled`, as `facenet-port evaluate` measures it on the
photographs in the package that serves this model."""


def find_threshold(
    file: Path | None, stored: Threshold | None, *, model: str, model_sha256: str, standardisation: str
) -> Threshold | None:
    """Find the threshold for decisions on two embeddings, each of one image.

    Args:
        file: A result of `facenet-port evaluate --json`.
        stored: The threshold that is taken without a file.
        model: The name of the network.
        model_sha256: Its `faces.model.weights_digest`.
        standardisation: The standardisation of its images.

    Returns:
        The threshold of the file, or the stored one, or one that was measured for the default model; None if
        there is none.

    Raises:
        SourceError: The file cannot be read, or holds no threshold.
        UsageError: The threshold is of another network, or of other embeddings.
    """
    if file is None and stored is None:
        default = DEFAULT_THRESHOLD
        is_default = (model_sha256, standardisation) == (default.model_sha256, default.standardisation)
        return default if is_default else None
    threshold = stored if file is None else read_threshold(file)
    assert threshold is not None
    threshold.check(model=model, model_sha256=model_sha256, distance=threshold.distance, mirrored=False)
    problem = None
    if threshold.standardisation != standardisation:
        problem = f"of images standardised {threshold.standardisation}, not {standardisation}"
    elif threshold.subtract_mean:
        problem = "of embeddings with their mean subtracted, which one image does not have"
    if problem:
        raise UsageError(
            f"the threshold {threshold.value:.4g} is {problem}. Measure it again with "
            "`facenet-port evaluate --json`."
        )
    return threshold


HOW_TO_MEASURE = (
    "Measure one on faces whose people are known: `facenet-port evaluate crops/faces.csv --model {model} "
    "--json figures.json`, then give --threshold figures.json."
)
"""The next step without a threshold; `model` is the one to measure it for."""


def parse_threshold(content: Any) -> Threshold:
    """Check the form that `Threshold.as_json` gives.

    Raises:
        ValueError: It has another form.
    """
    kinds = {"str": str, "int": int, "float": float, "bool": bool, "Distance": str}
    fields = {name: kinds[str(field.type)] for name, field in Threshold.__dataclass_fields__.items()}
    if not isinstance(content, dict) or set(content) != set(fields):
        raise ValueError("its fields are not those of a threshold")
    if any(type(content[name]) is not kind for name, kind in fields.items()):
        raise ValueError("a field has a value of another type")
    if not math.isfinite(content["value"]):
        raise ValueError("its value is not finite")
    if content["distance"] not in get_args(Distance):
        raise ValueError(f"there is no distance {content['distance']!r}")
    return Threshold(**content)


def read_threshold(path: Path) -> Threshold:
    """Read the threshold in a result of `facenet-port evaluate --json`.

    Raises:
        SourceError: The file cannot be read, is no such result, or its pairs gave no threshold.
    """
    try:
        content = json.loads(read_whole(path, _MOST_BYTES, "it is larger than any result of evaluate"))
        return parse_threshold(content["measured_threshold"])
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise SourceError(
            path,
            "it holds no measured threshold",
            next_step="Give a file that `facenet-port evaluate --json FILE` wrote, on pairs of both kinds",
        ) from error
