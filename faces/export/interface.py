"""The interface of an exported graph: what it takes and gives, and the sentences that its metadata states."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from checks.audit import metadata as keys
from checks.audit.graphs.onnx_tflite_session import MOST_IMAGES
from checks.core.inputs import IMAGE_SIZE
from checks.core.network import describe_network
from checks.core.weights_digest import weights_digest
from converter import __version__
from converter.errors import UsageError
from converter.hub.catalog_entry import FIXED, PER_IMAGE
from converter.mtcnn_layer_map import MtcnnNetwork
from faces.export.result import Format, Precision
from faces.export.standardise import bake_in
from faces.export.weights import ExportWeights
from faces.model import Standardisation
from reference import InceptionResnetV1
from reference.mtcnn import O_NET_SIZE, R_NET_SIZE

Shape = tuple[int | None, ...]
"""The shape of an input or output; None for a variable extent."""

_NAMES: dict[str, Standardisation] = {FIXED: "fixed", PER_IMAGE: "per-image"}
_EXAMPLE_SIDE = 48  # pixels, where any size will do
_MTCNN_SIZES = {"P-Net": None, "R-Net": R_NET_SIZE, "O-Net": O_NET_SIZE}
_STATED = {name: stated for stated, name in _NAMES.items()}


@dataclass(frozen=True, slots=True)
class Interface:
    """The input and the outputs of a graph.

    Attributes:
        format: The format of the file.
        input_name: The name of the input.
        shape: The shape of the input; None for a variable extent.
        dtype: The dtype of the input.
        baked: The standardisation in the graph; None if its images are standardised before.
        outputs: The name of each output to its shape.
        standardisation: The standardisation, as the catalog states it, or `NOT_STATED`.
    """

    format: Format
    input_name: str
    shape: Shape
    dtype: Literal["float32", "uint8"]
    baked: Standardisation | None
    outputs: Mapping[str, Shape]
    standardisation: str

    @property
    def channels_last(self) -> bool:
        """True if the input is NHWC."""
        return self.shape[-1] == 3

    @property
    def classifies(self) -> bool:
        """True if the output is logits."""
        return "logits" in self.outputs

    def metadata(self, weights: ExportWeights, precision: Precision) -> dict[str, str]:
        """State in the file what it is, where it comes from and how it is used."""
        is_baked = self.baked is not None
        return {
            "network": describe_network(weights.network),
            "source": weights.name,
            "source_sha256": json.dumps(dict(weights.files)),
            "weights": weights.taken,
            keys.WEIGHTS: weights_digest(weights.state_dict),
            keys.STANDARDISATION: self.standardisation,
            keys.INPUT: keys.describe_input(self.shape, self.dtype, baked=is_baked),
            keys.OUTPUT: "; ".join(
                keys.describe_output(shape, keys.EMBEDDINGS if name == "embeddings" else name)
                for name, shape in self.outputs.items()
            ),
            "precision": f"weights {precision}, computed in {'int8' if precision == 'int8' else 'float32'}",
            "licence": weights.licence or keys.NOT_STATED,
            "made_by": f"facenet-port {__version__}",
        }

    def module(self, weights: ExportWeights) -> nn.Module:
        """Build the network in PyTorch with this interface; it takes NCHW, with baked pixels NHWC."""
        network = weights.build()
        if isinstance(network, InceptionResnetV1):
            network.classify = self.classifies
            if self.baked is not None:
                bake_in(network, self.baked)
        return network

    def example(self) -> torch.Tensor:
        """Make an input of this shape."""
        variable = (2, *(_EXAMPLE_SIDE,) * 3)
        shape = [own if extent is None else extent for own, extent in zip(variable, self.shape, strict=True)]
        return torch.zeros(shape, dtype=torch.uint8 if self.dtype == "uint8" else torch.float32)


def plan_interface(
    weights: ExportWeights,
    graph_format: Format,
    *,
    bake: bool,
    standardisation: Standardisation | None,
    classify: bool,
    batch: int | Literal["dynamic"] | None,
    precision: Precision = "float32",
) -> Interface:
    """Plan the interface of a graph; the arguments are those of `export`.

    Raises:
        UsageError: The weights have no classifier; the standardisation to bake in is not known or another
            than the one that is stated; the batch is larger than the audit runs; or an option is not for this
            network.
    """
    variant = weights.network
    extent = (None if graph_format == "onnx" else 1) if batch is None else batch
    images = None if extent == "dynamic" else extent
    if isinstance(variant, MtcnnNetwork):
        _refuse_for_mtcnn(weights, precision, bakes_or_classifies=bake or classify)
        return _plan_mtcnn(variant, graph_format, images)
    if images is not None and images > MOST_IMAGES:
        raise UsageError(
            f"--batch {images}: a graph is audited with at most {MOST_IMAGES} images at once. Give --batch "
            "dynamic, or fewer."
        )
    if classify and variant.num_classes is None:
        raise UsageError(
            f"{weights.path}: these weights have no classifier, so there are no logits to export. Leave out "
            "--classify, or give weights with one, such as the folder best of a training."
        )
    stated = _find_standardisation(weights, standardisation, bake=bake)
    channels_last = graph_format == "tflite" or bake
    image = (IMAGE_SIZE, IMAGE_SIZE, 3) if channels_last else (3, IMAGE_SIZE, IMAGE_SIZE)
    outputs = {"logits": variant.num_classes} if classify else {"embeddings": variant.embedding_size}
    return Interface(
        format=graph_format,
        input_name="pixels" if bake else "images",
        shape=(images, *image),
        dtype="uint8" if bake else "float32",
        baked=_NAMES[stated] if bake and stated else None,
        outputs={name: (images, width) for name, width in outputs.items()},
        standardisation=stated or keys.NOT_STATED,
    )


def _refuse_for_mtcnn(weights: ExportWeights, precision: Precision, *, bakes_or_classifies: bool) -> None:
    if bakes_or_classifies:
        raise UsageError(
            f"{weights.path}: --bake and --classify are for the network of embeddings. The detector's "
            "networks take images that are resampled and standardised before."
        )
    if precision == "int8":
        raise UsageError(
            f"{weights.path}: --precision int8 is for the network of embeddings, and this is "
            f"{weights.network}. Give --precision float16."
        )


def _find_standardisation(weights: ExportWeights, given: Standardisation | None, *, bake: bool) -> str | None:
    """Find the standardisation of the weights, as the catalog words it; None if nothing states it.

    Raises:
        UsageError: The one that is given is not the stated one, or the one to bake in is not known.
    """
    stated = weights.standardisation or (_STATED[given] if given else None)
    if given and stated != _STATED[given]:
        raise UsageError(
            f"{weights.path}: --standardise says {given}, but by the catalog or a manifest its "
            f"images are standardised {stated}. Leave the option out."
        )
    if bake and stated is None:
        raise UsageError(
            f"{weights.path}: neither the catalog nor a manifest beside it tells how its images are "
            "standardised. Give --standardise fixed, (x - 127.5) / 128 as for the published models of 2018, "
            "or per-image."
        )
    return stated


def _plan_mtcnn(network: MtcnnNetwork, graph_format: Format, batch: int | None) -> Interface:
    """Plan the interface of a network of MTCNN; P-Net takes images of any size."""
    side = _MTCNN_SIZES[network.name]
    maps = (None, None) if side is None else ()
    channels_last = graph_format == "tflite"
    widths = {"offsets": 4, **({"landmarks": 10} if network.name == "O-Net" else {}), "probabilities": 2}
    return Interface(
        format=graph_format,
        input_name="images",
        shape=(batch, side, side, 3) if channels_last else (batch, 3, side, side),
        dtype="float32",
        baked=None,
        outputs={
            name: (batch, *maps, width) if channels_last else (batch, width, *maps)
            for name, width in widths.items()
        },
        standardisation=FIXED,
    )
