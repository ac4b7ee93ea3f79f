"""`python -m converter`: a thin shell around `converter.convert_file`."""

from __future__ import annotations

import argparse
import gc
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from converter import command_line
from converter.layer_map import NETWORK_SCOPE
from converter.progress import ProgressBar

if TYPE_CHECKING:
    from converter.convert_file import Conversion, OutputFormat

_EPILOG = """\
SOURCE may be a model folder, a checkpoint prefix, an .index, .data or .meta file, a frozen .pb, a Keras .h5,
a .pt or a .safetensors; what a file is, its bytes tell. TensorFlow is not needed.

exit codes: 0 converted and verified; 1 what was written reads back different; 2 wrong usage;
3 the source is unreadable, corrupt or another network; 4 something that is needed is missing
"""


def _parser() -> argparse.ArgumentParser:
    parser = command_line.parser(
        "python -m converter",
        "Convert a FaceNet checkpoint (Inception-ResNet-v1) to a PyTorch state_dict, or back, bit for bit.",
        _EPILOG,
    )
    parser.add_argument("source", metavar="SOURCE", type=command_line.path, help="what to convert")
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=command_line.path,
        help="file to write, or checkpoint prefix (default: <model>-<dataset>.pt in this folder)",
    )  # fmt: skip
    parser.add_argument("--to", choices=("pytorch", "tensorflow"), default="pytorch", help="direction")
    parser.add_argument("--format", choices=("pt", "safetensors"), help="state_dict format (default: pt)")
    parser.add_argument("--parts", action="store_true", help="also write <OUT>-features and <OUT>-logits")
    parser.add_argument(
        "--weights", choices=("variable", "average"), default="variable",
        help="take the variables (default) or their exponential moving averages",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    # One import of torch and one pass over the tensors leave no cycles worth looking for, and the collector
    # looks through all of torch each time.
    gc.disable()
    try:
        return command_line.run(_parser(), _work, argv)
    finally:
        gc.enable()


def _work(arguments: argparse.Namespace) -> int:
    from converter.convert_file import convert_file
    from converter.errors import UsageError

    if arguments.to == "tensorflow" and arguments.format:
        raise UsageError("--format is the format of a state_dict; it does not go with --to tensorflow.")
    output_format: OutputFormat = arguments.format or "pt"
    if arguments.to == "tensorflow":
        output_format = "tensorflow"
    elif arguments.format is None and arguments.output and arguments.output.suffix == ".safetensors":
        output_format = "safetensors"
    with ProgressBar("converting", quiet=arguments.quiet) as progress:
        conversion = convert_file(
            arguments.source,
            arguments.output,
            output_format=output_format,
            parts=arguments.parts,
            weights=arguments.weights,
            overwrite=arguments.overwrite,
            progress=progress,
        )
    if not arguments.quiet:
        _show(conversion)
    if arguments.json:
        written = {path.resolve() for path in conversion.outputs}
        if arguments.json.resolve() in written:
            raise UsageError(
                f"--json {arguments.json}: the conversion has just written that file. It is kept."
            )
        command_line.write_json(arguments.json, _result(conversion))
    return 0


def _show(conversion: Conversion) -> None:
    from rich.table import Table

    console = command_line.console()
    plan, variant = conversion.plan, conversion.plan.variant
    classes = "no logits" if variant.num_classes is None else f"{variant.num_classes} classes"
    gamma = "with gamma" if variant.gamma else "no gamma"
    console.print(f"[bold]{conversion.source}[/] ({conversion.source_format})")
    for name, digest in conversion.source_digests.items():
        console.print(f"  sha256 {digest}  {name}")
    if conversion.published:
        console.print(f"  the published checkpoint {conversion.published}, by its SHA-256")
    console.print(f"  {variant.embedding_size}-d embedding, {classes}, {gamma}, from the {plan.weights}s\n")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("TensorFlow scope", no_wrap=True)
    table.add_column("PyTorch module", no_wrap=True)
    for heading in ("variables", "keys", "added"):
        table.add_column(heading, justify="right")
    table.add_column("layout", no_wrap=True)
    for scope, module, variables, keys, layout in _groups(conversion):
        table.add_row(scope, module, str(variables), str(keys), str(keys - variables), layout)
    console.print(table)
    converted = len(plan.converted)
    console.print(
        f"\n{converted} of {converted} variables consumed, {len(plan.rows)} of {len(plan.rows)} keys "
        f"produced ({converted} converted, {len(plan.synthesised)} synthesised)"
    )
    for reason, count in Counter(item.reason for item in conversion.left_out).items():
        console.print(f"{count} left out: {reason}")
    console.print("Read back and compared bit for bit:")
    for path, digest in conversion.outputs.items():
        console.print(f"  sha256 {digest}  {path}")


def _groups(conversion: Conversion) -> list[tuple[str, str, int, int, str]]:
    """The layer map by top-level module: scope, module, variables, keys, and the layout of its weights."""
    variables: dict[str, list[str]] = {}
    keys: Counter[str] = Counter(row.key.split(".")[0] for row in conversion.plan.rows)
    layouts: dict[str, str] = {}
    for row in conversion.plan.converted:
        module = row.key.split(".")[0]
        variables.setdefault(module, []).append(row.variable)
        layouts.setdefault(module, row.layout.name)
    groups = []
    for module, names in variables.items():
        scopes = dict.fromkeys(_outer_scope(name) for name in names)
        first, last = next(iter(scopes)), next(reversed(scopes))
        scope = first if first == last else f"{first} ... {last.rpartition('_')[2]}"
        groups.append((scope, module, len(names), keys[module], layouts[module]))
    return groups


def _outer_scope(variable: str) -> str:
    parts = variable.removeprefix(f"{NETWORK_SCOPE}/").split("/")
    return "/".join(parts[:2]) if parts[0].startswith("Repeat") else parts[0]


def _result(conversion: Conversion) -> dict[str, object]:
    variant = conversion.plan.variant
    return {
        "source": str(conversion.source),
        "format": conversion.source_format,
        "source_sha256": dict(conversion.source_digests),
        "published": conversion.published,
        "embedding_size": variant.embedding_size,
        "num_classes": variant.num_classes,
        "gamma": variant.gamma,
        "weights": conversion.plan.weights,
        "converted": len(conversion.plan.converted),
        "synthesised": len(conversion.plan.synthesised),
        "left_out": {item.name: item.reason for item in conversion.left_out},
        "outputs": {str(path): digest for path, digest in conversion.outputs.items()},
    }


if __name__ == "__main__":
    exit_code = main()
    gc.freeze()  # on its way out the interpreter would look through all of torch once more
    sys.exit(exit_code)
