"""Files that people take for a checkpoint: recognised by their contents, with the step that works."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from converter.errors import SourceError
from converter.free_names import free_name, quoted

HEAD_BYTES = 512
"""Bytes at the start of a file by which it is recognised."""

_LFS = b"version https://git-lfs.github.com/spec/"  # the first line of a pointer, by the specification
# Magic bytes: the name of the format, and the command that writes the file in it to stdout.
_COMPRESSED: Mapping[bytes, tuple[str, str]] = {
    b"\x1f\x8b": ("gzip", "gunzip -c"),
    b"BZh": ("bzip2", "bunzip2 -c"),
    b"\xfd7zXZ\0": ("xz", "unxz -c"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "unzstd -c"),
}
# Magic bytes: the name of the format, and the command that unpacks an archive into the current folder.
_ARCHIVES: Mapping[bytes, tuple[str, str]] = {
    b"7z\xbc\xaf\x27\x1c": ("7-Zip", "7z x"),
    b"Rar!\x1a\7": ("RAR", "unrar x"),
}
_COMPRESSED_TAR = re.compile(r"(.+)\.(tar\.\w+|tgz|tbz2?|txz|tzst)", re.IGNORECASE)
_TAR = slice(257, 262), b"ustar"  # POSIX.1-1988
_ORIGIN = "Give the checkpoint that it was made from"
_BY_ENDING = {".mlmodel": "Core ML", ".caffemodel": "Caffe"}
_TFLITE = slice(4, 8), b"TFL3"  # the file identifier of its FlatBuffer
# ModelProto of ONNX: ir_version, from 3 on, and then the name of the producer, the graph or the opsets.
_ONNX = re.compile(rb"\x08[\x03-\x20](\x12.[\x20-\x7e]|\x3a|\x42)", re.DOTALL)
# The first field of a GraphDef, MetaGraphDef or SavedModel in protobuf's text format.
_TEXT_GRAPH = re.compile(
    rb"\s*(#.*\n\s*)*(node|versions|library|meta_info_def|graph_def|meta_graphs|saved_model_schema_version)\s*[{:<]"
)


def recognise_placeholder(head: bytes) -> tuple[str, str] | None:
    """Recognise a pointer of Git LFS, or a page that was sent in place of a download.

    Args:
        head: Its first `HEAD_BYTES`.

    Returns:
        The problem and the next step, both clauses; None for any other file.
    """
    text = head.lstrip().lower()
    if head.startswith(_LFS):
        size = re.search(rb"\nsize (\d+)\n", head)
        of = f" of {int(size[1]):,} bytes" if size else ""
        problem = f"this is a pointer of Git LFS, not the file itself{of}"
        return problem, "Run `git lfs pull` in its repository, or download the file"
    if text.startswith((b"<!doctype", b"<html")):
        return (
            "this is a web page, not the file itself. Google Drive sends one when it asks for a confirmation "
            "or when its quota is used up",
            "Open the link in a browser and save the file itself",
        )
    if text.startswith(b"<?xml") and b"<error" in text:
        problem = "this is the error message of a server, not the file itself"
        return problem, "Check the link and download the file again"
    return None


def refuse_placeholder(path: Path, head: bytes) -> None:
    """Refuse a file that stands for another one, as `recognise_placeholder` says.

    Raises:
        SourceError: It is one.
    """
    if (recognised := recognise_placeholder(head)) is not None:
        problem, next_step = recognised
        raise SourceError(path, problem, next_step=next_step)


def is_onnx(head: bytes) -> bool:
    """Return whether a file starts as an ONNX model does; a SavedModel starts with a lower number."""
    return _ONNX.match(head) is not None


def is_tflite(head: bytes) -> bool:
    """Return whether a file has the identifier of a TFLite model."""
    return head[_TFLITE[0]] == _TFLITE[1]


def recognise(path: Path, head: bytes) -> tuple[str, str] | None:
    """Recognise a format that is not read, by the start of a file.

    Returns:
        The problem and the next step, both clauses; None for any other file.
    """
    for magic, (name, command) in {**_COMPRESSED, **_ARCHIVES}.items():
        if head.startswith(magic):
            return f"this file is compressed ({name})", _advise_to_unpack(path, command)
    if head[_TAR[0]] == _TAR[1]:
        return "this is a tar archive", _advise_to_untar(path, path.stem)
    for name, matches in (("a TFLite", is_tflite(head)), ("an ONNX", is_onnx(head))):
        if matches:
            audit = f"`facenet-port audit {path} --against CHECKPOINT` compares the two"
            return f"this is {name} graph, which is not converted", f"{_ORIGIN}. {audit}"
    if head.lstrip().startswith(b"<?xml") and b"<net " in head:
        return "this is a model of OpenVINO, which is not read", _ORIGIN
    if (framework := _BY_ENDING.get(path.suffix.lower())) is not None:
        return f"this is a model of {framework}, which is not read", _ORIGIN
    if _TEXT_GRAPH.match(head) or path.suffix == ".pbtxt":
        return (
            "this is a graph in text form (.pbtxt), which is not read, and most often without weights",
            "Give the checkpoint beside it; write a frozen one in binary form, in TensorFlow: "
            f"tf.io.write_graph(graph_def, '.', {free_name('frozen.pb')!r}, as_text=False)",
        )
    if len(head) == HEAD_BYTES and not any(head):
        problem = "it begins with zeros only, like an interrupted download or copy"
        return problem, "Download or copy it again"
    return None


def _advise_to_unpack(path: Path, command: str) -> str:
    """Advise on a compressed file of any name: nothing that exists is overwritten."""
    if tar := _COMPRESSED_TAR.fullmatch(path.name):
        return _advise_to_untar(path, tar[1])
    if not command.endswith("-c"):
        return f"Run `{command} {quoted(path)}` and give what was in it"
    ending = path.suffix.lower() in (".gz", ".bz2", ".xz", ".zst")
    result = free_name(path.stem if ending else path.name)
    return f"Run `{command} {quoted(path)} > {quoted(result)}` and give {result}"


def _advise_to_untar(path: Path, name: str) -> str:
    folder = quoted(free_name(name))
    return f"Run `mkdir {folder} && tar -xf {quoted(path)} -C {folder}` and give what was in it"


def recognise_text(head: bytes) -> tuple[str, str] | None:
    """Recognise a text file, as `recognise` does; some formats of models are text too, and come first."""
    text = head.decode(errors="replace").rstrip("\ufffd")
    is_text = all(letter.isprintable() or letter in "\r\n\t" for letter in text) and "\ufffd" not in text
    if not is_text or not text.strip():
        return None
    first_line = text.strip().splitlines()[0][:60]
    return (
        f"this is a text file, not a model; it begins with {first_line!r}",
        "Download or copy the model itself",
    )
