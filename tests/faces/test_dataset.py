"""Faces as a data set, and one image in any form: pixels, labels, a standardisation that is not guessed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from converter.errors import SourceError, UsageError
from faces import dataset as module
from faces.backends.torch_backend import TorchBackend
from faces.crops import choose_face, crop_face
from faces.dataset import NOBODY, FaceDataset, build_loader, infer
from faces.detect.detector import FaceDetector
from faces.images import to_rgb
from faces.model import Model
from reference import InceptionResnetV1

TABLE = """image_path,person_name,bbox,split_type,label,crop_path
../a.jpg,Ana,"[1, 2, 3, 4]",train,0,Ana/1.png
../b.jpg,Ana,"[1, 2, 3, 4]",val,0,Ana/2.png
../c.jpg,Bo,"[1, 2, 3, 4]",train,1,Bo/1.png
../d.jpg,,"[1, 2, 3, 4]",train,,x.png
"""


@pytest.fixture
def folder(tmp_path):
    """A folder as `align` writes it; one crop is facenet's."""
    random = np.random.default_rng(0)
    for name, size in (("Ana/1.png", 160), ("Ana/2.png", 182), ("Bo/1.png", 160), ("x.png", 160)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (size, size, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "faces.csv").write_text(TABLE)
    return tmp_path


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return InceptionResnetV1(embedding_size=8).eval()


def model(network, standardisation):
    backend = TorchBackend(network)
    return Model("x.pt", backend, "0" * 64, standardisation, "--standardise", None, backend)


def pixels(file):
    return np.asarray(Image.open(file)).astype(np.float64)


def test_faces_of_a_folder_with_its_table(folder):
    faces = FaceDataset(folder, standardisation="fixed")
    assert len(faces) == 4
    assert faces.labels == (0, 0, 1, NOBODY)
    assert faces.people == {-1: "", 0: "Ana", 1: "Bo"}
    image, label = faces[1]
    assert (image.shape, image.dtype, label) == ((3, 160, 160), torch.float32, 0)
    expected = (pixels(folder / "Ana/2.png")[11:171, 11:171] - 127.5) / 128
    np.testing.assert_allclose(image.numpy(), expected.transpose(2, 0, 1), atol=1e-7)


def test_each_image_is_whitened_by_itself(folder):
    image, _ = FaceDataset(folder / "faces.csv", standardisation="per-image")[0]
    expected = pixels(folder / "Ana/1.png")
    expected = (expected - expected.mean()) / expected.std()
    np.testing.assert_allclose(image.numpy(), expected.transpose(2, 0, 1), atol=1e-6)


def test_a_split_keeps_the_labels(folder):
    assert FaceDataset(folder, standardisation="fixed", split="train").labels == (0, 1, NOBODY)
    with pytest.raises(UsageError, match=r"no face has the split_type 'test'. There are: train, val."):
        FaceDataset(folder, standardisation="fixed", split="test")


def test_a_face_without_a_split_belongs_to_none(folder):
    table = folder / "faces.csv"
    table.write_text(TABLE.replace("train,,x.png", ",,x.png"))
    assert FaceDataset(folder, standardisation="fixed", split="train").labels == (0, 1)
    table.write_text(TABLE.replace("train", "").replace("val", ""))
    with pytest.raises(UsageError, match=r"'train'. `facenet-port align --split 0.8` divides people."):
        FaceDataset(folder, standardisation="fixed", split="train")


def test_two_folders_of_one_name_are_not_one_person(folder):
    (folder / "faces.csv").unlink()
    for place in ("Bo/2020", "Ana/2020"):
        (folder / place).mkdir()
        (folder / place / "1.png").write_bytes((folder / "x.png").read_bytes())
    people = FaceDataset(folder, standardisation="fixed").people
    assert [person for person in people.values() if "2020" in person] == ["Ana/2020", "Bo/2020"]


def test_a_folder_of_crops_without_a_table(folder):
    (folder / "faces.csv").unlink()
    faces = FaceDataset(folder, standardisation="fixed")
    assert [file.name for file in faces.files] == ["1.png", "2.png", "1.png", "x.png"]
    assert faces.labels == (0, 0, 1, NOBODY)


def test_the_standardisation_is_the_models(folder, network):
    assert FaceDataset(folder, model=model(network, "per-image")).standardisation == "per-image"
    for published, expected in (("vggface2", "fixed"), ("20170512-110547", "per-image")):
        pretrained = InceptionResnetV1(embedding_size=8)
        pretrained.pretrained = published
        assert FaceDataset(folder, model=pretrained).standardisation == expected


def test_an_unknown_standardisation_is_not_guessed(folder, network):
    for attempt in (
        lambda: FaceDataset(folder),
        lambda: FaceDataset(folder, model=network),
        lambda: infer(network, folder / "x.png"),
    ):
        with pytest.raises(UsageError, match="nothing tells how the images of this network are standardised"):
            attempt()
    with pytest.raises(UsageError, match="standardisation 'whiten': give one of fixed, per-image"):
        FaceDataset(folder, standardisation="whiten")


def test_bad_tables_and_files_are_named(folder):
    table = folder / "faces.csv"
    table.write_text(TABLE.replace("Bo/1.png", "Bo/9.png"))
    with pytest.raises(SourceError, match="1 file of its column crop_path cannot be found"):
        FaceDataset(table, standardisation="fixed")
    table.write_text(TABLE.replace("person_name", "name"))
    with pytest.raises(SourceError, match="it has no column person_name; its columns are image_path, name"):
        FaceDataset(table, standardisation="fixed")
    table.write_text(TABLE.replace("train,1", "train,Bo"))
    with pytest.raises(SourceError, match="row 3 has the label 'Bo'"):
        FaceDataset(table, standardisation="fixed")
    for label in ("0.9", "-5", "-0.5"):
        table.write_text(TABLE.replace("train,1", f"train,{label}"))
        with pytest.raises(SourceError, match=f"row 3 has the label '{label}'. Give whole numbers from 0"):
            FaceDataset(table, standardisation="fixed")
    table.write_text(TABLE.replace("train,1", "train,0"))
    with pytest.raises(SourceError, match="the label 0 is that of 'Ana' and of 'Bo'"):
        FaceDataset(table, standardisation="fixed")
    table.write_text(TABLE.replace("val,0", "val,2"))
    with pytest.raises(SourceError, match="'Ana' has the labels 0 and 2"):
        FaceDataset(table, standardisation="fixed")
    table.write_text(TABLE.replace("train,1", "train,1.0").replace("train,,", "train,-1,"))
    assert FaceDataset(table, standardisation="fixed").labels == (0, 0, 1, NOBODY)
    table.write_text(TABLE.replace("Ana/1.png", "wide.png"))
    Image.new("RGB", (200, 100)).save(folder / "wide.png")
    with pytest.raises(SourceError, match="its 200x100 pixels are not those of a crop"):
        FaceDataset(table, standardisation="fixed")[0]
    with pytest.raises(UsageError, match="there is no such folder, and it is no "):
        FaceDataset(folder / "none", standardisation="fixed")
    with pytest.raises(
        UsageError, match=r"wide\.png: this is neither a folder nor a \.csv or \.parquet table"
    ):
        FaceDataset(folder / "wide.png", standardisation="fixed")


def test_photographs_of_a_table_without_crops_are_cropped_around_their_box(folder):
    photograph = np.random.default_rng(1).integers(0, 256, (90, 300, 3), np.uint8)
    Image.fromarray(photograph).save(folder / "photograph.png")
    table = folder / "seed.csv"
    rows = "photograph.png,Ana,{},train,0\nAna/1.png,Ana,{},train,0\n"
    header = "image_path,person_name,bbox,split_type,label\n"
    box = '"[40, 10.5, 100, 80]"'
    table.write_text(header + rows.format(box, box))
    faces = FaceDataset(table, standardisation="fixed")
    expected = (crop_face(photograph, (40, 10.5, 100, 80), "scaled") - 127.5) / 128
    np.testing.assert_allclose(faces[0][0].numpy(), expected.transpose(2, 0, 1), atol=1e-6)
    expected = (pixels(folder / "Ana/1.png") - 127.5) / 128  # it is a crop already
    np.testing.assert_allclose(faces[1][0].numpy(), expected.transpose(2, 0, 1), atol=1e-6)
    for wrong in ('"[40, 10, 100]"', '"[100, 10, 40, 80]"', "face", '"[1, 2, 3, NaN]"'):
        table.write_text(header + rows.format(box, wrong))
        with pytest.raises(SourceError, match=r"row 2 has the bbox .* Write \[x1, y1, x2, y2\] in pixels"):
            FaceDataset(table, standardisation="fixed")


def test_the_loader_gives_batches_in_an_order_of_its_seed(folder):
    faces = FaceDataset(folder, standardisation="fixed", augment=lambda crop: crop[:, ::-1])
    ((images, labels),) = list(build_loader(faces))
    assert (images.shape, labels.tolist()) == ((4, 3, 160, 160), [0, 0, 1, -1])
    plain = FaceDataset(folder, standardisation="fixed")
    assert torch.equal(images[0].flip(2), plain[0][0])
    orders = {
        tuple(next(iter(build_loader(plain, shuffle=True, seed=seed)))[1].tolist()) for seed in range(9)
    }
    assert len(orders) > 1
    again = [next(iter(build_loader(plain, shuffle=True, seed=3)))[1].tolist() for _ in range(2)]
    assert again[0] == again[1]


@pytest.mark.slow
def test_one_image_in_every_form_gives_one_embedding(folder, network):
    file = folder / "Ana/1.png"
    image = Image.open(file)
    array = np.asarray(image)
    expected = network(FaceDataset(folder, standardisation="fixed")[0][0][None])[0].detach()
    for form in (file, str(file), image, array, torch.from_numpy(array.copy()), array.astype(np.float32)):
        embedding = infer(model(network, "fixed"), form)
        torch.testing.assert_close(embedding, expected)
    assert infer(network, array, standardisation="fixed").shape == (8,)
    assert not torch.allclose(infer(model(network, "per-image"), file), expected, atol=1e-4)
    with pytest.raises(ValueError, match="The channels stand first"):
        infer(model(network, "fixed"), array.transpose(2, 0, 1))


def test_a_network_in_training_mode_is_refused(folder):
    with pytest.raises(ValueError, match=r"the network is in training mode.* call .eval\(\) first"):
        infer(InceptionResnetV1(embedding_size=8), folder / "x.png", standardisation="fixed")


def test_of_a_photograph_the_largest_face_is_embedded(photographs, networks, network, monkeypatch):
    detector = FaceDetector(networks)
    monkeypatch.setattr(module, "_default_detector", lambda: detector)
    file = next(iter(sorted(photographs.rglob("*.jpg"))))
    image = to_rgb(file)
    (faces,) = detector.detect([image])
    chosen = faces[choose_face(faces, image.shape[1], image.shape[0], "scaled")]
    expected = infer(model(network, "fixed"), crop_face(image, chosen.box, "scaled"))
    assert torch.equal(infer(model(network, "fixed"), file), expected)
    with pytest.raises(ValueError, match="the image of 90x50 pixels shows no face"):
        infer(model(network, "fixed"), np.zeros((50, 90, 3), np.uint8))
