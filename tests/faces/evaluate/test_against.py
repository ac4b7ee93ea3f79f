"""evaluate --against: TensorFlow's own graph on the same crops, and faults that it finds."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("tensorflow")

from faces.evaluate.__main__ import main

pytestmark = pytest.mark.slow


@pytest.fixture
def judged(crops, checkpoint, pairs, tmp_path):
    """Evaluate a network against the checkpoint's own graph: the exit code and the judgements by name."""

    def judge(*options):
        arguments = [
            crops / "lfw",
            "--pairs",
            pairs,
            "--against",
            checkpoint.frozen,
            "--standardise",
            "fixed",
        ]
        code = main([*map(str, (*arguments, *options)), "--json", str(tmp_path / "r.json")])
        result = json.loads((tmp_path / "r.json").read_text())
        return code, {judgement["name"]: judgement for judgement in result["judgements"]}, result

    return judge


def test_the_converted_network_decides_as_the_graph(judged, checkpoint, capsys):
    code, judgements, result = judged("--mirrored")
    assert code == 0
    assert list(judgements) == ["distances", "decisions", "figures"]
    assert all(judgement["passed"] for judgement in judgements.values())
    assert judgements["distances"]["share"] < 0.5
    assert result["against"] == f"its own graph, {checkpoint.frozen.name}"
    assert result["model"]["name"] == str(checkpoint.frozen)  # which is converted, as no --model is given
    printed = capsys.readouterr().out
    assert "The network decides as TensorFlow's graph." in printed
    assert "alike on 11 of 11 pairs" in printed


def test_a_fault_of_the_port_shows_in_the_distances(judged, network, tmp_path, capsys):
    state_dict = torch.load(network, weights_only=True)
    for key in [key for key in state_dict if key.startswith("repeat_2.3.")]:  # two blocks are exchanged
        other = key.replace("repeat_2.3.", "repeat_2.4.")
        state_dict[key], state_dict[other] = state_dict[other], state_dict[key]
    torch.save(state_dict, tmp_path / "changed.pt")
    code, judgements, result = judged("--model", tmp_path / "changed.pt")
    assert code == 1
    assert not result["passed"]
    assert not judgements["distances"]["passed"]
    assert judgements["distances"]["share"] > 2
    assert "The network differs from TensorFlow's graph." in capsys.readouterr().out
