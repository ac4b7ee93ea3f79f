"""What an export says of its weights: a published model is known by its bytes, and by nothing else."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

from checks.audit.published_ports import training_standardisation
from converter.convert import to_numpy_state_dict
from converter.convert_file import convert_file
from converter.formats.detect import open_source
from converter.hub.catalog_entry import FIXED
from converter.hub.locate import require_entry
from converter.manifest import file_digest
from faces.export.weights import read_weights


@pytest.fixture
def converted(small_source, tmp_path):
    """A state_dict whose manifest says that it was converted from the published det1.npy."""
    convert_file(small_source, tmp_path / "m.pt")
    manifest = tmp_path / "m.pt.json"
    content = json.loads(manifest.read_text())
    (digest,) = require_entry("mtcnn").digests("det1.npy")
    content["source"]["files"] = {"det1.npy": digest}
    manifest.write_text(json.dumps(content))
    return tmp_path / "m.pt"


def test_a_manifest_of_these_very_bytes_names_the_published_model(converted):
    read = read_weights(converted)
    assert (read.name, read.standardisation, read.licence[:3]) == ("mtcnn", FIXED, "MIT")
    assert training_standardisation(converted, {"m.pt": file_digest(converted)}) == FIXED


def test_a_manifest_of_other_bytes_names_nothing(converted):
    """Weights that were trained on and saved over a converted file are not the published ones."""
    state_dict = torch.load(converted, weights_only=True)
    torch.save({key: tensor + 1 for key, tensor in state_dict.items()}, converted)
    read = read_weights(converted)
    assert (read.name, read.standardisation, read.licence) == ("m.pt", None, None)
    assert training_standardisation(converted, {"m.pt": file_digest(converted)}) is None


def test_neither_a_shape_nor_the_name_of_a_folder_is_an_identity(small_source, tmp_path):
    """Own weights of the detector, in a folder of a published name."""
    folder = tmp_path / "20180402-114759"
    folder.mkdir()
    own = shutil.copy(small_source, folder / "p-net.npy")
    read = read_weights(own)
    assert (read.name, read.standardisation, read.licence) == ("p-net.npy", None, None)
    assert training_standardisation(own, {"p-net.npy": file_digest(own)}) is None


def test_a_name_that_is_no_text_is_escaped(small_source, tmp_path):
    path = tmp_path / os.fsdecode(b"n\xff.pt")
    with open_source(small_source) as opened:
        torch.save({k: torch.from_numpy(v) for k, v in to_numpy_state_dict(opened).items()}, path)
    assert read_weights(path).name == r"n\udcff.pt"
