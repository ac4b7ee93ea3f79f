"""Evaluates a network on pairs of faces, or a classifier on labelled faces."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checks.core.environment import environment
from checks.core.judgement import Judgement
from converter.errors import RequirementError, SourceError, UsageError
from converter.hub.locate import locate
from faces.crops import CropMethod, FaceImage, read_images
from faces.detect.detector import FaceDetector
from faces.distance import Distance
from faces.evaluate.against import open_graph
from faces.evaluate.classifier import score
from faces.evaluate.embed_faces import find_faces, run_networks
from faces.evaluate.judge import judge
from faces.evaluate.measure import Measurement, Settings, measure
from faces.evaluate.pairs import FoundPairs, all_pairs, find_images, read_pairs
from faces.evaluate.protocol import Pairs
from faces.evaluate.result import Applied, ClassificationResult, ModelFacts, VerificationResult
from faces.face_table import ENDINGS, FaceTable, read_table
from faces.model import Model, Standardisation, load_model
from faces.options import DEFAULT_MODEL
from faces.threshold import Threshold, read_threshold

_PACKAGES = {"sklearn": "scikit-learn", "scipy": "scipy"}
PREDICTED = "predicted_label"
"""The column of a table with a classifier's answers."""

Progress = Callable[[int, int | None], None]


def evaluate(
    source: str | Path,
    *,
    pairs: str | Path | None = None,
    model: str | Path | None = None,
    standardisation: Standardisation | None = None,
    folds: int | None = None,
    distance: Distance = "squared-euclidean",
    subtract_mean: bool = False,
    mirrored: bool = False,
    far: float = 1e-3,
    threshold: str | Path | None = None,
    against: str | Path | None = None,
    crop: CropMethod = "scaled",
    device: str = "cpu",
    batch_size: int = 32,
    offline: bool = False,
    progress: Progress = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> VerificationResult:
    """Measure how well a network tells whether two faces are the same person's, by the LFW protocol.

    Args:
        source: With `pairs`, a folder of photographs or crops, `Name/Name_0001.jpg` or .png; otherwise a
            table of faces, of which all pairs are taken, each row with every later one.
        pairs: A list such as pairs.txt, pairsDevTrain.txt or pairsDevTest.txt.
        model: The name of a published model, or a file, as for `faces.model.load_model`. None converts
            `against`, or else takes `faces.options.DEFAULT_MODEL`.
        standardisation: As in `load_model`.
        folds: The number of folds, consecutive and not shuffled. None takes that of the list, or 10 for a
            table.
        distance: The measure of distance.
        subtract_mean: Whether to subtract the mean embedding of the other folds' pairs.
        mirrored: Whether to append the embedding of the mirrored image.
        far: The false accept rate of the validation rate and of the threshold, between 0 and 1.
        threshold: A result of `--json` whose threshold is applied to every pair.
        against: A TensorFlow source: its graph is run on the same crops, and the network is judged by it.
        crop: The crop of a photograph, as in `align`; an image of the size of a crop is taken as it is.
        device: "cpu", "cuda" or "mps".
        batch_size: Images that the network takes at a time.
        offline: Never download.
        progress: Progress callback: images done, and their number.
        say: Called with the name of each part of the work.

    Raises:
        UsageError: The arguments do not fit each other, there are fewer pairs than folds, or the threshold
            is of another model or distance.
        SourceError, MappingError: A file is unreadable, corrupt or not what it should be; a table lacks
            columns or files; no pair of the list has both files.
        RequirementError: A package, or a model that is not in the cache, is missing.
    """
    _require_packages()
    found, files, stated = _find_pairs(Path(source), None if pairs is None else Path(pairs))
    given = None if threshold is None else read_threshold(Path(threshold))
    settings = Settings(folds or stated, distance, subtract_mean, far)
    origin = None if against is None else locate(against, offline=offline)
    network = load_model(
        model or origin or DEFAULT_MODEL, standardisation=standardisation, device=device, offline=offline
    )
    if given is not None:
        given.check(model=network.name, model_sha256=network.sha256, distance=distance, mirrored=mirrored)
    say("finding faces")
    found, faces = _find_faces(
        Path(source), found, crop, lambda: FaceDetector(device=device, offline=offline), progress
    )
    say("embedding")
    shared = {"mirrored": mirrored, "batch_size": batch_size, "progress": progress}
    embeddings, expected, graph = _embed(faces, crop, network, origin, **shared)
    measured = measure(embeddings, found.pairs, settings)
    judgements: tuple[Judgement, ...] = ()
    if expected is not None:
        judgements = judge(measured, measure(expected, found.pairs, settings), found.name_pair)
    listed = str(source if pairs is None else pairs)
    return VerificationResult(
        source=listed,
        folder="" if pairs is None else str(source),
        images=tuple(str(image.file) for image in found.images),
        boxes=tuple(face.box for face in faces),
        crop=crop,
        pairs=found.pairs,
        skipped=found.skipped,
        model=_facts(network),
        settings=settings,
        mirrored=mirrored,
        measured=measured,
        threshold=_threshold(measured, found.pairs, settings, network, mirrored=mirrored, source=listed),
        applied=None if given is None else _apply(given, measured, found.pairs),
        against=graph,
        judgements=judgements,
        notes=(*found.notes, *_limits(found.pairs, settings)),
        environment=environment(),
        files=tuple(map(str, files)),
    )


def evaluate_classifier(
    source: str | Path,
    *,
    model: str | Path | None = None,
    standardisation: Standardisation | None = None,
    crop: CropMethod = "scaled",
    device: str = "cpu",
    batch_size: int = 32,
    offline: bool = False,
    progress: Progress = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> ClassificationResult:
    """Score a classifier on labelled faces.

    Args:
        source: A table with the column label, a number from 0, and crops; or with the columns label and
            predicted_label, of any text, if there is no `model`.
        model: A network with a classifier, as for `faces.model.load_model`. None takes the table's
            predictions.
        standardisation: As in `load_model`.
        crop: As in `evaluate`.
        device: "cpu", "cuda" or "mps".
        batch_size: Images that the network takes at a time.
        offline: Never download.
        progress: Progress callback: images done, and their number.
        say: Called with the name of each part of the work.

    Raises:
        UsageError: The network has no classifier, or is not known.
        SourceError, MappingError: A file is unreadable, corrupt or not what it should be; a table lacks
            columns or files; a label is no class of the network.
        RequirementError: A package, or a model that is not in the cache, is missing.
    """
    _require_packages()
    table = _read_table(Path(source))
    labels, network, faceless = table.column("label"), None, 0
    if model is None:
        predicted = table.column(PREDICTED)
    else:
        images = read_images(table)
        network = load_model(model, standardisation=standardisation, device=device, offline=offline)
        _check_labels(table, labels, network)
        say("finding faces")
        found = find_faces(images, crop, lambda: FaceDetector(device=device, offline=offline), progress)
        faces = [face for face in found if face is not None]
        labels = [label for label, face in zip(labels, found, strict=True) if face is not None]
        faceless = len(found) - len(faces)
        _require_faces(table.path, faces)
        say("classifying")
        (logits,) = run_networks(
            faces, crop, network.standardise, [network.logits], batch_size=batch_size, progress=progress
        )
        predicted = [str(place) for place in np.argmax(logits, axis=1)]
    scores = score(labels, predicted)
    return ClassificationResult(
        source=str(source),
        model=None if network is None else _facts(network),
        accuracy=scores.accuracy,
        precision=scores.precision,
        recall=scores.recall,
        classes=scores.classes,
        confusion=scores.confusion,
        faceless=faceless,
        environment=environment(),
        files=(str(source),),
    )


def _check_labels(table: FaceTable, labels: list[str], model: Model) -> None:
    """Refuse labels that are no place among a network's logits."""
    classes = model.classifier.out_features
    for row, label in enumerate(labels, 1):
        if not (label.isascii() and label.isdigit() and str(int(label)) == label and int(label) < classes):
            raise SourceError(
                table.path,
                f"row {row} has the label {label!r}, and the {classes:,} classes of {model.name} are 0 to "
                f"{classes - 1}",
                next_step="Give the table that the classifier was trained with",
            )


def _embed(
    faces: Sequence[FaceImage], crop: CropMethod, network: Model, origin: Path | None, **shared: Any
) -> tuple[NDArray[Any], NDArray[Any] | None, str]:
    """Embed faces with a network and with a source's graph: both embeddings, and the graph in words."""
    if origin is None:
        (embeddings,) = run_networks(faces, crop, network.standardise, [network.embed], **shared)
        return embeddings, None, ""
    with open_graph(origin) as graph:
        embeddings, expected = run_networks(
            faces, crop, network.standardise, [network.embed, graph.embed], **shared
        )
    return embeddings, expected, graph.description


def _find_faces(
    where: Path,
    found: FoundPairs,
    crop: CropMethod,
    load: Callable[[], FaceDetector],
    progress: Progress,
) -> tuple[FoundPairs, list[FaceImage]]:
    """Find the faces of pairs; a pair with a photograph that shows none is left out."""
    faces = find_faces(found.images, crop, load, progress)
    kept = found.keep(np.array([face is not None for face in faces]))
    _require_faces(where, kept.pairs.same)
    return kept, [face for face in faces if face is not None]


def _require_faces(where: Path, left: Sized) -> None:
    if not len(left):
        raise SourceError(
            where,
            "too few photographs show a face",
            next_step="`facenet-port detect` shows the faces of a photograph",
        )


def _require_packages() -> None:
    missing = [name for module, name in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise RequirementError(
            f"evaluate needs {' and '.join(missing)}, not installed here: pip install 'facenet-port[faces]'."
        )


def _find_pairs(source: Path, pairs: Path | None) -> tuple[FoundPairs, list[Path], int]:
    """Find the pairs of a list or of a table, the files that they were read from, and the number of folds."""
    if pairs is None:
        table = _read_table(source)
        people = table.column("person_name")
        if len(people) < 2:
            raise SourceError(source, "one face makes no pair", next_step="Give a table with more faces")
        found = FoundPairs(tuple(read_images(table)), all_pairs(people))
        return found, [table.path], Settings().folds
    if not source.is_dir():
        raise UsageError(f"{source}: --pairs needs the folder of the set here, and this is none.")
    listed = read_pairs(pairs)
    return find_images(listed, source), [pairs], listed.folds


def _read_table(source: Path) -> FaceTable:
    if source.is_dir():
        tables = [source / f"faces{ending}" for ending in ENDINGS]  # of `facenet-port align`
        for path in tables:
            if path.is_file():
                return read_table(path)
        raise UsageError(
            f"{source}: a folder needs a list of pairs, such as --pairs pairs.txt. For all pairs give a "
            f"table: facenet-port align {source} CROPS writes one."
        )
    if source.suffix.lower() not in ENDINGS:
        raise UsageError(f"{source}: this is neither a folder nor a table ({' or '.join(ENDINGS)}).")
    return read_table(source)


def _facts(model: Model) -> ModelFacts:
    accuracy = model.published.lfw_accuracy if model.published else None
    return ModelFacts(model.name, model.sha256, model.standardisation, model.origin, accuracy)


def _threshold(
    measured: Measurement, pairs: Pairs, settings: Settings, model: Model, *, mirrored: bool, source: str
) -> Threshold | None:
    """The threshold at the false accept rate, with all that it depends on."""
    if measured.threshold is None:
        return None
    return Threshold(
        value=measured.threshold,
        far=settings.far,
        distance=settings.distance,
        subtract_mean=settings.subtract_mean,
        mirrored=mirrored,
        model=model.name,
        model_sha256=model.sha256,
        standardisation=model.standardisation,
        pairs=len(pairs),
        different=int(np.count_nonzero(~pairs.same)),
        source=source,
    )


def _apply(threshold: Threshold, measured: Measurement, pairs: Pairs) -> Applied:
    accepted = measured.distances < threshold.value
    return Applied(
        threshold,
        float(np.mean(accepted == pairs.same)),
        float(np.mean(accepted[pairs.same])) if pairs.same.any() else None,
        float(np.mean(accepted[~pairs.same])) if not pairs.same.all() else None,
    )


def _limits(pairs: Pairs, settings: Settings) -> tuple[str, ...]:
    """State what limits a threshold: too few pairs of different people for the false accept rate."""
    different = int(np.count_nonzero(~pairs.same))
    if different and settings.far * different < 1:
        return (
            f"a false accept rate of {settings.far:g} is less than one of the {different:,} different pairs, "
            f"and {1 / different:.2g} is the smallest rate that they can show",
        )
    return ()
