"""Images that are small, large, blank, odd or many: none depends on the others, and memory is bounded."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from faces.detect import cascade
from faces.detect import detector as detector_module
from faces.detect.detector import FaceDetector
from reference import load_mtcnn

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def portrait(some_images):
    """A photograph with one face."""
    return some_images[0]


@pytest.mark.parametrize("threads", [1, 4, 16])
def test_faces_do_not_depend_on_the_other_photographs(threads, detector, some_images) -> None:
    images = [*some_images[:12:3], *some_images[12:16:2], *some_images[20::2]]  # none at double size
    torch.set_num_threads(threads)
    assert len({image.shape for image in images}) > 5  # sizes are mixed
    alone = [detector.detect([image])[0] for image in images]
    assert detector.detect(images) == alone
    assert detector.detect(images[::-1]) == alone[::-1]
    assert any(alone)
    assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    assert detector.detect(images[:2]) == alone[:2]


@pytest.mark.parametrize("shape", [(1, 1), (1, 400), (19, 19), (19, 300), (20, 20)])
def test_small_images_have_no_face(shape, detector, portrait) -> None:
    small = cv2.resize(portrait, shape, interpolation=cv2.INTER_AREA)
    assert detector.detect([small]) == [()]
    (alone,) = detector.detect([portrait])
    assert detector.detect([small, portrait]) == [(), alone]


def test_nobody_in_a_whole_batch(detector) -> None:
    white, black = np.full((90, 70, 3), 255, np.uint8), np.zeros((40, 50), np.uint8)
    assert detector.detect([white, black, white]) == [(), (), ()]
    assert detector.detect([]) == []


def test_a_grey_image_is_searched(detector, portrait) -> None:
    grey = cv2.cvtColor(portrait, cv2.COLOR_RGB2GRAY)
    (faces,) = detector.detect([grey])
    assert len(faces) == 1
    assert detector.detect([np.stack([grey] * 3, axis=2), grey[:, :, None]]) == [faces, faces]


@pytest.mark.parametrize("change", [lambda image: image.transpose(2, 0, 1), lambda image: image / 255])
def test_an_image_in_another_form_is_an_error_and_not_without_a_face(change, detector, portrait) -> None:
    with pytest.raises(ValueError, match="an image of"):
        detector.detect([portrait, change(portrait)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smallest_face": 0}, "smallest_face 0: give at least 1 pixel"),
        ({"thresholds": (0.6, 0.7)}, "give three numbers from 0 to 1"),
        ({"thresholds": (0.6, 0.7, 7)}, "give three numbers from 0 to 1"),
        ({"factor": 1.0}, "factor 1.0: give a number between 0 and 1"),
    ],
)
def test_options_without_meaning_are_refused(options, message, networks) -> None:
    with pytest.raises(ValueError, match=message):
        FaceDetector(networks, **options)


def test_options_change_what_is_found(networks, portrait) -> None:
    (face,) = FaceDetector(networks).detect([portrait])[0]
    side = max(face.box[2] - face.box[0], face.box[3] - face.box[1])
    assert FaceDetector(networks, smallest_face=2 * side).detect([portrait]) == [()]
    assert FaceDetector(networks, thresholds=(0.6, 0.7, 1.0)).detect([portrait]) == [()]
    assert len(FaceDetector(networks, thresholds=(0.6, 0.7, 0.01)).detect([portrait])[0]) >= 1
    (finer,) = FaceDetector(networks, factor=0.9).detect([portrait])[0]
    assert finer != face


class Recorder(nn.Module):
    """In the place of R-Net or O-Net: takes every crop for a face, and notes how many it is given at once."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.given: list[int] = []
        self.widths = widths

    def forward(self, images):
        self.given.append(len(images))
        return *(torch.zeros(len(images), width) for width in self.widths), torch.ones(len(images), 2)


def test_thousands_of_candidates_take_bounded_memory(networks) -> None:
    """Every window of noise is a candidate: the networks are still given no more at once."""
    p_net, r_net, o_net = networks[0], Recorder(4), Recorder(4, 10)
    noise = np.random.default_rng(0).integers(0, 256, (190, 190, 3), np.uint8)
    faces = FaceDetector((p_net, r_net, o_net), thresholds=(0.0, 0.5, 0.5)).detect([noise] * 3)
    assert len(r_net.given) * 64 > 2000
    assert set(r_net.given) == {64}
    assert set(o_net.given) == {16}
    assert faces[0] == faces[1] == faces[2]


@torch.inference_mode()
def test_strips_of_a_level_give_what_the_whole_gives(networks, portrait, monkeypatch) -> None:
    detector = FaceDetector(networks)
    for height in (41, 42, 43, 44, 150):  # every remainder that a strip may leave
        level = cv2.resize(portrait, (61, height))
        whole = detector._run_p_net(level)
        monkeypatch.setattr(detector_module, "_LEVEL_PIXELS", 1 << 11)
        strips = detector._run_p_net(level)
        monkeypatch.undo()
        for part, expected in zip(strips, whole, strict=True):
            assert part.shape == expected.shape
            assert np.abs(part - expected).max() < 1e-5


@pytest.mark.slow
def test_a_photograph_of_100_megapixels(networks, portrait) -> None:
    """Its face is where the face of the small photograph is."""
    (small,) = FaceDetector(networks, smallest_face=40).detect([portrait])[0]
    large = np.zeros((10_000, 10_000, 3), np.uint8)
    height, width = (10 * side for side in portrait.shape[:2])
    large[:height, :width] = cv2.resize(portrait, (width, height), interpolation=cv2.INTER_NEAREST)
    (face,) = FaceDetector(networks, smallest_face=40 * 10).detect([large])[0]
    assert np.abs(np.array(face.box) / 10 - small.box).max() < 5


def test_suppression_is_the_greedy_one() -> None:
    """Against a plain loop, for few boxes and for more than 16 bits count, where the original goes wrong."""
    random = np.random.default_rng(0)
    for count, spread in ((0, 1), (1, 1), (700, 200), (40_000, 30)):
        corners = random.uniform(0, spread, (count, 2))
        boxes = np.hstack([corners, corners + random.uniform(5, 40, (count, 2)), random.random((count, 1))])
        for of_smaller in (False, True):
            kept: list[int] = []
            left = np.argsort(-boxes[:, 4])
            while left.size:
                kept.append(left[0])
                one, others = boxes[left[0]], boxes[left]
                sides = np.minimum(one[2:4], others[:, 2:4]) - np.maximum(one[:2], others[:, :2]) + 1
                common = np.maximum(sides, 0).prod(axis=1)
                areas = [(row[..., 2:4] - row[..., :2] + 1).prod(axis=-1) for row in (one, others)]
                whole = np.minimum(*areas) if of_smaller else areas[0] + areas[1] - common
                left = left[common / whole <= 0.5]
            assert cascade.suppress(boxes, 0.5, of_smaller=of_smaller).tolist() == kept


def test_a_crop_beyond_the_edge_is_black() -> None:
    photograph = np.full((10, 8, 3), 255, np.uint8)
    # One pixel outside on the left, three above: the first pixel of a photograph is 1.
    crop = cascade.crop(photograph, np.array([0.0, -2.0, 7.0, 5.0]), 8)
    assert (crop[:3] == 0).all()
    assert (crop[:, :1] == 0).all()
    assert (crop[3:, 1:] == 255).all()
    assert (cascade.crop(photograph, np.array([20.0, 20.0, 30.0, 30.0]), 4) == 0).all()


def test_published_weights_are_those_of_the_peer(mtcnn_files, networks) -> None:
    for network, (_, pt) in zip(networks, mtcnn_files.values(), strict=True):
        published = torch.load(pt, weights_only=True)
        assert all(torch.equal(tensor, published[key]) for key, tensor in network.state_dict().items())


def test_load_mtcnn_gives_the_published_weights(networks) -> None:
    from converter.errors import RequirementError

    try:
        loaded = load_mtcnn()
    except RequirementError as error:
        pytest.skip(str(error))
    for network, expected in zip(loaded, networks, strict=True):
        assert not network.training
        actual = network.state_dict()
        assert all(torch.equal(actual[key], tensor) for key, tensor in expected.state_dict().items())
