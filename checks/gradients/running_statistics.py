"""The judgement of BatchNorm's running statistics: PyTorch moves them as the checkpoint's own graph does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from checks.core.judgement import Judgement
from checks.core.network import short_name
from checks.core.tensorflow_side import WITHOUT_OWN_GRAPH, find_own_graph
from converter.errors import SourceError
from converter.layer_map import ConvertedRow, Variant, table
from converter.network_names import NetworkTensors
from converter.plan import Weights
from reference import InceptionResnetV1

if TYPE_CHECKING:
    from facenet_tf.batch_norm_updates import VarianceUpdate

NAME = "statistics"
"""Name of the judgement."""


def read_updates(
    source: NetworkTensors, weights: Weights
) -> tuple[Mapping[str, VarianceUpdate], Path | None]:
    """Read how the source's own graph moves its variances.

    Returns:
        The updates by scope of the BatchNorm, and the file of the graph. Without a graph there are no
        updates, and the file is None.

    Raises:
        SourceError: The graph's updates have an unknown form.
    """
    from facenet_tf.batch_norm_updates import read_variance_updates
    from facenet_tf.graph_nodes import GraphError
    from facenet_tf.own_graph import read_graph

    file = find_own_graph(source.source)
    if file is None:
        return {}, None
    path, kind = file
    try:
        return read_variance_updates(path, read_graph(path, kind, weights, source.prefix)), path
    except GraphError as error:
        problem = f"the updates of its running variances cannot be read: {error.problem}"
        next_step = f"{WITHOUT_OWN_GRAPH[kind]} to check against slim's fused BatchNorm"
        raise SourceError(path, problem, next_step=next_step) from error


def judge_statistics(
    updates: Mapping[str, VarianceUpdate],
    model: InceptionResnetV1,
    graph: Path | None,
    variant: Variant,
    images: int,
) -> Judgement:
    """Judge that PyTorch's BatchNorms move their running statistics as the checkpoint's own graph does.

    Args:
        updates: As `read_updates` gives them.
        model: The port.
        graph: The file of the graph, or None.
        variant: The variant of the network.
        images: Number of images in a batch, for the size of a difference.
    """
    if not updates:
        reason = "no training graph in this file" if graph is None else f"{graph.name} has no updates"
        statement = f"{reason}; slim's fused BatchNorm is assumed: n/(n-1) of the variance, decay 0.995"
        return Judgement(NAME, True, statement)
    assert graph is not None
    details = _differences(updates, _batch_norms(model, variant), graph)
    biased = [scope for scope, update in updates.items() if update.biased]
    if biased:
        others = f" and {len(biased) - 1} more" if len(biased) > 1 else ""
        details.append(
            f"{short_name(biased[0])}{others}: towards the biased variance (tf.nn.moments). PyTorch moves "
            f"towards n/(n-1) of it, with n values in a channel: {images / (images - 1):.2f} times at the "
            f"Bottleneck of {images} images"
        )
    if details:
        statement = f"{graph.name} and PyTorch's BatchNorm move running statistics differently"
    else:
        operations = " and ".join(sorted({update.operation for update in updates.values()}))
        statement = f"{len(updates)} running variances move as PyTorch's do ({operations} in {graph.name})"
    return Judgement(NAME, not details, statement, tuple(details))


def _batch_norms(model: InceptionResnetV1, variant: Variant) -> dict[str, nn.BatchNorm1d]:
    """The model's BatchNorms by TensorFlow scope."""
    return {
        row.variable.rpartition("/")[0]: model.get_submodule(row.key.rpartition(".")[0])  # type: ignore[misc]
        for row in table(variant)
        if isinstance(row, ConvertedRow) and row.key.endswith(".running_var")
    }


def _differences(
    updates: Mapping[str, VarianceUpdate], norms: Mapping[str, nn.BatchNorm1d], graph: Path
) -> list[str]:
    """A line for each BatchNorm that one side does not update, or that both update at different speeds."""
    details = [f"{scope}: {graph.name} does not update it" for scope in norms if scope not in updates]
    for scope, update in updates.items():
        if scope not in norms:
            details.append(f"{scope}: in {graph.name}, not in the network")
            continue
        momentum = norms[scope].momentum
        # The graph holds 1 - decay in float32.
        if momentum is None or not math.isclose(1 - update.decay, momentum, rel_tol=2**-23):
            details.append(f"{short_name(scope)}: decay {update.decay:.6g}, PyTorch's momentum is {momentum}")
    return details
