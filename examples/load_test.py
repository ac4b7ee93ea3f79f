"""Send images to examples/server.py at a given rate, and print throughput, errors and latency.

    python examples/load_test.py http://127.0.0.1:8000 --share 0.8 --seconds 300 crop.png

The load is open: requests are sent at random times of this mean rate, whether the ones before are answered or
not, as those of many people are. A latency counts from the time at which its request was due.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import urllib3
from urllib3.exceptions import HTTPError

TIMEOUT = 30.0  # seconds; a request that takes longer is an error
MOST = 256  # requests under way at once; one that is due then waits, and its latency counts


class Load:
    """Requests and what became of them.

    Attributes:
        outcomes: Of each request the status, or the kind of error, and the seconds that it took.
    """

    def __init__(self, server: urllib3.HTTPConnectionPool, path: str, bodies: list[bytes]) -> None:
        self._server, self._path, self._bodies = server, path, bodies
        self.outcomes: list[tuple[str, float]] = []

    def run(self, rate: float, seconds: float) -> float:
        """Send requests, and wait for all answers; return the seconds that this took."""
        draw = random.Random(0)  # noqa: S311, times of requests are no secret
        start = due = time.perf_counter()
        bodies = itertools.cycle(self._bodies)
        with ThreadPoolExecutor(MOST) as requests:
            while (due := due + draw.expovariate(rate)) < start + seconds:
                time.sleep(max(due - time.perf_counter(), 0))
                requests.submit(self._send, due, next(bodies))
        return time.perf_counter() - start

    def _send(self, due: float, body: bytes) -> None:
        try:
            outcome = str(self._server.request("POST", f"/{self._path}", body=body).status)
        except HTTPError as error:
            outcome = type(error).__name__
        self.outcomes.append((outcome, time.perf_counter() - due))


def measure(options: argparse.Namespace) -> int:
    """Run the load and print what became of it; return the exit code."""
    try:
        server = urllib3.connection_from_url(options.server, maxsize=MOST, timeout=TIMEOUT, retries=False)
        capacity = _read_capacity(server)
    except (HTTPError, ValueError, argparse.ArgumentTypeError) as error:
        print(f"load_test.py: error: {options.server}: {error}", file=sys.stderr)
        return 2
    load = Load(server, options.path, [image.read_bytes() for image in options.images])
    rate = options.rate or options.share * capacity
    seconds = load.run(rate, options.seconds)
    if not load.outcomes:
        problem = (
            f"no request was due in {options.seconds:g} s at {rate:g}/s: give more seconds or a higher rate"
        )
        print(f"load_test.py: error: {problem}", file=sys.stderr)
        return 2
    latencies = [latency for outcome, latency in load.outcomes if outcome == "200"]
    errors = Counter(outcome for outcome, _ in load.outcomes if outcome != "200")
    sent, answered = len(load.outcomes), len(latencies)
    print(
        f"sent      {sent} requests in {options.seconds:g} s: {rate:.1f}/s, {rate / capacity:.0%} of batches"
    )
    print(f"answered  {answered}: {answered / seconds:.1f}/s")
    print(f"errors    {dict(errors) or 'none'}")
    if answered:
        half, most, worst = 1000 * np.percentile(latencies, (50, 99, 100))
        print(f"latency   p50 {half:.0f} ms, p99 {most:.0f} ms, worst {worst:.0f} ms")
    return 1 if errors or not answered else 0


def _read_capacity(server: urllib3.HTTPConnectionPool) -> float:
    metrics = server.request("GET", "/metrics").data.decode()
    stated = re.findall(r"^facenet_images_per_second (\S+)", metrics, re.MULTILINE)
    if not stated:
        raise ValueError("its /metrics do not state facenet_images_per_second")
    return _positive(stated[0])


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return number


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return Path(text)


def main(arguments: list[str] | None = None) -> int:
    """Measure a server; return 0 if every request was answered with 200, 1 if not, 2 for a wrong usage."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("server", help="such as http://127.0.0.1:8000")
    parser.add_argument("images", nargs="+", type=_file, help="photographs or crops, sent in turn")
    parser.add_argument("--path", choices=("embed", "identify"), default="embed")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument("--rate", type=_positive, help="requests a second")
    rate.add_argument(
        "--share",
        type=_positive,
        default=0.8,
        help="of the images a second of the server's batches (default: 0.8)",
    )
    parser.add_argument("--seconds", type=_positive, default=20.0, help="(default: 20)")
    return measure(parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
