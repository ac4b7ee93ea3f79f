"""The options of `facenet-port gradients`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from checks.core import options
from converter import command_line
from converter.progress import ProgressBar

_EPILOG = """\
Without SOURCE the built-in checkpoint is taken; on first use it is written to the user's cache.

exit codes: 0 all six judgements hold; 1 a difference was found; 2 wrong usage; 3 an input is unreadable,
corrupt or another network; 4 something that is needed, such as TensorFlow, is missing;
130 interrupted, 143 by SIGTERM, 129 by SIGHUP
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_source_options(parser)
    options.add_weights_option(parser)
    options.add_seed_option(parser, "the batch")
    options.add_report_option(parser)
    options.add_verbose_option(parser)


def _work(arguments: argparse.Namespace) -> int:
    options.check_report(arguments)
    # PyTorch is imported here, so that Ctrl-C during the import ends as it does later.
    from checks.gradients.run import compare_gradients

    source = options.locate(arguments)
    with ProgressBar("starting", quiet=arguments.quiet) as progress:
        result = compare_gradients(
            source,
            weights=arguments.weights,
            step=arguments.step,
            seed=arguments.seed,
            say=progress.label,
        )
    command_line.show_result(
        arguments, result, "checks.gradients", lambda: {"passed": result.passed, **asdict(result)}
    )
    return 0 if result.passed else 1


COMMAND = command_line.Command(
    "checks.gradients",
    "Prove that fine-tuning in PyTorch starts where TensorFlow stopped: gradients and training steps.",
    _add_arguments,
    _work,
    _EPILOG,
)
main = COMMAND.main


if __name__ == "__main__":
    sys.exit(main())
