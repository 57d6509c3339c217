"""Growth of a study's own cost with its trials: seconds per trial, and the driver's memory.

    python -m benchmarks.scale [--quick] [--sampler random tpe]

Trials report three epochs and train nothing, two at a time, in a study's own machinery (noop.py).

random  a study of 100 trials, then one of 3,000. `growth`: seconds per trial of the whole long study (from
        its first tenth on, when Tune's actors are up) over those of the short one. `growth_inside`: the
        last tenth of the long study over its first.
tpe     the same with Optuna's TPE, whose suggestions look at all earlier trials; 1,000 trials with --quick.
        `ask` is the part of a trial that Optuna takes to suggest it, in the driver.

Memory is the driver's resident set, and the table shows it as the long study goes on. Linux only.
"""

import argparse
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import noop, report
from search.suggest.sampler import StudySearcher

EPOCHS = 3
CONCURRENT = 2
SHORT, LONG = 100, 3000
WINDOWS = 10
MIB = 1024 * 1024


@dataclass
class Course:
    """Course of one study."""

    ends: list[float] = field(default_factory=list)
    """Times at which trials ended, in order, in seconds since the epoch."""
    memory: list[tuple[float, float]] = field(default_factory=list)
    """The driver's resident set in MiB, with the times it was looked at."""
    asks: list[float] = field(default_factory=list)
    """Seconds that each suggestion took."""

    def seconds(self, begin: float, end: float) -> float:
        """Seconds per trial between two shares of the trials, such as 0.1 and 1."""
        first, last = (round(share * (len(self.ends) - 1)) for share in (begin, end))
        return (self.ends[last] - self.ends[first]) / (last - first)

    def ask(self, begin: float, end: float) -> float:
        """Median seconds of the suggestions between two shares of the trials."""
        first, last = (round(share * len(self.asks)) for share in (begin, end))
        return report.median(self.asks[first:last])

    def memory_at(self, share: float) -> float:
        """MiB when this share of the trials had ended."""
        moment = self.ends[round(share * (len(self.ends) - 1))]
        return min(self.memory, key=lambda sample: abs(sample[0] - moment))[1]


def main() -> None:
    """Measure the samplers one after the other; print a table each, then the numbers of all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="TPE with 1,000 trials instead of 3,000")
    parser.add_argument("--sampler", nargs="+", choices=["random", "tpe"], default=["random", "tpe"])
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for sampler in options.sampler:
        most = 1000 if options.quick and sampler == "tpe" else LONG
        short, long = (noop.fresh_ray(lambda n=n, s=sampler: follow(n, s)) for n in (SHORT, most))
        found[sampler] = numbers(short, long)
        show(sampler, short, long)
    first = found[options.sampler[0]]
    report.last_line({"growth": first["growth"], "trials": first["trials"], "load": report.load()} | found)


def follow(trials: int, sampler: str) -> Course:
    """Run a study and return its course."""
    course = Course()
    with looking_at_memory(course.memory), timing_suggestions(course.asks):
        course.ends = noop.study(trials, epochs=EPOCHS, concurrent=CONCURRENT, sampler=sampler)
    return course


def numbers(short: Course, long: Course) -> dict[str, Any]:
    """Return what the last line says of one sampler."""
    return {
        "growth": long.seconds(0.1, 1) / short.seconds(0.1, 1),
        "growth_inside": long.seconds(0.9, 1) / long.seconds(0.1, 0.2),
        "trials": len(long.ends),
        "seconds_short": short.seconds(0.1, 1),
        "seconds_long": long.seconds(0.1, 1),
        "ask_seconds_first": long.ask(0, 0.1),
        "ask_seconds_last": long.ask(0.9, 1),
        "memory_mib_first": long.memory_at(0.1),
        "memory_mib_last": long.memory_at(1),
    }


def show(sampler: str, short: Course, long: Course) -> None:
    """Print the short study's line and the long one's, tenth by tenth."""
    print(f"{sampler}: no-op trials of {EPOCHS} epochs, {CONCURRENT} at a time; load {report.load()}")
    most = max(long.memory_at(tenth / WINDOWS) for tenth in range(WINDOWS + 1))
    rows = [_row(f"study of {len(short.ends)}", short, 0.1, 1, most)]
    for tenth in range(WINDOWS):
        first, last = (round(len(long.ends) * (tenth + i) / WINDOWS) for i in (0, 1))
        begin, end = tenth / WINDOWS, (tenth + 1) / WINDOWS
        rows.append(_row(f"{first + 1} to {last}", long, begin, end, most))
    report.table(["trials", "s/trial", "ms to suggest", "driver, MiB", ""], rows)
    print()


def _row(name: str, course: Course, begin: float, end: float, most: float) -> list[str]:
    memory = course.memory_at(end)
    cells = [f"{course.seconds(begin, end):.4f}", f"{1000 * course.ask(begin, end):.2f}", f"{memory:.0f}"]
    return [name, *cells, "#" * round(40 * memory / most)]


@contextmanager
def looking_at_memory(samples: list[tuple[float, float]]) -> Iterator[None]:
    """Note this process's resident set twice a second."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.5):
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            samples.append((time.time(), pages * os.sysconf("SC_PAGE_SIZE") / MIB))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def timing_suggestions(seconds: list[float]) -> Iterator[None]:
    """Note how long each suggestion takes in the driver."""
    suggest = StudySearcher.suggest

    def timed(self: StudySearcher, trial_id: str) -> Any:
        begin = time.perf_counter()
        try:
            return suggest(self, trial_id)
        finally:
            seconds.append(time.perf_counter() - begin)

    StudySearcher.suggest = timed
    try:
        yield
    finally:
        StudySearcher.suggest = suggest


if __name__ == "__main__":
    main()
