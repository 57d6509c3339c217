"""Progress of long steps of the work, for whoever wants to show it.

Code that may take long says so with `step`. A process that shows progress, or sends it on, listens with
`listening`. Without a listener a step costs microseconds.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Lock, Thread
from typing import TypeVar

T = TypeVar("T")

TELL_SECONDS = 0.25
"""Least time between two reports of one step."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """State of one step."""

    name: str
    """The work that is done, such as `features of train`."""
    done: int = 0
    total: int | None = None
    """Number of units in all; None if nobody knows."""
    unit: str = ""
    """The unit that is counted, such as `images` or `bytes`."""
    why: str = ""
    """Reason why it takes long, for the user."""
    seconds: float = 0.0
    """Seconds since the step began."""
    over: bool = False

    @property
    def summary(self) -> str:
        """One line about a step that is over, or how far it is."""
        if self.unit == "bytes":
            count = f" {self.done / 1e6:.1f} MB"
        else:
            count = f" {self.done:,} {self.unit}" if self.done else ""
        speed = f", {self.speed}" if self.rate and self.unit != "bytes" else ""
        why = f", {self.why}" if self.why else ""
        return f"{self.name}:{count} in {self.seconds:.1f} s{speed}{why}"

    @property
    def rate(self) -> float | None:
        """Units per second so far; None before there is a measurement."""
        return self.done / self.seconds if self.done and self.seconds > 0 else None

    @property
    def speed(self) -> str:
        """The rate in words: `120/s`, `4.5/s`, `3.2/min`; nothing before there is a measurement."""
        rate = self.rate
        if rate is None:
            return ""
        if rate < 0.5:
            return f"{60 * rate:.1f}/min"
        return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at this rate; None if nobody can tell."""
        if self.total is None or self.rate is None:
            return None
        return max(0.0, (self.total - self.done) / self.rate)


Listener = Callable[[Step], object]

_listener: Listener | None = None
_running: list["Counting"] = []
"""The steps of this process that have not ended, the outer one first."""


class Counting:
    """A step that is running."""

    def __init__(self, step: Step, patience: float) -> None:
        self._step, self._began = step, time.monotonic()
        self._next = self._began + patience
        self._told = False
        self._lock = Lock()

    def add(self, count: int = 1) -> None:
        """Count more units as done; threads may call it."""
        with self._lock:
            self._step = replace(self._step, done=self._step.done + count)
        self._tell()

    def to(self, done: int) -> None:
        """Set the number of units that are done."""
        with self._lock:
            self._step = replace(self._step, done=done)
        self._tell()

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and count each as done."""
        for item in items:
            yield item
            self.add()

    def _tell(self, *, now: bool = False, over: bool = False) -> None:
        if _listener is None or not (now or over or time.monotonic() >= self._next):
            return
        if over and not self._told:
            return  # nobody has heard of a step that was quicker than its patience
        self._told, self._next = True, time.monotonic() + TELL_SECONDS
        _listener(replace(self._step, seconds=time.monotonic() - self._began, over=over))


@contextlib.contextmanager
def step(
    name: str, total: int | None = None, unit: str = "", why: str = "", *, patience: float = 0.0
) -> Iterator[Counting]:
    """Report a step while the context lasts.

    Args:
        name: what is done.
        total: number of units in all, if known.
        unit: what is counted.
        why: why it takes long.
        patience: seconds before the first report; a step that is over by then is not reported.
    """
    counting = Counting(Step(name=name, total=total, unit=unit, why=why), patience)
    _running.append(counting)
    try:
        if not patience:
            counting._tell(now=True)
        yield counting
    finally:
        _running.remove(counting)
        counting._tell(over=True)
        if _running:
            _running[-1]._tell()  # the outer step goes on


def counted(items: Iterable[T], name: str, total: int, unit: str, *, patience: float = 0.0) -> Iterator[T]:
    """Yield the items within a step that counts them."""
    with step(name, total, unit, patience=patience) as told:
        yield from told.each(items)


@contextlib.contextmanager
def growing(
    name: str, files: Callable[[], Iterable[Path]], total: int | None = None, why: str = ""
) -> Iterator[None]:
    """Report a step that others carry out, such as a library's download, by the bytes of the files it writes.

    Args:
        name: what is done.
        files: returns the files that grow; those that are there at the start do not count.
        total: bytes in all, if known.
        why: why it takes long.
    """
    before, over = _bytes(files()), Event()

    def follow() -> None:
        while not over.wait(TELL_SECONDS):
            told.to(max(0, _bytes(files()) - before))

    with step(name, total, "bytes", why) as told:
        watch = Thread(target=follow, name="growing", daemon=True)
        watch.start()
        try:
            yield
        finally:
            over.set()
            watch.join()
            told.to(max(0, _bytes(files()) - before))


def _bytes(files: Iterable[Path]) -> int:
    found = 0
    for file in files:
        with contextlib.suppress(OSError):  # renamed or removed meanwhile
            found += file.stat().st_size
    return found


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Have `listener` called with each report of this process, in the thread that works, until the end."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before
