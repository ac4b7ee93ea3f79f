"""Measure the time and memory that converting, comparing, finding and embedding faces, and training take.

Most figures cover a whole process, from start to exit. The two sides of a ratio run in turn, so that a
change in the machine's speed affects both. The median of the ratios counts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from checks.benchmark.deploy_figures import measure_deploy
from checks.benchmark.face_figures import measure_faces
from checks.benchmark.processes import ProcessCost, run_process
from checks.benchmark.result import BenchmarkResult, Figure, Part, summarise
from checks.benchmark.training_figures import measure_training
from checks.core import thresholds
from converter.errors import RequirementError
from converter.manifest import file_digest


def run_benchmark(
    folder: Path, rounds: int, only: Part | None = None, photographs: int = 0
) -> BenchmarkResult:
    """Run the benchmark.

    Args:
        folder: The folder for files, with 800 MB free.
        rounds: The number of runs of each command.
        only: The part to measure; None measures all. Without a package index, or without the packages that
            they need, faces or training are left out, and the result says so.
        photographs: As the `count` of `measure_faces`.

    Raises:
        RequirementError: One part alone is asked for, and cannot be measured.
        RuntimeError: A command failed.
    """
    figures = _measure(folder, rounds) if only in (None, "conversion") else []
    notes: list[str] = []
    for part, measure in (
        ("faces", partial(measure_faces, count=photographs)),
        ("deploy", measure_deploy),
        ("training", measure_training),
    ):
        if only not in (None, part):
            continue
        try:
            figures += measure(folder, rounds)
        except RequirementError as error:
            if only is not None:
                raise
            notes.append(f"{part}: not measured: {error}")
    # Imported last: the peak memory of a child is at least that of its parent at the start of the child.
    from checks.core.environment import environment

    return BenchmarkResult(rounds, tuple(figures), environment(), tuple(notes))


def _measure(folder: Path, rounds: int) -> list[Figure]:
    small, large = _checkpoints(folder)
    size = _data_file(small).stat().st_size
    python = (sys.executable, "-m")
    import_torch = (sys.executable, "-c", "import torch")
    import_both = (sys.executable, "-c", "import torch, tensorflow")
    convert = (*python, "converter", "--overwrite")
    small_command = (*convert, str(small), "-o", str(folder / "small.pt"))
    large_command = (*convert, str(large), "-o", str(folder / "large.pt"))
    run_process(import_torch)  # fills the page cache; not measured
    torch_runs, small_runs, large_runs = [], [], []
    for _ in range(rounds):
        torch_runs.append(run_process(import_torch))
        small_runs.append(run_process(small_command))
        large_runs.append(run_process(large_command))
    frozen = small.with_name(f"{small.parent.name}.pb")
    compare = (*python, "checks.compare", "--every-layer", str(frozen))
    compare_runs = [run_process(compare) for _ in range(min(rounds, 2))]
    run_process(import_both)
    both_runs, proof_runs = [], []
    for _ in range(rounds):
        both_runs.append(run_process(import_both))
        proof_runs.append(run_process((*python, "checks.compare", str(small))))

    def ratios(over: list[ProcessCost], under: list[ProcessCost]) -> list[float]:
        return [a.seconds / b.seconds for a, b in zip(over, under, strict=True)]

    memory = [(a.peak - b.peak) / size for a, b in zip(small_runs, torch_runs, strict=True)]
    return [
        summarise("convert / import torch, time", ratios(small_runs, torch_runs), thresholds.CONVERT_RATIO),
        summarise("convert - import torch, peak memory / checkpoint", memory, thresholds.CONVERT_MEMORY),
        summarise(
            "with averages and slots / without, time", ratios(large_runs, small_runs), thresholds.LARGE_RATIO
        ),
        summarise(
            "compare --every-layer on a .pb",
            [run.seconds for run in compare_runs],
            thresholds.COMPARE_SECONDS,
            "s",
        ),
        summarise(
            "compare / import torch and tensorflow, time",
            ratios(proof_runs, both_runs),
            thresholds.COMPARE_RATIO,
        ),
        summarise(
            "InceptionResnetV1(pretrained=...) / torch.load, time",
            _pretrained_ratios(folder, small, rounds),
            thresholds.PRETRAINED_RATIO,
        ),
    ]


def _pretrained_ratios(folder: Path, checkpoint: Path, rounds: int) -> list[float]:
    """Divide the time of a verified load by name, from the cache, by that of torch.load on the same file."""
    hub = folder / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    catalog = folder / "catalog.toml"
    catalog.write_text(_CATALOG.format(data=file_digest(_data_file(checkpoint))))
    weights = hub / "benchmark-faces.pt"
    run_process((sys.executable, "-m", "converter", str(checkpoint), "-o", str(weights)))
    environment = {**os.environ, "TORCH_HOME": str(folder / "torch"), "FACENET_PORT_CATALOG": str(catalog)}
    command = [sys.executable, "-c", _LOAD, str(weights), str(3 * rounds)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)  # noqa: S603
    return [float(line) for line in result.stdout.split()]


def _data_file(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}.data-00000-of-00001")


# The archive is not downloaded: the cache holds the state_dict, with the manifest of its conversion.
_CATALOG = """
[benchmark]
dataset = "faces"
url = "https://example.org/benchmark.zip"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
files = {{".data-00000-of-00001" = "{data}"}}
"""

_LOAD = """
import sys
import time
import torch
from reference import InceptionResnetV1

def seconds(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result

for turn in range(int(sys.argv[2]) + 1):
    plain, _ = seconds(lambda: torch.load(sys.argv[1], weights_only=True))
    verified, _ = seconds(lambda: InceptionResnetV1(pretrained="benchmark", offline=True))
    if turn:  # the first turn fills the page cache
        print(verified / plain)
"""


def _checkpoints(folder: Path) -> tuple[Path, Path]:
    """Write the built-in checkpoint, and one that adds averages and Adam's slots; return their prefixes."""
    # A separate process writes them, so that this one stays small.
    large = folder / "model-large.ckpt-1"
    command = [sys.executable, "-c", _WRITE_LARGE, str(large)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    return Path(result.stdout.strip()), large


_WRITE_LARGE = """
import sys
from pathlib import Path
from checks.core.builtin_checkpoint import built_in_checkpoint
from converter.formats.tensorflow.bundle_writer import write_tensor_bundle
from converter.formats.detect import open_source

suffixes = ("", "/ExponentialMovingAverage", "/Adam", "/Adam_1")
with open_source(built_in_checkpoint()) as source:
    tensors = {name + suffix: source[name] for name in source for suffix in suffixes}
    write_tensor_bundle(Path(sys.argv[1]), tensors)
    print(source.path)
"""
