"""Sort the faces of a folder into people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from converter.errors import RequirementError
from faces.cluster.result import ClusterResult
from faces.distance import DISTANCES, Distance
from faces.embed.run import embed, find_images
from faces.embedder import Embedder, Progress
from faces.options import require_packages
from faces.threshold import explain_no_threshold


def cluster(
    source: str | Path,
    *,
    threshold: str | Path | None = None,
    embedder: Embedder | None = None,
    progress: Progress = lambda done, total: None,
) -> ClusterResult:
    """Sort the faces of a folder into people.

    Clusters are merged while the mean distance of their faces is below the threshold: scikit-learn's
    agglomerative clustering with average linkage. The distances of N faces take 8 N^2 bytes.

    Args:
        source: A folder or table, as for `embed`; the names of people are not used.
        threshold: A result of `facenet-port evaluate --json` with the same model. None takes the one that was
            measured for the default model.
        embedder: The model and the options; None takes the defaults.
        progress: Progress callback: images done, and their number.

    Raises:
        UsageError, SourceError: As for `embed`.
        RequirementError: No threshold is known for the model, or a package or weights are missing.
    """
    require_packages("cluster", sklearn="scikit-learn")
    embedder = embedder or Embedder()
    images, _ = find_images(Path(source))
    crop = embedder.find_crop(images)
    embedder.expect(len(images))
    found = embedder.find_threshold(threshold, crop)
    if found is None:
        raise RequirementError(explain_no_threshold(embedder.model.facts, crop))
    embedded = embed(source, threshold=threshold, embedder=embedder, progress=progress)
    labels = cluster_embeddings(embedded.embeddings.values, found.distance, found.value)
    clusters = [tuple(np.flatnonzero(labels == label).tolist()) for label in np.unique(labels)]
    return ClusterResult(embedded, tuple(sorted(clusters, key=lambda places: (-len(places), places))), found)


def cluster_embeddings(values: NDArray[Any], distance: Distance, threshold: float) -> NDArray[np.int64]:
    """Cluster embeddings: the number of the cluster of each.

    Args:
        values: (N, E), at least one row.
        distance: The measure of distance.
        threshold: Clusters whose mean distance is below it become one.

    Returns:
        (N).
    """
    from sklearn.cluster import AgglomerativeClustering

    if len(values) == 1:
        return np.zeros(1, np.int64)
    rows = values.astype(np.float64)
    distances = np.stack([DISTANCES[distance](rows, row[None]) for row in rows])
    distances = (distances + distances.T) / 2  # NumPy may sum a row and a column in another order
    clustering = AgglomerativeClustering(
        n_clusters=None, metric="precomputed", linkage="average", distance_threshold=threshold
    )
    labels: NDArray[np.int64] = clustering.fit_predict(distances).astype(np.int64)
    return labels
