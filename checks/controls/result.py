"""The result of the controls, as plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from checks.controls.faults.fault import Kind, Setting
from checks.controls.margins import COMMANDS, FLOAT32_FAULTS, Margin, Shares, largest
from checks.core import thresholds
from checks.core.network import short_name
from converter.layer_map import Variant

Status = Literal["killed", "survived", "not equivalent", "does not apply"]


@dataclass(frozen=True, slots=True)
class SiteResult:
    """The outcome of one fault at one site.

    Attributes:
        fault: Name of the class.
        kind: As in `Fault`.
        site: The site's label.
        setting: The setting that must show the fault. If it is not inference, inference must not show it.
        status: "not equivalent" is a fault that showed in inference, but must not.
        judgements: The judgements that failed.
        true_place: The place of the fault.
        place: The place where the port first differs, according to the comparison.
        cause: The cause that the diagnosis should name; None if it has no name for it.
        named: The cause that the diagnosis names.
        inputs: Number of inputs that were run in the setting until one showed the fault.
        shares: Judgement to the share of its bound that the fault reaches; `FAR` is at least as much.
    """

    fault: str
    kind: Kind
    site: str
    setting: Setting
    status: Status
    judgements: tuple[str, ...] = ()
    true_place: str = ""
    place: str | None = None
    cause: str | None = None
    named: str | None = None
    inputs: int = 0
    shares: Shares = field(default_factory=dict)

    @property
    def killed(self) -> bool:
        """True if the checks found the fault in its setting, and only there."""
        return self.status == "killed"

    @property
    def exact(self) -> bool:
        """True if the checks found the fault at its place."""
        return self.killed and self.place == self.true_place

    def is_for(self, judgement: str) -> bool:
        """Return True if a judgement is there to find this fault, so that its margin counts.

        The mapping finds every fault of inference but those of float32 arithmetic, which float64 cannot show.
        Rounding, headline and distance are for these. A fault of training counts for the first that finds it.
        """
        if self.setting == "training":
            return self.judgements[:1] == (judgement,)
        if self.fault in FLOAT32_FAULTS:
            return judgement in ("rounding", "headline", "arithmetic", "distance")
        if judgement in ("arithmetic", "preprocessing"):
            return judgement in self.shares
        return judgement == "mapping" and self.judgements != ("run",)

    @property
    def explained(self) -> bool:
        """True if the diagnosis named the fault's cause."""
        return self.killed and self.cause is not None and self.named == self.cause


@dataclass(frozen=True, slots=True)
class CleanRun:
    """A port without a fault, judged on the inputs of one seed.

    Attributes:
        seed: The seed.
        alarms: The judgements that failed; each is a false alarm.
        shares: Judgement to the share of its bound.
        path: The file of a graph, which is judged as in an audit; empty for a port in PyTorch.
    """

    seed: int
    alarms: tuple[str, ...]
    shares: Shares = field(default_factory=dict)
    path: str = ""


@dataclass(frozen=True, slots=True)
class ControlsResult:
    """The result of the controls.

    Attributes:
        source: The checkpoint.
        variant: The variant of the network.
        own_averages: Whether the moving averages that faults mix in are the checkpoint's own.
        sites: In the order of `ALL_FAULTS`.
        clean: In the order of the seeds.
        seconds: Wall time.
        files: Every file that was read.
        seed: Seed of the inputs that the faults are judged on.
        classes: Number of all classes of faults.
        graphs: The clean runs of files of graphs.
    """

    source: str
    variant: Variant
    own_averages: bool
    sites: tuple[SiteResult, ...]
    clean: tuple[CleanRun, ...]
    seconds: float
    files: tuple[str, ...] = ()
    seed: int = 0
    classes: int = 0
    graphs: tuple[CleanRun, ...] = ()

    @property
    def applicable(self) -> tuple[SiteResult, ...]:
        """The sites that this checkpoint has."""
        return tuple(site for site in self.sites if site.status != "does not apply")

    @property
    def surviving(self) -> tuple[SiteResult, ...]:
        """The faults that were not found, or that showed in inference but must not."""
        return tuple(site for site in self.applicable if not site.killed)

    @property
    def false_alarms(self) -> tuple[CleanRun, ...]:
        """Clean runs that raised an alarm."""
        return tuple(run for run in (*self.clean, *self.graphs) if run.alarms)

    @property
    def margins(self) -> tuple[Margin, ...]:
        """The margin of every judgement that clean runs and planted faults were measured by."""
        clean = largest(*(run.shares for run in self.clean), *(run.shares for run in self.graphs))
        margins = []
        for command, judgements in COMMANDS.items():
            for judgement in judgements:
                sites = [site for site in self.applicable if site.is_for(judgement)]
                if sites and judgement in clean:
                    nearest = min(sites, key=lambda site: site.shares.get(judgement, 0.0))
                    fault = nearest.shares.get(judgement, 0.0)
                    room = 1 / clean[judgement] if clean[judgement] else math.inf
                    place = f"{nearest.fault} at {short_name(nearest.site)}"
                    margins.append(Margin(command, judgement, room, fault, place))
        return tuple(margins)

    @property
    def places(self) -> float:
        """Share of the faults whose place is exact."""
        return _share([site.exact for site in self.applicable])

    @property
    def causes(self) -> float:
        """Share of the faults whose cause is named."""
        return _share([site.explained for site in self.applicable])

    @property
    def whole(self) -> bool:
        """True if every class of faults was planted."""
        return len({site.fault for site in self.sites}) == self.classes

    @property
    def enough_causes(self) -> bool:
        """True if enough causes are named, or only some classes were planted: some faults have no name."""
        return not self.whole or self.causes >= thresholds.CAUSES

    @property
    def passed(self) -> bool:
        """True if the checks find every fault, with margin, name enough of them, and raise no false alarm."""
        enough = self.places >= thresholds.PLACES and self.enough_causes
        enough = enough and all(margin.holds for margin in self.margins)
        return enough and not self.surviving and not self.false_alarms


def _share(of: Sequence[bool]) -> float:
    return sum(of) / len(of) if of else 1.0
