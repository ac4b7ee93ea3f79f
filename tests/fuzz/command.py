"""The command behind `make fuzz`: runs the parts, prints their figures, and exits with 1 on a finding."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tests.fuzz.damaged_networks import FULL_SIZE, run_conversions
from tests.fuzz.flipped_bits import flip_data, flip_index
from tests.fuzz.killed_trainings import run_kills as kill_trainings
from tests.fuzz.killed_writers import run_kills
from tests.fuzz.seeds import network_files
from tests.fuzz.targets import FULL_RUN, TARGETS
from tests.fuzz.workers import FINDINGS, judge, make_mutant, run_target

COMMAND = "import sys; from tests.fuzz.command import main; sys.exit(main())"
"""A program that runs the command."""

PARTS = ("inputs", "conversions", "flips", "kills", "trainings")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Read mutants of every format, convert damaged networks, flip bits, and kill writers "
        "and trainings. Exit code 1 if a mutant crashes, hangs, takes too much memory, goes unnoticed or "
        "ends in a traceback.",
    )
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"parts to run: {', '.join(PARTS)} (default: all)")
    add("--target", action="append", choices=TARGETS, help="only this format; may be repeated")
    add(
        "--count",
        type=int,
        default=FULL_RUN,
        help="mutants of each format (%(default)s)",
    )
    add("--conversions", type=int, default=100, help="damaged networks of each format (%(default)s)")
    add("--flips", type=int, default=10_000, help="flipped bits of a .data file (%(default)s)")
    add("--stride", type=int, default=1, help="flip every N-th bit of an .index (%(default)s)", metavar="N")
    add("--kills", type=int, default=1000, help="killed writers (%(default)s)")
    add("--trainings", type=int, default=100, help="killed trainings (%(default)s)")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    add("--seed", type=int, default=0, help="seed of the random numbers (%(default)s)")
    add("--case", metavar="TARGET:NUMBER", help="make and read one mutant again")
    add(
        "--findings",
        type=Path,
        default=Path("fuzz-findings"),
        help="folder for harmful mutants (%(default)s)",
    )
    add("--json", type=Path, help="also write the figures as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = _parser().parse_args(argv)
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        _parser().error(f"no such part: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)  # a process that has threads must not be forked
    # Every mutant is a file: a folder in memory is faster than a disk.
    memory = Path("/dev/shm")
    folder = Path(
        tempfile.mkdtemp(prefix="facenet-port-fuzz-", dir=memory if os.access(memory, os.W_OK) else None)
    )
    try:
        if arguments.case:
            return _replay(arguments, folder)
        figures = {
            part: _RUN[part](arguments, folder) for part in PARTS if part in (arguments.parts or PARTS)
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    findings = sum(figure["found"] for figure in figures.values())
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"\n{findings} findings." if findings else "\nNothing was found.")
    return 1 if findings else 0


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _show(table: Table) -> None:
    _say("")
    console = Console(highlight=False, soft_wrap=True)
    console.width = max(console.width, 140)
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _inputs(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    table = _table(
        "Mutants of small files",
        "format",
        "inputs",
        "refused",
        "same",
        "other",
        *FINDINGS,
        "CPU ms",
        "wait ms",
        "MB",
        "per s",
    )
    figures: dict[str, Any] = {"found": 0}
    for name in arguments.target or TARGETS:
        count = arguments.count
        result = run_target(
            TARGETS[name], count, folder, arguments.findings,
            seed=arguments.seed, workers=arguments.workers,
            progress=lambda done, name=name, count=count: _say(f"{name}: {done} of {count}"),
        )  # fmt: skip
        figures[name] = asdict(result)
        figures["found"] += sum(result.counts[outcome] for outcome in FINDINGS)
        table.add_row(
            name, str(count), *(str(number) for number in result.counts.values()),
            f"{1e3 * result.worst_cpu:.0f}", f"{1e3 * result.worst_wait:.0f}",
            f"{result.worst_growth / 2**20:.0f}", f"{count / result.seconds:.0f}",
        )  # fmt: skip
        for case, note in result.findings.items():
            lines = note.strip().splitlines()
            print(f"{arguments.findings / case}: {lines[0] if len(lines) < 3 else lines[-1]}")
    _show(table)
    return figures


def _conversions(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    table = _table("Damaged networks", "format", "inputs", "refused", "same", "other", "findings", "MB")
    chosen = [name for name in arguments.target or FULL_SIZE if name in FULL_SIZE]
    reports = run_conversions(chosen, arguments.conversions, folder, seed=arguments.seed, progress=_say)
    for name, report in reports.items():
        numbers = [arguments.conversions, *report.counts.values()]
        table.add_row(name, *map(str, numbers), f"{report.worst_growth / 2**20:.0f}")
        for case, note in report.findings.items():
            print(f"{case}: {note}")
    _show(table)
    return {
        "found": sum(report.counts["findings"] for report in reports.values()),
        **{name: asdict(report) for name, report in reports.items()},
    }


def _flips(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    index = network_files(folder / "flips", ("index",))["index"]
    prefix = index.with_suffix("")
    _say("flipping bits")
    table = _table("Flipped bits", "file", "bits flipped", "detected", "%", "seconds")
    figures: dict[str, Any] = {"found": 0}
    for ending, flip in (
        (".index", lambda: flip_index(prefix, stride=arguments.stride)),
        (".data", lambda: flip_data(prefix, arguments.flips, seed=arguments.seed)),
    ):
        started = time.monotonic()
        flipped, missed = flip()
        share = 100 * (flipped - len(missed)) / flipped
        seconds = time.monotonic() - started
        table.add_row(ending, str(flipped), str(flipped - len(missed)), f"{share:.2f}", f"{seconds:.0f}")
        figures[ending] = {"flipped": flipped, "missed": missed}
        figures["found"] += len(missed)
    shutil.rmtree(folder / "flips")
    _show(table)
    return figures


def _kills(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    source = network_files(folder / "source", ("index",))["index"]
    kills = run_kills(source, arguments.kills, folder, seed=arguments.seed, progress=_say)
    table = _table("Killed writers", "writing", "kills", "before", "during", "after", "partial files")
    for job, killed in kills.items():
        numbers = [sum(killed.moments.values()), *killed.moments.values(), len(killed.partial)]
        table.add_row(job, *map(str, numbers))
        for problem in killed.partial:
            print(problem)
    _show(table)
    return {
        "found": sum(len(killed.partial) for killed in kills.values()),
        **{job: asdict(killed) for job, killed in kills.items()},
    }


def _trainings(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    kills = kill_trainings(arguments.trainings, folder / "trainings", seed=arguments.seed, progress=_say)
    table = _table("Killed trainings", "kills", *kills.moments, "problems")
    table.add_row(*map(str, (arguments.trainings, *kills.moments.values(), len(kills.problems))))
    for problem in kills.problems:
        print(problem)
    _show(table)
    return {"found": len(kills.problems), **asdict(kills)}


_RUN = {
    "inputs": _inputs,
    "conversions": _conversions,
    "flips": _flips,
    "kills": _kills,
    "trainings": _trainings,
}


def _replay(arguments: argparse.Namespace, folder: Path) -> int:
    """Make one mutant of a small file again and keep it among the findings, whatever its outcome."""
    name, _, number = arguments.case.partition(":")
    target, case = TARGETS[name], int(number)
    seeds = target.seeds(folder)
    chosen, mutant, signed = make_mutant(
        target, [seed.path.read_bytes() for seed in seeds], case, arguments.seed
    )
    seed = seeds[chosen]
    seed.path.write_bytes(mutant)
    arguments.findings.mkdir(parents=True, exist_ok=True)
    kept = arguments.findings / f"{name}-{case}{seed.path.suffix}"
    kept.write_bytes(mutant)
    print(kept, flush=True)
    outcome, note = judge(target, seed.path, seed, signed)
    print(f"{outcome}\n{note}")
    return 1 if outcome in FINDINGS else 0
