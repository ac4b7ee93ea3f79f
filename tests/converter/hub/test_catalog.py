"""The catalog: the built-in checkpoints, those of the user, and the folders of their files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from converter.errors import SourceError
from converter.hub import cache, user_catalog
from converter.hub.catalog import BUILT_IN, BUILT_IN_BY_NAME, all_entries, find_entry
from converter.hub.catalog_entry import FIXED, PER_IMAGE, ArchiveSource, PackageSource
from converter.hub.identify import identify

ROOT = Path(__file__).parents[3]
DIGEST = "0123456789abcdef" * 4
MINIMAL = f'dataset = "faces"\nurl = "https://example.org/a.zip"\nsha256 = "{DIGEST}"\n'
SOURCES = 'dataset = "faces"\n'
PACKAGE = f"""[mine]
dataset = "faces"
[[mine.sources]]
package = "weights"
version = "1.0"
sha256 = "{DIGEST}"
members = {{ "w/a.h5" = "{DIGEST}" }}
"""
FULL = f"""
["my-model.2"]
dataset = "my-faces"
aliases = ["mine", "My_Alias"]
embedding_size = 256
num_classes = 99
lfw_accuracy = 0.5
standardisation = "per image"
drive_id = "0B5MzpY9kBtDVZ2RpVDYwWmxoSUk"
size = 1000
sha256 = "{DIGEST.upper()}"
files = {{ ".pb" = "{DIGEST}", "model-x.meta" = "{DIGEST[::-1]}" }}

[other]
{MINIMAL}
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """An empty home folder, without the environment variables that name other folders."""
    for variable in (user_catalog.VARIABLE, cache.VARIABLE, "TORCH_HOME", "TORCH_HUB"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def write(home, monkeypatch):
    def write(text: str | bytes) -> Path:
        path = home / "my.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        monkeypatch.setenv("FACENET_PORT_CATALOG", str(path))
        return path

    return write


# What is built in


def test_the_published_models_are_complete() -> None:
    assert [entry.name for entry in BUILT_IN] == [
        "20180402-114759", "20180408-102900", "20170512-110547", "20170511-185253", "mtcnn",
    ]  # fmt: skip
    *checkpoints, detector = BUILT_IN
    for entry in checkpoints:
        zipped = entry.sources[0]  # the author's own comes before a conversion of it
        assert isinstance(zipped, ArchiveSource)
        assert ".data-00000-of-00001" in zipped.files
        assert zipped.place == f"https://drive.google.com/file/d/{zipped.drive_id}"
        assert entry.standardisation == (FIXED if entry.name.startswith("2018") else PER_IMAGE)
        assert entry.networks == ()
    assert detector.networks == ("det1.npy", "det2.npy", "det3.npy")
    assert tuple(detector.sources[0].files) == detector.networks
    every = [
        digest
        for entry in BUILT_IN
        for source in entry.sources
        for digest in (source.sha256, *source.files.values())
    ]
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in every)
    assert len(every) == len(set(every)) == 21


def test_a_conversion_by_somebody_else_is_called_one() -> None:
    package = BUILT_IN_BY_NAME["20170512-110547"].sources[1]
    assert isinstance(package, PackageSource)
    assert "Keras conversion of this checkpoint" in package.note
    assert identify(package.files) is None


def test_the_published_pytorch_files() -> None:
    of = {checkpoint.name: checkpoint.state_dict for checkpoint in BUILT_IN}
    vggface2 = of["20180402-114759"]
    assert vggface2 is not None
    assert (vggface2.name, vggface2.size) == ("20180402-114759-vggface2.pt", 111_898_327)
    assert vggface2.url == (
        "https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/20180402-114759-vggface2.pt"
    )
    for checkpoint in BUILT_IN:
        if checkpoint.state_dict is not None:
            assert checkpoint.state_dict.name == checkpoint.state_dict_name


def test_a_data_set_alone_means_the_checkpoint_of_2018() -> None:
    assert find_entry("vggface2") is find_entry("20180402-114759") is BUILT_IN[0]
    assert find_entry("casia-webface") is BUILT_IN_BY_NAME["20180408-102900"]
    assert find_entry("vggface") is None
    assert find_entry("") is None


def test_a_file_is_matched_by_its_ending_or_its_whole_name() -> None:
    checkpoint = BUILT_IN[0]
    meta = checkpoint.sources[0].files[".meta"]
    assert checkpoint.digests("model-20180402-114759.meta") == {meta}
    assert checkpoint.digests("checkpoint") == frozenset()


def test_the_catalog_imports_next_to_nothing() -> None:
    program = (
        "import sys; from converter.hub.catalog import all_entries, find_entry; "
        "find_entry('vggface2'); all_entries(); "
        "slow = ('torch', 'numpy', 'gdown', 'requests', 'tomllib', 'unearth', 'httpx2', 'packaging'); "
        "print([name for name in slow if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (answer.stdout, answer.stderr) == ("[]\n", "")


# What users add


def test_a_users_checkpoints(write) -> None:
    write(FULL)
    assert all_entries()[: len(BUILT_IN)] == BUILT_IN
    mine, other = all_entries()[len(BUILT_IN) :]
    assert find_entry("mine") == find_entry("My_Alias") == find_entry("my-model.2") == mine
    assert (mine.dataset, mine.embedding_size, mine.num_classes, mine.lfw_accuracy) == (
        "my-faces",
        256,
        99,
        0.5,
    )
    assert mine.standardisation == PER_IMAGE
    files = {".pb": DIGEST, "model-x.meta": DIGEST[::-1]}
    drive_id = "0B5MzpY9kBtDVZ2RpVDYwWmxoSUk"
    assert mine.sources == (ArchiveSource(sha256=DIGEST, files=files, drive_id=drive_id, size=1000),)
    assert mine.digests("any.pb") == {DIGEST}
    assert mine.digests("model-x.meta") == {DIGEST[::-1]}
    assert mine.digests("not-model-x.meta") == frozenset()
    assert mine.state_dict_name == "my-model.2-my-faces.pt"
    assert mine.state_dict is None
    assert other.sources == (ArchiveSource(sha256=DIGEST, files={}, link="https://example.org/a.zip"),)
    assert (other.embedding_size, other.lfw_accuracy, other.standardisation) == (None,) * 3


def test_several_sources_in_the_order_of_the_file(write) -> None:
    write(f"""
[mine]
dataset = "faces"
[[mine.sources]]
drive_id = "0B5MzpY9kBtDV"
sha256 = "{DIGEST}"
[[mine.sources]]
package = "My-Weights"
version = "1.0"
sha256 = "{DIGEST[::-1]}"
members = {{ "my_weights-1.0/model/faces.h5" = "{DIGEST.upper()}" }}
[short]
dataset = "faces"
package = "my-weights"
version = "1.0"
sha256 = "{DIGEST}"
members = {{ "a.npy" = "{DIGEST}", "b/b.npy" = "{DIGEST}" }}
""")
    mine, short = all_entries()[len(BUILT_IN) :]
    zipped, package = mine.sources
    assert zipped == ArchiveSource(sha256=DIGEST, files={}, drive_id="0B5MzpY9kBtDV")
    assert isinstance(package, PackageSource)
    assert (package.package, package.version, package.sha256) == ("My-Weights", "1.0", DIGEST[::-1])
    assert package.files == {"faces.h5": DIGEST}
    assert mine.digests("faces.h5") == {DIGEST}
    assert short.sources[0].files == {"a.npy": DIGEST, "b.npy": DIGEST}


def test_where_the_file_is_looked_for(home, monkeypatch, write) -> None:
    assert all_entries() == BUILT_IN
    for folder, name in ((".config", "default"), ("xdg", "elsewhere")):
        path = home / folder / "facenet-port" / "catalog.toml"
        path.parent.mkdir(parents=True)
        path.write_text(f"[{name}]\n{MINIMAL}")
    assert [entry.name for entry in all_entries()[len(BUILT_IN) :]] == ["default"]
    monkeypatch.setenv("XDG_CONFIG_HOME", "xdg")
    assert [entry.name for entry in all_entries()[len(BUILT_IN) :]] == ["default"]
    monkeypatch.setenv("XDG_CONFIG_HOME", "~/xdg")
    assert [entry.name for entry in all_entries()[len(BUILT_IN) :]] == ["elsewhere"]
    write(f"[named]\n{MINIMAL}")
    assert [entry.name for entry in all_entries()[len(BUILT_IN) :]] == ["named"]


def test_a_file_that_is_named_has_to_be_there(home, monkeypatch) -> None:
    monkeypatch.setenv("FACENET_PORT_CATALOG", "~/missing.toml")
    with pytest.raises(SourceError, match=re.escape(f"{home}/missing.toml: the file does not exist")):
        all_entries()
    assert find_entry("vggface2") is BUILT_IN[0]  # a built-in name does not need it


@pytest.mark.parametrize("name", ["VGGFace2", "CASIA-WebFace", "NAMED"])
def test_capitals_make_no_difference(name, write) -> None:
    write(f"[named]\n{MINIMAL}")
    assert name.lower() in find_entry(name).labels


def test_a_catalog_that_is_a_pipe_is_not_waited_for(tmp_path, monkeypatch) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    monkeypatch.setenv("FACENET_PORT_CATALOG", str(tmp_path / "pipe.toml"))
    with pytest.raises(SourceError, match="not a regular file"):
        all_entries()


def with_line(line: str) -> str:
    """A table whose key of this line is replaced, or added."""
    key = line.split(" =")[0]
    kept = [other for other in MINIMAL.splitlines() if other.split(" =")[0] != key]
    return "\n".join(["[mine]", *kept, line])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (with_line('colour = "red"'), ["[mine]: unknown key 'colour'", "embedding_size"]),
        (with_line("dataset = 1"), ["[mine] dataset", "text"]),
        (with_line('dataset = "a/b"'), ["[mine]: 'a/b' cannot name a file"]),
        (with_line('aliases = "a"'), ["[mine] aliases", "list of names"]),
        (with_line('aliases = ["../a"]'), ["[mine]: '../a' cannot name a file"]),
        (with_line("aliases = [1]"), ["[mine]: 1 cannot name a file"]),
        (with_line("embedding_size = 0"), ["[mine] embedding_size", "above zero"]),
        (with_line("embedding_size = 512.0"), ["[mine] embedding_size", "whole number"]),
        (with_line("num_classes = true"), ["[mine] num_classes", "whole number"]),
        (with_line("lfw_accuracy = 99.65"), ["[mine] lfw_accuracy", "between 0.0 and 1.0"]),
        (with_line("lfw_accuracy = nan"), ["[mine] lfw_accuracy", "between 0.0 and 1.0"]),
        (with_line('standardisation = "prewhiten"'), ["[mine] standardisation", '"per image"']),
        (with_line('size = "1 MB"'), ["[mine] size", "in bytes"]),
        (with_line('sha256 = "abc"'), ["[mine] sha256", "64 hexadecimal digits"]),
        (with_line('files = { ".pb" = "abc" }'), ["[mine] files", "SHA-256"]),
        (with_line('files = { ".pb" = 1 }'), ["[mine] files", "SHA-256"]),
        (with_line('url = "ftp://example.org/a"'), ["[mine] url", "https or http"]),
        (with_line('url = "file:///etc/passwd"'), ["[mine] url", "https or http"]),
        (with_line('drive_id = "0B5MzpY9kBtDV"'), ["[mine]", "both", "exactly one"]),
        (with_line("drive_id = 1"), ["[mine] drive_id", "Google Drive link"]),
        (f'[mine]\ndataset = "a"\nsha256 = "{DIGEST}"', ["[mine]", "neither 'drive_id' nor 'url'"]),
        ('[mine]\ndataset = "a"\nurl = "https://example.org"', ["[mine]", "'sha256' is missing"]),
        (f'[mine]\nurl = "https://example.org"\nsha256 = "{DIGEST}"', ["[mine]", "'dataset' is missing"]),
        (with_line("sources = []"), ["[mine]: unknown key 'url'", "sources"]),
        (f"[mine]\n{SOURCES}sources = []", ["[mine] sources", "[[NAME.sources]]"]),
        (f"[mine]\n{SOURCES}sources = [1]", ["[mine] sources", "[[NAME.sources]]"]),
        (
            f'{PACKAGE}url = "https://example.org"',
            ["[mine.sources 1]", "both a zip and a package", "of its own"],
        ),
        (f'{PACKAGE}colour = "red"', ["[mine.sources 1]: unknown key 'colour'", "members"]),
        (f"{PACKAGE}[[mine.sources]]", ["[mine.sources 2]: the key 'sha256' is missing"]),
        (PACKAGE.replace("version = ", "#"), ["[mine.sources 1]: the key 'version' is missing"]),
        (PACKAGE.replace("members = ", "#"), ["[mine.sources 1]: the key 'members' is missing"]),
        (PACKAGE.replace('"1.0"', "1.0"), ["[mine.sources 1] version", "as text"]),
        (PACKAGE.replace('"1.0"', '"new"'), ["[mine.sources 1] version", "the version of a package"]),
        (PACKAGE.replace('"weights"', '"../weights"'), ["[mine.sources 1] package", "name of a package"]),
        (PACKAGE.replace("w/a.h5", "w/.."), ["[mine.sources 1] members", "full paths"]),
        (PACKAGE.replace("w/a.h5", "w/"), ["[mine.sources 1] members", "full paths"]),
        (PACKAGE.replace("w/a.h5", "w\\\\a.h5"), ["[mine.sources 1] members", "full paths"]),
        (PACKAGE.replace(DIGEST, "abc"), ["[mine.sources 1] sha256", "64 hexadecimal digits"]),
        (PACKAGE.replace(f'"{DIGEST}" }}', "1 }"), ["[mine.sources 1] members", "SHA-256"]),
        (PACKAGE.replace("{ ", f'{{ "v/A.h5" = "{DIGEST}", '), ["[mine.sources 1] members", "same name"]),
        (PACKAGE.replace(f'"w/a.h5" = "{DIGEST}"', ""), ["[mine.sources 1] members", "full paths"]),
        ("mine = 1", ["[mine] is not a table"]),
        (f'["../mine"]\n{MINIMAL}', ["[../mine]", "cannot name a file"]),
        (f'[".mine"]\n{MINIMAL}', ["[.mine]", "cannot name a file"]),
        (f'[""]\n{MINIMAL}', ["[]", "cannot name a file"]),
        (f'["20180402-114759"]\n{MINIMAL}', ["'20180402-114759'", "already belongs to '20180402-114759'"]),
        (f"[VGGFace2]\n{MINIMAL}", ["'VGGFace2'", "already belongs to '20180402-114759'"]),
        (with_line('aliases = ["casia-webface"]'), ["[mine]", "already belongs to '20180408-102900'"]),
        (f"[one]\n{MINIMAL}[ONE]\n{MINIMAL}", ["[ONE]", "already belongs to 'one'"]),
        (f'[one]\n{MINIMAL}[two]\naliases = ["One"]\n{MINIMAL}', ["[two]", "already belongs to 'one'"]),
        ("[mine\n", ["not TOML", "line 1"]),
        (f"[mine]\n{MINIMAL}[mine]\n{MINIMAL}", ["not TOML"]),
        (b"\xff\xfe", ["not TOML"]),
        ("a = " + "[" * 5000, ["not TOML"]),
    ],
)
def test_mistakes_in_a_catalog(text, says, write) -> None:
    path = write(text)
    with pytest.raises(SourceError) as caught:
        all_entries()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    for part in says:
        assert part in message, message
    assert message.endswith(".")
    assert message.count(". ") == 1, message  # what is wrong, then the fix


def test_every_key_that_is_read_is_documented() -> None:
    assert user_catalog.__doc__ is not None
    for key in (*user_catalog._KEYS, *user_catalog._ZIP_KEYS, *user_catalog._PACKAGE_KEYS):
        assert re.search(rf"\b{key}\b", user_catalog.__doc__), key


# Where things are kept


def test_the_cache_folder(home, monkeypatch) -> None:
    assert cache.cache_folder() == home / ".cache" / "facenet-port"
    for xdg, folder in (("xdg", ".cache"), ("~/xdg", "xdg"), (str(home / "xdg"), "xdg"), ("", ".cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)  # which its specification wants absolute
        assert cache.cache_folder() == home / folder / "facenet-port"
    monkeypatch.setenv("FACENET_PORT_CACHE", "~/own")
    assert cache.cache_folder() == home / "own"
    assert cache.model_folder_path(BUILT_IN[0], BUILT_IN[0].sources[0]) == (
        home / "own" / "models" / "20180402-114759-669f37d3954b72b5"
    )


@pytest.mark.parametrize("torch_home", [None, "", "torch-home", "~/torch-home", "/torch-home"])
@pytest.mark.parametrize("xdg", [None, "", "xdg", "~/xdg", "/xdg"])
def test_state_dicts_lie_where_torch_hub_keeps_them(torch_home, xdg, monkeypatch) -> None:
    for variable, value in (("TORCH_HOME", torch_home), ("XDG_CACHE_HOME", xdg)):
        if value is not None:
            monkeypatch.setenv(variable, value)
    assert cache.hub_checkpoints() == Path(torch.hub.get_dir()) / "checkpoints"
