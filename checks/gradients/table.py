"""Prints the result: verdict, judgements, worst tensors; with `verbose` the tables of stages as well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from rich.console import Console

from checks.core import thresholds
from checks.core.render import Row, Table, print_judgements, print_table
from checks.gradients.judge import describe_distance, worst_tensor
from checks.gradients.result import INPUT, GradientsResult, TensorDistance
from converter import command_line
from converter.home_folder import from_home
from converter.layer_map import ConvertedRow, Variant
from converter.layer_map import table as layer_table

_WIDTH = 110  # columns; a line may wrap, a figure is not cut off
_TRAININGS = {"sgd": "SGD", "adam": "Adam", "triplet": "triplets"}
_EXPLANATIONS = {
    "tensors": "number of tensors of the stage",
    "inference": "the largest distance of a gradient in inference from TensorFlow's (relative L2)",
    "training": "the same in training",
    "of": "the parameter with that distance",
    "state": "the largest distance of a tensor after the steps from TensorFlow's (relative L2)",
    "change": "the same for its change over the steps",
}
_WORST = 2  # tensors to list if a judgement fails


def print_result(result: GradientsResult, *, verbose: bool = False) -> None:
    """Print a result on stdout, the verdict first, in at most 15 lines.

    Args:
        result: The result.
        verbose: Whether to print the tables by stage as well, and all details of the judgements.
    """
    console = command_line.console(_WIDTH)
    console.print(
        "[bold green]Training continues as in TensorFlow.[/]"
        if result.passed
        else "[bold red]Training differs from TensorFlow's.[/]"
    )
    size = "x".join(map(str, result.batch_shape[1:3]))
    setting = f"{from_home(result.source)}: {result.batch_shape[0]} images of {size}, float64; {result.loss}"
    console.print(setting, markup=False)
    # `_print_worst` prints the details of the other judgements.
    statistics, *others = result.judgements
    width = max(len(judgement.name) for judgement in result.judgements)
    print_judgements(console, [statistics], most_details=12 if verbose else 1, width=width)
    print_judgements(console, others, most_details=12 if verbose else 0, width=width)
    _print_worst(console, result)
    if verbose:
        _print_tables(console, result)


def _print_worst(console: Console, result: GradientsResult) -> None:
    """Print the tensors that are furthest beyond their limit, with the TensorFlow variable of each."""
    by_key: dict[str, tuple[str, TensorDistance, float]] = {}
    for item in sorted(_beyond(result), key=lambda item: item[1].distance / item[2], reverse=True):
        by_key.setdefault(item[1].key, item)
    variables = _variables(result.variant)
    for key, (name, tensor, limit) in list(by_key.items())[:_WORST]:
        difference = f"{name}: {describe_distance(tensor.distance)}, at most {limit:.0e}"
        console.print(f"worst: {key} ({variables.get(key, 'no TensorFlow variable')})", markup=False)
        console.print(f"       {difference}", markup=False)
    if len(by_key) > _WORST:
        console.print(f"and {len(by_key) - _WORST} other tensors; --json FILE lists all of them")


def _variables(variant: Variant) -> dict[str, str]:
    """state_dict key to TensorFlow variable; the training graph has a gamma everywhere."""
    rows = [row for row in layer_table(replace(variant, gamma=True)) if isinstance(row, ConvertedRow)]
    variables = {INPUT: "the images", **{row.key: row.variable for row in rows}}
    if variant.gamma:
        return variables
    absent = ", which the checkpoint does not have"
    return {key: name + absent if name.endswith("/gamma") else name for key, name in variables.items()}


def _beyond(result: GradientsResult) -> Iterator[tuple[str, TensorDistance, float]]:
    """The quantity, the tensor and the limit, for every tensor beyond its limit."""
    quantities = [
        (f"gradient in {measured.mode}", measured.gradients, thresholds.GRADIENT)
        for measured in result.gradients
    ]
    for measured in result.steps:
        name = f"{measured.steps} steps of {_TRAININGS[measured.training]}"
        quantities.append((f"value after {name}", measured.state, thresholds.TRAINING_STEPS))
        quantities.append((f"change over {name}", measured.change, thresholds.TRAINING_STEPS))
    for name, tensors, limit in quantities:
        yield from ((name, tensor, limit) for tensor in tensors if not tensor.distance <= limit)


def _print_tables(console: Console, result: GradientsResult) -> None:
    gradients = {str(measured.mode): measured.gradients for measured in result.gradients}
    steps = {}
    for measured in result.steps:
        name = _TRAININGS[measured.training]
        steps[f"{name},\nstate"] = measured.state
        steps[f"{name},\nchange"] = measured.change
    print_table(console, _table("gradients", gradients, thresholds.GRADIENT, keys=True))
    title = f"after {result.steps[0].steps} steps"
    print_table(console, _table(title, steps, thresholds.TRAINING_STEPS))
    for measured in result.steps:
        first, last = measured.losses
        name = _TRAININGS[measured.training]
        console.print(f"loss with {name}: {first:.4g} in the first step, {last:.4g} in the last")


def _table(
    title: str, columns: Mapping[str, tuple[TensorDistance, ...]], limit: float, *, keys: bool = False
) -> Table:
    """A row for each stage: its number of tensors, and the worst of them in every column."""
    by_stage = [_by_stage(tensors) for tensors in columns.values()]
    rows = []
    for stage, tensors in by_stage[0].items():
        cells, failed = [str(len(tensors))], []
        for column in by_stage:
            worst = worst_tensor(column[stage])
            failed += [] if worst.distance <= limit else [len(cells)]
            cells.append(f"{worst.distance:.1e}")
            if keys:
                cells.append(worst.key.removeprefix(stage).removeprefix("."))
        rows.append(Row(stage, tuple(cells), tuple(failed)))
    headings = ["tensors"]
    for heading in columns:
        headings += [heading, "of"] if keys else [heading]
    explanations = [_EXPLANATIONS[heading.rpartition("\n")[2]] for heading in headings]
    return Table(title, tuple(headings), tuple(rows), explanations=tuple(explanations))


def _by_stage(tensors: Sequence[TensorDistance]) -> dict[str, list[TensorDistance]]:
    stages: dict[str, list[TensorDistance]] = {}
    for tensor in tensors:
        stages.setdefault(tensor.key.partition(".")[0], []).append(tensor)
    return stages
