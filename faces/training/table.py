"""A training on the terminal."""

from __future__ import annotations

from converter.command_line import console
from converter.counts import counted
from faces.training.result import TrainResult

NAMES = {"eer": "equal error rate", "auc": "area under the curve", "pairs_accuracy": "pairs, best threshold"}
"""The figures of a validation whose name says too little, and what they are called."""


def print_result(result: TrainResult) -> None:
    """Print the figures before and after, and where the weights are."""
    out = console()
    for line in _lines(result):
        out.print(line, markup=False)


def _lines(result: TrainResult) -> list[str]:
    config, after = result.config, result.after
    trained = set(result.people)
    known = sum(person in trained for person in result.validated_people)
    lines = [
        f"Validated on {counted(len(result.validated_faces), 'face')} of {len(result.validated_people)} "
        f"people; {known} of these people were trained on"
    ]
    if result.folder is not None:
        lines.insert(
            0,
            f"Trained on {counted(result.trained_faces, 'face')} of {len(result.people)} people, "
            f"{counted(config.epochs, 'epoch')}: {result.folder}",
        )
        frozen = "kept as in the weights" if result.frozen_batch_norm else "trained"
        lines.append(f"images  {result.standardisation} standardisation; BatchNorm is {frozen}")
    before = {} if result.before is None else result.before.figures
    for name, value in after.figures.items():
        shown = "not defined" if value is None else f"{value:.4f}"
        earlier = before.get(name)
        at_first = "" if earlier is None or name == "loss" else f"  (before: {earlier:.4f})"
        lines.append(f"{NAMES.get(name, name):22}{shown}{at_first}")
    if result.folder is not None:
        lines.append(
            f"weights  {result.folder / 'best'}, of epoch {result.best_epoch}; {result.folder / 'last'}"
        )
    return [*lines, *result.notes]
