"""Real trained weights through the whole of the tool, and the peer's own model class as a second judge.

Needs a package index, once: the files are kept in the user's cache. Without one every test here is skipped,
and says so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from numpy.typing import NDArray

from checks.compare import __main__ as compare_command
from checks.compare.result import CompareResult
from checks.compare.run import compare
from checks.core.activations import STAGES
from checks.core.builtin_checkpoint import built_in_tensors
from checks.core.inputs import photograph_inputs, read_photographs, seeded_inputs
from checks.core.photographs import find_photographs
from converter.convert import tensorflow_tensors, to_numpy_state_dict, to_tensorflow
from converter.convert_file import convert_file
from converter.formats.detect import open_source
from converter.layer_map import Variant
from reference import InceptionResnetV1
from tests.conftest import fetch
from tests.support.first_images import TAKEN_FROM, first_images, five_images_of_noise
from tests.support.package_index import PEER, peer_class

pytestmark = pytest.mark.real

PEER_DISTANCE = 1.15e-6  # the peer's script on these weights, float32; ours may be 20 % more
EVERY_ACTIVATION = (
    132 + len(STAGES) - 6 + 1
)  # six stages of the stem are convolutions; embeddings come on top


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    yield peer_class(fetch(PEER), tmp_path_factory.mktemp("peer"))
    for name in [name for name in sys.modules if name.startswith("facenet_pytorch")]:
        del sys.modules[name]


def _check_report(report: CompareResult, *, own_graph: str | None, activations: int) -> None:
    assert report.passed, report.judgements
    assert report.own_graph == own_graph
    assert report.judgements[0].statement.startswith("490 converted bit for bit, 224 synthesised as stated")
    for batch in report.inputs:
        assert len(batch.activations) == activations
        assert batch.distance64 <= 1e-13
        assert max(activation.float64.relative_l2 for activation in batch.activations) <= 1e-13
    noise = report.inputs[0]
    assert noise.distance32 <= 1.2 * PEER_DISTANCE


def test_the_keras_file_is_proven_at_every_convolution_and_on_photographs(
    keras: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TAKEN_FROM, five_images_of_noise)
    for number, path in enumerate(find_photographs(photographs)[:6]):  # one in the second batch
        (tmp_path / f"{number}{path.suffix}").symlink_to(path)
    report = compare(keras, every_layer=True, images=tmp_path)
    _check_report(report, own_graph=None, activations=EVERY_ACTIVATION)
    names = [batch.name for batch in report.inputs]
    assert names[-2:] == ["photographs 1-5", "photographs 6-6"]
    # Photographs of different people are further apart than noise: the embeddings mean something.
    model = _load(InceptionResnetV1(embedding_size=128), keras)
    faces = _embed(model, next(photograph_inputs(read_photographs(find_photographs(photographs)))).images)
    noise = _embed(model, seeded_inputs(0)[0].images)
    assert torch.cdist(faces, faces).max() > 2 * torch.cdist(noise, noise).max()


def test_the_checkpoint_folder_is_proven_against_its_own_graph(
    real_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TAKEN_FROM, five_images_of_noise)
    report = compare(real_checkpoint, every_layer=True)
    _check_report(report, own_graph="model-20170512-110547.meta", activations=EVERY_ACTIVATION)
    rebuilt = [value for batch in report.inputs for value in batch.rebuilt.values()]
    assert (
        len(rebuilt) == 4 * EVERY_ACTIVATION
    )  # the fifth input has a size that the fixed average pool cannot take
    assert max(rebuilt) <= 1e-6


def test_the_frozen_graph_is_proven_by_the_command(
    real_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TAKEN_FROM, lambda network, seed: first_images(network, seed)[:2])
    options = ["--every-layer", "--json", str(tmp_path / "report.json")]
    assert compare_command.main([str(real_checkpoint / "20170512-110547.pb"), *options]) == 0
    assert capsys.readouterr().out.count("holds ") == 4
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"]
    assert report["own_graph"] == "20170512-110547.pb"
    assert max(batch["distance64"] for batch in report["inputs"]) <= 1e-13


def test_every_source_gives_the_same_state_dict_to_the_last_byte(
    keras: Path, real_checkpoint: Path, tmp_path: Path
) -> None:
    written = []
    for number, source in enumerate((keras, real_checkpoint, real_checkpoint / "20170512-110547.pb")):
        path = tmp_path / f"{number}.pt"
        conversion = convert_file(source, path)
        assert len(conversion.plan.converted) == 490
        assert len(conversion.plan.rows) == 714
        written.append(path.read_bytes())
    assert written[0] == written[1] == written[2]


def test_the_round_trip_is_bit_exact(real_tensors: dict[str, NDArray]) -> None:
    back = to_tensorflow(to_numpy_state_dict(real_tensors))
    assert set(back) == set(real_tensors)
    for name, array in real_tensors.items():
        assert back[name].tobytes() == array.tobytes(), name


def test_the_peers_class_gives_the_same_embeddings_to_the_last_bit(keras: Path, peer: Any) -> None:
    theirs = peer()
    # The peer's class is made for 512; the real weights at hand are the 128-d ones.
    theirs.last_linear = torch.nn.Linear(1792, 128, bias=False)
    theirs.last_bn = torch.nn.BatchNorm1d(128, eps=0.001)
    for images in (batch.images for batch in seeded_inputs(0)):
        ours = _embed(_load(InceptionResnetV1(embedding_size=128), keras), images)
        assert torch.equal(ours, _embed(_load(theirs, keras), images))


def test_the_peers_class_loads_a_whole_state_dict_strictly(peer: Any) -> None:
    state_dict = to_numpy_state_dict(built_in_tensors(Variant(num_classes=8631)))
    assert len(state_dict) == 716
    loaded = {key: torch.from_numpy(array) for key, array in state_dict.items()}
    theirs = peer(classify=True, num_classes=8631)
    ours = InceptionResnetV1(classify=True, num_classes=8631)
    assert list(theirs.state_dict()) == list(loaded) == list(ours.state_dict())
    for model in (theirs, ours):
        model.load_state_dict(loaded)
        model.eval()
    images = seeded_inputs(0)[1].images
    assert torch.equal(_embed(theirs, images), _embed(ours, images))  # logits: classify is set
    theirs.classify = ours.classify = False
    assert torch.equal(_embed(theirs, images), _embed(ours, images))


def _load(model: Any, source: Path) -> Any:
    with open_source(source) as opened:
        state_dict = to_numpy_state_dict(tensorflow_tensors(opened))
    model.load_state_dict({key: torch.from_numpy(array) for key, array in state_dict.items()})
    return model.eval()


def _embed(model: Any, images: NDArray) -> torch.Tensor:
    with torch.inference_mode():
        output: torch.Tensor = model(torch.from_numpy(images).permute(0, 3, 1, 2))
    return output
