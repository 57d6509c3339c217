"""TensorBoard of synthetic studies: size of the logs, seconds to write them and until a browser shows them.

`python -m benchmarks.report_size` prints the table.
"""

import base64
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

from benchmarks import browser
from search.config.study import StudyConfig
from search.record.records import TrialRecord
from search.views.tensorboard import Board
from search.views.tensorboard.study_page import STUDY_RUN

WAIT_SECONDS = 300.0
TEXTS = """((selector) => {
  const found = [];
  const walk = (root) => {
    found.push(...root.querySelectorAll(selector));
    root.querySelectorAll("*").forEach((one) => one.shadowRoot && walk(one.shadowRoot));
  };
  walk(document);
  return found.map((one) => one.innerText.trim());
})"""
CHOSEN = quote(base64.b64encode(json.dumps({STUDY_RUN: True}).encode()))
"""With more than 40 runs TensorBoard selects none of them: an address that selects the study's."""
PAGES: dict[str, tuple[str, str, Callable[[list[str]], bool]]] = {
    "hparams, rows": ("#hparams", ".table-cell", lambda found: "trial-0001" in found),
    "custom scalars, study": (
        f"#custom_scalars&runSelectionState={CHOSEN}",
        ".matches-text",
        lambda found: "Matches (1)" in found,
    ),
    "time series, runs": (
        "#timeseries",
        "runs-data-table",
        lambda found: any("0001" in text for text in found),
    ),
}
"""Address, selector and what must be found there, by the name of the page."""


def study(count: int) -> tuple[StudyConfig, list[TrialRecord]]:
    """Return a config and `count` trials of five epochs."""
    config, draw = StudyConfig.from_folder("flowers", backbone="mobilenet_v2"), random.Random(0)
    trials = []
    for number in range(count):
        params = {
            "strategy": ("replace", "load", "fuse")[number % 3],
            "learning_rate": 10 ** draw.uniform(-4, -1),
            "head_size": draw.choice([0, 64, 1024]),
            "frozen_layers": draw.choice([0, 3, 9, "all"]),
            "backbone": "mobilenet_v2",
        }
        last = draw.random()
        history = [_epoch(epoch, last) for epoch in range(1, 6)]
        trials.append(
            TrialRecord(
                number=number,
                id=f"trial-{number:04}",
                state="PRUNED" if number % 2 else "COMPLETE",
                params=params,
                metrics={"best": history[-1], "last": history[-1]},
                history=history,
            )
        )
    return config, trials


def _epoch(epoch: int, last: float) -> dict[str, float]:
    names = ("loss", "balanced_accuracy", "macro_f1", "ece", *(f"recall/class {i}" for i in range(5)))
    values = {f"val/{name}": last / epoch for name in names}
    work = {"learning_rate": 0.01, "seconds": 0.5, "images_per_second": 100.0}
    return {"epoch": epoch, "train/loss": 1 / epoch, "val/accuracy": last * (1 - 0.5**epoch)} | values | work


@contextmanager
def served(logdir: Path) -> Iterator[str]:
    """Yield the address of a TensorBoard that shows `logdir`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--logdir", str(logdir), "--port", str(port), "--host", "127.0.0.1"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-m", "tensorboard.main", *words], **quiet)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.1)
        address = f"http://127.0.0.1:{port}/"
        _wait_until_read(address, len({file.parent for file in logdir.rglob("*tfevents*")}))
        yield address
    finally:
        process.terminate()
        process.wait()


def _wait_until_read(address: str, runs: int) -> None:
    """Wait until TensorBoard, which reads the logs in the background, has read all runs."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        with urlopen(f"{address}data/plugin/scalars/tags") as answer:
            known = json.load(answer)
        if len(known) >= runs:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"TensorBoard has read {len(known)} of {runs} runs")
        time.sleep(0.2)


def seconds_until_shown(chromium: browser.Chromium, address: str, page: str) -> float:
    """Return the seconds from the request of a page until it shows its content; NaN if it never does."""
    began = time.monotonic()
    try:
        opened(chromium, address, page)
    except TimeoutError:
        return float("nan")
    return time.monotonic() - began


def opened(chromium: browser.Chromium, address: str, page: str, **window: Any) -> browser.Page:
    """Open one of PAGES and wait until it shows its content.

    Raises:
        TimeoutError: it does not within WAIT_SECONDS.
    """
    part, selector, enough = PAGES[page]
    began = time.monotonic()
    shown = chromium.page(f"{address}{part}", **({"width": 1500} | window))
    while not enough(shown.evaluate(f"{TEXTS}({selector!r})")):
        if time.monotonic() - began > WAIT_SECONDS:
            raise TimeoutError(f"{page}: TensorBoard does not show it")
        time.sleep(0.1)
    return shown


@dataclass(frozen=True)
class Measured:
    """TensorBoard of a study."""

    kib: float
    """Size of all event files."""
    write: float
    """Seconds to write them."""
    read: float
    """Seconds from the start of TensorBoard until it has read them."""
    shown: tuple[float, ...]
    """Seconds until a browser shows each of PAGES."""


def measure(count: int) -> Measured:
    """Return how large the logs of `count` trials are, and how soon they can be used."""
    with tempfile.TemporaryDirectory() as folder:
        config, trials = study(count)
        began = time.monotonic()
        board = Board(Path(folder), config)
        board.take_up(trials)
        board.study.open(trials)
        board.close()
        write = time.monotonic() - began
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        began = time.monotonic()
        with served(Path(folder)) as address, browser.opened() as chromium:
            read = time.monotonic() - began
            shown = tuple(seconds_until_shown(chromium, address, page) for page in PAGES)
    return Measured(size / 1024, write, read, shown)
