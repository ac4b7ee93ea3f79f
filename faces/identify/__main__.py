"""`facenet-port identify`: the options of `faces.identify.run.identify`."""

from __future__ import annotations

import argparse
import sys

from converter import command_line
from faces import options

_EPILOG = """\
exit codes: 0 somebody of the gallery; 1 nobody; 2 wrong usage; 3 a file cannot be read, or the photograph has
no face; 4 no decision, as there is no threshold for the model, or something that is needed is missing"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "photograph",
        metavar="PHOTO",
        type=command_line.path,
        help="a photograph, or a crop of 160x160 or 182x182 pixels",
    )
    parser.add_argument(
        "--gallery",
        metavar="FILE.parquet",
        type=command_line.path,
        required=True,
        help="embeddings of known people, as embed writes them; their standardisation and crop are taken",
    )
    parser.add_argument(
        "--model",
        metavar="NAME|FILE",
        help="the model of the gallery, if its file has moved (default: as the gallery names it)",
    )
    parser.add_argument(
        "--most",
        metavar="N",
        type=options.positive_number,
        default=5,
        help="people that are listed (default: 5)",
    )
    options.add_threshold_option(parser, "that of the gallery, or the one measured for the default model")
    options.add_backend_option(parser)
    options.add_detector_options(parser)


def _work(arguments: argparse.Namespace) -> int:
    from faces.embeddings import read_embeddings
    from faces.identify.run import identify

    gallery = read_embeddings(arguments.gallery)
    arguments.model = arguments.model or gallery.origin.model
    arguments.standardisation = gallery.origin.standardisation
    arguments.crop = gallery.origin.crop
    result = identify(
        arguments.photograph,
        gallery,
        threshold=arguments.threshold,
        most=arguments.most,
        embedder=options.make_embedder(arguments),
    )
    command_line.show_result(arguments, result, "faces.identify", result.as_json)
    if result.threshold is None:
        options.print_no_threshold(arguments, result.model, result.face.crop)
    return result.exit_code


COMMAND = command_line.Command(
    "faces.identify",
    "Find the person of a photograph in embeddings of known people.",
    _add_arguments,
    _work,
    _EPILOG,
    "identify takes one photograph; the embeddings go with --gallery.",
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
