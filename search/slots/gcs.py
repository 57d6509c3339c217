"""A watch over Ray's GCS: without it a driver can only end, and Ray ends it after a minute without a word."""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LOOK_SECONDS = 1.0
"""Seconds between two looks."""
HERE_SECONDS = 5.0
"""Seconds after which the GCS of a Ray that this process has started counts as dead: nobody restarts it."""
CLUSTER_SECONDS = 50.0
"""The same for a cluster, whose operator may restart it; Ray itself gives up after 60 s."""


@contextlib.contextmanager
def watched(address: str, seconds: float, dead: Callable[[], None]) -> Iterator[None]:
    """Watch the GCS while the context lasts, in a thread.

    Args:
        address: its host and port.
        seconds: for how long it may take no connection.
        dead: called once, in the thread, when it has taken none for longer.
    """
    over = threading.Event()
    threading.Thread(target=_watch, args=(address, seconds, dead, over), name="gcs", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(address: str, seconds: float, dead: Callable[[], None], over: threading.Event) -> None:
    host, _, port = address.rpartition(":")
    since: float | None = None
    while not over.wait(LOOK_SECONDS):
        now = time.monotonic()
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=LOOK_SECONDS).close()
            since = None
        except OSError:
            since = now if since is None else since
            if now - since >= seconds:
                dead()
                return


def leave(root: Path) -> None:
    """Say that the GCS is dead, and end this process at once: whatever asks Ray for something waits for it.

    The record has all but the last moment, as after a SIGKILL.
    """
    line = (
        f"error: {root}: Ray's GCS must run while a study does, but it has died. The record is whole: "
        f"`python -m search resume {root}` goes on, on a cluster once its head is back."
    )
    print(line, file=sys.stderr, flush=True)
    os._exit(1)
