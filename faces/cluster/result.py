"""The result of `cluster`, as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from faces.embed.result import EmbedResult
from faces.threshold import Threshold


@dataclass(frozen=True, slots=True)
class ClusterResult:
    """The faces of a folder in clusters, each of which stands for a person.

    Attributes:
        embedded: The faces and their embeddings.
        clusters: The places of the faces of each cluster, the largest cluster first.
        threshold: The threshold that the mean distance of two clusters has to reach for them to stay apart.
    """

    embedded: EmbedResult
    clusters: tuple[tuple[int, ...], ...]
    threshold: Threshold

    @property
    def alone(self) -> int:
        """The number of clusters of one face."""
        return sum(len(cluster) == 1 for cluster in self.clusters)

    @property
    def exit_code(self) -> int:
        """As for `embed`."""
        return self.embedded.exit_code

    def people(self, cluster: tuple[int, ...]) -> list[tuple[str, int]]:
        """The people of a cluster by the names of their folders, each with its faces, most faces first."""
        names = self.embedded.embeddings.people
        return Counter(names[place] for place in cluster if names[place]).most_common()

    def as_json(self) -> Mapping[str, Any]:
        """The result in the form that `--json` writes."""
        result = self.embedded.as_json()
        faces = result["faces"]
        return {
            **{name: value for name, value in result.items() if name not in ("faces", "output")},
            "threshold": self.threshold.as_json(),
            "clusters": [[faces[place] for place in cluster] for cluster in self.clusters],
        }
