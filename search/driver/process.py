"""What a study changes in the process that runs it: signals, environment, loggers; all is given back."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

STOPS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""`ray job stop` and Kubernetes send SIGTERM, a terminal that is closed SIGHUP."""


@contextlib.contextmanager
def environment(values: Mapping[str, str], *, override: bool = True) -> Iterator[None]:
    """Set environment variables for a while; those that are set already only with `override`."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if override or before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def levels(*loggers: str) -> Iterator[None]:
    """Give the loggers back the levels that they have now."""
    before = {name: logging.getLogger(name).level for name in loggers}
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def handlers(*signals: int) -> Iterator[None]:
    """Give the signals back the handlers that they have now; only a main thread may change any."""
    before = {number: signal.getsignal(number) for number in signals} if _may_handle() else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # else it was not set from Python, and cannot be
                signal.signal(number, handler)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Take every signal of STOPS for an interrupt (Ctrl-C): Tune stops gracefully on that one only.

    One that is ignored, as under `nohup`, stays ignored. Outside the main thread nothing is changed.
    """
    if not _may_handle():
        yield
        return
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def stop(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGTERM:
            # Shell and kernel both tell of a closed terminal, and nothing can be written to it.
            signal.signal(number, signal.SIG_IGN)
            _silence(terminals)
        interrupt: Any = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # ignored, as by a shell without job control
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)

    with handlers(*STOPS):
        for number in STOPS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, stop)
        yield


@contextlib.contextmanager
def not_for_children() -> Iterator[None]:
    """Keep SIGHUP from processes that start meanwhile: a closed terminal tells it to all that belong to it.

    Ray's own would be gone before the trials are saved. Here it comes when the block ends.
    """
    if not (_may_handle() and hasattr(signal, "SIGHUP")):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _may_handle() -> bool:
    return threading.current_thread() is threading.main_thread()


def _silence(terminals: list[int]) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in terminals:
        os.dup2(nowhere, number)
    os.close(nowhere)
