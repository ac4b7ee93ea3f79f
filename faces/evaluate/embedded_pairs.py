"""Pairs of embedded faces: of images, by a network and by TensorFlow's graph as well, or of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import SourceError, UsageError
from converter.hub.catalog import find_entry
from converter.hub.locate import locate
from faces.backends.facts import BackendFacts
from faces.crops import CropMethod, FaceImage
from faces.detect.result import Box
from faces.embedder import Embedder
from faces.embeddings import read_embeddings
from faces.evaluate.against import open_graph
from faces.evaluate.embed_faces import Progress, find_faces, run_networks
from faces.evaluate.pairs import FoundPairs, pair_all
from faces.model import Model, ModelFacts, load_model


@dataclass(frozen=True, slots=True)
class EmbeddedPairs:
    """Embedded faces and their pairs.

    Attributes:
        found: The images and the pairs.
        boxes: The box of each face; None for a crop.
        crop: The crop of every face.
        network: The network.
        embeddings: (N, E), a row for each image.
        expected: The rows of TensorFlow's graph, or of the weights of an exported file; None without them.
        graph: The graph or the weights in words; empty without them.
        weights: The weights that an exported file is compared with; None for no such comparison.
    """

    found: FoundPairs
    boxes: tuple[Box | None, ...]
    crop: CropMethod
    network: ModelFacts
    embeddings: NDArray[Any]
    expected: NDArray[Any] | None = None
    graph: str = ""
    weights: ModelFacts | None = None


def read_embedded(source: Path, embedder: Embedder) -> EmbeddedPairs:
    """Read the embeddings of `facenet-port embed`, of which all pairs are taken.

    Args:
        source: The file.
        embedder: A model, a standardisation and a crop that it states have to be those of the embeddings.

    Raises:
        UsageError: They are not.
        SourceError: The file cannot be read, a face has no person, or there is only one face.
    """
    embeddings = read_embeddings(source)
    origin, name = embeddings.origin, str(source)
    if embedder.stated_model is not None:
        origin.check(embedder.model.facts, name)
    elif embedder.stated_standardisation is not None:
        origin.check_standardisation(embedder.stated_standardisation, name)
    if embedder.crop == "facenet" and origin.crop != "facenet":
        raise UsageError(f"the faces of {name} have the crop {origin.crop}, not facenet. Embed them again.")
    if "" in embeddings.people:
        nobody = embeddings.files[embeddings.people.index("")].name
        step = "Put the photographs into a folder for each person, and embed them again"
        raise SourceError(source, f"{nobody} has no person_name", next_step=step)
    published = find_entry(origin.model)
    network = ModelFacts(
        name=origin.model,
        sha256=origin.model_sha256,
        standardisation=origin.standardisation,
        origin="the embeddings",
        lfw_accuracy=published.lfw_accuracy if published else None,
        backend=BackendFacts(origin.backend, origin.backend_sha256),
    )
    found = pair_all(source, list(map(FaceImage, embeddings.files, embeddings.boxes)), embeddings.people)
    return EmbeddedPairs(found, embeddings.boxes, origin.crop, network, embeddings.values)


@dataclass(frozen=True, slots=True)
class PairEmbedder:
    """Finds the faces of pairs and embeds them.

    Attributes:
        embedder: The network, the detector and the crop.
        mirrored: Whether the embedding of the mirrored image is appended to each embedding.
        against: A TensorFlow source, whose graph embeds the same crops, or the weights of an exported file;
            None for none.
        batch_size: Images that a network takes at a time.
        progress: Progress callback: images done, and their number.
        say: Called with the name of each part of the work.
    """

    embedder: Embedder
    mirrored: bool
    against: str | Path | None
    batch_size: int
    progress: Progress
    say: Callable[[str], None]

    def embed(self, source: Path, found: FoundPairs) -> EmbeddedPairs:
        """Embed the images of pairs; pairs with a photograph that shows no face are left out.

        Args:
            source: Where the images are from, for messages.
            found: The pairs.

        Raises:
            UsageError: There are crops of several kinds, or as for `_load_reference`.
            SourceError, MappingError: A file is unreadable, or no pair is left.
            RequirementError: A package or weights are missing.
        """
        network, crop = self.embedder.model, self.embedder.find_crop(found.images)
        reference = self._load_reference(network)
        if self.against is not None and reference is None:
            network = network.unfolded  # which the proof is of
        self.say("finding faces")
        faces = find_faces(found.images, crop, lambda: self.embedder.detector, self.progress)
        found = found.keep(np.array([face is not None for face in faces]))
        require_faces(source, found.pairs.same)
        shown = [face for face in faces if face is not None]
        self.say("embedding")
        embeddings, expected, graph = self._run(shown, crop, network, reference)
        boxes, weights = tuple(face.box for face in shown), None if reference is None else reference.facts
        return EmbeddedPairs(found, boxes, crop, network.facts, embeddings, expected, graph, weights)

    def _load_reference(self, network: Model) -> Model | None:
        """Load the weights that an exported file is compared with; None for no such comparison.

        Raises:
            UsageError: Their embeddings have another size, or it is an exported file: the same one, or one
                that is not in float32.
        """
        if self.against is None or network.pytorch is not None:
            return None
        stated = self.embedder.stated_standardisation
        reference = load_model(self.against, standardisation=stated, offline=self.embedder.offline)
        if reference.pytorch is not None:
            reference = reference.unfolded
        elif reference.checked.file_sha256 == network.checked.file_sha256:
            raise UsageError(f"{reference.name}: a file shows no change beside itself. Give its weights.")
        elif reference.checked.stated_weights != reference.sha256:
            raise UsageError(
                f"{reference.name}: this is no `facenet-port export` in float32. Give its weights."
            )
        own, expected = network.backend.embedding_size, reference.backend.embedding_size
        if own != expected:
            raise UsageError(
                f"the embeddings of {network.name} have {own} numbers, and those of {reference.name} "
                f"{expected}. Give the weights that the file was made from, and no file of logits."
            )
        return reference

    def _run(
        self, faces: Sequence[FaceImage], crop: CropMethod, network: Model, reference: Model | None
    ) -> tuple[NDArray[Any], NDArray[Any] | None, str]:
        """Embed faces with a network and with what it is held against: both embeddings, and that in words."""
        run = partial(
            run_networks,
            faces,
            crop,
            mirrored=self.mirrored,
            batch_size=self.batch_size,
            progress=self.progress,
        )
        embed = network.of_pixels(network.embed)
        if self.against is None:
            (embeddings,) = run([embed])
            return embeddings, None, ""
        if reference is not None:
            embeddings, expected = run([embed, reference.of_pixels(reference.embed)])
            return embeddings, expected, f"the weights {reference.name}"
        with open_graph(locate(self.against, offline=self.embedder.offline)) as graph:
            embeddings, expected = run([embed, network.of_pixels(graph.embed)])
        return embeddings, expected, graph.description


def require_faces(where: Path, left: Sized) -> None:
    """Refuse photographs of which too few show a face.

    Args:
        where: Where they are from.
        left: What is left without the others.

    Raises:
        SourceError: Nothing is.
    """
    if not len(left):
        raise SourceError(
            where,
            "too few photographs show a face",
            next_step="`facenet-port detect` shows the faces of a photograph",
        )
