"""The interface of an exported graph: what it takes and gives, and the sentences that its metadata states."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from checks.audit import metadata as keys
from checks.core.inputs import IMAGE_SIZE
from checks.core.network import describe_network
from checks.core.weights_digest import weights_digest
from converter import __version__
from converter.errors import UsageError
from converter.hub.catalog_entry import FIXED, PER_IMAGE
from converter.layer_map import Variant
from faces.export.result import Format, Precision
from faces.export.standardise import bake_in
from faces.export.weights import ExportWeights
from faces.model import Standardisation
from reference import InceptionResnetV1

_NAMES: dict[str, Standardisation] = {FIXED: "fixed", PER_IMAGE: "per-image"}
_STATED = {name: stated for stated, name in _NAMES.items()}


@dataclass(frozen=True, slots=True)
class Interface:
    """What a graph takes and gives.

    Attributes:
        format: The format of the file.
        input_name: The name of the input.
        shape: The shape of the input; None for a variable extent.
        dtype: The dtype of the input.
        baked: The standardisation in the graph; None if its images are standardised before.
        output_name: The name of the output, `embeddings` or `logits`.
        output_shape: Its shape.
        standardisation: The standardisation, as the catalog states it, or `NOT_STATED`.
    """

    format: Format
    input_name: str
    shape: tuple[int | None, ...]
    dtype: Literal["float32", "uint8"]
    baked: Standardisation | None
    output_name: Literal["embeddings", "logits"]
    output_shape: tuple[int | None, ...]
    standardisation: str

    @property
    def classifies(self) -> bool:
        """Whether the output is logits."""
        return self.output_name == "logits"

    def metadata(self, weights: ExportWeights, precision: Precision) -> dict[str, str]:
        """State in the file what it is, where it comes from and how it is used."""
        is_baked = self.baked is not None
        return {
            "network": describe_network(weights.network),
            "source": weights.name,
            "source_sha256": json.dumps(dict(weights.files)),
            keys.WEIGHTS: weights_digest(weights.state_dict),
            keys.STANDARDISATION: self.standardisation,
            keys.INPUT: keys.describe_input(self.shape, self.dtype, baked=is_baked),
            keys.OUTPUT: keys.describe_output(
                self.output_shape, keys.LOGITS if self.classifies else keys.EMBEDDINGS
            ),
            "precision": f"weights {precision}, computed in float32",
            "licence": weights.licence or keys.NOT_STATED,
            "made_by": f"facenet-port {__version__}",
        }

    def module(self, weights: ExportWeights) -> nn.Module:
        """Build the network in PyTorch with this interface; it takes NCHW, with baked pixels NHWC."""
        network = weights.build()
        assert isinstance(network, InceptionResnetV1)
        network.classify = self.classifies
        if self.baked is not None:
            bake_in(network, self.baked)
        return network

    def example(self) -> torch.Tensor:
        """Make an input of this shape."""
        shape = [2 if extent is None else extent for extent in self.shape]
        return torch.zeros(shape, dtype=torch.uint8 if self.dtype == "uint8" else torch.float32)


def plan_interface(
    weights: ExportWeights,
    graph_format: Format,
    *,
    bake: bool,
    standardisation: Standardisation | None,
    classify: bool,
    batch: int | Literal["dynamic"] | None,
) -> Interface:
    """Plan the interface of a graph; the arguments are those of `export`.

    Raises:
        UsageError: The weights have no classifier, or the standardisation to bake in is not known.
    """
    variant = weights.network
    assert isinstance(variant, Variant)
    if classify and variant.num_classes is None:
        raise UsageError(
            f"{weights.path}: these weights have no classifier, so there are no logits to export. Leave out "
            "--classify, or give weights with one, such as the folder best of a training."
        )
    stated = _STATED[standardisation] if standardisation else weights.standardisation
    if bake and stated is None:
        raise UsageError(
            f"{weights.path}: neither the catalog nor a manifest beside it tells how its images are "
            "standardised. Give --standardise fixed, (x - 127.5) / 128 as for the published models of 2018, "
            "or per-image."
        )
    extent = (None if graph_format == "onnx" else 1) if batch is None else batch
    images = None if extent == "dynamic" else extent
    channels_last = graph_format == "tflite" or bake
    image = (IMAGE_SIZE, IMAGE_SIZE, 3) if channels_last else (3, IMAGE_SIZE, IMAGE_SIZE)
    width = variant.num_classes if classify else variant.embedding_size
    return Interface(
        format=graph_format,
        input_name="pixels" if bake else "images",
        shape=(images, *image),
        dtype="uint8" if bake else "float32",
        baked=_NAMES[stated] if bake and stated else None,
        output_name="logits" if classify else "embeddings",
        output_shape=(images, width),
        standardisation=stated or keys.NOT_STATED,
    )
