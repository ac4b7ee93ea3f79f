"""`facenet-port audit`: the options of `checks.audit.run.audit`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from checks.core import options
from converter import command_line
from converter.hub.catalog_entry import FIXED, PER_IMAGE
from converter.progress import ProgressBar

if TYPE_CHECKING:
    from checks.audit.result import AuditResult

STANDARDISATIONS = {"fixed": FIXED, "per-image": PER_IMAGE}

_EPILOG = """\
PORT may be a state_dict (.pt, .safetensors; its keys may have a prefix), a Keras .h5 or .keras, a TensorFlow
checkpoint or .pb, an ONNX or a TFLite file, or a published name such as vggface2, for the state_dict in the
cache of torch.hub. SOURCE may be any source of `facenet-port convert`, or det1.npy, det2.npy or det3.npy for
a network of MTCNN. A published port needs no --against.

exit codes: 0 the port is faithful; 1 the port differs; 2 wrong usage; 3 an input is unreadable, corrupt or
another network, or the source's values are not finite; 4 a requirement such as onnxruntime is missing;
5 weaker proof: only the embeddings, or only the weights, were compared, and they are the source's; or the
arithmetic of a graph of integers was not judged;
130 interrupted, 143 by SIGTERM, 129 by SIGHUP
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("port", metavar="PORT", type=command_line.path, help="the port to audit")
    parser.add_argument(
        "--against",
        metavar="SOURCE",
        type=command_line.path,
        help="the checkpoint that the port was made from, or its name",
    )
    options.add_step_option(parser)
    command_line.add_network_options(parser)
    options.add_weights_option(parser)
    command_line.add_ignore_option(parser)
    options.add_seed_option(parser, "the inputs for a graph")
    parser.add_argument(
        "--faces",
        metavar="CROPS",
        type=command_line.path,
        help="a folder of crops by `align`, whose embeddings by an int8 port are compared with the source's",
    )
    parser.add_argument(
        "--standardise",
        choices=STANDARDISATIONS,
        help="how the images of the checkpoint are standardised; the default is what the catalog says",
    )
    options.add_verbose_option(parser)
    options.add_report_option(parser)


def _work(arguments: argparse.Namespace) -> int:
    # Imported here, so that Ctrl-C during the import of PyTorch is handled as later.
    from checks.audit.graphs.graph_formats import find_graph_format
    from checks.audit.published_ports import find_port, find_source
    from checks.audit.run import audit

    options.check_report(arguments)
    port = find_port(arguments.port)
    find_graph_format(port)  # before anything is downloaded: a package may be missing
    against = command_line.locate(arguments, arguments.against or Path(find_source(port)))
    with ProgressBar("starting", quiet=arguments.quiet) as progress:
        result = audit(
            port,
            against,
            weights=arguments.weights,
            step=arguments.step,
            ignore=arguments.ignore,
            seed=arguments.seed,
            faces=arguments.faces,
            standardisation=STANDARDISATIONS.get(arguments.standardise),
            say=progress.label,
        )
    command_line.show_result(arguments, result, "checks.audit", lambda: _as_json(result))
    return result.exit_code


def _as_json(result: AuditResult) -> dict[str, Any]:
    return {"passed": result.passed, "exit_code": result.exit_code, **asdict(result)}


COMMAND = command_line.Command(
    "checks.audit",
    "Audit a port that somebody made: compare it with its checkpoint, and run it if it is a graph.",
    _add_arguments,
    _work,
    _EPILOG,
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
