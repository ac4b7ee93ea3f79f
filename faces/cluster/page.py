"""The contact sheet of `facenet-port cluster`: the faces of each cluster."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from checks.core.environment import environment
from checks.core.photographs import PhotographError, read_photograph
from checks.report.content import Head
from checks.report.page import write_html
from checks.report.pictures import data_url
from checks.report.provenance import provenance, shown_path
from converter.counts import counted
from faces.cluster.result import ClusterResult
from faces.cluster.table import describe_people, headline
from faces.crops import crop_face
from faces.evaluate.table import describe_standardisation

_THREADS = 4  # that read photographs
_SIDE = 128  # pixels of a picture


def write_page(path: str | Path, result: ClusterResult, *, command: str) -> None:
    """Write the contact sheet.

    Args:
        path: The file; an older page is replaced.
        result: The result. Its photographs are read again for the pictures.
        command: The command as it was typed.

    Raises:
        UsageError: The folder does not exist, or cannot be written to.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        cards = list(
            pool.map(lambda place: _card(result, place), range(len(result.embedded.embeddings.files)))
        )
    groups = [
        (
            f"Cluster {number}: {counted(len(cluster), 'face')}",
            describe_people(result, cluster),
            [cards[place] for place in cluster],
        )
        for number, cluster in enumerate(result.clusters, 1)
    ]
    foot = provenance(command, {}, environment(), None)
    write_html(Path(path), "faces/align/page.html", _head(result), foot, groups=groups)


def _card(result: ClusterResult, place: int) -> dict[str, object]:
    embeddings = result.embedded.embeddings
    file, box = embeddings.files[place], embeddings.boxes[place]
    card: dict[str, object] = {"picture": "", "width": _SIDE, "height": _SIDE, "name": file.name, "doubt": ""}
    try:
        pixels = read_photograph(file)
    except PhotographError as error:  # it has gone since
        return {**card, "doubt": error.problem}
    crop = pixels if box is None else crop_face(pixels, box, embeddings.origin.crop)
    return {**card, "picture": data_url(Image.fromarray(crop).resize((_SIDE, _SIDE)))}


def _head(result: ClusterResult) -> Head:
    embedded, model = result.embedded, result.embedded.model
    without = len(embedded.without_face) + len(embedded.problems)
    sentence = headline(result) + (f" {counted(without, 'file')} without a face." if without else "")
    return Head(
        command="cluster",
        passed=not without,
        word="Sorted" if not without else "Look",
        sentence=sentence,
        facts=(
            ("photographs", shown_path(str(embedded.source))),
            ("model", model.name),
            ("standardisation", describe_standardisation(model)),
            ("crop", embedded.embeddings.origin.crop),
            ("threshold", f"{result.threshold.value:.4f} {result.threshold.basis}"),
        ),
        judgements=(),
    )
