"""`facenet-port export`: the options of `faces.export.run.export`."""

from __future__ import annotations

import argparse
import sys

from checks.core import options as check_options
from converter import command_line
from converter.progress import ProgressBar
from faces import options

_EPILOG = """\
WEIGHTS is any source of `facenet-port convert`: a published name, a model folder, a checkpoint, a .pb, .h5,
.pt or .safetensors; or the folder best of `facenet-port train`.

The file is audited against WEIGHTS before it appears: every weight, the structure, the standardisation and
the results of its runtime. If the verdict is not faithful, no file is kept.

exit codes: 0 exported and faithful; 1 the audit refuses the export; 2 wrong usage; 3 WEIGHTS is unreadable,
corrupt, another network or not finite; 4 something that is needed is missing"""


def _batch(text: str) -> int | str:
    return text if text == "dynamic" else options.positive_number(text)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="WEIGHTS", type=command_line.path, help="the weights: a path, or a published name"
    )
    parser.add_argument(
        "-o", "--output", metavar="OUT", type=command_line.output, required=True,
        help="the file to write, .onnx or .tflite; it must not exist",
    )  # fmt: skip
    parser.add_argument("--to", choices=("onnx", "tflite"), help="the format (default: by the ending of OUT)")
    parser.add_argument(
        "--precision",
        choices=("float32", "float16"),
        default="float32",
        help="precision of the stored weights; float16 halves the file and computes in float32 all the same "
        "(default: float32)",
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
        help="images at a time (default: dynamic for ONNX, 1 for TFLite)",
    )
    check_options.add_step_option(parser)
    command_line.add_network_options(parser)
    check_options.add_weights_option(parser)
    command_line.add_ignore_option(parser)
    check_options.add_seed_option(parser, "the images of the audit")


def _work(arguments: argparse.Namespace) -> int:
    # Imported here, so that Ctrl-C during the import of PyTorch is handled as later.
    from faces.export.run import check_output, export

    check_output(arguments.output, arguments.to)  # before a download
    source = command_line.locate(arguments, arguments.source)
    with ProgressBar("exporting", quiet=arguments.quiet) as progress:
        result = export(
            source,
            arguments.output,
            to=arguments.to,
            precision=arguments.precision,
            bake=arguments.bake,
            standardisation=arguments.standardisation,
            classify=arguments.classify,
            batch=arguments.batch,
            weights=arguments.weights,
            step=arguments.step,
            ignore=arguments.ignore,
            seed=arguments.seed,
            say=progress.label,
        )
    command_line.show_result(arguments, result, "faces.export", result.as_json)
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
