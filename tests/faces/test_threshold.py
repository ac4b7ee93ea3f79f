"""A threshold and what it belongs to: another model or distance is refused, and what is none."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from converter.errors import SourceError, UsageError
from faces.model import ModelFacts
from faces.threshold import DEFAULT_THRESHOLD, Threshold, explain_no_threshold, find_threshold, read_threshold

MEASURED = Threshold(
    value=0.75,
    far=0.001,
    distance="squared-euclidean",
    subtract_mean=False,
    mirrored=False,
    model="vggface2",
    model_sha256="a" * 64,
    standardisation="fixed",
    crop="scaled",
    pairs=6000,
    different=3000,
    source="pairs.txt",
)
NETWORK = ModelFacts("mine.pt", "a" * 64, "fixed", "--standardise", None)
FITTING = {"network": NETWORK, "crop": "scaled", "distance": "squared-euclidean"}


def written(path, content):
    path.write_text(json.dumps({"measured_threshold": content}))
    return path


def test_a_threshold_is_read_as_it_was_written(tmp_path):
    assert read_threshold(written(tmp_path / "r.json", MEASURED.as_json())) == MEASURED
    MEASURED.check(**FITTING)
    edited = written(tmp_path / "r.json", {**MEASURED.as_json(), "value": 1})
    assert read_threshold(edited) == replace(MEASURED, value=1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"network": replace(NETWORK, sha256="b" * 64)},
            "the threshold 0.75 was measured with vggface2 (SHA-256 aaaaaaaaaaaa), not mine.pt "
            "(bbbbbbbbbbbb). Measure it for",
        ),
        (
            {"network": replace(NETWORK, standardisation="per-image")},
            "the threshold 0.75 is of images standardised fixed, not per-image. Measure it for",
        ),
        ({"crop": "facenet"}, "the threshold 0.75 is of the crop scaled, not facenet. Measure it for"),
        (
            {"subtract_mean": True},
            "squared-euclidean, not squared-euclidean of embeddings with their mean subtracted. Measure",
        ),
        (
            {"distance": "arc-cosine"},
            "the threshold 0.75 is of the distance squared-euclidean, not arc-cosine.",
        ),
        (
            {"mirrored": True},
            "squared-euclidean, not squared-euclidean of mirrored images too. Measure it for",
        ),
    ],
)
def test_a_threshold_of_another_model_or_distance(change, message):
    with pytest.raises(UsageError) as caught:
        MEASURED.check(**(FITTING | change))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        None,
        [],
        {},
        0.75,
        {"value": 0.75},
        {**MEASURED.as_json(), "value": "0.75"},
        {**MEASURED.as_json(), "pairs": True},
        {**MEASURED.as_json(), "pairs": -5},
        {**MEASURED.as_json(), "different": 6001},
        {**MEASURED.as_json(), "value": True},
        {**MEASURED.as_json(), "value": -3.0},
        {**MEASURED.as_json(), "value": 10**400},
        {**MEASURED.as_json(), "far": 7.0},
        {**MEASURED.as_json(), "distance": "manhattan"},
        {**MEASURED.as_json(), "crop": "loose"},
        {name: value for name, value in MEASURED.as_json().items() if name != "crop"},
        {**MEASURED.as_json(), "more": 1},
    ],
)
def test_what_is_no_threshold(content, tmp_path):
    with pytest.raises(SourceError, match=r"r.json: it holds no measured threshold. Give a file that"):
        read_threshold(written(tmp_path / "r.json", content))


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"3", b'{"measured_threshold": 1e999}'])
def test_a_file_that_is_no_result(content, tmp_path):
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(SourceError, match="it holds no measured threshold"):
        read_threshold(tmp_path / "r.json")
    with pytest.raises(SourceError, match="cannot be read"):
        read_threshold(tmp_path / "none.json")


def test_a_value_that_is_not_finite_is_none(tmp_path):
    path = written(tmp_path / "r.json", replace(MEASURED, value=float("nan")).as_json())
    with pytest.raises(SourceError, match="it holds no measured threshold"):
        read_threshold(path)


@pytest.mark.parametrize(
    ("change", "crop", "known"),
    [
        ({}, "scaled", True),
        ({}, "facenet", False),
        ({"standardisation": "fixed"}, "scaled", False),
        ({"sha256": "a" * 64}, "scaled", False),
    ],
)
def test_the_default_threshold_is_for_what_it_was_measured_with(change, crop, known):
    default = DEFAULT_THRESHOLD
    network = ModelFacts(default.model, default.model_sha256, default.standardisation, "the catalog", 0.992)
    found = find_threshold(None, None, replace(network, **change), crop)
    assert found == (default if known else None)


@pytest.mark.parametrize(
    ("model", "standardisation", "crop", "options"),
    [
        ("20170512-110547", "per-image", "scaled", "--model 20170512-110547 --json"),
        ("20170512-110547", "fixed", "scaled", "--model 20170512-110547 --standardise fixed --json"),
        ("my net.pt", "per-image", "facenet", "--model 'my net.pt' --standardise per-image --crop facenet"),
    ],
)
def test_the_next_step_without_a_threshold_is_a_command_that_works(model, standardisation, crop, options):
    text = explain_no_threshold(ModelFacts(model, "a" * 64, standardisation, "the gallery", None), crop)
    assert text.startswith(f"no threshold is known for {model} with the crop {crop}. Measure one on")
    assert f"`facenet-port evaluate faces.csv {options}" in text
