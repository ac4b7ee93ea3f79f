"""The metadata that `facenet-port export` writes into a graph, and the sentences in it."""

from __future__ import annotations

WEIGHTS, STANDARDISATION, INPUT, OUTPUT = "weights_sha256", "standardisation", "input", "output"
"""Keys that an audit judges. The others state the source, its licence and the tool."""

NOT_STATED = "not stated"

_OUTPUTS = {
    "embeddings": ", each of length one",
    "logits": ", of which softmax gives probabilities",
}


def describe_input(shape: tuple[int | None, ...], dtype: str, standardisation: str, *, baked: bool) -> str:
    """Describe the input of a graph.

    Args:
        shape: Its shape; None for a variable extent.
        dtype: Its dtype.
        standardisation: The standardisation of images, or `NOT_STATED`.
        baked: Whether the graph standardises them itself.
    """
    if baked:
        return f"{dtype} {_extents(shape)}: RGB pixels of 0 to 255, which the graph standardises"
    return f"{dtype} {_extents(shape)}: RGB images, standardised before; how: {standardisation}"


def describe_output(name: str, shape: tuple[int | None, ...]) -> str:
    """Describe the output of a graph, `embeddings` or `logits`."""
    return f"float32 {_extents(shape)}: {name}{_OUTPUTS[name]}"


def _extents(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("N" if extent is None else str(extent) for extent in shape) + ")"
