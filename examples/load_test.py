"""Send images to examples/server.py at a given rate, and print throughput, errors and latency.

    python examples/load_test.py http://127.0.0.1:8000 --share 0.8 --seconds 300 crop.png

The load is open: requests are sent at random times of this mean rate, whether the ones before are answered or
not, as those of many people are. A latency counts from the time at which its request was due.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path

import httpx2
import numpy as np

TIMEOUT = 30.0  # seconds; a request that takes longer is an error


class Load:
    """Requests and what became of them.

    Attributes:
        latencies: Seconds of each request that was answered with 200.
        outcomes: Status or kind of error to the number of requests.
    """

    def __init__(self, url: str, bodies: list[bytes]) -> None:
        self._url, self._bodies = url, bodies
        self.latencies: list[float] = []
        self.outcomes: Counter[str] = Counter()

    async def run(self, client: httpx2.AsyncClient, rate: float, seconds: float) -> float:
        """Send requests, and wait for all answers; return the seconds that this took."""
        draw = random.Random(0)  # noqa: S311, times of requests are no secret
        start = due = time.perf_counter()
        async with asyncio.TaskGroup() as requests:
            while (due := due + draw.expovariate(rate)) < start + seconds:
                await asyncio.sleep(due - time.perf_counter())
                requests.create_task(self._send(client, due))
        return time.perf_counter() - start

    async def _send(self, client: httpx2.AsyncClient, due: float) -> None:
        body = self._bodies[sum(self.outcomes.values()) % len(self._bodies)]
        try:
            outcome = str((await client.post(self._url, content=body)).status_code)
        except httpx2.HTTPError as error:
            outcome = type(error).__name__
        self.outcomes[outcome] += 1
        if outcome == "200":
            self.latencies.append(time.perf_counter() - due)


async def measure(options: argparse.Namespace) -> int:
    """Run the load and print what became of it; return the exit code."""
    load = Load(f"{options.server}/{options.path}", [image.read_bytes() for image in options.images])
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2)
    async with httpx2.AsyncClient(limits=limits, timeout=TIMEOUT) as client:
        try:
            metrics = (await client.get(f"{options.server}/metrics")).text
        except httpx2.HTTPError as error:
            print(f"load_test.py: error: {options.server}: {error}", file=sys.stderr)
            return 2
        capacity = float(re.findall(r"^facenet_images_per_second (\S+)", metrics, re.MULTILINE)[0])
        rate = options.rate or options.share * capacity
        seconds = await load.run(client, rate, options.seconds)
    sent, answered = sum(load.outcomes.values()), len(load.latencies)
    print(
        f"sent      {sent} requests in {options.seconds:g} s: {rate:.1f}/s, {rate / capacity:.0%} of batches"
    )
    print(f"answered  {answered}: {answered / seconds:.1f}/s")
    errors = {outcome: count for outcome, count in load.outcomes.items() if outcome != "200"}
    print(f"errors    {errors or 'none'}")
    if answered:
        half, most, worst = 1000 * np.percentile(load.latencies, (50, 99, 100))
        print(f"latency   p50 {half:.0f} ms, p99 {most:.0f} ms, worst {worst:.0f} ms")
    return 1 if errors or not answered else 0


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
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
    return asyncio.run(measure(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
