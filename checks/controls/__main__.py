"""The options of `facenet-port controls`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checks.core import options
from converter import command_line
from converter.progress import ProgressBar

if TYPE_CHECKING:
    from checks.controls.faults.fault import Fault
    from checks.controls.result import ControlsResult

_EPILOG = """\
Without SOURCE the built-in checkpoint is taken; on first use it is written to the user's cache. --only can be
given several times. With --only, clean ports are judged only if --clean is given.

exit codes: 0 every fault is found and no clean port raises an alarm; 1 a fault is missed, or an alarm is
false; 2 wrong usage; 3 an input is unreadable, corrupt or another network; 4 something that is needed, such
as TensorFlow, is missing;
130 interrupted, 143 by SIGTERM, 129 by SIGHUP
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_source_options(parser)
    parser.add_argument(
        "--only", metavar="NAME", action="append", default=[], help="plant this class of faults only"
    )
    parser.add_argument(
        "--clean",
        metavar="N",
        type=command_line.natural_number,
        help="judge a clean port on the inputs of N seeds (default: 5)",
    )
    parser.add_argument(
        "--graph",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="judge this ONNX or TFLite export of SOURCE on the inputs of the clean runs; may be repeated",
    )
    options.add_verbose_option(parser)
    options.add_report_option(parser)


def _work(arguments: argparse.Namespace) -> int:
    options.check_report(arguments)
    # PyTorch is imported here, so that --help and wrong usage do not wait for it.
    from checks.controls.faults.all_faults import ALL_FAULTS
    from checks.controls.run import CLEAN_RUNS, choose, run_controls

    faults = choose(arguments.only, ALL_FAULTS)
    clean = (0 if arguments.only else CLEAN_RUNS) if arguments.clean is None else arguments.clean
    source = options.locate(arguments)
    with ProgressBar("starting", quiet=arguments.quiet) as progress:
        result = run_controls(
            source,
            faults=faults,
            step=arguments.step,
            clean=clean,
            graphs=arguments.graph,
            say=progress.label,
            progress=progress,
        )
    command_line.show_result(arguments, result, "checks.controls", lambda: _as_json(result, faults))
    return 0 if result.passed else 1


def _as_json(result: ControlsResult, faults: Sequence[Fault]) -> dict[str, Any]:
    shipped = {fault.name: fault.shipped for fault in faults}
    return {
        "passed": result.passed,
        "places": result.places,
        "causes": result.causes,
        **asdict(result),
        "margins": [{**asdict(margin), "holds": margin.holds} for margin in result.margins],
        "sites": [
            {**asdict(site), "exact": site.exact, "explained": site.explained, "shipped": shipped[site.fault]}
            for site in result.sites
        ],
    }


COMMAND = command_line.Command(
    "checks.controls",
    "Check the checks: plant the faults of real ports and see that each is found, placed and named.",
    _add_arguments,
    _work,
    _EPILOG,
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
