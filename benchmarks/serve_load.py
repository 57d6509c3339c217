"""A server under load: no error of its own, no growth, the answers of `predict`.

    python -m benchmarks.serve_load MODEL_DIR --images DIR [--requests 10000] [--alone] [--batch 16]

Starts `serve MODEL_DIR` on loopback in a process of its own and sends it the images of DIR, over and over,
from several clients at a time; every hundredth upload is broken: empty, torn or no image. It fails if an
answer is not that of `predict`, a good image is refused, a broken one is not, a status is 5xx, a connection
is lost, or memory or descriptors grow. These are of the server's processes together (USS), each tenth of the
way; growth is counted from the first tenth on, when all clients are there.

With `--page docs/serve-load.md` the figures become a row of that page, in place of the one of the same form.
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
from typing import Any

import httpx
import psutil

from benchmarks import report
from finetune import model_folder

BROKEN_EVERY = 100
CLOSE = 1e-5
"""Largest difference of a probability from that of `predict`, whose batches have other sizes."""
GROWN = 0.05
"""Largest growth of the memory, as a share."""
GROWN_FILES = 4
"""Largest growth of the number of descriptors."""
PAGE = """\
# A server under load

Each row of this page is written by `python -m benchmarks.serve_load MODEL_DIR --images DIR
--page docs/serve-load.md` with what stands under *options*; [handing-on.md](handing-on.md) says what a server
answers.

The server answers on loopback, and the clients run beside it on the same machine. Every hundredth upload is
broken: empty, torn or no image.

- **equal**: answers on whole images that are those of `predict`, to {close} of the probability; **refused**:
  broken uploads that got 422; **other**: all other outcomes, such as 5xx or a lost connection.
- **per s, p50, p99**: requests per second and their times, beside what else ran; **load** is the machine's at
  the start, on {cpus} CPU cores.
- **MiB, files**: memory (USS) and descriptors of the server's processes, after a tenth of the requests and at
  the end.

| form | model | options | requests | equal | refused | other | per s | p50 ms | p99 ms | MiB | files | load |
|---|---|---|---:|---:|---:|---:|---:|---:|---:|---|---|---:|
"""


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
    parser.add_argument("--page", type=Path, help="page that gets the figures as a row")
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
    if options.page is not None:
        facts = model_folder.load(options.model).facts
        side = facts["preprocessing"]["image_size"]
        told = f"--clients {options.clients} --batch {options.batch}"
        model = f"{facts['backbone']}, {facts['strategy']}, {side} pixels"
        form = "alone" if options.alone else "Ray Serve"
        write_row(options.page, f"| {form} | {model} | `{told}` | ", found, load[0])
    report.last_line(
        {"load": load, "alone": options.alone, "clients": options.clients, "batch": options.batch} | found
    )
    grown = found["growth"] > GROWN or found["files"][-1] > found["files"][0] + GROWN_FILES
    if found["wrong"] or grown:
        sys.exit(1)


def write_row(page: Path, start: str, found: dict[str, Any], load: float) -> None:
    """Write the figures as a row of the page, in place of the row with the same start."""
    text = PAGE.format(close=CLOSE, cpus=os.cpu_count())
    known = page.read_text().splitlines() if page.exists() else []
    rows = [line for line in known if line.startswith(("| alone", "| Ray Serve"))]
    kept = [line for line in rows if not line.startswith(start)]
    cells = [
        *(f"{found[name]:,}" for name in ("requests", "equal", "refused", "other")),
        *(f"{found[name]:g}" for name in ("per_second", "p50_ms", "p99_ms")),
        *(f"{found[name][0]} to {found[name][-1]}" for name in ("mib", "files")),
        f"{load:.1f}",
    ]
    page.write_text(text + "".join(f"{line}\n" for line in sorted([*kept, start + " | ".join(cells) + " |"])))


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
        self.statuses: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.wrong: list[str] = []
        self.memory: list[float] = []
        self.files: list[int] = []
        self.equal = self.refused = 0

    async def run(self, requests: int, clients: int) -> dict[str, Any]:
        """Send all requests and return the figures."""
        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(base_url=self.url, timeout=120, limits=limits) as client:
            await self._send(client, 1)  # the first call of a model allocates
            self.seconds.clear()
            self.equal = 0
            numbers = iter(range(2, requests + 2))
            mark = max(1, requests // 10)
            began = time.monotonic()

            async def one() -> None:
                for number in numbers:
                    await self._send(client, number)
                    if len(self.seconds) % mark == 0:
                        self.memory.append(mib(self.server))
                        self.files.append(descriptors(self.server))

            await asyncio.gather(*(one() for _ in range(clients)))
            took = time.monotonic() - began
        ranks = statistics.quantiles(self.seconds, n=100)
        return {
            "requests": requests,
            "equal": self.equal,
            "refused": self.refused,
            "other": requests - self.equal - self.refused,
            "per_second": round(requests / took, 1),
            "p50_ms": round(1000 * ranks[49], 1),
            "p99_ms": round(1000 * ranks[98], 1),
            "statuses": dict(sorted(self.statuses.items())),
            "mib": [round(value) for value in self.memory],
            "growth": round(self.memory[-1] / self.memory[0] - 1, 3),
            "files": self.files,
            "wrong": self.wrong[:5],
        }

    async def _send(self, client: httpx.AsyncClient, number: int) -> None:
        place = number % len(self.images)
        broken = number % BROKEN_EVERY == 0
        content = spoilt(self.images[place], number) if broken else self.images[place]
        began = time.monotonic()
        try:
            response = await client.post("/predict", content=content)
        except httpx.HTTPError as error:  # counted, and the others go on
            self.statuses[type(error).__name__] += 1
            self.seconds.append(time.monotonic() - began)
            self.wrong.append(f"request {number}: {error!r}")
            return
        self.seconds.append(time.monotonic() - began)
        self.statuses[str(response.status_code)] += 1
        if broken and response.status_code == 422:
            self.refused += 1
        elif not broken and self._is_equal(response, place):
            self.equal += 1
        else:
            self.wrong.append(f"request {number}: {response.status_code} {response.text[:200]}")

    def _is_equal(self, response: httpx.Response, place: int) -> bool:
        if response.status_code != 200:
            return False
        (name, probability), found = self.expected[place], response.json()
        return bool(found["class"] == name and abs(found["probability"] - probability) <= CLOSE)


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


def descriptors(server: psutil.Process) -> int:
    """Return the number of open descriptors of the server's processes."""
    total = 0
    for process in itertools.chain([server], server.children(recursive=True)):
        try:
            total += process.num_fds()
        except psutil.Error:  # it has just ended
            continue
    return total


def show(found: dict[str, Any]) -> None:
    """Print the figures for people."""
    rows = [[name, json.dumps(value)] for name, value in found.items()]
    report.table(["", "value"], rows)


if __name__ == "__main__":
    main()
