"""Show what a command does from its first second on: each phase, how far it is, how fast, how long still.

A terminal shows the running phase on one line that is redrawn, and leaves a line of each phase that is over.
Any other output gets that line alone. Everything goes to stderr.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.live import Live
from rich.text import Text

from finetune import steps
from finetune.steps import Step
from search.views.terminal import clean, console, print_line, seconds_text

_DRAWS_PER_SECOND = 4
_SHOWN_SECONDS = 0.5
"""Seconds from which a step within a phase gets a line of its own."""


class Phase:
    """A phase that runs."""

    def __init__(self, name: str, why: str, source: Callable[[], Step | None]) -> None:
        self.name, self.why, self.source = name, why, source
        self.told = ""
        """Text for its end, such as the number of images."""
        self.step: Step | None = None
        self.began = time.monotonic()

    def tell(self, text: str) -> None:
        """Set the text that the phase's line shows, at its end, too."""
        self.told = clean(text)


class Phases:
    """The phases of one command, in order.

    Args:
        out: console to write to; stderr by default.
    """

    def __init__(self, out: Console | None = None) -> None:
        self._out = out or console(stderr=True)
        self._now: Phase | None = None
        self._lock = threading.Lock()
        self.seconds: dict[str, float] = {}
        """Seconds of each phase that is over; a phase that comes twice is added up."""

    @contextlib.contextmanager
    def phase(
        self, name: str, why: str = "", source: Callable[[], Step | None] = lambda: None
    ) -> Iterator[Phase]:
        """Show a phase while the context lasts, with the steps of this process that run in it.

        Args:
            name: what is done, in a few words.
            why: why it may take long, shown while it runs.
            source: returns how far the phase is, where another process does the work.
        """
        now = Phase(name, why, source)
        with self._lock:
            self._now = now
        try:
            with steps.listening(self._hear), self._live():
                yield now
        finally:
            with self._lock:
                self._now = None
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - now.began
        self._say(now.name, now.told, time.monotonic() - now.began)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time a phase that shows itself, such as the trials."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    @contextlib.contextmanager
    def _live(self) -> Iterator[None]:
        if not self._out.is_terminal:
            yield
            return
        live = Live(
            console=self._out,
            get_renderable=self._draw,
            refresh_per_second=_DRAWS_PER_SECOND,
            redirect_stdout=sys.stdout.isatty(),
            transient=True,
        )
        with live:
            yield

    def _hear(self, step: Step) -> None:
        with self._lock:
            now = self._now
            if now is not None:
                now.step = None if step.over else step
        if step.over and step.seconds >= _SHOWN_SECONDS and now is not None and step.name != now.name:
            print_line(self._out, f"  {step.summary}")

    def _say(self, name: str, told: str, seconds: float) -> None:
        print_line(self._out, f"{name}: {told + ', ' if told else ''}{seconds_text(seconds)}")

    def _draw(self) -> Text:
        with self._lock:
            now = self._now
            if now is None:
                return Text("")
            return Text(running(now), no_wrap=True, overflow="ellipsis")


def running(phase: Phase) -> str:
    """Return the line of a phase that runs."""
    seconds = time.monotonic() - phase.began
    parts = [phase.told] if phase.told else []
    step = phase.step or phase.source()
    if step is not None:
        parts.append(step_text(step, phase.name))
    if phase.why and (step is None or not step.why):
        parts.append(phase.why)
    return f"{phase.name}: {', '.join([*parts, seconds_text(seconds)])}"


def step_text(step: Step, within: str = "") -> str:
    """Return how far a step is: `features of train 412 of 1,300 images, 120/s, ~7.4 s left`.

    Args:
        step: the step.
        within: name of the phase that shows it; a step of the same name does not repeat it.
    """
    counted = ""
    if step.unit == "bytes":
        whole = "" if step.total is None else f" of {step.total / 1e6:.1f}"
        counted = f"{step.done / 1e6:.1f}{whole} MB"
    elif step.total is not None:
        counted = f"{step.done:,} of {step.total:,} {step.unit}"
    elif step.done:
        counted = f"{step.done:,} {step.unit}"
    name = "" if step.name == within else step.name
    parts = [" ".join(part for part in (name, counted) if part)]
    if step.rate is not None and step.unit != "bytes":
        parts.append(step.speed)
    if step.seconds_left is not None:
        parts.append(f"~{seconds_text(step.seconds_left)} left")
    if step.why:
        parts.append(step.why)
    return clean(", ".join(part for part in parts if part))
