"""`python -m checks.audit`: a thin shell around `checks.audit.run`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from checks.core import options
from converter import command_line
from converter.progress import ProgressBar

_EPILOG = """\
PORT may be a state_dict (.pt, .safetensors; whatever prefix its keys have), a Keras .h5, a TensorFlow
checkpoint or .pb, an ONNX or a TFLite file, or a published name such as vggface2, for the file in the cache
of torch.hub. SOURCE is anything that the converter takes, or det1.npy, det2.npy and det3.npy for MTCNN.
Without --against it is told from PORT's SHA-256 or published name.

exit codes: 0 the port is the source's; 1 a difference was found; 2 wrong usage; 3 an input is unreadable,
corrupt or another network; 4 something that is needed, such as onnxruntime, is missing; 130 interrupted
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("port", metavar="PORT", type=command_line.path, help="the port to audit")
    parser.add_argument(
        "--against",
        metavar="SOURCE",
        type=command_line.path,
        help="the checkpoint that it was made from, or its name (default: told from PORT)",
    )
    options.add_step_option(parser)
    command_line.add_network_options(parser)
    options.add_weights_option(parser)
    parser.add_argument(
        "--seed",
        type=command_line.natural_number,
        default=0,
        help="of the inputs that a graph is run on (default: 0)",
    )
    options.add_report_option(parser)


def _work(arguments: argparse.Namespace) -> int:
    # Here, so that Ctrl-C while PyTorch is being imported ends as it does later.
    from checks.audit.run import audit, find_port, find_source, graph_reader

    options.check_report(arguments)
    port = find_port(arguments.port)
    graph_reader(port)  # before anything is downloaded: a package may be missing
    against = command_line.locate(arguments, arguments.against or Path(find_source(port)))
    with ProgressBar("starting", quiet=arguments.quiet) as progress:
        report = audit(
            port,
            against,
            weights=arguments.weights,
            step=arguments.step,
            seed=arguments.seed,
            say=progress.label,
        )
    if not arguments.quiet:
        from checks.audit.table import show

        show(report)
    if arguments.json:
        command_line.write_json(arguments.json, {"passed": report.passed, **asdict(report)})
    if arguments.report:
        from checks.audit.page import write_page

        write_page(arguments.report, report, command=arguments.command)
    return 0 if report.passed else 1


COMMAND = command_line.Command(
    "checks.audit",
    "Audit a port that somebody made: every tensor against its checkpoint, and a graph run.",
    _add_arguments,
    _work,
    _EPILOG,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return COMMAND.main(argv)


if __name__ == "__main__":
    sys.exit(main())
