"""`python -m checks.controls`: a thin shell around `checks.controls.run`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict

from checks.core import options
from converter import command_line
from converter.progress import ProgressBar

_EPILOG = """\
Without SOURCE the built-in checkpoint is used; the first time it is written to the user's cache. --only may
be given again; without --clean it leaves the clean runs out.

exit codes: 0 every fault is found, and no clean port; 1 one is not; 2 wrong usage; 3 an input is unreadable,
corrupt or another network; 4 something that is needed, such as TensorFlow, is missing; 130 interrupted
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_source_options(parser)
    parser.add_argument(
        "--only", metavar="NAME", action="append", default=[], help="plant this class of faults"
    )
    parser.add_argument(
        "--clean",
        metavar="N",
        type=command_line.natural_number,
        help="judge a clean port on the inputs of N seeds (default: 5)",
    )
    options.add_report_option(parser)


def _work(arguments: argparse.Namespace) -> int:
    options.check_report(arguments)
    # Here, so that Ctrl-C while PyTorch is being imported ends as it does later.
    from checks.controls.run import CLEAN_RUNS, choose, run_controls

    faults = choose(arguments.only)
    clean = (0 if arguments.only else CLEAN_RUNS) if arguments.clean is None else arguments.clean
    source = options.locate(arguments)
    with ProgressBar("starting", quiet=arguments.quiet) as progress:
        report = run_controls(
            source, faults=faults, step=arguments.step, clean=clean, say=progress.label, progress=progress
        )
    if not arguments.quiet:
        from checks.controls.table import show

        show(report)
    if arguments.json:
        figures = {"passed": report.passed, "places": report.places, "causes": report.causes}
        shipped = {fault.name: fault.shipped for fault in faults}
        sites = [
            {**asdict(s), "exact": s.exact, "explained": s.explained, "shipped": shipped[s.fault]}
            for s in report.sites
        ]
        command_line.write_json(arguments.json, {**figures, **asdict(report), "sites": sites})
    if arguments.report:
        from checks.controls.page import write_page

        write_page(arguments.report, report, command=arguments.command)
    return 0 if report.passed else 1


COMMAND = command_line.Command(
    "checks.controls",
    "Check the checks: plant faults that real ports shipped; are they found, and where, and why?",
    _add_arguments,
    _work,
    _EPILOG,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return COMMAND.main(argv)


if __name__ == "__main__":
    sys.exit(main())
