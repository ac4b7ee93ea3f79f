"""Evaluates a network on pairs of faces, or a classifier on labelled faces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checks.core.environment import environment
from checks.core.judgement import Judgement
from converter.counts import counted
from converter.errors import SourceError, UsageError
from faces.crops import CropMethod, read_images
from faces.embedder import Embedder
from faces.embeddings import is_embeddings
from faces.evaluate.classifier import score
from faces.evaluate.comparison import compare_export
from faces.evaluate.embed_faces import find_faces, run_networks
from faces.evaluate.embedded_pairs import EmbeddedPairs, PairEmbedder, read_embedded, require_faces
from faces.evaluate.judge import judge
from faces.evaluate.measure import Measurement, Settings, measure
from faces.evaluate.pairs import FoundPairs, find_images, pair_all, read_pairs
from faces.evaluate.protocol import Pairs
from faces.evaluate.result import Applied, ClassificationResult, VerificationResult
from faces.face_table import ENDINGS, FaceTable, read_table, whole_number
from faces.model import Model, ModelFacts
from faces.options import require_packages
from faces.threshold import Threshold, read_threshold
from faces.training.run_folder import PEOPLE, WEIGHTS, read_people

PREDICTED = "predicted_label"
"""The column of a table with a classifier's answers."""

_NEAR = 1e-3  # a distance below which two images may be the same one
_ROUNDING = 1e-5  # of an embedding: the same image in batches of other sizes

Progress = Callable[[int, int | None], None]


def evaluate(
    source: str | Path,
    *,
    pairs: str | Path | None = None,
    settings: Settings = Settings(),  # noqa: B008, it is frozen
    threshold: str | Path | None = None,
    against: str | Path | None = None,
    embedder: Embedder | None = None,
    batch_size: int = 32,
    progress: Progress = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> VerificationResult:
    """Measure how well a network tells whether two faces are the same person's, by the LFW protocol.

    Args:
        source: With `pairs`, a folder of photographs or crops, `Name/Name_0001.jpg` or .png; otherwise a
            table of faces or the embeddings of `facenet-port embed`, of which all pairs are taken, each row
            with every later one.
        pairs: A list such as pairs.txt, pairsDevTrain.txt or pairsDevTest.txt.
        settings: The options of the protocol.
        threshold: A result of `--json` whose threshold is applied to every pair.
        against: A TensorFlow source: its graph is run on the same crops, and the network is judged by it. If
            the model is an exported file, the weights that it was made from, of any format, which PyTorch
            runs on the same crops, or their export in float32: the result has what the file changes.
        embedder: The model and the crop of photographs; an image of the size of a crop is taken as it is.
            None takes the defaults, with the network of `against`. A model or standardisation that it states
            has to be that of the embeddings, if these are the source.
        batch_size: Images that the network takes at a time.
        progress: Progress callback: images done, and their number.
        say: Called with the name of each part of the work.

    Raises:
        UsageError: The arguments do not fit each other, there are fewer pairs than folds, the embeddings or
            the threshold are of another model, crop or distance, or there are crops of several kinds.
        SourceError, MappingError: A file is unreadable, corrupt or not what it should be; a table lacks
            columns or files; no pair of the list has both files.
        RequirementError: A package, or a model that is not in the cache, is missing.
    """
    require_packages("evaluate", sklearn="scikit-learn", scipy="scipy")
    source, embedder = Path(source), embedder or Embedder(against)
    given = None if threshold is None else read_threshold(Path(threshold))
    if pairs is None and is_embeddings(source):
        _check_images_needless(source, settings, against)
        faces, files = read_embedded(source, embedder), [source]
        _check_threshold(given, faces.network, faces.crop, settings)
    else:
        found, files, stated = _find_pairs(source, None if pairs is None else Path(pairs))
        settings = replace(settings, folds=settings.folds or stated)
        embedder.expect(len(found.images))
        _check_threshold(given, embedder.model.facts, embedder.find_crop(found.images), settings)
        work = PairEmbedder(embedder, settings.mirrored, against, batch_size, progress, say)
        faces = work.embed(source, found)
    folder, listed = ("", source) if pairs is None else (source, pairs)
    result = _measure(faces, settings, given, folder=str(folder), listed=str(listed), files=files)
    return replace(result, detector=embedder.detector_facts)


def _measure(
    faces: EmbeddedPairs,
    settings: Settings,
    given: Threshold | None,
    *,
    folder: str,
    listed: str,
    files: Sequence[Path],
) -> VerificationResult:
    """Measure embedded pairs by the protocol, and judge them by TensorFlow's if there are some."""
    pairs, settings = faces.found.pairs, replace(settings, folds=settings.fold_count)
    measured = measure(faces.embeddings, pairs, settings)
    judgements: tuple[Judgement, ...] = ()
    comparison = None
    if faces.expected is not None:
        expected = measure(faces.expected, pairs, settings)
        if faces.weights is None:
            judgements = judge(measured, expected, faces.found.name_pair)
        else:
            sides = faces.embeddings, faces.expected
            comparison = compare_export(
                faces.found, faces.network, faces.weights, sides, (measured, expected)
            )
    return VerificationResult(
        source=listed,
        folder=folder,
        images=tuple(str(image.file) for image in faces.found.images),
        boxes=faces.boxes,
        crop=faces.crop,
        pairs=pairs,
        skipped=faces.found.skipped,
        model=faces.network,
        settings=settings,
        measured=measured,
        threshold=_threshold(faces, measured, settings, listed),
        applied=None if given is None else _apply(given, measured, pairs),
        against=faces.graph,
        judgements=judgements,
        comparison=comparison,
        notes=(*faces.found.notes, *_limits(pairs, settings), *_note_copies(faces, measured.distances)),
        environment=environment(),
        files=tuple(map(str, files)),
    )


def _check_images_needless(source: Path, settings: Settings, against: str | Path | None) -> None:
    """Refuse options that embeddings, which have no images, cannot serve."""
    if settings.mirrored or against is not None:
        option = "--mirrored" if settings.mirrored else "--against"
        raise UsageError(f"{source}: {option} needs images, and these are embeddings. Give the photographs.")


def _check_threshold(
    given: Threshold | None, network: ModelFacts, crop: CropMethod, settings: Settings
) -> None:
    if given is not None:
        given.check(
            network,
            crop=crop,
            distance=settings.distance,
            subtract_mean=settings.subtract_mean,
            mirrored=settings.mirrored,
        )


def evaluate_classifier(
    source: str | Path,
    *,
    embedder: Embedder | None = None,
    batch_size: int = 32,
    progress: Progress = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> ClassificationResult:
    """Score a classifier on labelled faces.

    Args:
        source: A table with the column label, a number from 0, and crops; or with the columns label and
            predicted_label, of any text, if no model is stated. 1.0 and 01 are the label 1.
        embedder: The model, a network with a classifier, and the crop of photographs. None, or one that
            states no model, takes the table's predictions.
        batch_size: Images that the network takes at a time.
        progress: Progress callback: images done, and their number.
        say: Called with the name of each part of the work.

    Raises:
        UsageError: The network has no classifier, or is not known.
        SourceError, MappingError: A file is unreadable, corrupt or not what it should be; a table lacks
            columns or files; a label is no class of the network, or another person's in its training.
        RequirementError: A package, or a model that is not in the cache, is missing.
    """
    require_packages("evaluate", sklearn="scikit-learn", scipy="scipy")
    table = _read_table(Path(source))
    labels, network, faceless = list(map(whole_number, table.column("label"))), None, 0
    if embedder is None or embedder.stated_model is None:
        table.require(PREDICTED, "Add it, or give the classifier itself with --model")
        predicted = list(map(whole_number, table.column(PREDICTED)))
    else:
        images = read_images(table)
        embedder.expect(len(images), logits=True)
        network = embedder.model
        _check_labels(table, labels, network)
        _check_people(table, labels, Path(embedder.stated_model))
        say("finding faces")
        crop = embedder.find_crop(images)
        found = find_faces(images, crop, lambda: embedder.detector, progress)
        faces = [face for face in found if face is not None]
        labels = [label for label, face in zip(labels, found, strict=True) if face is not None]
        faceless = len(found) - len(faces)
        require_faces(table.path, faces)
        say("classifying")
        (logits,) = run_networks(
            faces, crop, [network.of_pixels(network.logits)], batch_size=batch_size, progress=progress
        )
        predicted = [str(place) for place in np.argmax(logits, axis=1)]
    scores = score(labels, predicted)
    return ClassificationResult(
        source=str(source),
        model=None if network is None else network.facts,
        accuracy=scores.accuracy,
        precision=scores.precision,
        recall=scores.recall,
        classes=scores.classes,
        confusion=scores.confusion,
        faceless=faceless,
        environment=environment(),
        files=(str(source),),
        detector=None if embedder is None else embedder.detector_facts,
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


def _check_people(table: FaceTable, labels: list[str], weights: Path) -> None:
    """Refuse labels that are other people's in the training of the classifier, if it was trained here."""
    folder = weights.parent if weights.name == WEIGHTS else weights
    if "person_name" not in table.columns or not (folder / PEOPLE).is_file():
        return
    people = dict(enumerate(read_people(weights)[0]))
    for row, (label, person) in enumerate(zip(labels, table.texts("person_name"), strict=True), 1):
        trained = people.get(int(label), "nobody")
        if person not in ("", trained):
            raise SourceError(
                table.path,
                f"row {row} is {person} with the label {label}, which is {trained} for {weights}",
                next_step="Give the labels that the classifier was trained with",
            )


def _find_pairs(source: Path, pairs: Path | None) -> tuple[FoundPairs, list[Path], int | None]:
    """Find the pairs of a list or of a table, the files that they were read from, and the list's folds."""
    if pairs is None:
        table = _read_table(source)
        people = table.column("person_name")
        return pair_all(source, read_images(table), people), [table.path], None
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
        raise UsageError(
            f"{source}: this is neither a folder nor a table ({' or '.join(ENDINGS)}). "
            "`facenet-port align FOLDER CROPS` writes one."
        )
    return read_table(source)


def _threshold(
    faces: EmbeddedPairs, measured: Measurement, settings: Settings, source: str
) -> Threshold | None:
    """The threshold at the false accept rate, with all that it depends on."""
    if measured.threshold is None:
        return None
    pairs = faces.found.pairs
    return Threshold(
        value=measured.threshold,
        far=settings.far,
        distance=settings.distance,
        subtract_mean=settings.subtract_mean,
        mirrored=settings.mirrored,
        model=faces.network.name,
        model_sha256=faces.network.sha256,
        standardisation=faces.network.standardisation,
        crop=faces.crop,
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


def _note_copies(faces: EmbeddedPairs, distances: NDArray[Any]) -> tuple[str, ...]:
    """State pairs of different people with the same image, which their embeddings show."""
    pairs = faces.found.pairs
    near = np.flatnonzero(~pairs.same & (distances < _NEAR))
    apart = faces.embeddings[pairs.first[near]] - faces.embeddings[pairs.second[near]]
    copies = near[np.abs(apart).max(axis=1, initial=0) < _ROUNDING]
    if not len(copies):
        return ()
    images = faces.found.images
    first, second = images[pairs.first[copies[0]]], images[pairs.second[copies[0]]]
    return (
        f"{counted(len(copies), 'pair')} of different people "
        f"{'has' if len(copies) == 1 else 'have'} the same image twice, {first.file} and {second.file} first",
    )
