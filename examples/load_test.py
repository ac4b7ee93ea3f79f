"""Send images to examples/server.py at a given rate, and print throughput, errors and latency.

    python examples/load_test.py http://127.0.0.1:8000 --share 0.8 --seconds 300 crop.png

The load is open: requests are sent at random times of this mean rate, whether the ones before are answered or
not, as those of many people are. A latency counts from the time at which its request was due. The client
does little work, since it often shares the cores of the service that it measures.
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
from urllib.parse import urlsplit

import numpy as np

TIMEOUT = 30.0  # seconds; a request that takes longer is an error
IDLE = 2.0  # seconds after which a connection is not used again; the service closes it after 5
ERRORS = (OSError, TimeoutError, EOFError, ValueError)  # of a connection, and of an answer that is no HTTP


class Client:
    """Sends requests of HTTP/1.1, each on a connection that is idle, or else on a new one."""

    def __init__(self, server: str) -> None:
        address = urlsplit(server)
        if address.scheme != "http" or not address.hostname:
            raise ValueError("give an address such as http://127.0.0.1:8000")
        self._host, self._port = address.hostname, address.port or 80
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Send a request; return the status and the body of its answer.

        Raises:
            OSError, TimeoutError, EOFError, ValueError: There is none, or it is no HTTP.
        """
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await self._connect()
            try:
                head = (
                    f"{method} /{path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: {len(body)}\r\n\r\n"
                )
                writer.write(head.encode() + body)
                answer = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = re.search(rb"\r\ncontent-length: (\d+)", answer)
                content = await reader.readexactly(int(length[1]) if length else 0)
                status = int(answer.split()[1])
            except BaseException:
                writer.close()
                raise
        if b"connection: close" in answer:
            writer.close()
        else:
            self._idle.append((time.monotonic(), reader, writer))
        return status, content

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._idle:
            since, reader, writer = self._idle.pop()
            if time.monotonic() - since < IDLE:
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port)


class Load:
    """Requests and what became of them.

    Attributes:
        latencies: Seconds of each request that was answered with 200.
        outcomes: Status or kind of error to the number of requests.
    """

    def __init__(self, client: Client, path: str, bodies: list[bytes]) -> None:
        self._client, self._path, self._bodies = client, path, bodies
        self.latencies: list[float] = []
        self.outcomes: Counter[str] = Counter()

    async def run(self, rate: float, seconds: float) -> float:
        """Send requests, and wait for all answers; return the seconds that this took."""
        draw = random.Random(0)  # noqa: S311, times of requests are no secret
        start = due = time.perf_counter()
        async with asyncio.TaskGroup() as requests:
            while (due := due + draw.expovariate(rate)) < start + seconds:
                await asyncio.sleep(due - time.perf_counter())
                requests.create_task(self._send(due))
        return time.perf_counter() - start

    async def _send(self, due: float) -> None:
        body = self._bodies[sum(self.outcomes.values()) % len(self._bodies)]
        try:
            outcome = str((await self._client.request("POST", self._path, body))[0])
        except ERRORS as error:
            outcome = type(error).__name__
        self.outcomes[outcome] += 1
        if outcome == "200":
            self.latencies.append(time.perf_counter() - due)


async def measure(options: argparse.Namespace) -> int:
    """Run the load and print what became of it; return the exit code."""
    try:
        client = Client(options.server)
        metrics = (await client.request("GET", "metrics"))[1].decode()
        capacity = float(re.findall(r"^facenet_images_per_second (\S+)", metrics, re.MULTILINE)[0])
    except (*ERRORS, IndexError) as error:
        print(f"load_test.py: error: {options.server}: {error}", file=sys.stderr)
        return 2
    load = Load(client, options.path, [image.read_bytes() for image in options.images])
    rate = options.rate or options.share * capacity
    seconds = await load.run(rate, options.seconds)
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
