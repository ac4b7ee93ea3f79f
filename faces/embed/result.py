"""The result of `embed`, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from converter.errors import SourceError
from faces.backends.facts import BackendFacts
from faces.embeddings import Embeddings
from faces.model import ModelFacts


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """The result of `embed`: that of all processes, if several share the work.

    Attributes:
        source: The folder or table.
        output: The file or the folder of parts that was written; None if none was asked for.
        embeddings: The embeddings.
        model: The network.
        without_face: The photographs without a face.
        problems: The errors on files that could not be read.
        detector: What ran the detector in this process; None if all images were crops or had a box.
    """

    source: Path
    output: Path | None
    embeddings: Embeddings
    model: ModelFacts
    without_face: tuple[Path, ...]
    problems: tuple[SourceError, ...]
    detector: BackendFacts | None = None

    @property
    def exit_code(self) -> int:
        """0 if every image has an embedding; 1 if one has no face; 3 if a file could not be read."""
        return 3 if self.problems else 1 if self.without_face else 0

    def as_json(self) -> Mapping[str, Any]:
        """The result in the form that `--json` writes."""
        return {
            "source": str(self.source),
            "output": None if self.output is None else str(self.output),
            **self.embeddings.origin.as_json(),
            "detector": self.detector and asdict(self.detector),
            "dimensions": self.embeddings.values.shape[1],
            "faces": [
                {"path": str(file), "person": person, "box": box}
                for file, person, box in zip(
                    self.embeddings.files, self.embeddings.people, self.embeddings.boxes, strict=True
                )
            ],
            "without_face": [str(file) for file in self.without_face],
            "problems": [str(problem) for problem in self.problems],
        }
