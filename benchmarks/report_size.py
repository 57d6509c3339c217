"""Measure report and TensorBoard at 10, 100 and 1,000 trials: `python -m benchmarks.report_size --write`.

The studies are made up (benchmarks/synthetic_study.py). The page is opened 1,100 pixels wide in the light
theme and 360 wide in the dark one, without a network; it must ask for nothing, raise no error, and not scroll
sideways. `--write` puts the tables into docs/report.md.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import board, browser, synthetic_study
from benchmarks.screenshots import DOCS, SHOWN
from search.report import page

MOST_BYTES = 8 * 2**20
PLACE = DOCS / "report.md"
BEGIN, END = "<!-- sizes -->\n", "<!-- /sizes -->\n"
OF_PAGE = ("trials", "MB", "CPU seconds to write", "seconds to load", "to draw all figures", "at 360 pixels")
OF_BOARD = ("trials", "KiB of logs", "seconds to write", "to read", *board.PAGES)


def main() -> None:
    """Print both tables, and write them into the docs if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trials", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--write", action="store_true", help="Put the tables into docs/report.md.")
    asked = parser.parse_args()
    pages = _table(OF_PAGE, map(_of_page, asked.trials))
    boards = _table(OF_BOARD, map(_of_board, asked.trials))
    print(f"{pages}\n{boards}")
    if asked.write:
        text = PLACE.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        written = f"{before}{BEGIN}{_words()}\n{pages}\nTensorBoard, the same way:\n\n{boards}{END}"
        PLACE.write_text(written + rest.split(END)[1], encoding="utf-8")


def _words() -> str:
    with browser.opened() as chromium:
        version = chromium.call("Browser.getVersion")["product"].removeprefix("Headless")
    day = time.strftime("%Y-%m-%d")
    return (
        f"`python -m benchmarks.report_size --write` made up studies of three sizes and measured the page "
        f"({version}, 2 cores, beside other work, {day}):\n"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _of_page(count: int) -> list[str]:
    """Return a row of the page of `count` trials."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = synthetic_study.write(Path(scratch) / f"flowers-{count}", count)
        began = _cpu()
        written = page.write(folder)
        used = _cpu() - began
        size = written.stat().st_size
        if size > MOST_BYTES:
            raise SystemExit(f"{written}: a report must have at most {MOST_BYTES} bytes, got {size}")
        with browser.opened() as chromium:
            load, draw = _shown(chromium, written, width=1100, dark=False)
            narrow = sum(_shown(chromium, written, width=360, dark=True))
    return [f"{count:,}", f"{size / 1e6:.2f}", f"{used:.1f}", f"{load:.1f}", f"{draw:.1f}", f"{narrow:.1f}"]


def _of_board(count: int) -> list[str]:
    """Return a row of TensorBoard with `count` trials."""
    found = board.measure(count)
    seconds = (found.write, found.read, *found.shown)
    return [f"{count:,}", f"{found.kib:,.0f}", *(f"{one:.1f}" for one in seconds)]


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _shown(chromium: browser.Chromium, written: Path, *, width: int, dark: bool) -> tuple[float, float]:
    """Return the seconds until the page has loaded, and until all figures are drawn."""
    began = time.perf_counter()
    shown = chromium.page(written, width=width, dark=dark)
    loaded = time.perf_counter()
    shown.evaluate(SHOWN)
    drawn = time.perf_counter()
    wide = shown.evaluate("document.documentElement.scrollWidth")
    if shown.requests or shown.errors or wide != width:
        raise SystemExit(
            f"{written}: a report must ask for nothing, run, and not scroll sideways at {width} pixels, got "
            f"{shown.requests}, {shown.errors}, {wide} pixels"
        )
    return loaded - began, drawn - loaded


if __name__ == "__main__":
    main()
