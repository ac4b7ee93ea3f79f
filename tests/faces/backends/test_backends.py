"""`--backend`, and exported files as --model: which runtime runs, what is checked, and what is refused."""

from __future__ import annotations

import errno
import functools
import json
import sys
from unittest.mock import Mock

import numpy as np
import onnx
import onnxruntime
import pyarrow.parquet
import pytest
import torch
from onnxruntime.quantization import quantize_dynamic
from PIL import Image

from checks.core import thresholds
from converter.errors import SourceError, UsageError
from converter.manifest import file_digest
from facenet_port import main
from faces.backends import choose, export_cache
from faces.backends.exported_model import load_exported
from faces.backends.facts import BackendFacts
from faces.backends.graph_backend import find_runtime
from faces.embeddings import read_embeddings
from faces.model import load_model
from faces.training.config import TrainConfig
from faces.training.objectives import make_objective
from faces.training.run_folder import RunFolder
from reference import load
from tests.conftest import CLASSES
from tests.faces.align.conftest import write
from tests.faces.conftest import load_once
from tests.support.first_images import AUDIT_TAKES_FROM, first_audited


@pytest.fixture
def embed(network, crops, tmp_path, monkeypatch):
    """Embed the crops; returns the embeddings, or the exit code if it is not 0."""
    monkeypatch.setattr("faces.embedder.load_model", load_once)

    def run(*options, model=network, standardise=("--standardise", "fixed")):
        out = tmp_path / "e.parquet"
        command = ["embed", crops, "-o", out, "--model", model, *standardise, *options]
        code = main(list(map(str, command)))
        return code or read_embeddings(out)

    return run


@functools.cache
def _embedded(network, *crops):
    images = np.frombuffer(b"".join(crops), np.uint8).reshape(-1, 160, 160, 3)
    images = (images.transpose(0, 3, 1, 2).astype(np.float64) - 127.5) / 128
    with torch.inference_mode():
        return load(network).double()(torch.from_numpy(images)).numpy()


def expected_rows(network, crops):
    """The embeddings of crops in float64; those of the same pixels are computed once."""
    return _embedded(network, *(Image.open(file).tobytes() for file in sorted(crops.glob("*/*.png"))))


@pytest.mark.slow
def test_a_backend_is_made_and_checked_once_and_then_the_default(
    cache, exported, embed, network, network_sha256, crops, tmp_path, capsys
):
    cache.file = exported
    first = embed()
    assert (first.origin.backend, first.origin.backend_sha256, cache.made) == ("torch", None, 0)
    assert "onnxruntime" not in capsys.readouterr().out
    for options in (("--backend", "onnxruntime"), ()):
        embeddings = embed(*options)
        origin = embeddings.origin
        assert (origin.backend, origin.backend_sha256) == ("onnxruntime", file_digest(exported))
        assert origin.model_sha256 == network_sha256
        assert np.linalg.norm(embeddings.values - expected_rows(network, crops), axis=1).max() < 5e-6
        assert " from torch on this machine" in capsys.readouterr().out
    assert (cache.made, cache.checks) == (1, 1)
    assert embed("--backend", "torch").origin.backend == "torch"
    stored = pyarrow.parquet.read_schema(tmp_path / "e.parquet").metadata[b"facenet-port"]
    assert json.loads(stored)["backend"] == "torch"


@pytest.mark.slow
def test_the_default_makes_a_file_for_many_images(cache, exported, embed, monkeypatch):
    cache.file = exported
    monkeypatch.setattr(choose, "MANY_IMAGES", 5)
    assert embed().origin.backend == "torch"
    monkeypatch.setattr(choose, "MANY_IMAGES", 4)
    assert embed().origin.backend == "onnxruntime"


@pytest.mark.slow
def test_on_another_machine_it_is_checked_again(cache, exported, embed, monkeypatch):
    cache.file = exported
    embed("--backend", "onnxruntime")
    monkeypatch.setattr(choose, "machine", lambda: {"processor": "another"})
    embed()
    assert (cache.made, cache.checks) == (1, 2)


@pytest.mark.slow
def test_a_backend_that_differs_is_named_and_not_used(cache, changed, embed, capsys):
    cache.file = changed
    assert embed("--backend", "onnxruntime") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "onnxruntime gives embeddings " in error
    assert "more than 1e-05" in error
    assert embed().origin.backend == "torch"
    assert "onnxruntime is not used: onnxruntime gives embeddings" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.slow
def test_a_damaged_file_in_the_cache_is_not_used(cache, exported, embed, tmp_path):
    cache.file = exported
    embed("--backend", "onnxruntime")
    (path,) = tmp_path.glob("cache/exports/*/embeddings.onnx")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert embed().origin.backend == "torch"
    assert embed("--backend", "onnxruntime").origin.backend == "onnxruntime"
    assert cache.made == 2


@pytest.mark.slow
def test_a_check_that_cannot_be_stored_counts(cache, exported, embed, monkeypatch, tmp_path, capsys):
    cache.file = exported
    embed("--backend", "onnxruntime")
    (record,) = tmp_path.glob("cache/exports/*/embeddings.onnx.json")
    record.write_text(json.dumps({**json.loads(record.read_text()), "checks": {}}))

    for options, problem in (
        ((), OSError(errno.EROFS, "Read-only file system")),
        (("--backend", "onnxruntime"), UsageError("read-only")),
    ):
        monkeypatch.setattr(export_cache, "replace_file", Mock(side_effect=problem))
        assert embed(*options).origin.backend == "onnxruntime"
    assert "is not used" not in capsys.readouterr().out
    assert cache.checks == 3


@pytest.mark.parametrize("checks", [{"a": 1e-6, "b": "x"}, {"b": None}, {"b": {}}, ["b"], "b", 1, None])
def test_a_damaged_record_of_checks_is_none(checks, tmp_path, monkeypatch):
    monkeypatch.setenv("FACENET_PORT_CACHE", str(tmp_path))
    folder = tmp_path / "exports/0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "embeddings.onnx").touch()
    record = {"sha256": file_digest(folder / "embeddings.onnx"), "checks": {"a": 1e-6}}
    for written, known in ((record, True), ({**record, "checks": checks}, False)):
        (folder / "embeddings.onnx.json").write_text(json.dumps(written))
        assert (export_cache.find_export("0123456789abcdef" * 4, ".onnx") is not None) is known


@pytest.mark.slow
def test_an_exported_file_is_a_model(cache, exported, changed, embed, network, network_sha256, crops):
    embeddings = embed(model=exported, standardise=())
    origin = embeddings.origin
    assert (origin.standardisation, origin.backend) == ("fixed", "onnxruntime")
    assert origin.backend_sha256 == file_digest(exported)
    assert origin.model_sha256 == network_sha256  # so its thresholds hold
    assert np.linalg.norm(embeddings.values - expected_rows(network, crops), axis=1).max() < 5e-6
    rounded = embed(model=changed, standardise=()).origin
    assert rounded.model_sha256 == rounded.backend_sha256 == file_digest(changed)
    assert cache.made == 0


@pytest.mark.slow
def test_quantised_weights_are_a_model_of_their_own(exported, tmp_path):
    quantize_dynamic(exported, tmp_path / "dynamic.onnx")
    loaded = load_exported(tmp_path / "dynamic.onnx", None, "cpu")
    assert loaded.sha256 == file_digest(tmp_path / "dynamic.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--backend", "litert"), 2, "facenet.onnx runs in onnxruntime. Leave out --backend litert."),
        (("--backend", "torch"), 2, "facenet.onnx runs in onnxruntime. Leave out --backend torch."),
    ],
)
def test_options_that_do_not_fit_an_exported_file(exported, embed, capsys, options, code, message):
    assert embed(*options, model=exported, standardise=()) == code
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_files_that_are_no_embeddings_are_refused(exported, tmp_path, embed, capsys):
    damaged = tmp_path / "cut.onnx"
    damaged.write_bytes(exported.read_bytes()[: 1 << 20])
    assert embed(model=damaged) == 3
    assert "cut.onnx" in capsys.readouterr().err
    with pytest.raises(Exception, match=r"exported file\. Give the weights that it was made from"):
        load_model(exported).network  # noqa: B018


@pytest.mark.parametrize(
    ("size", "problem", "step"),
    [
        (24, "it takes images of 24x24, not 160x160, the size of crops", "Export it for that size"),
        (
            None,
            "so it is no network of embeddings",
            "`facenet-port audit {} --against CHECKPOINT` compares it",
        ),
    ],
)
def test_another_network_is_refused_before_it_is_run(size, problem, step, tmp_path):
    pooled = onnx.helper.make_node("MaxPool", ["images"], ["maps"], kernel_shape=[2, 2])
    taken, given = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 3, extent, extent])
        for name, extent in (("images", size), ("maps", None))
    )
    path = tmp_path / "other.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([pooled], "g", [taken], [given])), path)
    with pytest.raises(SourceError) as refused:
        load_model(path)
    assert f"{problem}. {step.format(path)}" in str(refused.value)


@pytest.mark.slow
def test_an_exported_file_is_recognised_by_its_contents(exported, tmp_path):
    for name in ("facenet.txt", "facenet.tflite"):
        path = tmp_path / name
        path.symlink_to(exported)
        assert find_runtime(path) == "onnxruntime"
    assert load_model(path).backend.name == "onnxruntime"


@pytest.mark.slow
def test_a_runtime_that_does_not_load(exported, embed, monkeypatch, tmp_path, capsys):
    package = tmp_path / "packages" / "onnxruntime"
    package.mkdir(parents=True)
    package.joinpath("__init__.py").write_text("raise ImportError('libstdc++ is too old')")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.delitem(sys.modules, "onnxruntime")
    for options in ({"model": exported}, {}):
        assert embed(*(() if options else ("--backend", "onnxruntime")), **options) == 4
        expected = "needs onnxruntime, which is installed but does not load: libstdc++ is too old. Install it"
        assert expected in capsys.readouterr().err


def test_a_runtime_that_is_not_installed(embed, monkeypatch, capsys):
    from importlib.util import find_spec

    hidden = ("onnxruntime", "ai_edge_litert")
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name in hidden else find_spec(name, *rest)
    )
    assert embed().origin.backend == "torch"
    capsys.readouterr()
    assert embed("--backend", "onnxruntime") == 4
    assert "pip install 'facenet-port[onnx]'" in capsys.readouterr().err
    assert embed("--backend", "litert") == 4
    assert "pip install 'facenet-port[tflite]'" in capsys.readouterr().err


@pytest.mark.slow
def test_evaluate_shows_every_decision_that_an_exported_file_changes(
    exported, changed, network, crops, tmp_path, capsys
):
    table = tmp_path / "faces.csv"
    files = sorted(crops.glob("*/*.png"))
    table.write_text("image_path,person_name\n" + "".join(f"{f},{f.parent.name}\n" for f in files))
    shared = ["--folds", "1", "--far", "0.4", "--standardise", "fixed", "--against", str(network)]
    results = {}
    for model in (exported, changed):
        out = tmp_path / "r.json"
        command = ["evaluate", table, "--model", model, *shared, "--json", out]
        assert main(list(map(str, command))) == 0
        results[model] = json.loads(out.read_text())
    screen = capsys.readouterr().out
    same, other = (results[model]["comparison"] for model in (exported, changed))
    assert same["worst_cosine"] > 1 - 1e-6
    assert same["changed"] == []
    assert (same["states_others"], other["states_others"]) == (False, True)
    assert screen.count(f"By its metadata, the file was made from other weights than {network}.") == 1
    # The changed pairs, from the embeddings that another process of the same file gives.
    images = (np.stack([np.asarray(Image.open(f), np.float32) for f in files]) - 127.5) / 128
    (rows,) = onnxruntime.InferenceSession(changed).run(None, {"images": images.transpose(0, 3, 1, 2)})
    weights = expected_rows(network, crops)
    first, second = np.triu_indices(len(files), 1)
    distances = [np.square(side[first] - side[second]).sum(axis=1) for side in (weights, rows)]
    decided = [side < other["threshold"] for side in distances]
    expected = {
        (str(files[a]), str(files[b]))
        for a, b, before, after in zip(first, second, *decided, strict=True)
        if before != after
    }
    assert {tuple(pair["files"]) for pair in other["changed"]} == expected
    assert expected
    cosines = np.sum(rows * weights, axis=1)
    assert other["worst_cosine"] == pytest.approx(cosines.min(), abs=1e-5)
    assert f"{len(expected)} of 6 pairs are decided otherwise:" in screen
    assert results[changed]["against"] == f"the weights {network}"
    # The file in place of its weights.
    command = ["evaluate", table, "--model", changed, *shared[:-1], exported, "--json", out]
    assert main(list(map(str, command))) == 0
    by_file = json.loads(out.read_text())["comparison"]
    assert [pair["files"] for pair in by_file["changed"]] == [pair["files"] for pair in other["changed"]]
    assert by_file["worst_cosine"] == pytest.approx(other["worst_cosine"], abs=1e-5)
    assert by_file["states_others"]
    for model in (["--model", exported], []):
        command = ["evaluate", table, *model, *shared[:-1], exported]
        assert main(list(map(str, command))) == 2
        assert f"{exported}: a file shows no change beside itself." in capsys.readouterr().err
    copy = onnx.load(exported)
    del copy.metadata_props[:]
    onnx.save(copy, tmp_path / "nameless.onnx")
    command = ["evaluate", table, "--model", exported, *shared[:-1], tmp_path / "nameless.onnx"]
    assert main(list(map(str, command))) == 2
    assert "this is no `facenet-port export` in float32" in capsys.readouterr().err
    assert results[changed]["passed"] is None


@pytest.fixture(scope="module")
def trained(network, tmp_path_factory):
    """The folder of a training."""
    run = RunFolder(tmp_path_factory.mktemp("run"))
    objective = make_objective(load(network), TrainConfig(data="crops"))
    run.write_weights(["best"], objective, [str(number) for number in range(CLASSES)], "fixed", "scaled")
    return run.path


@pytest.fixture
def detector_commands(colour_detector, network, figures, trained, tmp_path):
    """Each command that finds faces in photographs and computes with them, with the options that it needs."""
    colour_detector.backend = BackendFacts("onnxruntime", distance=2e-6)
    people = ("Ana/1.png", "Ana/2.png", "Bo/1.png")
    write(tmp_path / "people", *people)
    table, gallery = tmp_path / "t.csv", tmp_path / "e.parquet"
    lines = [f"people/{name},{name[:2]},{name.startswith('Bo'):d}" for name in people]
    table.write_text("\n".join(["image_path,person_name,label", *lines]) + "\n")
    first, second = (tmp_path / "people" / name for name in people[:2])
    taken = ("--model", network, "--standardise", "fixed")
    return {
        "embed": ("embed", tmp_path / "people", "-o", gallery, *taken, "--threshold", figures(1.0)),
        "identify": ("identify", first, "--gallery", gallery),
        "match": ("match", first, second, *taken, "--threshold", figures(1.0)),
        "cluster": ("cluster", tmp_path / "people", *taken, "--threshold", figures(1.0)),
        "evaluate": ("evaluate", table, *taken, "--folds", 2),
        "evaluate --classify": ("evaluate", table, *taken, "--classify"),
        "predict": ("predict", first, "--weights", trained / "best"),
    }


@pytest.mark.slow
def test_every_command_says_what_ran_the_detector(detector_commands, tmp_path, capsys):
    for name, command in detector_commands.items():
        report = tmp_path / "r.json"
        assert main([*map(str, command), "--backend", "torch", "--json", str(report)]) == 0, name
        screen = " ".join(capsys.readouterr().out.split())
        assert "detector run by onnxruntime, 2.0e-06 from torch on this machine" in screen, name
        assert json.loads(report.read_text())["detector"]["distance"] == 2e-6, name


def test_logits_are_computed_by_pytorch_whatever_runs_the_detector(detector_commands, monkeypatch, capsys):
    monkeypatch.setattr("faces.embedder.choose_backend", None)
    for name in ("predict", "evaluate --classify"):
        assert main([*map(str, detector_commands[name]), "--backend", "onnxruntime"]) == 0
        assert capsys.readouterr().out.count("onnxruntime") == 1


@pytest.mark.real
@pytest.mark.slow
def test_real_weights_are_exported_audited_and_decide_alike(keras, monkeypatch, tmp_path):
    monkeypatch.setenv("FACENET_PORT_CACHE", str(tmp_path / "cache"))
    for name in AUDIT_TAKES_FROM:
        monkeypatch.setattr(name, first_audited)
    crops = np.random.default_rng(0).integers(0, 256, (2, 160, 160, 3), np.uint8)
    model = choose.choose_backend(load_model(keras), "onnxruntime", device="cpu")
    assert model.checked.distance < 0.5 * thresholds.BACKEND_DISTANCE
    again = choose.choose_backend(load_model(keras), None, device="cpu")
    assert again.checked == model.checked
    images = model.standardise(crops)
    assert np.abs(model.embed(images) - model.unfolded.embed(images)).max() < 2e-6


@pytest.mark.slow
def test_evaluate_refuses_weights_with_embeddings_of_another_size_before_faces_are_read(
    exported, network, tmp_path, capsys
):
    weights = torch.load(network, weights_only=True)
    for key, tensor in weights.items():
        if key.startswith(("last_linear.", "last_bn.")) and tensor.dim():
            weights[key] = tensor[:128]
    weights["logits.weight"] = weights["logits.weight"][:, :128]
    torch.save(weights, tmp_path / "narrow.pt")
    table = tmp_path / "faces.csv"
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("no photograph")
    table.write_text("image_path,person_name\na.png,Ana\nb.png,Bo\n")
    against = ["--against", tmp_path / "narrow.pt", "--standardise", "fixed"]
    assert main(list(map(str, ["evaluate", table, "--model", exported, *against]))) == 2
    printed = capsys.readouterr().err
    assert f"the embeddings of {exported} have 512 numbers, and those of " in printed
    assert "narrow.pt 128. Give the weights that the file was made from, and no file of logits." in printed
