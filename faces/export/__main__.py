"""`facenet-port export`: the options of `faces.export.run.export`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from checks.core import options as check_options
from converter import command_line
from converter.errors import UsageError
from converter.progress import ProgressBar
from faces import options

if TYPE_CHECKING:
    from converter.hub.locate import LocalModel

_EPILOG = """\
WEIGHTS is any source of `facenet-port convert`: a published name, a model folder, a checkpoint, a .pb, .h5,
.pt or .safetensors; or the folder best of `facenet-port train`. mtcnn is the three networks of the detector.

The file is audited against WEIGHTS before it appears: every weight, the structure, the standardisation and
the results of its runtime. If the verdict is not faithful, no file is kept.

exit codes: 0 exported and faithful; 1 the audit refuses the export; 2 wrong usage; 3 WEIGHTS is unreadable,
corrupt, another network or not finite; 4 something that is needed is missing"""

_OF_ONE_NETWORK: dict[str, Any] = {
    "bake": False, "standardisation": None, "classify": False, "calibrate": None, "step": None,
    "weights": "variable", "ignore": [],
}  # fmt: skip
"""The options that the three networks of the detector do not take, with their defaults."""


def _batch(text: str) -> int | str:
    return text if text == "dynamic" else options.positive_number(text)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="WEIGHTS", type=command_line.path, help="the weights: a path, or a published name"
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=command_line.output, required=True,
        help="the file to write, .onnx or .tflite, which must not exist; for mtcnn a folder",
    )  # fmt: skip
    parser.add_argument("--to", choices=("onnx", "tflite"), help="the format (default: by the ending of OUT)")
    parser.add_argument(
        "--precision",
        choices=("float32", "float16", "int8"),
        default="float32",
        help="precision of the stored weights; float16 halves the file and computes in float32 all the same; "
        "int8, a quarter of it, also computes in integers (default: float32)",
    )
    parser.add_argument(
        "--calibrate",
        metavar="FACES",
        type=command_line.path,
        help="faces that int8 is calibrated on: a table or folder by `align`, or photographs (default: 40 "
        "photographs from the package index)",
    )
    parser.add_argument(
        "--bake",
        action="store_true",
        help="put the standardisation into the graph, which then takes the pixels of RGB images, uint8 NHWC",
    )
    options.add_standardise_option(parser)
    parser.add_argument(
        "--classify", action="store_true", help="export the classifier's logits in place of embeddings"
    )
    parser.add_argument(
        "--batch",
        metavar="N|dynamic",
        type=_batch,
        help="images at a time, at most 64 (default: dynamic for ONNX, 1 for TFLite)",
    )
    check_options.add_step_option(parser)
    command_line.add_network_options(parser)
    check_options.add_weights_option(parser)
    command_line.add_ignore_option(parser)
    check_options.add_seed_option(parser, "the images of the audit")


def _work(arguments: argparse.Namespace) -> int:
    # Imported here, so that Ctrl-C during the import of PyTorch is handled as later.
    from converter.hub.locate import find_model
    from faces.export.run import check_output, export

    if not arguments.output.is_dir():
        check_output(arguments.output, arguments.to)  # before a download
    with ProgressBar(f"downloading {arguments.source}", quiet=arguments.quiet) as progress:
        model = find_model(
            arguments.source, offline=arguments.offline, archive=arguments.archive, progress=progress
        )
    if model is not None and model.entry.networks and len(model.files) > 1:
        return _export_networks(arguments, model)
    with ProgressBar("exporting", quiet=arguments.quiet) as progress:
        result = export(
            arguments.source if model is None else model.path,
            arguments.output,
            to=arguments.to,
            precision=arguments.precision,
            bake=arguments.bake,
            standardisation=arguments.standardisation,
            classify=arguments.classify,
            batch=arguments.batch,
            calibrate=arguments.calibrate,
            weights=arguments.weights,
            step=arguments.step,
            ignore=arguments.ignore,
            offline=arguments.offline,
            seed=arguments.seed,
            say=progress.label,
        )
    command_line.show_result(arguments, [result], "faces.export", result.as_json)
    return 0


def _export_networks(arguments: argparse.Namespace, model: LocalModel) -> int:
    from faces.export.run import export_networks

    for option, default in _OF_ONE_NETWORK.items():
        if getattr(arguments, option) != default:
            name = "standardise" if option == "standardisation" else option
            raise UsageError(f"--{name} is for one network, and {arguments.source} is three. Leave it out.")
    with ProgressBar("exporting", quiet=arguments.quiet) as progress:
        results = export_networks(
            model,
            arguments.output,
            to=arguments.to or "onnx",
            precision=arguments.precision,
            batch=arguments.batch,
            seed=arguments.seed,
            say=progress.label,
        )
    command_line.show_result(
        arguments, results, "faces.export", lambda: [result.as_json() for result in results]
    )
    return 0


COMMAND = command_line.Command(
    "faces.export",
    "Export a network to ONNX or TFLite, and prove that the file computes what its weights do.",
    _add_arguments,
    _work,
    _EPILOG,
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
