"""The network that a command embeds faces with, by name or from a file, and the standardisation it needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from checks.core.inputs import prewhiten, standardise
from checks.core.options import check_device
from checks.core.types import Arrays
from checks.core.weights_digest import weights_digest as state_dict_digest
from converter.convert import tensorflow_tensors, to_numpy_state_dict
from converter.errors import UsageError
from converter.formats.detect import open_source
from converter.hub import catalog
from converter.hub.catalog_entry import FIXED, PER_IMAGE, CatalogEntry
from converter.hub.identify import find_published
from converter.manifest import file_digest, stated_standardisation
from converter.network_names import NetworkTensors
from converter.plan import describe, state_dict_variant
from faces.backends.facts import TORCH, BackendFacts
from faces.backends.graph_backend import GraphBackend, find_runtime
from faces.backends.torch_backend import TorchBackend
from faces.options import DEFAULT_MODEL
from reference import InceptionResnetV1, load

Compute = Callable[[NDArray[Any]], NDArray[Any]]
"""A function from images, (N, H, W, 3), to a row of numbers for each."""

Standardisation = Literal["fixed", "per-image"]

STANDARDISATIONS: Mapping[Standardisation, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "fixed": standardise,
    "per-image": prewhiten,
}
"""The functions from pixels of 0 to 255, (N, H, W, 3), to the network's input, float32."""

STATED: Mapping[str | None, Standardisation] = {FIXED: "fixed", PER_IMAGE: "per-image"}
"""The names by which the catalog, manifests and exported files state them."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A network, as plain data.

    Attributes:
        name: The name of a published model, or the file.
        sha256: `weights_digest` of it.
        standardisation: The standardisation of its images.
        origin: Where the standardisation is stated.
        lfw_accuracy: The accuracy on Labeled Faces in the Wild that its author published; None if unknown.
        backend: The runtime of its embeddings.
    """

    name: str
    sha256: str
    standardisation: str
    origin: str
    lfw_accuracy: float | None
    backend: BackendFacts = TORCH


@dataclass(frozen=True, slots=True)
class Model:
    """A network in evaluation mode, and what is known of it.

    Attributes:
        name: The name of the published model, or the file as it was given.
        pytorch: The network in PyTorch, float32; None for an exported file.
        sha256: The digest of the weights, as `weights_digest` computes it. For an exported file that rounds
            them, to float16 or to 8 bits, the SHA-256 of the file.
        standardisation: The standardisation of its images.
        origin: Where the standardisation is stated: "the catalog", "the manifest", or "--standardise".
        published: The model's entry in the catalog; None for other weights.
        backend: What computes embeddings.
        checked: What is known of it.
    """

    name: str
    pytorch: TorchBackend | None
    sha256: str
    standardisation: Standardisation
    origin: str
    published: CatalogEntry | None
    backend: TorchBackend | GraphBackend
    checked: BackendFacts = TORCH

    @property
    def facts(self) -> ModelFacts:
        """The network, as plain data."""
        accuracy = self.published.lfw_accuracy if self.published else None
        return ModelFacts(self.name, self.sha256, self.standardisation, self.origin, accuracy, self.checked)

    def standardise(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Standardise pixels of 0 to 255: (N, H, W, 3) to the same shape in float32.

        An exported file that standardises pixels itself is given them as they are.
        """
        if self.backend.takes_pixels:
            return pixels
        return STANDARDISATIONS[self.standardisation](pixels)

    def of_pixels(
        self, compute: Callable[[NDArray[Any]], NDArray[Any]]
    ) -> Callable[[NDArray[Any]], NDArray[Any]]:
        """Turn a function of standardised images into one of pixels."""
        return lambda pixels: compute(self.standardise(pixels))

    def embed(self, images: NDArray[Any]) -> NDArray[Any]:
        """Compute the embeddings of standardised images: (N, H, W, 3) to (N, E), float32."""
        return self.backend.embed(images)

    @property
    def network(self) -> InceptionResnetV1:
        """The network in PyTorch.

        Raises:
            UsageError: This is an exported file.
        """
        if self.pytorch is None:
            raise UsageError(f"{self.name} is an exported file. Give the weights that it was made from.")
        return self.pytorch.original

    @property
    def unfolded(self) -> Model:
        """The same network run as it is, for proofs: without BatchNorm folded into the convolutions."""
        return replace(self, backend=TorchBackend(self.network, fold=False), checked=TORCH)

    @property
    def classifier(self) -> torch.nn.Linear:
        """The layer that turns embeddings before normalisation into logits.

        Raises:
            UsageError: The network has none.
        """
        if self.network.logits is None:
            raise UsageError(f"{self.name}: it has no classifier. Give a state_dict with logits.weight.")
        return self.network.logits

    def logits(self, images: NDArray[Any]) -> NDArray[Any]:
        """Compute the logits of standardised images: (N, H, W, 3) to (N, classes), float32.

        Raises:
            UsageError: The network has no classifier.
        """
        classifier = self.classifier  # which an exported file has not
        assert self.pytorch is not None
        return self.pytorch.run(classifier, images)


def load_model(
    model: str | Path = DEFAULT_MODEL,
    *,
    standardisation: Standardisation | None = None,
    device: str = "cpu",
    offline: bool = False,
) -> Model:
    """Load a network in evaluation mode.

    Args:
        model: The name of a published model, or a file: a state_dict, or a TensorFlow source, which is
            converted; or the folder of one, such as `best` of a training; or an exported file, ONNX or
            TFLite. If both exist, the file wins.
        standardisation: The standardisation of its images. None takes that of the published model, which a
            file is recognised as by the SHA-256 in its manifest, or its own, or that in its manifest.
        device: "cpu", "cuda" or "mps".
        offline: Never download.

    Raises:
        UsageError: There is no such name or file, or the standardisation is not known.
        SourceError, MappingError: The file is unreadable, corrupt or not this network.
        RequirementError: The model is not in the cache and cannot be downloaded, or PyTorch has no such
            device.
    """
    check_device(device)
    path, trained = Path(model), None
    if find_runtime(path) is not None:
        from faces.backends.exported_model import load_exported

        return load_exported(path, standardisation, device)
    exists = path.exists() or path.with_name(f"{path.name}.index").is_file()  # the prefix of a checkpoint
    entry = None if exists else catalog.find_entry(str(model))
    if entry is not None:
        network = InceptionResnetV1(pretrained=entry.name, offline=offline)
    elif not exists:
        close = catalog.closest_name(str(model))
        hint = f"Did you mean {close}?" if close else "`facenet-port list` shows the published models."
        raise UsageError(f"{model}: there is no such file or published model. {hint}")
    else:
        network, entry, trained = _load_file(path)
    origin = "--standardise" if standardisation else "the manifest" if trained else "the catalog"
    needed = standardisation or trained or (published_standardisation(entry.name) if entry else None)
    if needed is None:
        raise UsageError(
            f"{model}: neither the catalog nor a manifest beside it tells how its images are standardised. "
            "Give --standardise fixed, (x - 127.5) / 128 as for the published models of 2018, or per-image."
        )
    name = entry.name if entry else str(model)
    backend = TorchBackend(network.eval().to(device))
    return Model(name, backend, weights_digest(network), needed, origin, entry, backend)


def published_standardisation(name: str) -> Standardisation | None:
    """Return the standardisation of a published model by name or alias; None if the catalog does not tell."""
    entry = catalog.find_entry(name)
    return None if entry is None else STATED.get(entry.standardisation)


def _load_file(path: Path) -> tuple[InceptionResnetV1, CatalogEntry | None, Standardisation | None]:
    """Load the network of a file; recognise it if it is published, or else read its manifest."""
    with open_source(path) as opened:
        digests = {file.name: file_digest(file) for file in opened.files}
        published = find_published(opened.path, digests)
        trained = None if published else STATED.get(stated_standardisation(opened.path, digests))
        if opened.naming == "pytorch":
            network = load(path)
            if not isinstance(network, InceptionResnetV1):
                raise UsageError(
                    f"{path}: this is {type(network).__name__} of MTCNN, which finds faces. Give FaceNet."
                )
        else:
            network = build_network(to_numpy_state_dict(tensorflow_tensors(NetworkTensors(opened))))
    return network, published, trained


def build_network(state_dict: Arrays) -> InceptionResnetV1:
    """Build the network of a complete state_dict of arrays."""
    variant = state_dict_variant(describe(state_dict))
    with torch.device("meta"):  # no memory and no initial values, which the weights replace
        network = InceptionResnetV1(num_classes=variant.num_classes, embedding_size=variant.embedding_size)
    tensors = {key: torch.from_numpy(np.ascontiguousarray(array)) for key, array in state_dict.items()}
    network.load_state_dict(tensors, assign=True)
    return network.eval()


def weights_digest(network: InceptionResnetV1) -> str:
    """Compute the SHA-256 of the weights that the embeddings depend on, in hexadecimal.

    It is that of `checks.core.weights_digest`, the same for every file and format that holds these weights.
    """
    tensors = network.state_dict()
    return state_dict_digest({key: tensor.detach().cpu().numpy() for key, tensor in tensors.items()})
