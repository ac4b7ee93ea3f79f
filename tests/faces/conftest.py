"""The detector's networks with the original's own weights."""

from __future__ import annotations

import pytest
import torch

from converter.convert import to_pytorch
from converter.formats.detect import open_source
from reference.mtcnn import ONet, PNet, RNet


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
