"""An HTTP service of embeddings and decisions; requests that wait run in batches, one on each core.

    python examples/server.py --gallery embeddings.parquet

    curl --data-binary @photo.jpg http://127.0.0.1:8000/embed
    curl --data-binary @photo.jpg http://127.0.0.1:8000/identify

The body of a request is a photograph, or a crop of `facenet-port align`, as JPEG or PNG. `/identify` needs a
gallery, as `facenet-port embed` writes it. `/metrics` has counters for Prometheus.

    200  the embedding, or the person        413  too many bytes or pixels
    400  no image, or no HTTP                422  no face, or a crop of another kind than the gallery's
    408  it did not arrive in time           503  too many requests wait; Retry-After says for how long

The service has no passwords and no TLS: put it behind a proxy that has. It needs `pip install '.[examples]'`.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import math
import signal
import socket
import sys
import timeit
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from numpy.typing import NDArray
from PIL import Image, ImageOps
from server_protocol import make_protocol
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from converter.errors import PortError
from faces.crops import CROP_SIZES, CropMethod, central_part, choose_face, crop_face
from faces.detect.result import Box
from faces.embedder import Embedder
from faces.embeddings import Embeddings, read_embeddings
from faces.identify.run import rank_people
from faces.images import to_rgb
from faces.options import add_embedder_options, add_threshold_option, make_embedder, positive_number
from faces.threads import MOST_THREADS, network_threads
from faces.threshold import Threshold

FORMATS = ("JPEG", "PNG")
MAX_PIXELS = 16_000_000  # of a photograph: 48 MB when it is decoded
NEAREST = 5  # people of the gallery in an answer
KEEP_ALIVE = 5  # seconds that an idle connection stays

Crop = NDArray[np.uint8]
Row = NDArray[np.float32]


@dataclass(frozen=True)
class Limits:
    """Limits on requests and batches."""

    cores: int  # batches at the same time
    batch: int  # most images of a batch
    delay: float  # seconds that an image waits for others
    waiting: int  # most requests that are accepted and not answered
    size: int  # most bytes of a body


@dataclass
class Metrics:
    """Counts of events so far, and `images_per_second` of full batches, measured at the start."""

    responses: Counter[int] = field(default_factory=Counter)
    batches: int = 0
    images: int = 0
    largest_batch: int = 0
    waiting: int = 0
    images_per_second: float = math.nan

    def __str__(self) -> str:
        """The metrics in Prometheus's text format."""
        counts = sorted(self.responses.items())
        lines = [f'facenet_responses_total{{status="{status}"}} {count}' for status, count in counts]
        lines += [f"facenet_batches_total {self.batches}", f"facenet_images_total {self.images}"]
        lines += [f"facenet_largest_batch {self.largest_batch}", f"facenet_waiting {self.waiting}"]
        return "\n".join([*lines, f"facenet_images_per_second {self.images_per_second:.4g}", ""])


class Batcher:
    """Collects images that wait, and runs them in batches, one on each core: none waits for a busier core."""

    def __init__(self, embed: Callable[[NDArray[Any]], NDArray[Any]], limits: Limits, metrics: Metrics):
        self._embed, self._limits, self._metrics = embed, limits, metrics
        self._queue: asyncio.Queue[tuple[Crop, asyncio.Future[Row]]] = asyncio.Queue()

    async def embed(self, crop: Crop) -> Row:
        """Embed an image of (160, 160, 3) in a batch with others: (E,)."""
        future: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((crop, future))
        return await future

    async def run(self) -> None:
        """Run batches until cancelled."""
        with network_threads(self._limits.cores) as threads:
            await asyncio.gather(*(self._run_batches(threads) for _ in range(self._limits.cores)))

    async def _run_batches(self, threads: Executor) -> None:
        while True:
            crops, futures = zip(*await self._collect(), strict=True)
            self._metrics.batches += 1
            self._metrics.images += len(crops)
            self._metrics.largest_batch = max(self._metrics.largest_batch, len(crops))
            try:
                rows = await asyncio.wrap_future(threads.submit(self._embed, np.stack(crops)))
            except Exception as error:  # such as too little memory: the next batch may run
                for future in futures:
                    future.set_exception(error)
            else:
                for future, row in zip(futures, rows, strict=True):
                    future.set_result(row)

    async def _collect(self) -> list[tuple[Crop, asyncio.Future[Row]]]:
        """Wait for an image, and then, for a while, for others."""
        batch = [await self._queue.get()]
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.delay):
                while len(batch) < self._limits.batch:
                    batch.append(await self._queue.get())
        return batch


class FaceService:
    """The service: from the body of a request to its answer."""

    def __init__(self, embedder: Embedder, limits: Limits, gallery: Embeddings | None, threshold: str | None):
        self._embedder, self._limits, self._gallery = embedder, limits, gallery
        self._model, self.metrics = embedder.model, Metrics()
        self._threshold: Threshold | None = None
        if gallery is not None:
            origin = gallery.origin
            origin.check(self._model.facts, "the gallery")
            self._threshold = embedder.find_threshold(threshold, origin.crop, origin.threshold)
        self.metrics.images_per_second = self._measure()
        self._batcher = Batcher(self._embed, limits, self.metrics)
        self._searching = ThreadPoolExecutor(1)  # the detector's thread; crops do not wait for it

    def application(self) -> Starlette:
        """Make the ASGI application."""
        routes = [
            Route("/embed", self._answer_embed, methods=["POST"]),
            Route("/identify", self._answer_identify, methods=["POST"]),
            Route("/metrics", self._answer_metrics),
        ]
        handlers: Mapping[Any, Any] = {HTTPException: self._explain, ClientDisconnect: _nobody_listens}
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, application: Starlette) -> AsyncIterator[None]:
        batches = asyncio.create_task(self._batcher.run())
        yield
        batches.cancel()  # every request has been answered by now
        self._searching.shutdown()

    def _embed(self, crops: NDArray[np.uint8]) -> NDArray[Any]:
        return self._model.embed(self._model.standardise(crops))

    def _measure(self) -> float:
        """Measure the images a second of full batches on all cores, which also makes the networks warm."""
        crops = np.random.default_rng(0).integers(0, 256, (self._limits.batch, 160, 160, 3), np.uint8)
        batches = [crops] * self._limits.cores
        with network_threads(self._limits.cores) as threads:
            seconds = timeit.repeat(lambda: list(threads.map(self._embed, batches)), number=1, repeat=7)
        return len(crops) * len(batches) / float(np.median(seconds))

    async def _answer_embed(self, request: Request) -> Response:
        row, box = await self._embed_face(request)
        return self._answer({"embedding": row.tolist(), "box": box, "model": self._model.name})

    async def _answer_identify(self, request: Request) -> Response:
        if self._gallery is None:
            raise HTTPException(404, "the service has no gallery")
        row, box = await self._embed_face(request)
        measure = "squared-euclidean" if self._threshold is None else self._threshold.distance
        people = await asyncio.to_thread(rank_people, row, self._gallery, measure)
        limit = None if self._threshold is None else self._threshold.value
        person = people[0].name if limit is not None and people[0].distance < limit else None
        nearest = [{"person": each.name, "distance": each.distance} for each in people[:NEAREST]]
        return self._answer(
            {"person": person, "threshold": limit, "nearest": nearest, "box": box, "model": self._model.name}
        )

    async def _answer_metrics(self, request: Request) -> Response:
        return PlainTextResponse(str(self.metrics))

    def _answer(self, content: Mapping[str, Any]) -> Response:
        self.metrics.responses[200] += 1
        return JSONResponse(content)

    async def _explain(self, request: Request, error: HTTPException) -> Response:
        self.metrics.responses[error.status_code] += 1
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    def _refuse_if_full(self) -> None:
        if self.metrics.waiting >= self._limits.waiting:
            seconds = math.ceil(self.metrics.waiting / self.metrics.images_per_second)
            raise HTTPException(503, "too many requests wait", {"Retry-After": str(seconds)})

    async def _embed_face(self, request: Request) -> tuple[Row, Box | None]:
        """Embed the face of a request's image, and find its box if the image is no crop.

        Raises:
            HTTPException: Too many requests wait, or the body is no image that the service takes.
        """
        self._refuse_if_full()
        body = await _read_body(request, self._limits.size)  # one that comes slowly takes no place
        self._refuse_if_full()
        self.metrics.waiting += 1
        try:
            image, crop = await asyncio.to_thread(_open_image, body)
            crop, box = await self._find_crop(image, crop)
            return await self._batcher.embed(crop), box
        finally:
            self.metrics.waiting -= 1

    async def _find_crop(self, image: Image.Image, crop: Crop | None) -> tuple[Crop, Box | None]:
        """Take a crop as it is, or crop the face of a photograph."""
        method = _find_method(image)
        gallery = self._gallery
        if gallery is not None and (method or self._embedder.crop) != gallery.origin.crop:
            raise HTTPException(422, f"a crop {method}; the gallery is of the crop {gallery.origin.crop}")
        if crop is not None:
            return central_part(crop), None
        return await asyncio.get_running_loop().run_in_executor(self._searching, self._find_face, image)

    def _find_face(self, image: Image.Image) -> tuple[Crop, Box]:
        pixels = _decode(image)
        (faces,) = self._embedder.detector.detect([pixels])
        if not faces:
            raise HTTPException(422, "no face was found")
        height, width = pixels.shape[:2]
        box = faces[choose_face(faces, width, height, self._embedder.crop)].box
        return central_part(crop_face(pixels, box, self._embedder.crop)), box


def _find_method(image: Image.Image) -> CropMethod | None:
    """Find the crop that an image is, by its size; None if it is none."""
    return next((name for name, size in CROP_SIZES.items() if image.size == (size, size)), None)


async def _read_body(request: Request, most: int) -> bytes:
    """Read a body, no further than a number of bytes.

    Raises:
        HTTPException: It is longer.
    """
    body = bytearray()
    if float(request.headers.get("content-length", 0)) <= most:  # Python limits the digits of an int
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                break
        else:
            return bytes(body)
    raise HTTPException(413, f"the body has more than {most:,} bytes")


def _open_image(body: bytes) -> tuple[Image.Image, Crop | None]:
    """Read the head of an image, and decode a crop.

    Raises:
        HTTPException: It is none, or has too many pixels.
    """
    try:
        image = Image.open(io.BytesIO(body), formats=FORMATS)
    except Exception as error:  # Pillow raises anything on a damaged file
        raise HTTPException(400, f"the body is no {' or '.join(FORMATS)}, or damaged") from error
    if image.width * image.height > MAX_PIXELS:
        raise HTTPException(413, f"the photograph has more than {MAX_PIXELS:,} pixels")
    return image, _decode(image) if _find_method(image) else None


def _decode(image: Image.Image) -> NDArray[np.uint8]:
    """Decode an image, upright and in colour: (height, width, 3), RGB.

    Raises:
        HTTPException: It is damaged.
    """
    try:
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)
    except Exception as error:  # likewise
        raise HTTPException(400, "the image is damaged") from error


async def _nobody_listens(request: Request, error: Exception) -> Response:
    return Response(status_code=408)  # it is never sent


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument("--gallery", metavar="FILE.parquet", type=Path, help="embeddings of known people")
    parser.add_argument("--max-batch", type=positive_number, default=8, help="images (default: 8)")
    parser.add_argument("--max-delay", type=positive_number, default=5, help="milliseconds (default: 5)")
    parser.add_argument("--max-waiting", type=positive_number, default=256, help="requests (default: 256)")
    parser.add_argument("--max-bytes", type=positive_number, default=8 << 20, help="body (default: 8 MiB)")
    parser.add_argument("--arrival", type=_seconds, default=10.0, help="seconds for a request (default: 10)")
    add_threshold_option(parser, "that of the gallery, or the one measured for the default model")
    add_embedder_options(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; requests that were accepted are answered before the end."""
    options = _parse(arguments)
    cores = min(torch.get_num_threads(), MOST_THREADS) if options.device == "cpu" else 1
    limits = Limits(
        cores, options.max_batch, options.max_delay / 1000, options.max_waiting, options.max_bytes
    )
    try:
        listener = socket.create_server((options.host, options.port), backlog=2048)
        gallery = None if options.gallery is None else read_embeddings(options.gallery)
        if gallery is not None:
            options.model = options.model or gallery.origin.model
            options.standardisation, options.crop = gallery.origin.standardisation, gallery.origin.crop
        service = FaceService(make_embedder(options), limits, gallery, options.threshold)
    except (PortError, OSError, OverflowError) as error:  # the last two are of the address
        print(f"server.py: error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, PortError) else 2
    Image.MAX_IMAGE_PIXELS = None  # Pillow would refuse, or warn, before MAX_PIXELS is looked at
    application, protocol = service.application(), make_protocol(options.arrival, service.metrics.responses)
    config = uvicorn.Config(
        application, http=protocol, ws="none", log_level="warning", timeout_keep_alive=KEEP_ALIVE
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn handles it, and then raises it once more
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else a body waits for the head's ACK
    address = f"http://{options.host}:{listener.getsockname()[1]}"
    print(f"{address} embeds {service.metrics.images_per_second:.0f} images/s", flush=True)
    uvicorn.Server(config).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
