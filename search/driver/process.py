"""Context managers that change this process's signals, environment or loggers, and restore them."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

STOPS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""Signals that stop a study: `ray job stop` and Kubernetes send SIGTERM, a terminal that is closed SIGHUP."""


@contextlib.contextmanager
def environment(values: Mapping[str, str], *, override: bool = True) -> Iterator[None]:
    """Set environment variables within the block; without `override` those that are set already stay."""
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
    """Restore the present levels of the loggers at the end of the block."""
    before = {name: logging.getLogger(name).level for name in loggers}
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def handlers(*signals: int) -> Iterator[None]:
    """Restore the present handlers of the signals at the end of the block; only the main thread can do so."""
    before = {number: signal.getsignal(number) for number in signals} if _may_handle() else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not installed from Python, so it cannot be restored from Python
                signal.signal(number, handler)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Treat every signal of STOPS like an interrupt (Ctrl-C), the only one on which Tune stops gracefully.

    A signal that is ignored, as SIGHUP is under `nohup`, stays ignored. Outside the main thread nothing
    changes.
    """
    if not _may_handle():
        yield
        return
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def stop(number: int, frame: FrameType | None) -> None:
        if number != signal.SIGTERM:
            # Shell and kernel both send SIGHUP when a terminal closes, and writing to it would fail.
            signal.signal(number, signal.SIG_IGN)
            _silence(terminals)
        interrupt: Any = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # SIGINT is ignored, as in background jobs of a shell without job control
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)

    with handlers(*STOPS):
        for number in STOPS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, stop)
        yield


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Let the first interrupt (Ctrl-C) wait until the end of the block; a second one comes at once.

    Outside the main thread, and where SIGINT is ignored, nothing changes.

    Yields:
        A function that returns True once an interrupt waits.

    Raises:
        KeyboardInterrupt: one waited; at the end of the block.
    """
    waiting = False

    def wait(number: int, frame: FrameType | None) -> None:
        nonlocal waiting
        waiting = True
        signal.signal(signal.SIGINT, before)

    before: Any = signal.getsignal(signal.SIGINT) if _may_handle() else None
    if not callable(before):
        yield lambda: False
        return
    with handlers(signal.SIGINT):
        signal.signal(signal.SIGINT, wait)
        yield lambda: waiting
    if waiting:
        raise KeyboardInterrupt


@contextlib.contextmanager
def not_for_children() -> Iterator[None]:
    """Block SIGHUP, so that processes started within the block inherit that and survive a closed terminal.

    Otherwise Ray's own processes would be gone before the trials are saved. A SIGHUP to this process is
    delivered when the block ends.
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
    """Point these file descriptors to the null device."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in terminals:
        os.dup2(nowhere, number)
    os.close(nowhere)
