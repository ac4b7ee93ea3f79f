"""From the name of a published model to the folder of its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.errors import RequirementError, SourceError
from converter.hub.locate import locate
from reference import InceptionResnetV1


@pytest.mark.parametrize("name", ["vggface2", "casia-webface", "20180402-114759", "20170511-185253"])
def test_published_names_are_known(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FACENET_PORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(RequirementError, match=r"https://drive\.google\.com/file/d/") as caught:
        locate(name, offline=True)
    assert caught.value.exit_code == 4
    with pytest.raises(RequirementError, match="offline mode is on"):
        InceptionResnetV1(pretrained=name, offline=True)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_a_path():
    assert locate("weights") == Path("weights")


@pytest.mark.parametrize("name", ["vgface2", "vggface20", "VGGFace", "20180402-114758"])
def test_a_misspelt_name_gets_the_closest_one(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=r"published model\. Did you mean (vggface2|20180402-114759)\?"):
        locate(name)
    (tmp_path / name).touch()
    assert locate(name) == Path(name)


def test_a_folder_wins_over_a_published_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vggface2").mkdir()
    assert locate("vggface2") == Path("vggface2")


@pytest.mark.parametrize("name", ["", "a\0b", "n" * 5000])
def test_a_name_that_no_path_can_have_is_a_path_that_does_not_exist(name):
    assert locate(name) == Path(name)
