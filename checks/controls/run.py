"""The documented function: plant every fault in a clean port, and judge clean ports too."""

from __future__ import annotations

import difflib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from checks.controls.faults.all_faults import ALL_FAULTS
from checks.controls.faults.fault import Fault
from checks.controls.judge_graph import judge_graphs, read_graphs
from checks.controls.plant_faults import FaultPlanter, Progress
from checks.controls.result import ControlsResult
from checks.controls.tensorflow_reference import ControlSource
from checks.core.activations import one_thread
from checks.core.builtin_checkpoint import built_in_checkpoint
from checks.core.tensorflow_side import require_tensorflow
from checks.core.types import Say
from converter.errors import UsageError
from converter.formats.detect import open_source
from converter.hub.locate import locate

CLEAN_RUNS = 5


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_NamedFault = TypeVar("_NamedFault", bound=_Named)


def choose(names: Sequence[str], catalog: Sequence[_NamedFault]) -> tuple[_NamedFault, ...]:
    """Find the faults with these names, in the order of a catalog; no name means all.

    Raises:
        UsageError: There is no fault of a name.
    """
    known = [fault.name for fault in catalog]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or known[:3]
            raise UsageError(f"--only {name}: no such fault. Near it: {', '.join(near)}.")
    return tuple(fault for fault in catalog if not names or fault.name in names)


def run_controls(
    source: str | Path | None = None,
    *,
    faults: Sequence[Fault] = ALL_FAULTS,
    step: int | None = None,
    clean: int = CLEAN_RUNS,
    graphs: Sequence[str | Path] = (),
    seed: int = 0,
    say: Say = lambda _: None,
    progress: Progress = lambda done, total: None,
) -> ControlsResult:
    """Plant every fault at every site, run the checks, and judge clean ports.

    Args:
        source: Any TensorFlow checkpoint that `open_source` takes, or the name of a published model; None is
            the built-in checkpoint.
        faults: The classes to plant.
        step: As in `open_source`.
        clean: Number of clean runs. The first is on the inputs of the faults, in every setting. The others
            are in inference, each with a seed of its own.
        graphs: ONNX or TFLite files that an exporter made from the source. Each is judged as in an audit on
            the inputs of every clean run.
        seed: Seed of the inputs that the faults are judged on; the clean runs take it and the next ones.
        say: Progress callback.
        progress: Takes the number of sites and clean runs that are done, and the total.

    Returns:
        The result; its `passed` is the verdict.

    Raises:
        PortError: A subclass of it says why the controls could not be run.
    """
    require_tensorflow("to run the controls")
    started = time.monotonic()
    opened_graphs = read_graphs([Path(path) for path in graphs])
    if source is None:
        say("looking for the built-in checkpoint")
        source = built_in_checkpoint()
    say("starting TensorFlow")
    with open_source(locate(source), step=step) as opened, ControlSource(opened) as checkpoint:
        training = any(site.setting == "training" for fault in faults for site in fault.sites)
        reference = checkpoint.reference(seed, training=training, say=say)
        say("planting faults")
        with one_thread():
            planter = FaultPlanter(checkpoint, reference)
            seeds = range(seed, seed + clean)
            results, runs = planter.run(faults, seeds, progress)
            graph_runs = tuple(judge_graphs(opened_graphs, checkpoint, seeds, say))
        return ControlsResult(
            str(source),
            checkpoint.plan.variant,
            checkpoint.own_averages,
            results,
            runs,
            time.monotonic() - started,
            tuple(map(str, opened.files)),
            seed,
            len(ALL_FAULTS),
            graph_runs,
        )
