"""TensorFlow's side: a source's own graph, run on the same crops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from checks.core.inputs import IMAGE_SIZE
from checks.core.source_tensors import float32_variables, plan_source
from checks.core.tensorflow_side import open_own_graph, require_tensorflow
from converter.formats.detect import open_source
from converter.network_names import NetworkTensors
from faces.evaluate.embed_faces import Network


@dataclass(frozen=True, slots=True)
class TensorFlowGraph:
    """A graph of TensorFlow.

    Attributes:
        description: What it is, a clause.
        embed: The embeddings of standardised images.
    """

    description: str
    embed: Network


@contextmanager
def open_graph(source: Path) -> Iterator[TensorFlowGraph]:
    """Open a source's own graph; of a source without one, the network rebuilt with its weights.

    Raises:
        RequirementError: TensorFlow is not installed.
        UsageError: The source is a state_dict.
        SourceError: The source is unreadable or corrupt, or its own graph cannot be run.
        MappingError: It is another network.
    """
    require_tensorflow("to run the graph of --against")
    with open_source(source) as opened:
        named = NetworkTensors(opened)
        tensors, plan = plan_source(named, "variable")
        own = open_own_graph(named, "variable")
        if own is not None and own.supports(IMAGE_SIZE, IMAGE_SIZE):
            with own:
                yield TensorFlowGraph(f"its own graph, {own.path.name}", _embedder(own))
            return
        from facenet_tf.rebuilt_network import RebuiltNetwork

        with RebuiltNetwork(float32_variables(named, tensors, plan)) as rebuilt:
            yield TensorFlowGraph(
                f"the network rebuilt with the weights of {source.name}", _embedder(rebuilt)
            )


def _embedder(network: Any) -> Network:
    def embed(images: NDArray[Any]) -> NDArray[Any]:
        embeddings: NDArray[Any] = network.run(images, ["embeddings"])["embeddings"]
        return embeddings

    return embed
