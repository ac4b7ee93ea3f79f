"""The options of `facenet-port compare`; the work is in `checks.compare.run`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from checks.core import options
from converter import command_line
from converter.errors import UsageError
from converter.progress import ProgressBar

if TYPE_CHECKING:
    from checks.compare.result import CompareResult

_EPILOG = """\
Without SOURCE the built-in checkpoint is compared; the first time it is written to the user's cache.
SOURCE may be a network of MTCNN as well: det1.npy and its like, or mtcnn/det1.npy by name.

exit codes: 0 every judgement holds; 1 a difference was found; 2 wrong usage; 3 an input is unreadable,
corrupt or another network, or the source's values are not finite; 4 something that is needed, such as
TensorFlow, is missing; 130 interrupted, 143 by SIGTERM, 129 by SIGHUP
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_source_options(parser)
    # Only to be refused with advice: many type `compare CHECKPOINT weights.pt` first.
    parser.add_argument("state_dicts", nargs="*", type=command_line.path, help=argparse.SUPPRESS)
    options.add_weights_option(parser)
    command_line.add_ignore_option(parser)
    parser.add_argument(
        "--state-dict", metavar="FILE", type=command_line.path, help="judge this .pt or .safetensors file"
    )
    parser.add_argument("--every-layer", action="store_true", help="compare all 132 convolutions as well")
    parser.add_argument(
        "--images", metavar="FOLDER", type=command_line.path, help="compare on these photographs as well"
    )
    options.add_seed_option(parser, default=None)
    options.add_device_option(parser, "PyTorch's float32 network runs")
    parser.add_argument(
        "--save-activations",
        metavar="FILE",
        type=command_line.output,
        help="store TensorFlow's activations in this HDF5 file, for machines without TensorFlow",
    )
    parser.add_argument(
        "--activations",
        metavar="FILE",
        type=command_line.path,
        help="compare with stored activations; this does not need TensorFlow",
    )
    parser.add_argument(
        "--repair",
        metavar="OUT",
        type=command_line.output,
        help="if the fault is in the weights, write a corrected state_dict (.pt, .pth or .safetensors)",
    )
    options.add_verbose_option(parser)
    options.add_report_option(parser, "; implies --every-layer")


def _work(arguments: argparse.Namespace) -> int:
    _check_usage(arguments)
    stored = arguments.activations is not None
    if not stored:
        from checks.core.tensorflow_process import start_tensorflow

        start_tensorflow()  # it is imported while PyTorch is
    # PyTorch is imported here, so that Ctrl-C during the import ends as it does later.
    from checks.compare.run import compare

    source = options.locate(arguments)
    with ProgressBar("starting", quiet=arguments.quiet) as progress:
        result = compare(
            source,
            state_dict=arguments.state_dict,
            weights=arguments.weights,
            step=arguments.step,
            ignore=arguments.ignore,
            every_layer=arguments.every_layer or (arguments.report is not None and not stored),
            seed=arguments.seed or 0,
            images=arguments.images,
            save_activations=arguments.save_activations,
            activations=arguments.activations,
            repair=arguments.repair,
            device=arguments.device,
            say=progress.label,
        )
    command_line.show_result(arguments, result, "checks.compare", lambda: _as_json(result))
    return result.exit_code


def _check_usage(arguments: argparse.Namespace) -> None:
    """Refuse options that contradict each other, before the slow imports."""
    options.check_report(arguments)
    if arguments.device != "cpu":
        options.check_device(arguments.device)
    if arguments.state_dicts:
        source, state_dict = arguments.source, arguments.state_dicts[0]
        raise UsageError(
            f"{state_dict}: compare takes one checkpoint. To judge a PyTorch file against it: "
            f"facenet-port compare {source} --state-dict {state_dict}"
        )
    if arguments.activations:
        fixed = ("save_activations", "images", "every_layer", "seed")
        given = [
            f"--{name.replace('_', '-')}" for name in fixed if getattr(arguments, name) not in (None, False)
        ]
        if given:
            raise UsageError(
                f"{', '.join(given)}: stored activations have inputs and layers of their own. Leave it out, "
                "or store them again."
            )


def _as_json(result: CompareResult) -> dict[str, Any]:
    written = {"passed": result.passed, **asdict(replace(result, diagnosis=None))}
    if result.diagnosis is not None:
        written["diagnosis"] = result.diagnosis.as_json()
    return written


COMMAND = command_line.Command(
    "checks.compare",
    "Prove a PyTorch port of a FaceNet checkpoint: run both networks and compare every activation.",
    _add_arguments,
    _work,
    _EPILOG,
    "compare takes one SOURCE. Give the state_dict to judge with --state-dict FILE.",
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
