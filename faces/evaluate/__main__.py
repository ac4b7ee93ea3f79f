"""The options of `facenet-port evaluate`; the work is in `faces.evaluate.run`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from checks.core import options
from converter import command_line
from converter.errors import UsageError
from converter.progress import ProgressBar
from faces.options import DEFAULT_MODEL, add_embedder_options, make_embedder, positive_number

_EPILOG = """\
FOLDER is a data set such as lfw, with Name/Name_0001.jpg; TABLE is a .csv or .parquet of faces, or the
.parquet of embed, of which all pairs are taken. Images of 160x160 or 182x182 pixels are taken as crops.
--classify scores a classifier instead: the column predicted_label, or the logits of --model.

exit codes: 0 evaluated, and with --against proven; 1 it differs from TensorFlow's graph; 2 wrong usage; 3 an
input is unreadable, corrupt or not what it should be; 4 something that is needed, such as a package or a
model, is missing; 130 interrupted, 143 by SIGTERM, 129 by SIGHUP
"""

_PROTOCOL = ("folds", "distance", "subtract_mean", "mirrored", "far")
_PAIR_OPTIONS = ("pairs", *_PROTOCOL, "threshold", "against")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="FOLDER|TABLE",
        type=command_line.path,
        help="a folder with --pairs; a table of faces; or the embeddings of embed",
    )
    _add_protocol_options(parser.add_argument_group("the protocol"))
    parser.add_argument(
        "--classify", action="store_true", help="score a classifier on the table's column label"
    )
    add_embedder_options(parser, f"{DEFAULT_MODEL}, or the one of --against")
    parser.add_argument(
        "--batch-size", metavar="N", type=positive_number, default=32, help="images at a time (default: 32)"
    )
    options.add_report_option(parser)


def _add_protocol_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--pairs",
        metavar="FILE",
        type=command_line.path,
        help="pairs.txt, pairsDevTrain.txt or pairsDevTest.txt",
    )
    group.add_argument(
        "--folds",
        metavar="N",
        type=positive_number,
        help="consecutive folds of the pairs (default: those of the list, or 10)",
    )
    group.add_argument(
        "--distance",
        choices=("squared-euclidean", "arc-cosine"),
        help="the distance of two embeddings (default: squared-euclidean)",
    )
    group.add_argument(
        "--subtract-mean", action="store_true", help="subtract the mean embedding of the other folds' pairs"
    )
    group.add_argument(
        "--mirrored", action="store_true", help="append the embedding of the mirrored image to each embedding"
    )
    group.add_argument(
        "--far",
        metavar="RATE",
        type=_rate,
        help="the false accept rate of VAL and of the threshold (default: 0.001)",
    )
    group.add_argument(
        "--threshold",
        metavar="FILE.json",
        type=command_line.path,
        help="also apply the threshold of an earlier --json, as from pairsDevTrain.txt to pairsDevTest.txt",
    )
    group.add_argument(
        "--against",
        metavar="SOURCE",
        type=command_line.path,
        help="run this checkpoint's TensorFlow graph on the same images, and judge the network by it; for an "
        "exported file as --model run these weights, or their export in float32, and show what the file "
        "changes",
    )


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if not 0 < rate < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate between 0 and 1")
    return rate


def _work(arguments: argparse.Namespace) -> int:
    options.check_report(arguments)
    _check_usage(arguments)
    # PyTorch is imported here, so that Ctrl-C during the import ends as it does later.
    from faces.evaluate import run
    from faces.evaluate.measure import Settings

    if not arguments.classify:
        arguments.model = arguments.model or arguments.against
    function: Any = run.evaluate_classifier
    given = {"embedder": make_embedder(arguments), "batch_size": arguments.batch_size}
    if not arguments.classify:
        protocol = {name: value for name in _PROTOCOL if (value := getattr(arguments, name)) is not None}
        given["settings"] = Settings(**protocol)
        given |= {name: getattr(arguments, name) for name in ("pairs", "threshold", "against")}
        function = run.evaluate
    with ProgressBar("starting", quiet=arguments.quiet) as progress:
        result = function(arguments.source, **given, progress=progress, say=progress.label)
    command_line.show_result(arguments, result, "faces.evaluate", result.as_json)
    return 0 if result.passed else 1


def _check_usage(arguments: argparse.Namespace) -> None:
    """Refuse options that do not fit each other, before the slow imports."""
    if not arguments.classify:
        return
    given = [f"--{name.replace('_', '-')}" for name in _PAIR_OPTIONS if getattr(arguments, name)]
    if given:
        raise UsageError(f"{', '.join(given)}: --classify takes no pairs. Leave one of them out.")


COMMAND = command_line.Command(
    "faces.evaluate",
    "Measure how well a network tells faces apart, by the LFW protocol, or score a classifier.",
    _add_arguments,
    _work,
    _EPILOG,
    "evaluate takes one folder or table. Give the list of pairs with --pairs FILE.",
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
