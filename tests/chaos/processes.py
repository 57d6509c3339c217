"""The processes of one study, found by a mark in their environment, and the faults that hit them."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable

import psutil

MARK = "TRANSFER_CHAOS"
TITLES = {
    "worker": "ray::RayTrainWorker",
    "controller": "ray::TrainController",
    "exchange": "ray::Exchange",
    "supervisor": "ray::Supervisor",
}
PROGRAMS = {"raylet": "raylet", "gcs": "gcs_server"}


def of(mark: str) -> list[psutil.Process]:
    """Return all processes that were started by the study with this mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def named(mark: str, who: str) -> list[psutil.Process]:
    """Return the processes of a study that play a part: a key of TITLES or PROGRAMS."""
    found = []
    for process in of(mark):
        with contextlib.suppress(psutil.Error, IndexError):
            words = process.cmdline()
            if _plays(words[0], who):
                found.append(process)
    return found


def _plays(title: str, who: str) -> bool:
    if who == "tune":  # Tune names it after a class that it makes
        others = ("ray::IDLE", *TITLES.values())
        return title.startswith("ray::") and not title.startswith(others)
    return title.startswith(TITLES[who]) if who in TITLES else title.endswith(PROGRAMS[who])


def kill(mark: str, who: str, chance: random.Random, number: int = signal.SIGKILL) -> int | None:
    """Send a signal to one process that plays a part; return its id, or None if there is none."""
    found = sorted(named(mark, who), key=lambda process: process.pid)
    if not found:
        return None
    chosen = chance.choice(found)
    with contextlib.suppress(psutil.NoSuchProcess):
        chosen.send_signal(number)
        return int(chosen.pid)
    return None


def kill_all(mark: str) -> None:
    """End whatever is left of a study."""
    for process in of(mark):
        with contextlib.suppress(psutil.Error):
            process.kill()


def until(is_so: Callable[[], bool], seconds: float, step: float = 0.05) -> float | None:
    """Wait until something is so; return the seconds that it took, or None if it did not happen in time."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if is_so():
            return time.monotonic() - began
        time.sleep(step)
    return None


def environment(mark: str) -> dict[str, str]:
    """Return the environment of a study whose processes carry the mark."""
    return {**os.environ, MARK: mark}
