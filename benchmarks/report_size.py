"""Measure the report at 10, 100 and 1,000 trials: `python -m benchmarks.report_size`.

The studies are made up (benchmarks/synthetic_study.py). With a Chromium on the machine it also measures how
long the page takes to load and to draw all figures, without a network.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

from benchmarks import browser, synthetic_study
from benchmarks.screenshots import SHOWN
from search.report import page


def main() -> None:
    """Print a line for each number of trials."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trials", type=int, nargs="*", default=[10, 100, 1000])
    counts = parser.parse_args().trials
    print("| trials | MB | seconds to write | CPU seconds | seconds to load | to draw all figures |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for count in counts:
            folder = synthetic_study.write(Path(scratch) / f"flowers-{count}", count)
            begin, cpu = time.perf_counter(), _cpu()
            written = page.write(folder)
            seconds, used = time.perf_counter() - begin, _cpu() - cpu
            shown = _shown(written) if browser.program() else ("not measured", "not measured")
            size = written.stat().st_size / 1e6
            print(
                f"| {count} | {size:.2f} | {seconds:.1f} | {used:.1f} | {shown[0]} | {shown[1]} |", flush=True
            )


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _shown(written: Path) -> tuple[str, str]:
    with browser.opened() as chromium:
        begin = time.perf_counter()
        shown = chromium.page(written)
        loaded = time.perf_counter()
        shown.evaluate(SHOWN)
        if shown.requests or shown.errors:
            raise SystemExit(
                f"{written}: a report must ask for nothing and run, got {shown.requests}, {shown.errors}"
            )
        return f"{loaded - begin:.1f}", f"{time.perf_counter() - loaded:.1f}"


if __name__ == "__main__":
    main()
