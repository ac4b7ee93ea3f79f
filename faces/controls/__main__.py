"""The options of `facenet-port face-controls`; the work is in `faces.controls.run`."""

from __future__ import annotations

import argparse
import sys

from checks.core import options
from converter import command_line
from converter.progress import ProgressBar

_EPILOG = """\
`controls` plants faults in the network, face-controls around it. --only can be given several times.

exit codes: 0 every fault is found and named, and without a fault nothing is; 1 a fault is missed, or an alarm
is false; 2 wrong usage; 3 a file is damaged; 4 something that is needed, such as a package or a model, is
missing; 130 interrupted, 143 by SIGTERM, 129 by SIGHUP
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", metavar="NAME", action="append", default=[], help="plant this fault only")
    parser.add_argument("--offline", action="store_true", help="never use the network")
    parser.add_argument(
        "--archive",
        metavar="FILE",
        type=command_line.path,
        help="the package with the photographs, downloaded by hand; it is verified",
    )
    options.add_verbose_option(parser)


def _work(arguments: argparse.Namespace) -> int:
    from checks.controls.run import choose
    from faces.controls.faults import FAULTS
    from faces.controls.run import run_face_controls

    faults = choose(arguments.only, FAULTS)
    with ProgressBar("starting", quiet=arguments.quiet) as progress:
        result = run_face_controls(
            faults,
            offline=arguments.offline,
            archive=arguments.archive,
            say=progress.label,
            progress=progress,
        )
    command_line.show_result(arguments, result, "faces.controls", result.as_json)
    return 0 if result.passed else 1


COMMAND = command_line.Command(
    "faces.controls",
    "Plant faults between a photograph and a decision, and see that each is found, placed and named.",
    _add_arguments,
    _work,
    _EPILOG,
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
