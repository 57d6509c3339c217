"""A study stops gracefully on every signal that asks for it, and gives the process back as it was."""

import logging
import os
import pty
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from search.driver import process, runner, tuner

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """A failing test leaves the handlers of pytest alone."""
    with process.handlers(signal.SIGINT, *process.STOPS):
        yield


@pytest.mark.parametrize("number", process.STOPS)
def test_a_signal_that_stops_a_process_interrupts_a_study(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt), process.stoppable():
        signal.raise_signal(number)
    assert signal.getsignal(number) == before


def test_an_interrupt_goes_to_whoever_waits_for_it_as_tune_does() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    with process.stoppable():
        signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGINT]


@pytest.mark.parametrize("number", [signal.SIGINT, *process.STOPS])
def test_a_deferred_interrupt_comes_at_the_end_of_the_block_and_a_second_one_at_once(
    number: signal.Signals,
) -> None:
    before = signal.getsignal(signal.SIGINT)
    done: list[str] = []

    def work(*signals: signal.Signals) -> None:
        with process.stoppable(), process.deferred() as waits:
            assert not waits()
            for one in signals:
                signal.raise_signal(one)
                assert waits()
                done.append("a part")

    with pytest.raises(KeyboardInterrupt):
        work(number)
    assert done == ["a part"]
    with pytest.raises(KeyboardInterrupt):
        work(number, signal.SIGINT)
    assert done == ["a part"] * 2
    work()
    assert signal.getsignal(signal.SIGINT) == before


def test_a_study_in_the_background_of_a_script_is_stopped_although_it_ignores_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with pytest.raises(KeyboardInterrupt), process.stoppable():
        signal.raise_signal(signal.SIGTERM)


def test_under_nohup_a_study_runs_on() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with process.stoppable():
        signal.raise_signal(signal.SIGHUP)


def test_a_closed_terminal_is_told_once_and_nothing_is_written_to_it() -> None:
    """Shell and kernel both tell; the study says on a terminal that is gone what it has to say."""
    script = textwrap.dedent("""
        import os, signal
        from search.driver import process
        with process.stoppable():
            try:
                print("ready", flush=True)
                signal.pause()
            except KeyboardInterrupt:
                signal.raise_signal(signal.SIGHUP)
                print("interrupted", flush=True)
                os._exit(7)
    """)
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    said = b""
    while b"ready\r\n" not in said:  # closed amid the line, the terminal would fail the child's `print`
        said += os.read(ours, 1000)
    os.close(ours)
    child.send_signal(signal.SIGHUP)
    assert child.wait(timeout=120) == 7


def test_processes_that_start_meanwhile_survive_a_closed_terminal() -> None:
    waits = [sys.executable, "-c", "import sys; print('up', flush=True); sys.exit(len(sys.stdin.read()))"]
    with process.not_for_children():
        child = subprocess.Popen(waits, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    child.send_signal(signal.SIGHUP)
    child.communicate("four", timeout=120)
    assert child.returncode == 4
    assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_outside_the_main_thread_nothing_is_handled_and_nothing_fails() -> None:
    failed: list[Exception] = []

    def run() -> None:
        try:
            with process.stoppable(), process.handlers(signal.SIGINT), process.not_for_children():
                pass
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert failed == []


def test_environment_and_loggers_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where Ray cannot be joined."""
    from search.errors import PreflightError

    for name in tuner.QUIET:  # a Ray of an earlier test may have set them
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("RAY_AIR_NEW_OUTPUT", "1")
    logger = logging.getLogger("ray.tune")
    before = dict(os.environ), logger.level, [signal.getsignal(number) for number in process.STOPS]
    assert tuner.QUIET.keys() - os.environ.keys()

    def refuse(address: str, **options: object) -> None:
        assert tuner.QUIET.keys() <= os.environ.keys()
        assert os.environ["RAY_AIR_NEW_OUTPUT"] == "1"
        assert logger.level == logging.CRITICAL
        raise PreflightError("no answer")

    monkeypatch.setattr(runner.preflight, "join", refuse)
    with pytest.raises(PreflightError), runner.connected():
        pass
    assert before == (dict(os.environ), logger.level, [signal.getsignal(n) for n in process.STOPS])


@pytest.mark.thorough
@pytest.mark.ray
def test_a_ray_that_is_started_outside_the_main_thread_is_gone_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    was_up: list[bool] = []

    def run() -> None:
        with runner.connected():
            was_up.append(ray.is_initialized())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert was_up == [True]
    assert not ray.is_initialized()
