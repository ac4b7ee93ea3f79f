"""Measure how many faces a second are embedded: in ONNX Runtime, also in int8, and by facenet-pytorch.

One process with two threads runs the sides in turn on the same images, with the same weights. Our models
embed batches as the commands do, side by side with a thread each. The bare loop and facenet-pytorch take one
batch after the other with all threads, as their users write them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

from checks.benchmark.face_figures import MODEL, download, export_int8
from checks.benchmark.processes import run_process
from checks.benchmark.result import Figure, summarise
from checks.core import thresholds
from converter.errors import RequirementError

_PACKAGES = {"onnx": "onnx", "onnxruntime": "onnxruntime", "unearth": "unearth"}
_BATCHES = (16, 1)
_IMAGES = 256  # at batch 16 eight batches for each of two threads: of fewer the last one shows


def measure_deploy(folder: Path, rounds: int) -> list[Figure]:
    """Measure embedding faces in ONNX Runtime.

    Args:
        folder: The folder for files, with 300 MB free. An int8 model that is there is taken.
        rounds: The number of runs of each side.

    Raises:
        RequirementError: A package is missing, or cannot be downloaded.
        RuntimeError: A process failed.
    """
    missing = [name for module, name in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise RequirementError(f"it needs {', '.join(missing)}: pip install 'facenet-port[faces,onnx]'.")
    own = folder / "deploy"
    own.mkdir()
    _, wheel = download(own, 1)
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    weights = own / "peer.pt"
    run_process((sys.executable, "-m", "converter", MODEL, "-o", str(weights)), environment)
    int8 = export_int8(folder, environment)
    command = [sys.executable, "-c", _RUN, wheel, str(own / "peer"), str(weights), str(int8), str(rounds)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)  # noqa: S603
    if result.returncode:
        raise RuntimeError(f"measuring the runtimes failed: {result.stderr}")
    return make_figures(json.loads(result.stdout.splitlines()[-1]))


def make_figures(rates: dict[str, dict[str, list[float]]]) -> list[Figure]:
    """Make the figures of measured rates: batch size to side to faces a second of each run."""
    figures = []
    for size, sides in rates.items():
        for side, name, other, other_name, least, least_over_peer in (
            ("ours", "onnxruntime", "bare", "a bare loop", thresholds.BARE_RATIO, thresholds.NETWORK_RATIO),
            ("int8", "int8", "ours", "onnxruntime", thresholds.INT8_RATIO, thresholds.INT8_NETWORK_RATIO),
        ):
            figures.append(summarise(f"{name}, faces at batch {size}", sides[side], None, "/s"))
            for base, base_name, bound in (
                (other, other_name, least),
                ("peer", "facenet-pytorch", least_over_peer),
            ):
                ratios = [mine / theirs for mine, theirs in zip(sides[side], sides[base], strict=True)]
                figures.append(summarise(f"{name} / {base_name}, batch {size}", ratios, bound, at_least=True))
    return figures


_RUN = f"""
import json
import sys
import time
from pathlib import Path
import numpy as np
import onnxruntime
import torch
from checks.benchmark.peer import load_network, load_peer
from faces.backends.choose import choose_backend
from faces.model import load_model
from faces.threads import run_side_by_side

wheel, folder, weights, int8_file = map(Path, sys.argv[1:5])
int8 = load_model(int8_file)
model = choose_backend(load_model(), "onnxruntime", device="cpu")
threads = torch.get_num_threads()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
session = onnxruntime.InferenceSession(model.backend.path, options, providers=["CPUExecutionProvider"])
peer = load_network(load_peer(wheel, folder)[1], weights)
images = np.random.default_rng(0).standard_normal(({_IMAGES}, 160, 160, 3)).astype(np.float32)
ready = np.ascontiguousarray(images.transpose(0, 3, 1, 2))

def cut(array, size):
    return (array[start : start + size] for start in range(0, len(array), size))

def side_by_side(network):
    return lambda size: list(run_side_by_side(threads, network.embed, cut(images, size)))

@torch.no_grad()
def run_peer(size):
    return [peer(torch.from_numpy(batch)) for batch in cut(ready, size)]

sides = {{
    "ours": side_by_side(model),
    "int8": side_by_side(int8),
    "bare": lambda size: [session.run(None, {{"images": batch}}) for batch in cut(ready, size)],
    "peer": run_peer,
}}
rates = {{}}
for size in {_BATCHES}:
    rates[size] = {{name: [] for name in sides}}
    for turn in range(int(sys.argv[5]) + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run(size)
            if turn:  # the first turn takes longer
                rates[size][name].append(len(images) / (time.perf_counter() - start))
print(json.dumps(rates))
"""
