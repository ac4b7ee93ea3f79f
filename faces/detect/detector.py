"""The detector: facenet's cascade of three networks, over any number of photographs at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from faces.backends.facts import TORCH, BackendName
from faces.detect import cascade
from faces.detect.cascade import Boxes
from faces.detect.network import Network, in_pytorch
from faces.detect.result import Face
from faces.images import ImageLike, to_rgb
from faces.options import FACTOR, SMALLEST_FACE, THRESHOLDS
from faces.threads import MOST_THREADS, CallingThread, network_threads
from reference.mtcnn import O_NET_SIZE, R_NET_SIZE, ONet, PNet, RNet
from reference.weights import load_mtcnn

# The largest overlap of two boxes of one level, of one photograph, after R-Net, and after O-Net.
_LEVEL_OVERLAP, _PHOTOGRAPH_OVERLAP, _REFINED_OVERLAP, _FINAL_OVERLAP = 0.5, 0.7, 0.7, 0.7
_LEVEL_PIXELS = 1 << 18  # of a level that P-Net is given at once: some 40 MB of activations in each thread
# Crops that R-Net and O-Net are given at once, some 20 MB of activations in PyTorch. Always so many: PyTorch
# rounds a batch of another size differently, and the faces of a photograph would depend on the other
# photographs. The other runtimes compute each crop by itself, and are faster at few, which stay in the cache.
_CROPS = {R_NET_SIZE: 64, O_NET_SIZE: 16}
_FEW_CROPS = {R_NET_SIZE: 16, O_NET_SIZE: 4}
_LOST_ROWS = 5  # P-Net's map has ceil(height / 2) - 5 rows: n rows of it need 2n + 10 rows of the level


class FaceDetector:
    """Finds faces as facenet does: `detect_face` of davidsandberg/facenet, on PyTorch.

    Args:
        networks: P-Net, R-Net and O-Net. None takes those of facenet, from the cache or a package index.
        device: The device that the networks run on. The rest of the work is done on the CPU.
        smallest_face: Side of the smallest face to look for, in pixels.
        thresholds: Probability of a face that P-Net, R-Net and O-Net ask for.
        factor: Ratio of two scales of the pyramid that follow each other. Nearer to 1 is slower.
        offline: Never download.
        backend: What runs facenet's networks: "torch", "onnxruntime" or "litert". The boxes of the last two
            differ from PyTorch's by the rounding of float32. None takes ONNX Runtime if it is ready, as
            `faces.backends.detector_networks.choose_networks` says.
        images: The number of photographs that are going to be searched, on which that choice depends.

    Attributes:
        backend: What runs the networks.

    Raises:
        ValueError: `smallest_face` is below 1, a threshold is not from 0 to 1, or `factor` is not between 0
            and 1; there is no such backend; or networks are given with another than "torch".
        UsageError: The backend does not run on the device.
        DifferenceError: Its results differ from PyTorch's.
        RequirementError: The weights are not in the cache and cannot be downloaded.
        SourceError: The cached weights are damaged.
    """

    def __init__(
        self,
        networks: tuple[PNet, RNet, ONet] | None = None,
        *,
        device: torch.device | str = "cpu",
        smallest_face: float = SMALLEST_FACE,
        thresholds: tuple[float, float, float] = THRESHOLDS,
        factor: float = FACTOR,
        offline: bool = False,
        backend: BackendName | None = "torch",
        images: int = 0,
    ) -> None:
        if smallest_face < 1:
            raise ValueError(f"smallest_face {smallest_face}: give at least 1 pixel")
        if len(thresholds) != 3 or not all(0 <= threshold <= 1 for threshold in thresholds):
            raise ValueError(f"thresholds {thresholds}: give three numbers from 0 to 1")
        if not 0 < factor < 1:
            raise ValueError(f"factor {factor}: give a number between 0 and 1")
        if backend not in (None, *get_args(BackendName)):
            raise ValueError(f"backend {backend}: give one of {', '.join(get_args(BackendName))}")
        if networks is not None and backend not in (None, "torch"):
            raise ValueError(f"backend {backend}: it runs facenet's own networks. Leave out networks.")
        self.smallest_face = smallest_face
        self.thresholds = thresholds
        self.factor = factor
        pytorch: tuple[nn.Module, ...] = ()
        if backend in (None, "torch"):
            pytorch = networks or load_mtcnn(offline=offline)
        loaded: Sequence[nn.Module | Network] = pytorch
        self.backend = TORCH
        if networks is None and backend != "torch":
            from faces.backends.detector_networks import choose_networks, open_networks

            if backend is None:
                loaded, self.backend = choose_networks(pytorch, str(device), images=images, offline=offline)
            else:
                loaded, self.backend = open_networks(backend, str(device), offline=offline)
        self._p_net, self._r_net, self._o_net = (
            in_pytorch(network, device) if isinstance(network, nn.Module) else network for network in loaded
        )
        self._crops = _CROPS if self.backend.name == "torch" else _FEW_CROPS
        self.device = torch.empty(0, device=device).device  # which GPU, too

    def detect(self, images: Sequence[ImageLike]) -> list[tuple[Face, ...]]:
        """Find the faces of photographs.

        Args:
            images: Any number of images of any sizes, each as `faces.images.to_rgb` takes it.

        Returns:
            The faces of each image, by falling score. A result does not depend on the other images.

        Raises:
            PhotographError, TypeError, ValueError: As `to_rgb` says.
        """
        photographs = [to_rgb(image) for image in images]
        threads = min(torch.get_num_threads(), MOST_THREADS) if self.device.type == "cpu" else 1
        with (
            # In float32, as TensorFlow computes: cuDNN would round factors to TF32.
            torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False),
            nullcontext(CallingThread()) if threads == 1 else network_threads(threads) as pool,
        ):
            boxes = self._propose(photographs, pool)
            if any(map(len, boxes)):
                boxes = self._refine(photographs, boxes, pool)
            if any(map(len, boxes)):
                return self._find_landmarks(photographs, boxes, pool)
        return [()] * len(photographs)

    def _propose(self, photographs: Sequence[NDArray[np.uint8]], pool: Executor) -> list[Boxes]:
        """Run P-Net over the pyramids of photographs; returns (n, 5) for each: square boxes, probability."""
        pyramids = []
        for photograph in photographs:
            height, width = photograph.shape[:2]
            scales = cascade.pyramid_scales(height, width, self.smallest_face, self.factor)
            pyramids.append([pool.submit(self._search_level, photograph, scale) for scale in scales])
        return [_merge_levels([level.result() for level in pyramid]) for pyramid in pyramids]

    def _search_level(self, photograph: NDArray[np.uint8], scale: float) -> Boxes:
        """Run P-Net over a level of a photograph's pyramid; returns (n, 9): box, probability, offsets."""
        height, width = photograph.shape[:2]
        level = cascade.resample(photograph, *cascade.level_size(height, width, scale))
        boxes = cascade.windows_above(*self._run_p_net(level), scale, self.thresholds[0])
        return boxes[cascade.suppress(boxes, _LEVEL_OVERLAP)]

    def _run_p_net(self, level: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run P-Net over a level, (height, width, 3), in strips if it is large.

        Returns:
            The probabilities (height', width') and the offsets (4, height', width').
        """
        height, width = level.shape[:2]
        rows = -(-height // 2) - _LOST_ROWS
        at_once = max(1, _LEVEL_PIXELS // (2 * width) - _LOST_ROWS)
        strips = []
        for start in range(0, rows, at_once):
            end = min(start + at_once, rows)
            strip = level[2 * start : height if end == rows else 2 * (end + _LOST_ROWS)]
            offsets, probabilities = self._p_net(cascade.standardise(strip[None]))
            strips.append((probabilities[0, 1], offsets[0]))
        maps, their_offsets = zip(*strips, strict=True)
        return np.concatenate(maps), np.concatenate(their_offsets, axis=1)

    def _refine(
        self, photographs: Sequence[NDArray[np.uint8]], proposals: Sequence[Boxes], pool: Executor
    ) -> list[Boxes]:
        """Run R-Net over proposals; returns (n, 5) for each photograph: square boxes, probability."""
        refined = []
        for boxes, (offsets, probabilities) in zip(
            proposals, self._run_on_crops(self._r_net, photographs, proposals, R_NET_SIZE, pool), strict=True
        ):
            passed = probabilities[:, 1] > self.thresholds[1]
            boxes = _with_scores(boxes[passed], probabilities[passed, 1])
            kept = cascade.suppress(boxes, _REFINED_OVERLAP)
            refined.append(cascade.square(cascade.move(boxes[kept], offsets[passed][kept])))
        return refined

    def _find_landmarks(
        self, photographs: Sequence[NDArray[np.uint8]], refined: Sequence[Boxes], pool: Executor
    ) -> list[tuple[Face, ...]]:
        """Run O-Net over refined boxes; returns the faces of each photograph."""
        faces = []
        for boxes, (offsets, places, probabilities) in zip(
            refined, self._run_on_crops(self._o_net, photographs, refined, O_NET_SIZE, pool), strict=True
        ):
            passed = probabilities[:, 1] > self.thresholds[2]
            boxes = _with_scores(boxes[passed], probabilities[passed, 1])
            landmarks = cascade.place_landmarks(boxes, places[passed])
            boxes = cascade.move(boxes, offsets[passed])
            kept = cascade.suppress(boxes, _FINAL_OVERLAP, of_smaller=True)
            faces.append(tuple(map(_face, boxes[kept].tolist(), landmarks[kept].tolist())))
        return faces

    def _run_on_crops(
        self,
        network: Network,
        photographs: Sequence[NDArray[np.uint8]],
        boxes: Sequence[Boxes],
        size: int,
        pool: Executor,
    ) -> list[tuple[NDArray[np.float32], ...]]:
        """Run R-Net or O-Net over the boxes of all photographs, a bounded number of crops at once.

        Returns:
            The network's outputs for each photograph.
        """
        at_once = self._crops[size]
        places = [(photographs[number], box) for number, rows in enumerate(boxes) for box in rows]

        def run(start: int) -> list[NDArray[np.float32]]:
            chunk = places[start : start + at_once]
            pixels = np.zeros((at_once, size, size, 3))
            for crop, (photograph, box) in zip(pixels, chunk, strict=False):
                crop[:] = cascade.crop(photograph, box, size)
            return [output[: len(chunk)] for output in network(cascade.standardise(pixels))]

        outputs = list(pool.map(run, range(0, len(places), at_once)))
        ends = np.cumsum([len(rows) for rows in boxes])[:-1]
        split = [np.split(np.concatenate(output), ends) for output in zip(*outputs, strict=True)]
        return list(zip(*split, strict=True))


def _merge_levels(levels: Sequence[Boxes]) -> Boxes:
    """Merge the boxes of the levels of a photograph; returns (n, 5): square boxes, probability."""
    boxes = np.concatenate([np.zeros((0, 9)), *levels])
    boxes = boxes[cascade.suppress(boxes, _PHOTOGRAPH_OVERLAP)]
    return cascade.square(cascade.move(boxes[:, :5], boxes[:, 5:], added=0))


def _with_scores(boxes: Boxes, scores: NDArray[np.float32]) -> Boxes:
    return np.hstack([boxes[:, :4], scores[:, None]])


def _face(box: Sequence[float], landmarks: Any) -> Face:
    left, top, right, bottom, score = box
    return Face((left, top, right, bottom), score, tuple((x, y) for x, y in landmarks))
