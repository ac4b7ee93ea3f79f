"""`facenet-port embed`: the numbers, what is kept with them, what is listed, and what is refused."""

from __future__ import annotations

import functools
import json
import time
from contextlib import suppress

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from converter.errors import SourceError
from facenet_port import main
from faces.crops import FaceImage, crop_face
from faces.embed.run import embed as embed_folder
from faces.embedder import Embedder
from faces.embeddings import read_embeddings
from faces.model import weights_digest
from faces.processes import Processes
from reference import load
from tests.faces.align.conftest import ONE, picture, write

SECOND = (5, 5, 30, 30, 240)  # smaller than ONE


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "photos", "Ana/1.png", "Ana/2.png", "Bo/1.png", faces=(ONE, SECOND))
    return tmp_path / "photos"


@pytest.fixture
def embed(colour_detector, network, tmp_path):
    """Run the command with the fixed standardisation; returns its exit code."""

    def run(source, *options, out="embeddings.parquet", standardise=("--standardise", "fixed")):
        command = ["embed", str(source), "-o", str(tmp_path / out), "--model", str(network)]
        return main([*command, *standardise, *map(str, options)])

    return run


@functools.cache
def _double(network):
    return load(network).double()


def embedding_of(network, pixels):
    """The embedding of a crop of 160x160, computed apart from the command."""
    standardised = (pixels.astype(np.float64) - 127.5) / 128
    with torch.inference_mode():
        return _double(network)(torch.from_numpy(standardised.transpose(2, 0, 1).copy())[None])[0].numpy()


def test_photographs_are_detected_cropped_and_embedded(embed, folder, network, tmp_path, capsys):
    assert embed(folder, "--json", tmp_path / "result.json") == 0
    embeddings = read_embeddings(tmp_path / "embeddings.parquet")
    assert embeddings.people == ("Ana", "Ana", "Bo")
    assert [file.resolve() for file in embeddings.files] == sorted(folder.glob("*/*.png"))
    assert embeddings.boxes == ((40, 30, 82, 76),) * 3
    for file, row in zip(embeddings.files, embeddings.values, strict=True):
        crop = crop_face(np.asarray(Image.open(file)), (40, 30, 82, 76), "scaled")
        assert np.abs(row - embedding_of(network, crop)).max() < 1e-5
    digest = weights_digest(load(network))
    origin = embeddings.origin
    assert (origin.model, origin.model_sha256) == (str(network), digest)
    assert (origin.standardisation, origin.crop, origin.threshold) == ("fixed", "scaled", None)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["model_sha256"] == digest
    assert [face["person"] for face in result["faces"]] == ["Ana", "Ana", "Bo"]
    screen = capsys.readouterr().out
    assert "3 faces of 2 people, 128 numbers each" in screen or "3 faces of 2 people, 512" in screen
    assert "standardised by (x - 127.5) / 128 (from --standardise); crop scaled" in screen
    assert "threshold  none: see --threshold" in screen


def test_crops_need_no_detector(embed, colour_detector, network, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 182, 182, 3)).astype(np.uint8)
    for number, crop in enumerate(pixels):
        Image.fromarray(crop).save(tmp_path / f"{number}.png")
    assert embed(tmp_path) == 0
    assert colour_detector.seen == []
    embeddings = read_embeddings(tmp_path / "embeddings.parquet")
    assert (embeddings.origin.crop, embeddings.boxes, embeddings.people) == (
        "facenet",
        (None,) * 2,
        ("",) * 2,
    )
    for crop, row in zip(pixels, embeddings.values, strict=True):
        assert np.abs(row - embedding_of(network, crop[11:171, 11:171])).max() < 1e-5


def test_the_table_of_a_folder_decides_on_people(embed, tmp_path):
    write(tmp_path / "crops", "a.png", "b.png")
    (tmp_path / "crops/faces.csv").write_text("crop_path,person_name\nb.png,Bo\n")
    assert embed(tmp_path / "crops") == 0
    embeddings = read_embeddings(tmp_path / "embeddings.parquet")
    assert (embeddings.people, embeddings.files) == (("Bo",), (tmp_path / "crops/b.png",))


def test_the_photographs_of_a_table_are_cropped_by_its_boxes(
    embed, colour_detector, folder, network, tmp_path
):
    """Each row is a face, also two of one photograph; a row without a box is searched."""
    boxes = ("[5, 5, 35, 35]", "[40, 30, 82, 76]", "")
    rows = [f'Ana/1.png,{person},"{box}"' for person, box in zip(("Cy", "Ana", "Di"), boxes, strict=True)]
    (folder / "faces.csv").write_text("\n".join(["image_path,person_name,bbox", *rows]) + "\n")
    assert embed(folder / "faces.csv") == 0
    assert len(colour_detector.seen) == 1
    embeddings = read_embeddings(tmp_path / "embeddings.parquet")
    assert embeddings.people == ("Cy", "Ana", "Di")
    assert embeddings.boxes == ((5, 5, 35, 35), (40, 30, 82, 76), (40, 30, 82, 76))
    photograph = np.asarray(Image.open(folder / "Ana/1.png"))
    for box, row in zip(embeddings.boxes, embeddings.values, strict=True):
        assert np.abs(row - embedding_of(network, crop_face(photograph, box, "scaled"))).max() < 1e-5


def test_a_threshold_is_kept(embed, folder, tmp_path, figures, capsys):
    assert embed(folder, "--threshold", figures(0.75)) == 0
    threshold = read_embeddings(tmp_path / "embeddings.parquet").origin.threshold
    assert (threshold.value, threshold.far, threshold.pairs) == (0.75, 0.01, 600)
    shown = "threshold  0.7500 at a false accept rate of 0.01, measured on 600 pairs of pairs.txt, 300 of"
    assert shown in capsys.readouterr().out


def test_the_same_photographs_give_the_same_bytes(embed, folder, tmp_path):
    embed(folder, "--quiet")
    embed(folder, "--quiet", out="again.parquet")
    assert (tmp_path / "embeddings.parquet").read_bytes() == (tmp_path / "again.parquet").read_bytes()


def test_what_has_no_face_is_listed(embed, folder, tmp_path, capsys):
    picture().save(folder / "Ana/empty.png")
    assert embed(folder) == 1
    (folder / "Bo/broken.jpg").write_bytes(b"nothing")
    assert embed(folder) == 3  # older embeddings are replaced
    captured = capsys.readouterr()
    assert "Ana/empty.png: no face" in captured.out
    assert "Bo/broken.jpg: cannot be decoded as a photograph" in captured.err
    assert len(read_embeddings(tmp_path / "embeddings.parquet").files) == 3


def test_a_path_that_parquet_cannot_hold_is_listed(embed, folder, tmp_path, capsys):
    (folder / "Ana").rename(folder / "caf\udce9")
    assert embed(folder) == 3
    assert read_embeddings(tmp_path / "embeddings.parquet").people == ("Bo",)
    error = capsys.readouterr().err
    assert error.count("its path is not UTF-8, which Parquet needs. Rename it.") == 2
    (folder / "Bo/1.png").unlink()
    assert embed(folder, out="other.parquet") == 3
    assert "1.png: its path is not UTF-8" in capsys.readouterr().err
    assert not (tmp_path / "other.parquet").exists()


def test_no_face_at_all(embed, tmp_path, capsys):
    write(tmp_path / "photos", "a.png", faces=())
    assert embed(tmp_path / "photos") == 3
    assert "photos: no face was found in its 1 photograph. `facenet-port detect" in capsys.readouterr().err
    assert not (tmp_path / "embeddings.parquet").exists()


def test_a_folder_of_which_nothing_can_be_read(embed, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    Image.new("L", (10_000, 10_000)).save(tmp_path / "photos/large.png")
    assert embed(tmp_path / "photos") == 3
    message = f"{tmp_path / 'photos/large.png'}: more than the 89,478,485 pixels that Pillow takes."
    assert message in capsys.readouterr().err
    assert not (tmp_path / "embeddings.parquet").exists()


@pytest.mark.parametrize(
    ("make", "options", "code", "message"),
    [
        (lambda folder: folder.mkdir(), {}, 3, "it holds no photographs"),
        (lambda folder: None, {}, 2, "there is no such folder"),
        (lambda folder: write(folder, "a.png"), {"out": "e.csv"}, 2, "Give a name that ends in .parquet"),
        (lambda folder: write(folder, "a.png"), {"out": "no/e.parquet"}, 2, "there is no folder"),
        (lambda folder: write(folder, "a.png"), {"standardise": ()}, 2, "Give --standardise fixed"),
    ],
)
def test_refused(embed, tmp_path, capsys, make, options, code, message):
    make(tmp_path / "photos")
    assert embed(tmp_path / "photos", **options) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_sha256": "a" * 64}, "was measured with weights.pt (SHA-256 aaaaaaaaaaaa), not "),
        ({"standardisation": "per-image"}, "is of images standardised per-image, not fixed. Measure it"),
        ({"subtract_mean": True}, "of embeddings with their mean subtracted"),
        ({"mirrored": True}, "of mirrored images too"),
        ({"crop": "facenet"}, "is of the crop facenet, not scaled. Measure it for this one"),
    ],
)
def test_thresholds_of_others_are_refused(embed, folder, tmp_path, figures, capsys, changes, message):
    assert embed(folder, "--threshold", figures(0.75, **changes)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "embeddings.parquet").exists()


def test_crops_of_two_kinds_are_refused(embed, folder, tmp_path, capsys):
    picture(size=(182, 182)).save(folder / "Ana/crop.png")
    assert embed(folder) == 2
    assert "crop.png has the crop facenet, and the first image" in capsys.readouterr().err


def test_a_crop_of_another_kind_than_asked_for_is_refused(embed, folder, tmp_path, capsys):
    picture(size=(160, 160)).save(folder / "Ana/1.png")
    assert embed(folder, "--crop", "facenet") == 2
    assert "1.png is a crop of 160x160 pixels, of `--crop scaled`, and the crop" in capsys.readouterr().err


def test_a_box_outside_its_photograph_is_refused(embed, folder, tmp_path, capsys):
    (folder / "faces.csv").write_text('image_path,person_name,bbox\nAna/1.png,Ana,"[900, 1, 999, 9]"\n')
    assert embed(folder) == 3
    assert "Ana/1.png: the bbox [900.0, 1.0, 999.0, 9.0] lies outside its " in capsys.readouterr().err
    assert not (tmp_path / "embeddings.parquet").exists()


def test_another_table_is_not_replaced(embed, folder, tmp_path, capsys):
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "embeddings.parquet")
    before = (tmp_path / "embeddings.parquet").read_bytes()
    assert embed(folder) == 2
    assert "it exists and holds no embeddings. Give another name." in capsys.readouterr().err
    assert (tmp_path / "embeddings.parquet").read_bytes() == before


def _change(path, column=None, **metadata):
    table = pyarrow.parquet.read_table(path)
    kept = {**table.schema.metadata, **{key.encode(): value for key, value in metadata.items()}}
    if column is not None:
        table = column(table)
    pyarrow.parquet.write_table(table.replace_schema_metadata(kept), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(b"PAR1"), "cannot be read as a Parquet table"),
        (
            lambda path: _change(path, lambda table: table.drop_columns(["person_name"])),
            "column person_name",
        ),
        (lambda path: path.unlink(), r"parquet: there is no such file\. `facenet-port embed"),
        (lambda path: _change(path, lambda table: table.slice(0, 0)), "it holds no faces"),
        (
            lambda path: _change(path, lambda table: table.set_column(3, "embedding", [[[0.5, 0.5]] * 3])),
            "holds no embeddings of length 1",
        ),
        (
            lambda path: _change(path, lambda table: table.set_column(0, "image_path", [[1, 2, 3]])),
            "image_path has values that are no text",
        ),
        (
            lambda path: _change(path, **{"facenet-port": b"{}"}),
            "of the model of its embeddings cannot be read",
        ),
    ],
)
def test_damaged_embeddings(embed, folder, tmp_path, change, message):
    embed(folder, "--quiet")
    change(tmp_path / "embeddings.parquet")
    with pytest.raises(SourceError, match=message):
        read_embeddings(tmp_path / "embeddings.parquet")


def test_a_table_without_a_model(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"embedding": [[1.0]]}), tmp_path / "e.parquet")
    with pytest.raises(SourceError, match="does not say which model its embeddings are of"):
        read_embeddings(tmp_path / "e.parquet")


@pytest.mark.parametrize("asked", [None, "onnxruntime"])
def test_several_processes_find_faces_in_the_same_runtime(
    asked, colour_detector, folder, network, tmp_path, monkeypatch
):
    """By default in PyTorch, as `align` does: each machine has a cache of its own."""
    loaded = []

    def load_detector(*, backend, **options):
        loaded.append(backend)
        return colour_detector

    monkeypatch.setattr("faces.embedder.FaceDetector", load_detector)
    monkeypatch.setattr("faces.embedder.choose_backend", lambda model, *_, **__: model)
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    for number in (1, 0):  # the second finds both parts
        embedder = Embedder(network, standardisation="fixed", backend=asked)
        with suppress(SourceError):
            result = embed_folder(
                folder, tmp_path / "e.parquet", embedder=embedder, processes=Processes(number, 2)
            )
    assert len(result.embeddings.files) == 3
    (tmp_path / "e.parquet/part-00000-of-00002.parquet").unlink()
    for output in (tmp_path / "e.parquet", None):  # one process goes on with the parts; one does all
        embed_folder(folder, output, embedder=Embedder(network, standardisation="fixed", backend=asked))
    assert loaded == [asked or "torch"] * 3 + [asked]


def test_two_threads_load_one_detector(colour_detector, tmp_path, network, monkeypatch):
    """With properties that are cached as from Python 3.12 on, without a lock."""

    class Cached:
        def __get__(self, embedder, owner):
            time.sleep(0.1)
            loaded.append(embedder)
            embedder.__dict__["detector"] = colour_detector
            return colour_detector

    loaded = []
    monkeypatch.setattr(Embedder, "detector", Cached())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # which would restore the 2
    write(tmp_path / "photos", *(f"{number}.png" for number in range(32)))
    images = [FaceImage(file) for file in sorted((tmp_path / "photos").iterdir())]
    embedder = Embedder(network, standardisation="fixed")
    found = embedder.embed(images, compute=lambda model, pixels: np.zeros((len(pixels), 1), np.float32))
    assert len(found.faces) == 32
    assert len(loaded) == 1
