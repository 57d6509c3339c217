"""A test that hangs fails with all stacks and those after it run; a command that hangs shows its output."""

import sys
from pathlib import Path

import psutil
import pytest

from tests.processes import finish
from tests.waiting import eventually

CONFTEST = """
from tests import time_limit

time_limit.GRACE_SECONDS = 1

def pytest_configure(config):
    config.pluginmanager.register(time_limit)
"""
HANGS = """
import threading
from concurrent.futures import ThreadPoolExecutor

def wait_for_ever():
    threading.Event().wait()

def test_that_waits():
    threading.Thread(target=wait_for_ever, name="the other thread", daemon=True).start()
    wait_for_ever()

def test_whose_clean_up_waits():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(wait_for_ever)
        wait_for_ever()

def test_after_them():
    threading.Thread(target=wait_for_ever).start()
"""


def test_a_test_that_hangs_fails_with_all_stacks_and_the_others_run(tmp_path: Path) -> None:
    for name, text in {"conftest.py": CONFTEST, "test_it.py": HANGS, "pytest.ini": "[pytest]\n"}.items():
        (tmp_path / name).write_text(text)
    words = [sys.executable, "-m", "pytest", "--timeout", "2", "-p", "no:cacheprovider", tmp_path]
    done = finish(*words, "-n", "1", env={"PYTEST_ADDOPTS": ""})
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "2 failed, 1 passed" in done.stdout
    first, _, second = done.stdout.partition("test_whose_clean_up_waits")
    assert "the test must end within 2 s, got:" in first
    assert "~~ the other thread" in first
    assert "in wait_for_ever" in first
    assert "worker 'gw0' crashed while running 'test_it.py::test_whose_clean_up_waits'" in done.stdout
    assert "Timeout (0:00:03)!" in done.stderr
    assert "in test_whose_clean_up_waits" in done.stderr
    assert second
    alone = finish(*words, "-k", "after_them")
    assert "1 passed" in alone.stdout
    assert "Timeout (0:00:01)!" in alone.stderr  # for a thread that would keep the process
    assert alone.returncode == 1


def test_a_command_that_hangs_is_ended_with_all_its_processes_and_shows_its_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "child"
    with pytest.raises(AssertionError, match="must end within 3 s"):
        finish("sh", "-c", f"echo said; echo warned >&2; sleep 1000 & echo $! > {file}; wait", seconds=3)
    assert capsys.readouterr().out.endswith("\nsaid\n\nwarned\n\n")
    child = int(file.read_text())
    eventually(lambda: has_ended(child), "the end of the command's child")


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
