"""`facenet-port align`: the options of `faces.align.run.align`."""

from __future__ import annotations

import argparse
import os
import sys

from checks.core.options import add_report_option, check_report
from converter import command_line
from converter.free_names import printable_name
from converter.progress import ProgressBar
from faces import options
from faces.processes import Processes, join_processes

_MOST_WORKERS = 8  # by default; the detector keeps no more busy

_EPILOG = """\
A run that was interrupted goes on where it stopped, if it is started again with the same options.

exit codes: 0 every photograph has a crop; 1 a photograph has no face; 2 wrong usage; 3 a file cannot be
read as a photograph; 4 something that is needed is missing; 130 interrupted, 143 by SIGTERM, 129 by
SIGHUP. What has no crop is listed, and the others are cropped all the same."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        type=command_line.path,
        help="photographs, or a folder of them for each person",
    )
    parser.add_argument(
        "out",
        metavar="OUT",
        type=command_line.path,
        help="a new folder for the crops and their table, or the one of an earlier run",
    )
    options.add_crop_option(parser)
    parser.add_argument("--all-faces", action="store_true", help="crop every face of a photograph, not one")
    parser.add_argument(
        "--table",
        choices=("csv", "parquet"),
        default="csv",
        help="write OUT/faces.csv (default) or OUT/faces.parquet",
    )
    parser.add_argument(
        "--split",
        metavar="SHARE",
        type=_share,
        help="share of the people whose faces are for training, such as 0.8; the others' are for validation",
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=command_line.natural_number,
        default=0,
        help="seed of --split (default: 0)",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=options.positive_number,
        default=min(_MOST_WORKERS, os.cpu_count() or 1),
        help="threads that read photographs and write crops beside the detector (default: the processors, at "
        f"most {_MOST_WORKERS})",
    )
    options.add_detector_backend_option(parser)
    options.add_detector_options(parser)
    add_report_option(parser, "; it shows every photograph with its boxes, the doubtful ones first")


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1")
    return share


def _work(arguments: argparse.Namespace) -> int:
    check_report(arguments)
    with join_processes(arguments.device) as processes:
        return _align(arguments, processes)


def _align(arguments: argparse.Namespace, processes: Processes) -> int:
    from faces.align.result import AlignOptions
    from faces.align.run import align

    quiet = arguments.quiet or not processes.is_first
    with ProgressBar("cropping faces", quiet=quiet) as progress:
        result = align(
            arguments.folder,
            arguments.out,
            options=AlignOptions(
                arguments.crop,
                arguments.all_faces,
                arguments.smallest_face,
                tuple(arguments.thresholds),
                arguments.factor,
                arguments.backend,
            ),
            table=arguments.table,
            split=arguments.split,
            seed=arguments.seed,
            workers=arguments.workers,
            device=arguments.device,
            offline=arguments.offline,
            processes=processes,
            progress=progress,
        )
    if not processes.is_first:
        return 0  # the first process tells the result of all
    command_line.show_result(arguments, result, "faces.align", result.as_json)
    for photograph in result.unreadable:
        file = printable_name(arguments.folder / photograph.name)
        command_line.print_error(f"{arguments.program}: {file}: {photograph.problem}")
    return result.exit_code


COMMAND = command_line.Command(
    "faces.align",
    "Crop the faces of a folder of photographs, and write a table of them.",
    _add_arguments,
    _work,
    _EPILOG,
    "align takes two folders: the photographs, and the crops.",
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
