"""The result of a conversion as tables for the terminal and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from converter.command_line import console as make_console
from converter.convert_file import Conversion
from converter.convert_folder import FolderConversion
from converter.counts import counted
from converter.home_folder import from_home
from converter.hub.locate import LocalModel
from converter.layer_map import NETWORK_SCOPE
from converter.layouts import Layout
from converter.manifest import describe_network
from converter.mtcnn_layer_map import MtcnnNetwork, Network


def print_conversion(conversion: Conversion) -> None:
    """Print the files read, the layer map by module, and the files written."""
    console = make_console()
    plan = conversion.plan
    if conversion.model is not None:
        _print_model(console, conversion.model)
    console.print(f"[bold]{escape(from_home(conversion.source))}[/] ({conversion.source_format})")
    for name, digest in conversion.source_digests.items():
        console.print(f"  sha256 {digest}  {escape(name)}")
    if conversion.published:
        console.print(f"  this is the published checkpoint {conversion.published}, by its SHA-256")
    if conversion.namesake:
        console.print(
            f"  this is [bold]not[/] the published checkpoint {conversion.namesake}, by its SHA-256"
        )
    for statement in conversion.names:
        console.print(f"  {statement}", markup=False)
    weights = "" if conversion.source_naming == "pytorch" else f", from the {plan.weights}s"
    console.print(f"  {_describe_network(plan.network)}{weights}\n")
    console.print(_table(conversion))
    console.print(f"\n{_summary(conversion)}")
    for statement in conversion.cast_statements:
        console.print(escape(statement))
    for reason, count in Counter(item.reason for item in conversion.left_out).items():
        console.print(f"{count} left out: {reason}")
    console.print("Read back and compared bit for bit:")
    for path, digest in conversion.outputs.items():
        console.print(f"  sha256 {digest}  {escape(str(path))}")


def _print_model(console: Console, model: LocalModel) -> None:
    """Print where a published model is from, what its files are, and the standardisation of its input."""
    console.print(f"{model.entry.name}, from {model.source.place}, pinned by its SHA-256", markup=False)
    if model.source.note:
        console.print(f"  {model.source.note}", markup=False)
    if model.entry.standardisation is not None:
        console.print(f"  input: {model.entry.standardisation}", markup=False)


def _describe_network(network: Network) -> str:
    if isinstance(network, MtcnnNetwork):
        return str(network)
    classes = "no logits" if network.num_classes is None else counted(network.num_classes, "class", "classes")
    return f"{network.embedding_size}-d embedding, {classes}, {'with gamma' if network.gamma else 'no gamma'}"


# (whether keys of a state_dict are read, whether they are written): what is read stands on the left.
_HEADINGS = {
    (False, True): ("TensorFlow scope", "PyTorch module", "variables", "keys", "added", "layout"),
    (True, False): ("PyTorch module", "TensorFlow scope", "keys", "variables", "dropped", "layout"),
    (True, True): ("PyTorch module", "keys"),
    (False, False): ("TensorFlow scope", "variables"),
}
_NUMBERS = ("variables", "keys", "added", "dropped")


def _direction(conversion: Conversion) -> tuple[bool, bool]:
    """Return whether keys of a state_dict were read, and whether they were written."""
    return conversion.source_naming == "pytorch", conversion.output_format not in ("tensorflow", "npy")


def _table(conversion: Conversion) -> Table:
    """Tabulate the stages of the network in the direction of the conversion."""
    headings = _HEADINGS[_direction(conversion)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, justify="right" if heading in _NUMBERS else "left", no_wrap=True)
    for stage in _stages(conversion):
        table.add_row(*(stage[heading] for heading in headings))
    return table


def _stages(conversion: Conversion) -> Iterator[dict[str, str]]:
    """Yield the row of each stage, by heading; its layout is that of its weights."""
    reads_keys, writes_keys = _direction(conversion)
    variables: dict[str, list[str]] = {}
    layouts: dict[str, Layout] = {}
    absent = frozenset() if writes_keys else conversion.absent
    keys = Counter(row.key.split(".")[0] for row in conversion.plan.rows if row.key not in absent)
    for row in conversion.plan.converted:
        module = row.key.split(".")[0]
        variables.setdefault(module, []).append(row.variable)
        layouts.setdefault(module, row.layout.inverse if reads_keys else row.layout)
    for module, names in variables.items():
        scopes = dict.fromkeys(_outer_scope(name) for name in names)
        first, last = next(iter(scopes)), next(reversed(scopes))
        others = str(keys[module] - len(names))
        yield {
            "TensorFlow scope": first if first == last else f"{first} ... {last.rpartition('_')[2]}",
            "PyTorch module": module,
            "variables": str(len(names)),
            "keys": str(keys[module]),
            "added": others,
            "dropped": others,
            "layout": layouts[module].name,
        }


def _summary(conversion: Conversion) -> str:
    """Count what was read and what was written."""
    plan, absent = conversion.plan, len(conversion.absent)
    keys, converted, synthesised = len(plan.rows), len(plan.converted), len(plan.synthesised)
    reads_keys, writes_keys = _direction(conversion)
    if reads_keys and writes_keys:
        return f"{keys} of {keys} keys written" + (f", {absent} of them added" if absent else "")
    if reads_keys:
        read, dropped = keys - absent, synthesised - absent
        summary = f"{read} of {read} keys consumed, {converted} of {converted} variables produced"
        return f"{summary} ({dropped} keys dropped, which TensorFlow does without)" if dropped else summary
    if writes_keys:
        return (
            f"{converted} of {converted} variables consumed, {keys} of {keys} keys produced ({converted} "
            f"converted, {synthesised} synthesised)"
        )
    return f"{converted} of {converted} variables written"


def _outer_scope(variable: str) -> str:
    parts = variable.removeprefix(f"{NETWORK_SCOPE}/").split("/")
    return "/".join(parts[:2]) if parts[0].startswith("Repeat") else parts[0]


def conversion_as_json(conversion: Conversion) -> dict[str, object]:
    """The result of one conversion in the form that `--json` writes."""
    return {
        "source": str(conversion.source),
        "format": conversion.source_format,
        "output_format": conversion.output_format,
        "key": conversion.source_key,
        "prefix": conversion.prefix,
        "names": list(conversion.names),
        "source_sha256": dict(conversion.source_digests),
        "model": None if conversion.model is None else conversion.model.as_json(),
        "published": conversion.published,
        "namesake": conversion.namesake,
        **describe_network(conversion.plan.network),
        "weights": conversion.plan.weights,
        "converted": len(conversion.plan.converted),
        "synthesised": len(conversion.plan.synthesised),
        "casts": {name: asdict(cast) for name, cast in conversion.casts.items()},
        "broken_values": {name: asdict(values) for name, values in conversion.broken.items()},
        "left_out": {item.name: item.reason for item in conversion.left_out},
        "outputs": {str(path): digest for path, digest in conversion.outputs.items()},
    }


def print_networks(model: LocalModel, conversions: Sequence[Conversion]) -> None:
    """Print a line for each network of a published model, and the total."""
    console = make_console(width=132)
    _print_model(console, model)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("network", "read", "written", "sha256"):
        table.add_column(heading, no_wrap=True)
    for conversion in conversions:
        network = _describe_network(conversion.plan.network)
        for path, digest in conversion.outputs.items():
            if path.suffix != ".json":
                table.add_row(network, conversion.source.name, escape(str(path)), digest)
    console.print()
    console.print(table)
    console.print(f"\n{len(conversions)} networks converted, read back and compared bit for bit")


def networks_as_json(conversions: Sequence[Conversion]) -> dict[str, object]:
    """The result of several networks in the form that `--json` writes."""
    return {"conversions": [conversion_as_json(conversion) for conversion in conversions]}


def print_folder(result: FolderConversion) -> None:
    """Print a line for each checkpoint of a folder, and the total."""
    console = make_console(width=132)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("step", justify="right", no_wrap=True)
    for heading in ("", "file", "sha256"):
        table.add_column(heading, no_wrap=True)
    for step in result.steps:
        number = "-" if step.snapshot.step is None else str(step.snapshot.step)
        if step.conversion is None:
            table.add_row(number, "[red]FAILED[/]", escape(str(step.output)), "")
        else:
            for path, digest in step.conversion.outputs.items():
                if path.suffix != ".json":
                    table.add_row(number, "converted", escape(str(path)), digest)
    console.print(table)
    count = len(result.steps)
    console.print(f"\n{count - len(result.failed)} of {counted(count, 'checkpoint')} converted and read back")
    statements = Counter(
        statement for step in result.steps if step.conversion for statement in step.conversion.cast_statements
    )
    for statement, times in statements.items():
        console.print(escape(f"in {times} of them {statement}"))


def folder_as_json(result: FolderConversion) -> dict[str, object]:
    """The result of a whole folder in the form that `--json` writes."""
    return {
        "steps": [
            {
                "checkpoint": str(step.snapshot.path),
                "step": step.snapshot.step,
                "error": None if step.error is None else str(step.error),
                "conversion": None if step.conversion is None else conversion_as_json(step.conversion),
            }
            for step in result.steps
        ]
    }
