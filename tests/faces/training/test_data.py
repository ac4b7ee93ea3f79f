"""The data of a training: splits, batches, shares of processes, augmentation, and what is refused."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from converter.errors import PortError, SourceError, UsageError
from faces.training.config import TrainConfig
from faces.training.data import Batches, check_shares, epoch_batches, find_data, share_of
from faces.training.images import Faces, augment, build_loader, read_batches
from tests.faces.training.conftest import PEOPLE, TRAINED, VALIDATED, draw_face, write_faces


@pytest.fixture
def faces(crops: Path, tmp_path: Path) -> Path:
    """A copy of the crops that a test may change."""
    return Path(shutil.copytree(crops, tmp_path / "faces"))


def test_the_split_of_the_table_divides_the_faces(config):
    data = find_data(config)
    assert data.people == PEOPLE
    assert len(data.training) == 3 * TRAINED
    assert len(data.validation) == 3 * VALIDATED
    assert [PEOPLE[label] for label in data.labels] == [face.person for face in data.training]
    assert not {face.image.file for face in data.training} & {face.image.file for face in data.validation}


def test_a_share_for_validation_is_drawn_of_each_person(config, faces):
    (faces / "faces.csv").unlink()
    config = replace(config, data=str(faces), validation_share=0.34)
    data = find_data(config)
    assert Counter(face.person for face in data.validation) == dict.fromkeys(PEOPLE, 2)
    other = find_data(replace(config, seed=1))
    assert {face.image.file for face in other.validation} != {face.image.file for face in data.validation}


def test_an_epoch_of_the_classifier_has_every_face_once_in_another_order(config):
    data = find_data(config)
    epochs = [
        np.concatenate(epoch_batches(replace(config, batch_size=5), data, epoch)) for epoch in (0, 0, 1)
    ]
    for order in epochs:
        assert sorted(order) == list(range(12))
    assert (epochs[0] == epochs[1]).all()
    assert (epochs[0] != epochs[2]).any()


def test_batches_of_triplets_have_people_with_faces_one_person_after_the_other(config):
    config = replace(config, task="triplet", people_per_batch=2, faces_per_person=3)
    data = find_data(config)
    batches = [batch for epoch in range(20) for batch in epoch_batches(config, data, epoch)]
    assert len(batches) == 20 * 2
    for batch in batches:
        first, second = data.labels[batch[:3]], data.labels[batch[3:]]
        assert len(set(batch.tolist())) == 6
        assert len(set(first)) == len(set(second)) == 1
        assert first[0] != second[0]
    counts = Counter(np.concatenate(batches).tolist())
    assert counts.keys() == set(range(12))


@pytest.mark.parametrize(("rows", "processes"), [(32, 1), (32, 2), (29, 3), (2, 4)])
def test_the_processes_share_a_batch_evenly(rows, processes):
    shares = [range(rows)[share_of(rows, process, processes)] for process in range(processes)]
    assert [row for share in shares for row in share] == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_shares_of_all_processes_are_the_batches_from_a_place_on(config):
    data = find_data(config)
    shares = [Batches(config, data, process, 2) for process in range(2)]
    for share in shares:
        share.epoch, share.start = 3, 1
    (whole,) = epoch_batches(config, data, 3)[1:]
    (first,), (second,) = map(list, shares)
    assert first + second == [(3, place) for place in whole]
    assert len(shares[0]) == 1


# Augmentation


def marked() -> np.ndarray:
    """A crop of 182x182 whose every pixel is another."""
    row, column = np.mgrid[:182, :182]
    return np.stack([row, column, row ^ column], axis=2).astype(np.uint8)


def test_a_random_crop_is_a_window_of_the_crop_and_reaches_its_edges(config):
    config = replace(config, random_crop=True, mirror=False)
    corners = set()
    for seed in range(300):
        cut = augment(marked(), config, np.random.default_rng(seed))
        top, left = int(cut[0, 0, 0]), int(cut[0, 0, 1])
        assert (cut == marked()[top : top + 160, left : left + 160]).all()
        corners.add((top, left))
    assert {top for top, _ in corners} == {left for _, left in corners} == set(range(23))


def test_half_of_the_images_are_mirrored(config):
    plain = marked()[11:171, 11:171]
    cuts = [augment(marked(), config, np.random.default_rng(seed)) for seed in range(400)]
    mirrored = [bool((cut == plain[:, ::-1]).all()) for cut in cuts]
    assert all(is_mirrored or (cut == plain).all() for cut, is_mirrored in zip(cuts, mirrored, strict=True))
    assert 160 < sum(mirrored) < 240


def test_a_rotation_is_pillows_bicubic_within_the_angle(config):
    config = replace(config, rotation=10.0, mirror=False)
    cut = augment(marked(), config, np.random.default_rng(5))
    angle = np.random.default_rng(5).uniform(-10, 10)
    expected = np.asarray(Image.fromarray(marked()).rotate(angle, Image.Resampling.BICUBIC))[11:171, 11:171]
    assert (cut == expected).all()


def test_without_augmentation_an_image_is_the_crop(config):
    config = replace(config, mirror=False)
    assert (augment(marked(), config, np.random.default_rng(0)) == marked()[11:171, 11:171]).all()
    data = find_data(config)
    image, place = Faces(data.training, "fixed", "scaled", config)[0, 3]
    assert place == 3
    assert (image.numpy().transpose(1, 2, 0) * 128 + 127.5 == draw_face(0, 3)).all()


def test_an_image_depends_on_epoch_and_place_alone(config):
    data = find_data(config)
    faces = Faces(data.training, "fixed", "scaled", config)
    drawn = [[faces[epoch, place][0] for place in range(12)] for epoch in (0, 1, 0)]
    same = [[bool((a == b).all()) for a, b in zip(drawn[0], other, strict=True)] for other in drawn]
    assert all(same[2])
    assert not all(same[1])


def test_faces_to_validate_on_are_not_augmented(config):
    data = find_data(config)
    faces = Faces(data.validation, "fixed")
    assert all((faces[0, place][0] == faces[1, place][0]).all() for place in range(6))


# What is refused, each with one message


def refusal(config: TrainConfig, kind: type[PortError] = UsageError) -> str:
    with pytest.raises(kind) as caught:
        find_data(config)
    return str(caught.value)


def test_data_without_a_validation_split_are_refused(config, faces):
    (faces / "faces.csv").unlink()
    config = replace(config, data=str(faces))
    assert (
        "it does not tell which faces to validate on. Give validation_share (--validation-share), such as 0.2"
        in refusal(config)
    )
    assert "validation_share (--validation-share): 0.01 leaves nobody of " in refusal(
        replace(config, validation_share=0.01)
    )


def test_a_split_that_is_not_there_is_refused(config):
    message = refusal(replace(config, validation_split="test"))
    assert "no face has the split_type 'test'. There are: train, val." in message
    assert "Leave out validation_share (--validation-share)." in refusal(
        replace(config, validation_share=0.2)
    )


def test_a_batch_larger_than_the_set_is_refused(config):
    assert "batch_size (--batch-size): 13 is more than the 12 faces" in refusal(
        replace(config, batch_size=13)
    )
    message = refusal(replace(config, task="triplet", people_per_batch=4))
    assert "people_per_batch (--people-per-batch): 4 is more than the 3 people" in message


def test_a_person_with_one_face_is_left_out_of_triplets_by_name(config, faces):
    lines = (faces / "faces.csv").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("cy/1", "cy/2", "cy/3"))]
    (faces / "faces.csv").write_text("\n".join(kept) + "\n")
    config = replace(config, data=str(faces), task="triplet", people_per_batch=2)
    data = find_data(config)
    assert data.people == ("ana", "bo")
    assert data.notes == ("1 person with one face to train on left out, since triplets need two: cy.",)
    assert find_data(replace(config, task="classifier")).people == PEOPLE
    assert "people_per_batch (--people-per-batch): 3 is more than the 2 people" in refusal(
        replace(config, people_per_batch=3)
    )


def test_a_face_that_is_trained_and_validated_on_is_refused(config, faces):
    shutil.copy(faces / "ana" / "0.png", faces / "ana" / "5.png")
    message = refusal(replace(config, data=str(faces)), SourceError)
    assert f"1 face to validate on that is also trained on: {faces}/ana/5.png (as " in message


def test_a_classifier_is_not_validated_on_strangers(config, faces):
    table = faces / "faces.csv"
    table.write_text(table.read_text().replace(",cy,train,", ",cy,val,"))
    assert "there is no face to train on of cy" in refusal(replace(config, data=str(faces)))
    triplets = replace(config, data=str(faces), task="triplet", people_per_batch=2)
    assert find_data(triplets).people == ("ana", "bo")


def test_one_person_is_refused(config, faces):
    table = faces / "faces.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *(line for line in lines if ",ana," in line)]) + "\n")
    assert "1 person to train on. Give at least two." in refusal(
        replace(config, data=str(faces), batch_size=4)
    )


def test_a_label_of_two_people_is_refused(config, faces):
    table = faces / "faces.csv"
    head, *rows = table.read_text().splitlines()
    table.write_text("\n".join([f"{head},label", *(f"{row},0" for row in rows)]) + "\n")
    assert "the label 0 is that of" in refusal(replace(config, data=str(faces)), SourceError)


def test_a_face_of_two_people_is_refused(config, faces):
    with (faces / "faces.csv").open("a") as table:
        table.write("ana/0.png,bo,train,ana/0.png\n")
    message = refusal(replace(config, data=str(faces)), SourceError)
    assert f"the face {faces}/ana/0.png is that of 'ana' and of 'bo'. Remove a row." in message


def test_a_random_crop_needs_the_larger_crops(config, tmp_path):
    config = replace(config, random_crop=True)
    faces = Faces(find_data(config).training, "fixed", "scaled", config)
    for workers in (0, 1):
        with pytest.raises(SourceError, match=r"--random-crop\) needs crops of 182x182 pixels, not 160x160"):
            next(read_batches(build_loader(faces, [[(0, 0)]], workers)))
    large = replace(config, data=str(write_faces(tmp_path / "large", 182)))
    assert Faces(find_data(large).training, "fixed", "facenet", large)[0, 0][0].shape == (3, 160, 160)


def test_a_photograph_that_is_no_crop_names_the_command_that_crops(config, faces):
    Image.new("RGB", (300, 200)).save(faces / "ana" / "0.png")
    data = find_data(replace(config, data=str(faces)))
    with pytest.raises(
        SourceError, match=r"0.png: its 300x200 pixels are not those of a crop.*facenet-port align"
    ):
        next(read_batches(build_loader(Faces(data.training, "fixed"), [[(0, 0)]], 0)))


def test_crops_of_two_kinds_are_refused(config, faces):
    Image.new("RGB", (182, 182)).save(faces / "bo" / "1.png")
    data = find_data(replace(config, data=str(faces)))
    images = Faces(data.training, "fixed", data.crop)
    with pytest.raises(UsageError, match="has the crop facenet, and the first image the crop scaled"):
        list(read_batches(build_loader(images, [[(0, place) for place in range(12)]], 0)))


def test_batches_that_leave_a_process_too_few_faces_are_refused(config):
    data = find_data(config)
    check_shares(config, data, 3, trains_batch_norm=True)
    with pytest.raises(UsageError, match="a batch leaves a process 1 face, too few for the statistics of"):
        check_shares(config, data, 4, trains_batch_norm=True)
    with pytest.raises(UsageError, match=r"a process no face. Give another batch_size, or fewer processes"):
        check_shares(config, data, 7, trains_batch_norm=False)
    triplets = replace(config, task="triplet", people_per_batch=2, faces_per_person=2)
    check_shares(triplets, data, 4, trains_batch_norm=False)
    with pytest.raises(UsageError, match=r"people_per_batch \(--people-per-batch\): with 12 faces"):
        check_shares(triplets, data, 5, trains_batch_norm=False)
