"""The watcher of spot notices, against a server that answers as a cloud's does."""

import ast
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from search.cluster import spot
from tests.waiting import eventually

sys.path.insert(0, str(Path(__file__).parent))
from notices import metadata

SCRIPT = Path(spot.__file__)


def test_a_notice_is_told_in_seconds_and_nothing_before_it() -> None:
    with metadata() as server:
        assert spot.aws(server.url) is None
        assert spot.gcp(server.url) is None
        server.left = 100
        begun = time.monotonic()
        left = spot.aws(server.url)
        assert left is not None
        assert 98 - (time.monotonic() - begun) <= left <= 100  # less what the question took
        assert spot.gcp(server.url) == spot.GCP_NOTICE_SECONDS


def test_the_watcher_outlives_a_server_that_fails_and_drains_once() -> None:
    with metadata() as server:
        answers: list[int] = []
        calls = 0

        def look() -> int | None:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise OSError("connection refused")
            return spot.aws(server.url)

        watcher = threading.Thread(target=spot.watch, args=(look, answers.append, 0.01), daemon=True)
        watcher.start()
        eventually(lambda: calls >= 4, "four looks")
        assert answers == []
        server.left = 60
        begun = time.monotonic()
        eventually(lambda: not watcher.is_alive(), "the watcher drains and ends")
        took = time.monotonic() - begun
    (answer,) = answers
    assert 58 - took <= answer <= 60


def test_without_a_cloud_there_is_nothing_to_watch(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("aws", "gcp"):
            patch.setattr(spot, name, lambda: spot._ask("http://127.0.0.1:9/", {}))
        assert spot.main([]) == 1
    assert "no metadata server of AWS or Google Cloud answers" in capsys.readouterr().err


def test_the_file_runs_alone_on_a_node_that_has_nothing_of_ours() -> None:
    """It is copied to nodes where neither this project nor its libraries need be there."""
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    modules = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    modules |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {name.split(".")[0] for name in modules} <= sys.stdlib_module_names
    done = subprocess.run([sys.executable, "-I", SCRIPT, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--node-id" in done.stdout
