"""A server under load: no error of its own, no growth, the answers of `predict`.

    python -m benchmarks.serve_load MODEL_DIR --images DIR [--requests 10000] [--alone] [--batch 16]

Starts `serve MODEL_DIR` on loopback in a process of its own and sends it the images of DIR, over and over,
from several clients at a time; every hundredth upload is broken: empty, torn or no image. It fails if an
answer is not that of `predict`, a good image is refused, a broken one is not, or a status is 5xx. Memory is
that of the server's processes together (USS), each tenth of the way.
"""

import argparse
import asyncio
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil

from benchmarks import report
from finetune import model_folder

BROKEN_EVERY = 100
CLOSE = 1e-5
"""Largest difference of a probability from that of `predict`, whose batches have other sizes."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a model folder")
    parser.add_argument("--images", required=True, type=Path, help="folder of images")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--batch", type=int, default=16, help="largest batch of the server; 1: one by one")
    parser.add_argument("--alone", action="store_true", help="without Ray")
    options = parser.parse_args()
    load = report.load()
    paths = model_folder.find_images([options.images])
    expected = [
        (row["class"], row["probability"])
        for row in model_folder.predict(model_folder.load(options.model), paths)
    ]
    words = ["--batch", str(options.batch), *(["--alone"] if options.alone else [])]
    with served(options.model, words) as (url, process):
        images = [path.read_bytes() for path in paths]
        found = asyncio.run(Load(url, process, images, expected).run(options.requests, options.clients))
    show(found)
    report.last_line(
        {"load": load, "alone": options.alone, "clients": options.clients, "batch": options.batch} | found
    )
    if found["wrong"]:
        sys.exit(1)


@contextmanager
def served(model: Path, words: list[str]) -> Iterator[tuple[str, psutil.Process]]:
    """Start a server; yield its address and its process."""
    command = [sys.executable, "-m", "search", "serve", str(model), "--port", "0", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                sys.exit("the server did not start")
            yield url, psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


class Load:
    """Clients of one server, and what they have seen."""

    def __init__(
        self, url: str, server: psutil.Process, images: list[bytes], expected: list[tuple[str, float]]
    ) -> None:
        self.url, self.server, self.images, self.expected = url, server, images, expected
        self.statuses: Counter[int] = Counter()
        self.seconds: list[float] = []
        self.wrong: list[str] = []
        self.memory: list[float] = []

    async def run(self, requests: int, clients: int) -> dict[str, object]:
        """Send all requests and return the figures."""
        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(base_url=self.url, timeout=120, limits=limits) as client:
            await self._send(client, 1)  # the first call of a model allocates
            self.seconds.clear()
            numbers = iter(range(2, requests + 2))
            mark = max(1, requests // 10)
            began = time.monotonic()

            async def one() -> None:
                for number in numbers:
                    await self._send(client, number)
                    if len(self.seconds) % mark == 0:
                        self.memory.append(mib(self.server))

            await asyncio.gather(*(one() for _ in range(clients)))
            took = time.monotonic() - began
        ranks = statistics.quantiles(self.seconds, n=100)
        return {
            "requests": requests,
            "per_second": round(requests / took, 1),
            "p50_ms": round(1000 * ranks[49], 1),
            "p99_ms": round(1000 * ranks[98], 1),
            "statuses": dict(sorted(self.statuses.items())),
            "mib": [round(value) for value in self.memory],
            "growth": round(self.memory[-1] / self.memory[0] - 1, 3),
            "wrong": self.wrong[:5],
        }

    async def _send(self, client: httpx.AsyncClient, number: int) -> None:
        place = number % len(self.images)
        broken = number % BROKEN_EVERY == 0
        content = spoilt(self.images[place], number) if broken else self.images[place]
        began = time.monotonic()
        response = await client.post("/predict", content=content)
        self.seconds.append(time.monotonic() - began)
        self.statuses[response.status_code] += 1
        if broken:
            right = response.status_code == 422
        else:
            name, probability = self.expected[place]
            found = response.json()
            right = response.status_code == 200 and (
                found["class"] == name and abs(found["probability"] - probability) <= CLOSE
            )
        if not right:
            self.wrong.append(f"request {number}: {response.status_code} {response.text[:200]}")


def spoilt(image: bytes, number: int) -> bytes:
    """Return something that is no whole image, of one of three kinds."""
    return (b"", image[: len(image) // 3], b"<html>no image</html>")[number // BROKEN_EVERY % 3]


def mib(server: psutil.Process) -> float:
    """Return the memory that the server's processes have for themselves, MiB."""
    total = 0
    for process in itertools.chain([server], server.children(recursive=True)):
        try:
            total += process.memory_full_info().uss
        except psutil.Error:  # it has just ended
            continue
    return total / 2**20


def show(found: dict[str, object]) -> None:
    """Print the figures for people."""
    rows = [[name, json.dumps(value)] for name, value in found.items()]
    report.table(["", "value"], rows)


if __name__ == "__main__":
    main()
