"""The result of the face controls, as plain data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from checks.controls.margins import Margin
from checks.core.judgement import Judgement
from faces.controls.faults import StageName


@dataclass(frozen=True, slots=True)
class StageResult:
    """A stage without a fault.

    Attributes:
        stage: Its name.
        command: The command whose users it concerns.
        judge: The original's code that it is judged by.
        unit: Of the difference, such as "px"; empty without one.
        bound: The largest difference that is no fault; 0 if the results are equal or not.
        value: The difference from the original.
        judgement: The judgement on it.
        explained_by: The faults of the catalog that give this result, if the judgement fails.
    """

    stage: StageName
    command: str
    judge: str
    unit: str
    bound: float
    value: float
    judgement: Judgement
    explained_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlantedFault:
    """A fault, and what the judgements say of it.

    Attributes:
        fault: Its name.
        stage: The stage that it is in.
        description: What is wrong, a clause.
        failed: The stages whose judgement fails, of those up to its own, in the order of the path.
        value: The difference of its stage's result from the original's.
        statement: The statement of its stage's judgement.
        explained_by: The faults of its stage that give this result.
        nearest: The difference of its result from that of the other fault of its stage that is nearest to it;
            infinite if there is none.
    """

    fault: str
    stage: StageName
    description: str
    failed: tuple[StageName, ...]
    value: float
    statement: str
    explained_by: tuple[str, ...]
    nearest: float

    @property
    def killed(self) -> bool:
        """True if a judgement fails."""
        return bool(self.failed)

    @property
    def placed(self) -> bool:
        """True if the judgement of its stage fails, and none of an earlier one."""
        return self.failed == (self.stage,)

    @property
    def named(self) -> bool:
        """True if it alone explains the result."""
        return self.placed and self.explained_by == (self.fault,)


@dataclass(frozen=True, slots=True)
class FaceControlsResult:
    """The result of the face controls.

    Attributes:
        stages: In the order of the path.
        faults: In the order of `FAULTS`.
        seconds: Wall time.
        files: The photographs.
    """

    stages: tuple[StageResult, ...]
    faults: tuple[PlantedFault, ...]
    seconds: float
    files: tuple[str, ...]

    @property
    def surviving(self) -> tuple[PlantedFault, ...]:
        """The faults that no judgement finds."""
        return tuple(fault for fault in self.faults if not fault.killed)

    @property
    def false_alarms(self) -> tuple[StageResult, ...]:
        """The stages whose judgement fails without a fault."""
        return tuple(stage for stage in self.stages if not stage.judgement.passed)

    @property
    def margins(self) -> tuple[Margin, ...]:
        """The margin of every judgement with a bound whose faults were planted."""
        margins = []
        for stage in self.stages:
            faults = [fault for fault in self.faults if fault.stage == stage.stage]
            if stage.bound and faults:
                nearest = min(faults, key=lambda fault: fault.value)
                clean = stage.bound / stage.value if stage.value else math.inf
                margins.append(
                    Margin(stage.command, stage.stage, clean, nearest.value / stage.bound, nearest.fault)
                )
        return tuple(margins)

    @property
    def passed(self) -> bool:
        """True if every fault is found at its stage and named, with margin, and there is no false alarm."""
        named = all(fault.named for fault in self.faults)
        return named and all(margin.holds for margin in self.margins) and not self.false_alarms

    def as_json(self) -> dict[str, Any]:
        """The result in the form that `--json` writes."""
        return {
            "passed": self.passed,
            **asdict(self),
            "faults": [
                {**asdict(fault), "killed": fault.killed, "placed": fault.placed, "named": fault.named}
                for fault in self.faults
            ],
            "margins": [{**asdict(margin), "holds": margin.holds} for margin in self.margins],
        }
