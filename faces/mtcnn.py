"""The detector in the form that users of facenet-pytorch know: its arguments and its results.

The boxes are facenet's own, to the hundredth of a pixel: docs/from-facenet-pytorch.md has the differences.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from checks.core.inputs import IMAGE_SIZE
from converter.atomic import replace_file
from faces.crops import cut_out
from faces.detect.detector import FaceDetector
from faces.images import ImageLike, to_rgb
from faces.options import FACTOR, SMALLEST_FACE, THRESHOLDS
from reference import load_mtcnn

if TYPE_CHECKING:
    from faces.detect.result import Face

SelectionMethod = Literal["probability", "largest", "largest_over_threshold", "center_weighted_size"]

Images: TypeAlias = "ImageLike | Sequence[ImageLike]"
"""An image, or a batch: a list or tuple of images of any sizes, or an array or tensor of four dimensions."""
Paths: TypeAlias = "str | Path | Sequence[str | Path] | None"


class MTCNN(nn.Module):
    """Finds and crops faces. The arguments and results are those of facenet-pytorch's class.

    Args:
        image_size: Height and width of a crop in pixels.
        margin: Pixels of the crop that are added to the box, a half on each side.
        min_face_size: Side of the smallest face to look for, in pixels.
        thresholds: Probability of a face that P-Net, R-Net and O-Net ask for.
        factor: Ratio of two scales of the pyramid that follow each other.
        post_process: Whether crops are standardised: (x - 127.5) / 128. Otherwise they are 0 to 255.
        select_largest: Whether the largest face is chosen and comes first, or the most probable.
        selection_method: The choice among faces, instead of `select_largest`.
        keep_all: Whether every face is returned, and not one of each image.
        device: Device of the networks. Crops are on the CPU.
        offline: Never download the weights.

    Raises:
        ValueError: An argument has no such value.
        RequirementError: The weights are not in the cache and cannot be downloaded.
    """

    def __init__(
        self,
        image_size: int = IMAGE_SIZE,
        margin: int = 0,
        min_face_size: float = SMALLEST_FACE,
        thresholds: Sequence[float] = THRESHOLDS,
        factor: float = FACTOR,
        post_process: bool = True,
        select_largest: bool = True,
        selection_method: SelectionMethod | None = None,
        keep_all: bool = False,
        device: torch.device | str | None = None,
        *,
        offline: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= margin < image_size:
            raise ValueError(
                f"margin {margin}: give 0 or more pixels, and fewer than image_size, {image_size}"
            )
        self.image_size = image_size
        self.margin = margin
        self.min_face_size = min_face_size
        self.thresholds = list(thresholds)
        self.factor = factor
        self.post_process = post_process
        self.select_largest = select_largest
        self.keep_all = keep_all
        self.selection_method = selection_method or ("largest" if select_largest else "probability")
        _check_method(self.selection_method)
        self.pnet, self.rnet, self.onet = load_mtcnn(offline=offline)
        if device is not None:
            self.to(device)
        self._detector()  # which checks the other arguments

    @property
    def device(self) -> torch.device:
        """The device of the networks. Setting it moves them."""
        return next(self.pnet.parameters()).device

    @device.setter
    def device(self, device: torch.device | str) -> None:
        self.to(device)

    def forward(self, img: Images, save_path: Paths = None, return_prob: bool = False) -> Any:
        """Find and crop faces.

        Args:
            img: An image or a batch of images.
            save_path: The file to write the crop to, not standardised; for a batch one for each image. With
                `keep_all` the other faces have a number: face_2.png.
            return_prob: Whether to return probabilities as well.

        Returns:
            Of an image: the crop, (3, image_size, image_size), float32; with `keep_all` the crops of all
            faces, (n, 3, image_size, image_size); None without a face. Of a batch: a list of these. With
            `return_prob` the crops and the probabilities: of an image a number, or None; with `keep_all` (n),
            or [None]; of a batch an array of these.

        Raises:
            TypeError, ValueError, PhotographError: As `faces.images.to_rgb` says.
            ValueError: There are not as many paths as images.
        """
        _paths_of(img, save_path)  # before the work
        boxes, probabilities, points = self.detect(img, landmarks=True)
        if not self.keep_all:
            boxes, probabilities, points = self.select_boxes(
                boxes, probabilities, points, img, method=self.selection_method
            )
        faces = self.extract(img, boxes, save_path)
        return (faces, probabilities) if return_prob else faces

    def detect(self, img: Images, landmarks: bool = False) -> tuple[Any, ...]:
        """Find all faces.

        Args:
            img: An image or a batch of images.
            landmarks: Whether to return landmarks as well.

        Returns:
            Boxes, probabilities, and landmarks if they are asked for. Of an image: (n, 4), (n) and (n, 5, 2),
            float64, by falling size, or by falling probability if `select_largest` is not set; None, [None]
            and None without a face. Of a batch: arrays of these.

        Raises:
            TypeError, ValueError, PhotographError: As `faces.images.to_rgb` says.
        """
        found = [self._arrays(faces) for faces in self._detector().detect(_as_batch(img))]
        boxes, probabilities, points = _stack_results(found)
        if not _is_batch(img):
            boxes, probabilities, points = boxes[0], probabilities[0], points[0]
        return (boxes, probabilities, points) if landmarks else (boxes, probabilities)

    def select_boxes(
        self,
        all_boxes: Any,
        all_probs: Any,
        all_points: Any,
        imgs: Images,
        method: SelectionMethod = "probability",
        threshold: float = 0.9,
        center_weight: float = 2.0,
    ) -> tuple[Any, Any, Any]:
        """Select a face of each image.

        Args:
            all_boxes: The boxes of `detect`.
            all_probs: Its probabilities.
            all_points: Its landmarks.
            imgs: The images.
            method: "probability" and "largest" take the greatest; "largest_over_threshold" the largest of
                those that are probable enough; "center_weighted_size" the greatest area less the weighted
                squared distance from the centre of the image, as facenet does with a weight of 2.
            threshold: Probability for "largest_over_threshold".
            center_weight: Weight for "center_weighted_size".

        Returns:
            Boxes (1, 4), probability and landmarks (1, 5, 2) of an image, or None each; arrays of these, with
            probabilities (1), of a batch.

        Raises:
            ValueError: There is no such method.
        """
        _check_method(method)
        if not _is_batch(imgs):
            place = _select(all_boxes, all_probs, imgs, method, threshold, center_weight)
            if place is None:
                return None, None, None
            return all_boxes[[place]], all_probs[place], all_points[[place]]
        chosen: list[tuple[Any, Any, Any]] = []
        for boxes, probs, points, image in zip(
            all_boxes, all_probs, all_points, _as_batch(imgs), strict=True
        ):
            place = _select(boxes, probs, image, method, threshold, center_weight)
            chosen.append(
                (None, [None], None)
                if place is None
                else (boxes[[place]], np.asarray(probs)[[place]], points[[place]])
            )
        return _stack_results(chosen)

    def extract(self, img: Images, batch_boxes: Any, save_path: Paths) -> Any:
        """Crop the boxes of `detect`.

        Args:
            img: An image or a batch of images.
            batch_boxes: The boxes of each.
            save_path: As in `forward`.

        Returns:
            The crops, as `forward` does; without `keep_all` of the first box.
        """
        images, paths = _as_batch(img), _paths_of(img, save_path)
        if not _is_batch(img):
            return self._extract(images[0], batch_boxes, paths[0])
        return [self._extract(*item) for item in zip(images, batch_boxes, paths, strict=True)]

    def _detector(self) -> FaceDetector:
        return FaceDetector(
            (self.pnet, self.rnet, self.onet),
            device=self.device,
            smallest_face=self.min_face_size,
            thresholds=tuple(self.thresholds),  # type: ignore[arg-type]
            factor=self.factor,
        )

    def _arrays(self, faces: Sequence[Face]) -> tuple[Any, Any, Any]:
        """Return boxes, probabilities and landmarks of an image."""
        if not faces:
            return None, [None], None
        boxes = np.array([face.box for face in faces])
        order = np.argsort(_areas(boxes))[::-1] if self.select_largest else np.arange(len(faces))
        scores, landmarks = (
            np.array([face.score for face in faces]),
            np.array([face.landmarks for face in faces]),
        )
        return boxes[order], scores[order], landmarks[order]

    def _extract(self, image: ImageLike, boxes: Any, path: Any) -> Tensor | None:
        if boxes is None:
            return None
        crops = []
        for number, box in enumerate(boxes if self.keep_all else boxes[:1], 1):
            numbered = path if path is None or number == 1 else _with_number(Path(path), number)
            crop = extract_face(image, box, self.image_size, self.margin, numbered)
            crops.append(fixed_image_standardization(crop) if self.post_process else crop)
        return torch.stack(crops) if self.keep_all else crops[0]


def extract_face(
    img: ImageLike,
    box: Sequence[float] | NDArray[Any],
    image_size: int = IMAGE_SIZE,
    margin: int = 0,
    save_path: str | Path | None = None,
) -> Tensor:
    """Crop a box of an image.

    Args:
        img: The image.
        box: Left, top, right and bottom in pixels.
        image_size: Height and width of the crop in pixels.
        margin: Pixels of the crop that are added to the box, a half on each side.
        save_path: The file to write the crop to; an older one is replaced.

    Returns:
        (3, image_size, image_size), float32, 0 to 255.
    """
    left, top, right, bottom = map(float, box)
    share = margin / (image_size - margin) / 2
    across, down = (right - left) * share, (bottom - top) * share
    crop = cut_out(to_rgb(img), (left - across, top - down, right + across, bottom + down), image_size)
    if save_path is not None:
        _save(crop, Path(save_path))
    return torch.from_numpy(crop.transpose(2, 0, 1).astype(np.float32))


def fixed_image_standardization(image_tensor: Tensor) -> Tensor:
    """Standardise pixels of 0 to 255 as for the networks of 2018: (x - 127.5) / 128."""
    return (image_tensor - 127.5) / 128.0


def _save(crop: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()
    Image.fromarray(crop).save(written, Image.registered_extensions().get(path.suffix.lower(), "PNG"))
    replace_file(path, written.getvalue())


def _with_number(path: Path, number: int) -> Path:
    return path.with_stem(f"{path.stem}_{number}")


def _is_batch(images: Images) -> bool:
    return isinstance(images, list | tuple) or getattr(images, "ndim", 3) == 4


def _as_batch(images: Images) -> list[ImageLike]:
    batch: Any = images if _is_batch(images) else [images]
    return list(batch)


def _paths_of(images: Images, paths: Paths) -> Sequence[Any]:
    """Return the path of each image's crop, or None for each."""
    count = len(_as_batch(images))
    given: Sequence[Any] = [paths] if isinstance(paths, str | Path) else paths or [None] * count
    if len(given) != count:
        raise ValueError(
            f"save_path: {len(given)} for {count} images. Give a list with a path for each image"
        )
    return given


def _stack_results(results: Sequence[tuple[Any, Any, Any]]) -> tuple[Any, Any, Any]:
    """Turn the boxes, probabilities and landmarks of each image into an array of boxes, and so on."""
    boxes, probabilities, points = zip(*results, strict=True) if results else ((), (), ())
    return _stack(boxes), _stack(probabilities), _stack(points)


def _stack(items: Sequence[Any]) -> NDArray[Any]:
    """Make an array of what was found in each image, as the peer does: of numbers if all have one shape."""
    array = np.array(items, dtype=object)
    return array.astype(np.float64) if array.ndim > 1 and None not in array.ravel() else array


def _areas(boxes: NDArray[Any]) -> NDArray[Any]:
    areas: NDArray[Any] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas


def _select(
    boxes: Any, probs: Any, image: Any, method: SelectionMethod, threshold: float, center_weight: float
) -> int | None:
    """Return the place of the selected face; None if there is none."""
    if boxes is None:
        return None
    boxes, probs = np.asarray(boxes, np.float64), np.asarray(probs, np.float64)
    if method == "probability":
        weights = probs
    elif method == "center_weighted_size":
        height, width = to_rgb(image).shape[:2]
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        weights = _areas(boxes) - center_weight * ((centres - (width / 2, height / 2)) ** 2).sum(axis=1)
    else:
        weights = _areas(boxes)
        if method == "largest_over_threshold":
            weights = np.where(probs > threshold, weights, -np.inf)
    place = int(np.argmax(weights))
    return None if weights[place] == -np.inf else place


_METHODS = ("probability", "largest", "largest_over_threshold", "center_weighted_size")


def _check_method(method: str) -> None:
    if method not in _METHODS:
        raise ValueError(f"selection_method {method!r}: give one of {', '.join(_METHODS)}")
