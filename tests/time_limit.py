"""The time limit of every test: the seconds of `--timeout`, of a marker `timeout`, or of pyproject.toml.

pytest-timeout knows the limit. What happens then is decided here: the test fails with the stacks of all
threads, and the next one runs. A test that does not even end then (its clean-up hangs, or it hangs outside
Python) loses its process, and `pytest -n` starts another one. `--timeout=0` is without limit; in a debugger
there is none.
"""

import faulthandler
import os
import signal
import sys
import threading
import traceback
from collections.abc import Generator
from typing import Any, TextIO

import pytest
import pytest_timeout

GRACE_SECONDS = 120.0
"""For a test that has failed by its limit to clean up: a study saves its trials and ends its slots."""
ERRORS = pytest.StashKey[TextIO]()
FRAMES = 15
"""Of each stack, the inner ones: the outer ones are pytest's."""


def pytest_configure(config: pytest.Config) -> None:
    """Keep stderr as it is before pytest captures it."""
    config.stash[ERRORS] = os.fdopen(os.dup(2), "w")


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    """Set both limits; pytest-timeout lifts the first one by what is left at the test."""

    def late(*_: object) -> None:
        if not pytest_timeout.is_debugging():
            pytest.fail(f"the test must end within {settings.timeout:g} s, got:\n{stacks()}", pytrace=False)

    item.cancel_timeout = lambda: signal.setitimer(signal.ITIMER_REAL, 0)  # type: ignore[attr-defined]
    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout)
    last = settings.timeout + GRACE_SECONDS
    faulthandler.dump_traceback_later(last, exit=True, file=item.config.stash[ERRORS])
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Lift the second limit once the test and its clean-up have ended."""
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Bound the end of this process, too: a thread that a test has left may never end."""
    if config.getoption("--timeout") != 0:
        faulthandler.dump_traceback_later(GRACE_SECONDS, exit=True, file=config.stash[ERRORS])


def pytest_enter_pdb() -> None:
    """Lift the second limit for whoever debugs; pytest-timeout lifts the first one."""
    faulthandler.cancel_dump_traceback_later()


def stacks() -> str:
    """Return the stacks of all threads, this one's last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sorted(sys._current_frames().items(), key=lambda one: one[0] == threading.get_ident())
    return "\n".join(
        f"~~ {names.get(number, number)}\n{''.join(traceback.format_stack(frame)[-FRAMES:])}"
        for number, frame in frames
    )
