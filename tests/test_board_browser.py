"""TensorBoard in a real browser: what its pages show of a study that runs, and of one that has finished."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import browser
from benchmarks.browser import Chromium, Page
from search.record.study_folder import StudyFolder
from search.views.tensorboard import Board, pictures
from tests.test_board import CONFIG, record
from tests.test_pictures import kept

pytestmark = pytest.mark.slow
DEEP = """((selector, what = "innerText") => {
  const found = [];
  const walk = (root) => {
    found.push(...root.querySelectorAll(selector));
    root.querySelectorAll("*").forEach((one) => one.shadowRoot && walk(one.shadowRoot));
  };
  walk(document);
  return found.map((one) => one[what]);
})"""
"""Texts, or another property, of what a selector finds, also inside TensorBoard's own elements."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    if browser.program() is None and not os.environ.get("CI"):
        pytest.skip("no Chromium: apt-get install chromium")
    with browser.opened() as found:
        yield found


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[StudyFolder, str]]:
    """Yield a study's folder and the address of a TensorBoard that shows it and looks for news."""
    folder = StudyFolder(tmp_path)
    folder.tensorboard.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--logdir", str(folder.tensorboard), "--port", str(port), "--reload_interval", "1"]
    command = [sys.executable, "-m", "tensorboard.main", "--host", "127.0.0.1", *words]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, **quiet)  # type: ignore[call-overload]
    try:
        yield folder, f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait()


def opened(chromium: Chromium, address: str) -> Page:
    """Open an address, once TensorBoard answers there."""
    deadline = time.monotonic() + 120
    while True:
        try:
            socket.create_connection(address.split("/")[2].rsplit(":", 1)).close()
            return chromium.page(address, width=1500)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "TensorBoard does not start"
            time.sleep(0.1)


def until(look: Callable[[], Any], enough: Callable[[Any], bool]) -> Any:
    """Return what a look at the page finds once it is enough; the page draws in its own time."""
    deadline = time.monotonic() + 120
    while not enough(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


def texts(page: Page, selector: str) -> list[str]:
    found: list[str] = page.evaluate(f"{DEEP}({selector!r})")
    return [text.strip() for text in found]


def test_hparams_shows_a_study_that_runs_and_then_the_finished_one(
    chromium: Chromium, served: tuple[StudyFolder, str]
) -> None:
    folder, address = served
    board = Board(folder.tensorboard, CONFIG)
    board.study.open()
    done, running = record(0, "COMPLETE", 0.5, 0.25), record(1, "COMPLETE", 0.75)
    for trial in (done, running):
        board.start(trial.id, trial.params)
    for epoch in done.history:
        board.epoch(done.id, int(epoch["epoch"]), epoch, done.history[0])
    board.end(done.id, done.state)
    page = opened(chromium, f"{address}#hparams")
    cells = until(lambda: texts(page, ".table-cell"), lambda found: "trial-0001" in found)
    rows = list(zip(*[iter(cells)] * 12, strict=True))
    head = [re.sub(r"\s+", " ", cell) for cell in rows[0]]
    assert head[:8] == [
        *("Trial ID", "Show Metrics", "strategy", "learning rate", "head size", "frozen layers"),
        *("head init", "best val/accuracy"),
    ]
    shown = {row[0]: dict(zip(head, row, strict=True)) for row in rows[1:] if row[0]}
    assert set(shown) == {"trial-0000", "trial-0001"}
    first = shown["trial-0000"]
    assert (first["strategy"], float(first["learning rate"]), float(first["frozen layers"])) == (
        "fuse",
        0.0125,
        3,
    )
    assert (float(first["best val/accuracy"]), float(first["last val/accuracy"])) == (0.5, 0.25)
    assert shown["trial-0001"]["best val/accuracy"] == ""
    board.epoch(running.id, 1, running.history[0], running.history[0])
    board.end(running.id, running.state)
    board.close()
    page.evaluate("location.reload()")
    cells = until(lambda: texts(page, ".table-cell"), lambda found: "0.75000" in found)
    assert cells.count("trial-0001") == 1


@pytest.mark.thorough
def test_the_pictures_and_the_page_of_the_study_are_drawn(
    chromium: Chromium, served: tuple[StudyFolder, str]
) -> None:
    folder, address = served
    board = Board(folder.tensorboard, CONFIG)
    trial = record(0, "COMPLETE", 0.5, 0.25)
    board.take_up([trial])
    board.study.open([trial])
    kept(folder)
    assert pictures.add(folder, CONFIG, trial, ["daisy", "rose", "tulip"])
    page = opened(chromium, f"{address}#custom_scalars")
    until(lambda: texts(page, ".matches-text"), lambda found: found.count("Matches (0)") == 2)
    assert texts(page, ".category-name") == ["study", "best trials", "all trials"]
    charts = dict(zip(texts(page, ".heading-label.name"), texts(page, ".matches-text"), strict=True))
    assert charts == {
        "best so far, step = trials": "Matches (1)",
        "best so far, step = seconds": "Matches (0)",  # nobody has timed this study
        "best so far, step = worker seconds": "Matches (1)",
        "trials by state": "Matches (3)",
        "share of slot time that trained": "Matches (0)",
        "stored features": "Matches (1)",
        "val/accuracy": "Matches (1)",
        "train/loss": "Matches (1)",
    }
    page = opened(chromium, f"{address}#images")
    drawn = until(
        lambda: page.evaluate(f"{DEEP}('img', 'naturalWidth')"), lambda found: sum(map(bool, found)) == 4
    )
    assert drawn.count(pictures.SIDE) == 2
    assert set(texts(page, ".heading-label.name")) == {
        *("confusion on test", "reliability on test"),
        *("most confident mistakes", "a training batch as seen"),
    }
