"""The watch over Ray's GCS; the kind `GCS` of `make chaos` kills a real one."""

import socket
import sys
import threading
from pathlib import Path

import pytest

from search.slots import gcs
from tests.processes import finish
from tests.waiting import eventually


def test_a_gcs_that_takes_no_connection_any_more_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs, "LOOK_SECONDS", 0.02)
    dead = threading.Event()
    server = socket.create_server(("127.0.0.1", 0))
    taken = 0
    with gcs.watched(f"127.0.0.1:{server.getsockname()[1]}", 0.1, dead.set):
        for taken in range(10):  # noqa: B007 - more looks than `dead` would need
            server.accept()[0].close()
        assert taken == 9
        assert not dead.is_set()
        server.close()
        assert dead.wait(30)


def test_a_watch_ends_with_its_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs, "LOOK_SECONDS", 0.02)
    with gcs.watched("127.0.0.1:1", 3600, lambda: None):
        pass
    eventually(lambda: "gcs" not in [thread.name for thread in threading.enumerate()], "the watch ends")


def test_a_driver_without_its_gcs_says_what_to_do_and_ends(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from search.slots import gcs; gcs.leave(Path({str(tmp_path)!r}))"
    ended = finish(sys.executable, "-c", code)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.splitlines()[-1].endswith(
        f"`python -m search resume {tmp_path}` goes on, on a cluster once its head is back."
    )
