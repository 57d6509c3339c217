"""Waits until something is so. The limit is a watchdog that only a fault meets."""

import time
from collections.abc import Callable

WATCHDOG_SECONDS = 200.0
"""Many times what anything takes on a busy machine, and less than a test has: what is not so is named."""


def eventually(
    is_so: Callable[[], object],
    what: Callable[[], object] | str,
    seconds: float = WATCHDOG_SECONDS,
    every: float = 0.02,
) -> None:
    """Wait until something is so.

    Args:
        is_so: asked again and again.
        what: is waited for, in words; or a function that returns what to show.
        seconds: of the watchdog.
        every: seconds between two looks.
    """
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {what() if callable(what) else what}")
        time.sleep(every)
