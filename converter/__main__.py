"""`facenet-port convert` and `list`: the options of `convert_file`, `convert_folder` and `hub.listing`."""

from __future__ import annotations

import argparse
import atexit
import gc
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from converter import command_line
from converter.errors import UsageError
from converter.progress import ProgressBar

if TYPE_CHECKING:
    from converter.convert_file import Conversion
    from converter.hub.locate import LocalModel
    from converter.output_names import OutputFormat

_EPILOG = """\
SOURCE is the name of a published model (`facenet-port list` shows them), a model folder or its `checkpoint`
file, a checkpoint prefix, an .index, .data or .meta file, a frozen .pb, a Keras .h5 or .keras, a .pt or a
.safetensors; or a network of MTCNN, such as det1.npy or pnet.pt. The format is detected from the file's
contents. A file or folder goes before a model of the same name. TensorFlow is not needed.

exit codes: 0 converted and verified; 1 the output reads back different; 2 wrong usage;
3 the source is unreadable, corrupt, another network or, with --strict, not finite; 4 something that is
needed is missing; 130 interrupted, 143 by SIGTERM, 129 by SIGHUP
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", type=command_line.path,
        help="checkpoint to convert: a path or the name of a published model",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=command_line.output,
        help="file to write, or checkpoint prefix (default: <model>-<dataset>.pt in this folder); a folder "
        "for mtcnn and with --all-steps (default: this one)",
    )  # fmt: skip
    parser.add_argument(
        "--to",
        choices=("pytorch", "tensorflow"),
        default="pytorch",
        help="direction (default: pytorch; tensorflow if OUT ends in .npy, the format of MTCNN's networks)",
    )  # fmt: skip
    parser.add_argument("--format", choices=("pt", "safetensors"), help="state_dict format (default: pt)")
    parser.add_argument("--parts", action="store_true", help="also write <OUT>-features and <OUT>-logits")
    parser.add_argument(
        "--weights", choices=("variable", "average"), default="variable",
        help="use the variables (default) or their exponential moving averages",
    )  # fmt: skip
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument(
        "--step", metavar="N", type=command_line.natural_number,
        help="checkpoint to take from a folder with several (default: the latest)",
    )  # fmt: skip
    steps.add_argument("--all-steps", action="store_true", help="convert every checkpoint of a folder")
    parser.add_argument(
        "--sha256", metavar="DIGEST", action="append", default=[],
        help="refuse SOURCE unless the SHA-256 of each of its files is given; may be repeated",
    )  # fmt: skip
    command_line.add_ignore_option(parser)
    command_line.add_network_options(parser)
    parser.add_argument(
        "--strict", action="store_true",
        help="refuse weights that are NaN or infinite, and negative variances, instead of warning of them",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace files that exist")


def _work(arguments: argparse.Namespace) -> int:
    if arguments.to == "tensorflow" and arguments.format:
        raise UsageError("--format is the format of a state_dict; it does not go with --to tensorflow.")
    if arguments.output and not arguments.all_steps and not arguments.output.is_dir():
        from converter.output_names import check_ending, check_reserved, part_paths

        # Before a download of 0.2 GB.
        check_ending(arguments.output, _output_format(arguments))
        parts = part_paths(arguments.output) if arguments.parts else ()
        check_reserved([arguments.output, *parts], _output_format(arguments), arguments.json)
    # Without this the interpreter searches all of torch for cycles as it exits: 4.9 s instead of 4.0 s.
    atexit.register(gc.freeze)
    model = _find_model(arguments)
    source = arguments.source if model is None else model.path
    if model is not None and len(model.files) > 1 and model.entry.networks:
        return _convert_networks(arguments, model)
    if arguments.all_steps:
        return _convert_folder(arguments, source)
    return _convert(arguments, source, model)


def _find_model(arguments: argparse.Namespace) -> LocalModel | None:
    from converter.hub.locate import find_model

    with ProgressBar(f"downloading {arguments.source}", quiet=arguments.quiet) as progress:
        return find_model(
            arguments.source, offline=arguments.offline, archive=arguments.archive, progress=progress
        )


def _list(arguments: argparse.Namespace) -> int:
    from converter.hub import listing

    models = listing.list_models()
    if not arguments.quiet:
        listing.print_models(models)
    if arguments.json:
        command_line.write_json(arguments.json, listing.as_json(models))
    return 0


def _convert(arguments: argparse.Namespace, source: Path, model: LocalModel | None) -> int:
    from converter import render
    from converter.convert_file import convert_file

    output_format = _output_format(arguments)
    output = arguments.output
    if output is None and model is not None and not model.entry.networks and output_format != "tensorflow":
        output = Path(model.entry.state_dict_name).with_suffix(f".{output_format}")
    with ProgressBar("converting", quiet=arguments.quiet) as progress:
        conversion = convert_file(
            source,
            output,
            output_format=output_format,
            parts=arguments.parts,
            weights=arguments.weights,
            step=arguments.step,
            ignore=arguments.ignore,
            sha256=arguments.sha256,
            model=model,
            strict=arguments.strict,
            overwrite=arguments.overwrite,
            reserved=arguments.json,
            progress=progress,
        )
    if not arguments.quiet:
        render.print_conversion(conversion)
    _print_warnings(arguments, [conversion])
    if arguments.json:
        command_line.write_json(arguments.json, render.conversion_as_json(conversion))
    return 0


def _convert_networks(arguments: argparse.Namespace, model: LocalModel) -> int:
    from converter import render
    from converter.convert_folder import convert_networks

    for option in ("all_steps", "ignore", "parts", "sha256", "step"):
        if getattr(arguments, option) not in (None, False, []):
            name = option.replace("_", "-")
            raise UsageError(f"--{name} is for one network. Give one, as in mtcnn/det1.npy.")
    conversions = convert_networks(
        model,
        arguments.output or Path(),
        output_format=_output_format(arguments),
        weights=arguments.weights,
        strict=arguments.strict,
        overwrite=arguments.overwrite,
        reserved=arguments.json,
    )
    if not arguments.quiet:
        render.print_networks(model, conversions)
    _print_warnings(arguments, conversions)
    if arguments.json:
        command_line.write_json(arguments.json, render.networks_as_json(conversions))
    return 0


def _convert_folder(arguments: argparse.Namespace, source: Path) -> int:
    from converter import render
    from converter.convert_folder import convert_folder, plan_folder
    from converter.output_names import check_reserved

    for option in ("parts", "sha256"):
        if getattr(arguments, option):
            raise UsageError(f"--{option} is for one conversion; it does not go with --all-steps.")
    output_format, output = _output_format(arguments), arguments.output or Path()
    check_reserved(plan_folder(source, output, output_format).values(), output_format, arguments.json)
    with ProgressBar("converting", quiet=arguments.quiet) as progress:
        result = convert_folder(
            source,
            output,
            output_format=output_format,
            weights=arguments.weights,
            ignore=arguments.ignore,
            strict=arguments.strict,
            overwrite=arguments.overwrite,
            progress=progress,
        )
    conversions = [step.conversion for step in result.steps if step.conversion is not None]
    if not arguments.quiet:
        render.print_folder(result)
    _print_warnings(arguments, conversions)
    for step in result.failed:
        print(f"{arguments.program}: error: {step.error}", file=sys.stderr)
    if arguments.json:
        command_line.write_json(arguments.json, render.folder_as_json(result))
    return result.exit_code


def _print_warnings(arguments: argparse.Namespace, conversions: Iterable[Conversion]) -> None:
    for conversion in conversions:
        if conversion.warning:
            print(f"{arguments.program}: warning: {conversion.warning}", file=sys.stderr)


def _output_format(arguments: argparse.Namespace) -> OutputFormat:
    ending = arguments.output.suffix.lower() if arguments.output else ""
    if ending == ".npy" and arguments.format is None:
        return "npy"
    if arguments.to == "tensorflow":
        return "tensorflow"
    if ending == ".safetensors" and arguments.format is None:
        return "safetensors"
    return arguments.format or "pt"


COMMAND = command_line.Command(
    "converter",
    "Convert a FaceNet checkpoint (Inception-ResNet-v1) to a PyTorch state_dict, or back, bit for bit.",
    _add_arguments,
    _work,
    _EPILOG,
    "convert takes one SOURCE; -o OUT names the file to write.",
)

LIST = command_line.Command(
    "converter list",
    "List the published models and their files in the caches.",
    lambda parser: None,
    _list,
    extra_hint="list takes no arguments.",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    given = sys.argv[1:] if argv is None else argv
    if given[:1] == ["list"] and not Path("list").exists():
        return LIST.main(given[1:])
    return COMMAND.main(argv)


if __name__ == "__main__":
    sys.exit(main())
