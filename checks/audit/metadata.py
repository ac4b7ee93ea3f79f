"""The metadata that `facenet-port export` writes into a graph: its sentences, and their judgement."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from checks.audit.graphs.graph import Graph
from checks.audit.result import GraphRun
from checks.core.judgement import Judgement
from checks.core.types import Arrays
from checks.core.weights_digest import weights_digest

WEIGHTS, STANDARDISATION, INPUT, OUTPUT = "weights_sha256", "standardisation", "input", "output"
"""Keys that are judged. The others state the source, its licence and the tool."""

_OWN_KEYS = (WEIGHTS, STANDARDISATION, "source_sha256")
"""Keys that no other tool writes: a file with one of them is an export, and has to state what is judged."""

NOT_STATED = "not stated"

EMBEDDINGS, LOGITS = "embeddings of length one", "logits"
"""The outputs of an export, in the words of `GraphRun.gives`."""

MTCNN_OUTPUTS = {
    "prob1": "probabilities",
    **dict.fromkeys(("conv4-2", "conv5-2", "conv6-2"), "offsets"),
    "conv6-3": "landmarks",
}
"""The layer of MTCNN behind an output of an export, to the name of the output."""

_Shape = tuple[int | None, ...]


def describe_input(shape: _Shape, dtype: str, *, baked: bool, order: str = "RGB") -> str:
    """Describe the input of a graph.

    Args:
        shape: Its shape; None for a variable extent.
        dtype: Its dtype.
        baked: Whether the graph standardises images itself.
        order: The order of the channels.
    """
    images = "pixels of 0 to 255, which the graph standardises" if baked else "images, standardised before"
    return f"{dtype} {describe_shape(shape)}: {order} {images}"


def describe_output(shape: _Shape, gives: str, dtype: str = "float32") -> str:
    """Describe the output of a graph; `gives` is one of `EMBEDDINGS` and `LOGITS`."""
    return f"{dtype} {describe_shape(shape)}: {gives}"


def find_facts(graph: Graph, run: GraphRun, trained: str | None, weights: Arrays) -> Mapping[str, str | None]:
    """Find what the metadata of a graph should state; None for what is not known.

    Args:
        graph: The graph.
        run: Its run.
        trained: The standardisation in the training of the checkpoint; None where it is not known.
        weights: The source's state_dict.
    """
    taken, given = graph.inputs[0], graph.outputs[0]
    fed, got = map(graph.dtype_in_file, (taken, given))
    return {
        WEIGHTS: weights_digest(weights),
        STANDARDISATION: run.baked or trained,
        INPUT: describe_input(taken.shape, fed, baked=run.baked is not None, order=run.order),
        OUTPUT: describe_output(given.shape, run.gives, got),
    }


def judge_metadata(graph: Graph, find_facts: Callable[[], Mapping[str, str | None]]) -> Judgement | None:
    """Judge what a graph states about itself by the facts; None if it states nothing."""
    stated = graph.metadata
    if stated.keys().isdisjoint(_OWN_KEYS):
        return None
    facts = find_facts()
    details = tuple(
        f"it states the {key} {stated.get(key, NOT_STATED)!r}, but the file has {value!r}"
        for key, value in facts.items()
        if value is not None and stated.get(key) != value
    )
    *others, last = (key.removesuffix("_sha256") for key, value in facts.items() if value is not None)
    statement = f"its {', '.join(others)} and {last} are as it states"
    if details:
        wrong = " and ".join(key for key, value in facts.items() if value and stated.get(key) != value)
        statement = f"it does not have the {wrong} that it states"
    return Judgement("metadata", not details, statement, details)


def describe_shape(shape: _Shape) -> str:
    """Write the extents of a shape: N for a variable number of images, "any" for another variable extent."""
    if not shape:
        return "of a shape that the file does not state"
    batch, *others = ("any" if extent is None else str(extent) for extent in shape)
    return f"({', '.join(('N' if batch == 'any' else batch, *others))})"
