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
