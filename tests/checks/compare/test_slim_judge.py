"""A judge that this project did not write: training and frozen graphs by tf-slim, with real weights.

davidsandberg/facenet was written with tf-slim. Its layers, its training conditionals and its averages stand
here beside the graph that this project rebuilds.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from checks.audit.run import audit
from checks.compare.run import compare
from checks.gradients import run as gradients
from facenet_tf import import_tensorflow
from tests.fuzz.sandbox import ROOT
from tests.support.first_images import AUDIT_TAKES_FROM, TAKEN_FROM, first_audited, first_images
from tests.support.shared_files import shared_folder

pytestmark = [pytest.mark.real, pytest.mark.slow]

MODEL = "20170512-110547"


@pytest.fixture(scope="module")
def slim(keras: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that tf-slim wrote, with seeded logits of 7 classes.

    A process of its own writes it, since tf-slim needs two changes to TensorFlow.
    """
    if importlib.util.find_spec("tf_slim") is None:
        pytest.skip("tf-slim is not installed: pip install 'facenet-port[dev]'")

    def write(folder: Path) -> None:
        command = [sys.executable, "-m", "tests.support.slim_network", keras, folder, MODEL, "250000"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert result.returncode == 0, result.stderr

    return shared_folder(tmp_path_factory, "slim", write)


def test_slims_own_graph_and_the_rebuilt_one_agree_bit_for_bit(
    slim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TAKEN_FROM, lambda network, seed: first_images(network, seed)[:2])
    result = compare(slim, every_layer=True)
    assert result.passed, result.judgements
    assert result.own_graph == f"model-{MODEL}.meta"
    rebuilt = [value for batch in result.inputs for value in batch.rebuilt.values()]
    assert len(rebuilt) == 2 * 160
    assert set(rebuilt) == {0.0}


def test_slims_statistics_move_as_pytorchs(slim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part of `gradients` that reads the graph; the rest takes a minute and depends on the weights."""
    monkeypatch.setattr(gradients, "_measure", lambda *_: ((), ()))
    (statistics,) = gradients.compare_gradients(slim).judgements
    assert statistics.passed, statistics
    assert statistics.statement.startswith("112 running variances move as PyTorch's do (FusedBatchNormV3 in")


def test_slims_frozen_graph_is_audited(slim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AUDIT_TAKES_FROM[0], first_audited)
    result = audit(slim / f"{MODEL}.pb", against=slim)
    assert result.passed, result.verdict
    assert [judgement.name for judgement in result.judgements] == [
        "tensors", "preprocessing", "arithmetic", "distance",
    ]  # fmt: skip


def test_a_change_to_slims_graph_is_found(
    slim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: one epsilon of the 112 is another."""
    monkeypatch.setattr(TAKEN_FROM, lambda network, seed: first_images(network, seed)[:1])
    tf = import_tensorflow()
    graph = tf.compat.v1.GraphDef.FromString((slim / f"{MODEL}.pb").read_bytes())
    for node in graph.node:
        if node.op.startswith("FusedBatchNorm") and "/block8_5/Branch_0/" in node.name:
            node.attr["epsilon"].f = 1e-5
    (tmp_path / f"{MODEL}.pb").write_bytes(graph.SerializeToString())
    result = compare(tmp_path / f"{MODEL}.pb")
    assert not result.passed
    assert max(value for batch in result.inputs for value in batch.rebuilt.values()) > 1e-4
