"""Decide whether two crops show the same person, by the calls that an Android app makes: see android.md.

    facenet-port export 20170512-110547 -o facenet.tflite --bake
    python examples/android_embedding.py facenet.tflite ana.png bo.png --threshold 1.3395

It needs NumPy, Pillow and ai-edge-litert alone, as the app needs LiteRT alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray
from PIL import Image


def standardise_fixed(pixels: NDArray[Any]) -> NDArray[Any]:
    """Standardise as the published models of 2018 need it."""
    return (pixels - 127.5) / 128


def standardise_per_image(pixels: NDArray[Any]) -> NDArray[Any]:
    """Standardise as the published models of 2017 need it: `prewhiten` in facenet's `src/facenet.py`."""
    return (pixels - pixels.mean()) / max(pixels.std(), 1 / np.sqrt(pixels.size))


STANDARDISE = {"fixed": standardise_fixed, "per-image": standardise_per_image}
NO_EMBEDDINGS = "the file gives no embeddings: export a model of faces, without --classify"


def embed(interpreter: Interpreter, crop: Path, standardisation: str | None) -> NDArray[np.float32]:
    """Embed a crop: (E,), of length one."""
    (taken,), (given, *others) = interpreter.get_input_details(), interpreter.get_output_details()
    if others:
        raise ValueError(NO_EMBEDDINGS)
    if taken["quantization"][0] or given["quantization"][0]:
        raise ValueError("the file takes or gives integers with a scale, which this example does not use")
    _, height, width, _ = taken["shape"]  # of one image, the channels last
    image = Image.open(crop).convert("RGB")
    if image.size != (width, height):
        size = f"{image.width}x{image.height} pixels; the network takes {width}x{height}"
        raise ValueError(f"{crop}: {size}. Crop it with facenet-port align.")
    pixels = np.asarray(image)
    if taken["dtype"] != np.uint8:  # the app standardises, as the file was exported without --bake
        if standardisation is None:
            raise ValueError("the file takes standardised images: give --standardise, or export with --bake")
        pixels = STANDARDISE[standardisation](pixels.astype(np.float64)).astype(np.float32)
    interpreter.set_tensor(taken["index"], pixels[None])
    interpreter.invoke()
    embedding: NDArray[np.float32] = interpreter.get_tensor(given["index"])[0]
    if not abs(np.linalg.norm(embedding) - 1) < 0.01:  # so NaN is refused too
        raise ValueError(NO_EMBEDDINGS)
    return embedding


def main(arguments: list[str] | None = None) -> int:
    """Print the squared distance of two faces and the decision.

    Returns:
        0 for the same person, 1 for different people, 2 if a file cannot be used.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="the .tflite file")
    parser.add_argument("crops", nargs=2, type=Path, help="crops as `facenet-port align` makes them")
    parser.add_argument("--threshold", type=float, required=True, help="on the squared distance")
    parser.add_argument("--standardise", choices=sorted(STANDARDISE), help="for a file without --bake")
    options = parser.parse_args(arguments)
    try:
        interpreter = Interpreter(model_path=str(options.model))
        interpreter.allocate_tensors()
        first, second = (embed(interpreter, crop, options.standardise) for crop in options.crops)
    except (OSError, ValueError, RuntimeError) as error:  # LiteRT raises the last two
        print(f"android_embedding.py: error: {error}", file=sys.stderr)
        return 2
    distance = float(np.sum((first - second) ** 2))
    is_same = distance < options.threshold
    decision = "the same person" if is_same else "different people"
    print(f"squared distance {distance:.4f}, threshold {options.threshold:.4f}: {decision}")
    return 0 if is_same else 1


if __name__ == "__main__":
    sys.exit(main())
