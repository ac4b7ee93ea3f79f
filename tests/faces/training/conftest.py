"""Faces to train on: made crops of three people, whose pixels tell them apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from faces.crops import CROP_SIZES
from faces.training.config import TrainConfig
from reference import InceptionResnetV1

PEOPLE = ("ana", "bo", "cy")
TRAINED, VALIDATED = 4, 2  # faces of each person


def draw_face(person: int, number: int, size: int = 160) -> np.ndarray:
    """Draw stripes whose width tells the person, with noise."""
    drawn = np.random.default_rng([person, number])
    stripes = np.sin(np.arange(size) / (2 + 3 * person))[:, None, None] * 60 + 128
    return np.clip(stripes + drawn.normal(0, 20, (size, size, 3)), 0, 255).astype(np.uint8)


def write_faces(folder: Path, size: int = 160, trained: int = TRAINED, validated: int = VALIDATED) -> Path:
    rows = ["image_path,person_name,split_type,crop_path"]
    for person, name in enumerate(PEOPLE):
        (folder / name).mkdir(parents=True)
        for number in range(trained + validated):
            path = f"{name}/{number}.png"
            Image.fromarray(draw_face(person, number, size)).save(folder / path)
            rows.append(f"{path},{name},{'train' if number < trained else 'val'},{path}")
    (folder / "faces.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faces(tmp_path_factory.mktemp("crops"))


SMALL = 80
"""Height and width of small crops in pixels. The network takes a quarter of the time for one."""


def take_crops_of(size: int, patch: pytest.MonkeyPatch) -> None:
    """Let the commands, in this process, take images of another height and width for whole crops."""
    for module in ("faces.crops", "faces.training.images"):
        patch.setattr(f"{module}.IMAGE_SIZE", size)
    patch.setitem(CROP_SIZES, "scaled", size)
    patch.setattr("faces.crops._METHODS", {size: "scaled"})


@pytest.fixture(scope="module")
def small_crops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same faces in small, which the commands take for whole crops while a module's tests run."""
    with pytest.MonkeyPatch.context() as patch:
        take_crops_of(SMALL, patch)
        yield write_faces(tmp_path_factory.mktemp("small-crops"), SMALL)


@pytest.fixture
def config(crops: Path, tmp_path: Path) -> TrainConfig:
    """Two steps from random weights."""
    return TrainConfig(
        data=str(crops), output=str(tmp_path / "run"), weights="none", batch_size=6, epochs=1, device="cpu",
        checkpoint_steps=1,
    )  # fmt: skip


@pytest.fixture
def network() -> InceptionResnetV1:
    torch.manual_seed(0)
    return InceptionResnetV1(num_classes=3, embedding_size=128)
