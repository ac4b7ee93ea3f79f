"""Measure the speed of a training against a bare loop of forward pass, backward pass and step."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from checks.benchmark.processes import run_process, run_timed
from checks.benchmark.result import Figure, summarise
from checks.core import thresholds
from converter.errors import RequirementError

_FACES = 96  # three batches of 32


def measure_training(folder: Path, rounds: int, faces: int = _FACES, batch: int = 32) -> list[Figure]:
    """Measure the steps of a training from random weights, against those of a bare loop.

    Each side is a process of its own. The first step, which allocates memory, is not measured.

    Args:
        folder: The folder for files.
        rounds: The number of runs of each side.
        faces: The number of faces to train on, at least two batches.
        batch: Faces in a batch.

    Raises:
        RequirementError: A package is missing.
        RuntimeError: A process failed.
    """
    packages = {"accelerate": "accelerate", "tensorboard": "tensorboard", "sklearn": "scikit-learn"}
    missing = [name for module, name in packages.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise RequirementError(f"it needs {', '.join(missing)}: pip install 'facenet-port[training]'.")
    crops = folder / "crops"
    run_process((sys.executable, "-c", _DRAW, str(crops), str(faces)))
    ours, bare, waited = [], [], []
    for number in range(rounds):
        arguments = (str(crops), str(folder / f"run-{number}"), str(batch))
        code = _SETUP + _TRAIN
        ours.append(run_timed((sys.executable, "-c", code, *arguments)))
        waited.append(float((folder / f"run-{number}" / "waited").read_text()))
        bare.append(run_timed((sys.executable, "-c", _SETUP + _BARE, *arguments)))
    ratios = [alone / whole for whole, alone in zip(ours, bare, strict=True)]
    name = f"train / a bare loop, faces a second at batch {batch}"
    return [
        summarise(name, ratios, thresholds.TRAIN_RATIO, at_least=True),
        summarise("train, share of the time that waits for data", waited, thresholds.TRAIN_WAITING),
    ]


_DRAW = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
for number in range(int(sys.argv[2]) + 4):
    split = "val" if number < 4 else "train"
    path = Path(sys.argv[1]) / split / f"person-{number % 2}" / f"{number}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (160, 160, 3), np.uint8)).save(path)
rows = ["crop_path,person_name,split_type"]
for path in sorted(Path(sys.argv[1]).glob("*/*/*.png")):
    rows.append(f"{path.relative_to(sys.argv[1])},{path.parent.name},{path.parent.parent.name}")
(Path(sys.argv[1]) / "faces.csv").write_text("\\n".join(rows))
"""

_SETUP = """
import sys
import time
from pathlib import Path
import torch
from faces.training.config import TrainConfig
config = TrainConfig(
    data=sys.argv[1], output=sys.argv[2], weights="none", batch_size=int(sys.argv[3]), epochs=1, device="cpu"
)
times = []
"""

_TRAIN = """
from faces.training.run import train
result = train(config, report=lambda step, steps, figures: times.append(time.perf_counter()))
Path(sys.argv[2], "waited").write_text(str(result.rows[0]["waited_for_data"]))
print(times[-1] - times[0])
"""

_BARE = """
from faces.training.data import epoch_batches, find_data
from faces.training.images import Faces, build_loader, read_batches
from reference import InceptionResnetV1
data = find_data(config)
rows = [[(0, int(place)) for place in batch] for batch in epoch_batches(config, data, 0)]
loader = build_loader(Faces(data.training, "fixed"), rows, 0)
batches = [(images, torch.from_numpy(data.labels)[places]) for images, places in read_batches(loader)]
network = InceptionResnetV1(num_classes=2, classify=True).train()
parameters = [p for name, p in network.named_parameters() if not name.endswith("bn.weight")]
optimiser = torch.optim.AdamW(parameters)
for images, labels in batches:
    torch.nn.functional.cross_entropy(network(images), labels).backward()
    optimiser.step()
    optimiser.zero_grad()
    times.append(time.perf_counter())
print(times[-1] - times[0])
"""
