"""A threshold on the distance of two faces, and what it was measured on: never a bare number."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from converter.errors import SourceError, UsageError
from converter.formats.limits import read_whole
from faces.crops import CROP_SIZES, CropMethod
from faces.distance import Distance
from faces.model import ModelFacts, published_standardisation

_MOST_BYTES = 64 << 20  # a result of `evaluate` has a few thousand
_LARGEST = 4.0  # squared distance of embeddings, which have length 1; `evaluate` measures no larger threshold


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
        crop: The crop of the faces.
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
    crop: CropMethod
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

    def check(
        self,
        network: ModelFacts,
        *,
        crop: CropMethod,
        distance: Distance,
        subtract_mean: bool = False,
        mirrored: bool = False,
    ) -> None:
        """Refuse to be applied to other distances than it was measured on.

        Args:
            network: The network of the embeddings.
            crop: The crop of their faces.
            distance: The measure of their distance.
            subtract_mean: Whether their mean is subtracted.
            mirrored: Whether embeddings of mirrored images are part of them.

        Raises:
            UsageError: The network, its standardisation, the crop or the distance is another one.
        """
        measure = _describe(self.distance, subtract_mean=self.subtract_mean, mirrored=self.mirrored)
        other = _describe(distance, subtract_mean=subtract_mean, mirrored=mirrored)
        problem = ""
        if network.sha256 != self.model_sha256:
            problem = (
                f"was measured with {self.model} (SHA-256 {self.model_sha256[:12]}), not {network.name} "
                f"({network.sha256[:12]})"
            )
        elif network.standardisation != self.standardisation:
            problem = f"is of images standardised {self.standardisation}, not {network.standardisation}"
        elif crop != self.crop:
            problem = f"is of the crop {self.crop}, not {crop}"
        elif measure != other:
            problem = f"is of the distance {measure}, not {other}"
        if problem:
            raise UsageError(
                f"the threshold {self.value:.4g} {problem}. Measure it for this one with "
                "`facenet-port evaluate --json`."
            )


def _describe(distance: Distance, *, subtract_mean: bool, mirrored: bool) -> str:
    mean = " of embeddings with their mean subtracted" if subtract_mean else ""
    return f"{distance}{mean}{' of mirrored images too' if mirrored else ''}"


DEFAULT_THRESHOLD = Threshold(
    value=1.339549,
    far=0.001,
    distance="squared-euclidean",
    subtract_mean=False,
    mirrored=False,
    model="20170512-110547",
    model_sha256="0aacbe14c51311757425411cc35ba5723b1bd93e6c043873edb7bdc5e56a1fc6",
    standardisation="per-image",
    crop="scaled",
    pairs=6903,
    different=5549,
    source="118 photographs of five people",
)
"""The threshold for the default model with `--crop scaled`, as `facenet-port evaluate` measures it on the
photographs in the package that serves this model."""


def find_threshold(
    file: Path | None, stored: Threshold | None, network: ModelFacts, crop: CropMethod
) -> Threshold | None:
    """Find the threshold for decisions on two embeddings, each of one image.

    Args:
        file: A result of `facenet-port evaluate --json`.
        stored: The threshold that is taken without a file.
        network: The network of the embeddings.
        crop: The crop of their faces.

    Returns:
        The threshold of the file, or the stored one, or one that was measured for the default model; None if
        there is none.

    Raises:
        SourceError: The file cannot be read, or holds no threshold.
        UsageError: The threshold is of another network, or of other embeddings.
    """
    threshold = stored if file is None else read_threshold(file)
    if threshold is None:
        default = DEFAULT_THRESHOLD
        ours = (network.sha256, network.standardisation, crop)
        return default if ours == (default.model_sha256, default.standardisation, default.crop) else None
    threshold.check(network, crop=crop, distance=threshold.distance)
    return threshold


def explain_no_threshold(network: ModelFacts, crop: CropMethod) -> str:
    """Say that no threshold is known, and how to measure one: two sentences.

    Args:
        network: The network that it is needed for.
        crop: The crop of the faces.
    """
    known = published_standardisation(network.name) == network.standardisation
    options = f"--model {shlex.quote(network.name)}"
    options += "" if known else f" --standardise {network.standardisation}"
    options += "" if crop == "scaled" else f" --crop {crop}"
    return (
        f"no threshold is known for {network.name} with the crop {crop}. Measure one on photographs of "
        f"known people: `facenet-port evaluate faces.csv {options} --json figures.json`, then give "
        "--threshold figures.json."
    )


def parse_threshold(content: Any) -> Threshold:
    """Check the form that `Threshold.as_json` gives.

    Raises:
        ValueError: It has another form.
    """
    text = (str,)
    # A float may be a whole number: whoever edits a file writes 1 for 1.0.
    numbers = {"int": (int,), "float": (float, int), "bool": (bool,)}
    kinds: dict[str, tuple[type, ...]] = {"str": text, "Distance": text, "CropMethod": text, **numbers}
    fields = {name: kinds[str(field.type)] for name, field in Threshold.__dataclass_fields__.items()}
    if not isinstance(content, dict) or set(content) != set(fields):
        raise ValueError("its fields are not those of a threshold")
    if any(type(content[name]) not in kind for name, kind in fields.items()):
        raise ValueError("a field has a value of another type")
    if not (0 <= content["value"] <= _LARGEST and 0 <= content["far"] <= 1):  # NaN is not
        raise ValueError("its value or its false accept rate is out of range")
    if not 0 <= content["different"] <= content["pairs"]:
        raise ValueError("its numbers of pairs contradict each other")
    if content["distance"] not in get_args(Distance):
        raise ValueError(f"there is no distance {content['distance']!r}")
    if content["crop"] not in CROP_SIZES:
        raise ValueError(f"there is no crop {content['crop']!r}")
    return Threshold(**content | {name: float(content[name]) for name in ("value", "far")})


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
