"""Prints the result of a comparison: verdict, judgements, explanation; with `verbose` the tables as well."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from rich.console import Console

from checks.compare.explanation import explain, verdict
from checks.compare.result import ActivationMeasurement, CompareResult, InputMeasurement
from checks.core import thresholds
from checks.core.activations import LAYERS, STAGES
from checks.core.inputs import NOISE
from checks.core.network import short_name
from checks.core.render import Row, Table, print_judgements, print_table
from checks.core.rounding import describe_share, worst_share
from converter import command_line
from converter.home_folder import from_home

_WIDTH = 118  # columns; a line may wrap, a figure is not cut off
_ULP_SHARE = 0.99

ACTIVATION_COLUMNS = (
    (
        "float64\nerror",
        "PyTorch from TensorFlow, both in float64, as relative L2: |PyTorch - TensorFlow| / |TensorFlow|",
    ),
    ("float32\nerror", "PyTorch from TensorFlow, both in float32, as relative L2"),
    ("float32\nmax abs", "the largest absolute difference in float32"),
    ("float32\n1 - cos", "1 minus the smallest cosine between the two activations of one image, in float32"),
    ("ULP\nmedian", "half of the float32 values are at most this many floats apart"),
    ("ULP\n99 %", "99 of 100 float32 values are at most this many floats apart; most others are near 0"),
    (
        "rounding",
        "the layer's error in float32 on its own input, as a share of what rounding allows",
    ),
)
"""Heading and explanation of each of `_activation_cells`."""

INPUT_COLUMNS = (
    (
        "float64\ndistance",
        "of the embeddings, both in float64: the root of all squared differences (Frobenius). MTCNN: the "
        "largest distance of one window's outputs",
    ),
    (
        "worst float64\nerror",
        "the largest of the activations' float64 errors, as in the table of activations",
    ),
    ("float32\ndistance", "the same in float32; of standard normal images the headline judgement bounds it"),
    ("largest row,\nfloat32", "the largest float32 distance of one embedding, or of one window's outputs"),
    ("worst\nrounding", "the largest of the layers' figures of this name"),
    (
        "TensorFlow's\nfloat32 graph",
        "the checkpoint's own graph, or the graph that is rebuilt from its weights",
    ),
)
"""Heading and explanation of each of `_input_cells`."""

Columns = Sequence[tuple[str, str]]


def print_result(result: CompareResult, *, verbose: bool = False) -> None:
    """Print a result on stdout.

    Args:
        result: The result.
        verbose: Whether to print the tables of activations and inputs, and every detail of a judgement.
    """
    console = command_line.console(_WIDTH)
    console.print(f"{verdict(result)}:", style="bold green" if result.passed else "bold red", end=" ")
    source = from_home(result.source)
    judged = (
        f"converted from {source}"
        if result.state_dict is None
        else f"{from_home(result.state_dict)} against {source}"
    )
    graph = f"TensorFlow graph: {result.own_graph or 'rebuilt'}"
    if result.device != "cpu":
        graph += f"; PyTorch's float32 on {result.device}"
    console.print(f"{judged} ({'only tensors are judged' if result.broken else graph})", markup=False)
    for statement in result.names:
        _print_line(console, "Names", statement)
    print_judgements(console, result.judgements, most_details=12 if verbose else 0)
    for label, sentence in explain(result):
        _print_line(console, label, sentence)
    if result.repair is not None:
        _print_line(console, "Repair", result.repair.statement)
    if result.saved is not None:
        size = f"{result.saved.size / 1e6:.1f} MB"
        path = from_home(result.saved.path)
        _print_line(console, "Stored", f"{path}, {size}, SHA-256 {result.saved.sha256}")
    if verbose and result.broken is not None:
        for name, values in result.broken.tensors.items():
            console.print(f"  {name}: {values}", markup=False)
    if result.inputs and not verbose:
        console.print(
            "The figures of every activation and input: --verbose, or --report FILE.html", style="dim"
        )
    elif result.inputs:
        shown = result.diverging or result.inputs[0]
        print_table(console, activation_table(shown, f"activation ({shown.label})"))
        print_table(console, input_table(result.inputs))


def _print_line(console: Console, label: str, sentence: str) -> None:
    console.print(f"[bold]{label:<8}[/]", end=" ")
    console.print(sentence, markup=False)


def activation_table(batch: InputMeasurement, heading: str = "activation") -> Table:
    """Tabulate the figures of every activation on an input; stages stand out among convolutions."""
    rows = []
    has_layers = len(batch.activations) > len(STAGES) + 2
    for measured in batch.activations:
        is_stage = measured.activation not in LAYERS or measured.activation in STAGES
        name, cells = short_name(measured.activation), _activation_cells(measured, batch)
        rows.append(Row(name, cells, _failed_activation_cells(measured, batch), has_layers and is_stage))
    return _table(heading, ACTIVATION_COLUMNS, rows)


def input_table(inputs: Sequence[InputMeasurement]) -> Table:
    """Tabulate the figures of every input."""
    rows = [Row(batch.label, _input_cells(batch), _failed_input_cells(batch)) for batch in inputs]
    return _table("input", INPUT_COLUMNS, rows, text_columns=1)


def _table(name: str, columns: Columns, rows: Sequence[Row], text_columns: int = 0) -> Table:
    headings, explanations = zip(*columns, strict=True)
    return Table(name, headings, tuple(rows), text_columns, explanations)


def _activation_cells(measured: ActivationMeasurement, batch: InputMeasurement) -> tuple[str, ...]:
    """Format the figures of an activation on an input."""
    return (
        _cell(measured.float64.relative_l2),
        _cell(measured.float32.relative_l2),
        _cell(measured.float32.max_abs),
        _cell(1 - measured.float32.cosine, ".0e"),
        _short(measured.float32.median_ulp),
        _ulps_of_most(measured.float32.ulp_histogram),
        describe_share(batch.rounding_shares.get(measured.activation, 0.0)),
    )


def _failed_activation_cells(measured: ActivationMeasurement, batch: InputMeasurement) -> tuple[int, ...]:
    """Find the indices of the `_activation_cells` that fail a judgement."""
    rounding = batch.rounding_shares.get(measured.activation, 0.0)
    failed = {0: measured.diverges, 6: not rounding <= 1}
    return tuple(index for index, fails in failed.items() if fails)


def _cell(value: float, form: str = ".1e") -> str:
    """Format a figure; a dash stands for one of values that are not finite, or of another shape."""
    return f"{value:{form}}" if math.isfinite(value) else "-"


def _ulps_of_most(histogram: Sequence[int]) -> str:
    """The least bound of the histogram's bins that 99 of 100 values are within."""
    if not histogram:  # an array of another shape, or no value is finite
        return _cell(math.inf)
    enough = math.ceil(_ULP_SHARE * sum(histogram))
    index = next(index for index, below in enumerate(accumulate(histogram)) if below >= enough)
    return _short(2 ** (index - 1) if index else 0)


def _short(steps: float) -> str:
    return _cell(steps, "g" if steps <= 9999 else ".0e")


def _input_cells(batch: InputMeasurement) -> tuple[str, ...]:
    """Format the figures of an input."""
    return (
        _cell(batch.distance64),
        _cell(max(measured.float64.relative_l2 for measured in batch.activations)),
        _cell(batch.distance32, ".2e"),
        _cell(batch.row_distance32),
        describe_share(worst_share(batch.rounding)),
        "own" if batch.own_graph else "rebuilt",
    )


def _failed_input_cells(batch: InputMeasurement) -> tuple[int, ...]:
    """Find the indices of the `_input_cells` that fail a judgement."""
    headline = batch.name == NOISE and batch.outputs == "embeddings"
    failed = {
        0: not batch.distance64 <= thresholds.MAPPING,
        1: batch.first_divergence is not None,
        2: headline and not batch.distance32 <= thresholds.HEADLINE,
        3: headline and not batch.row_distance32 <= thresholds.HEADLINE_ROW,
        4: any(layer.exceeds for layer in batch.rounding),
    }
    return tuple(index for index, fails in failed.items() if fails)
