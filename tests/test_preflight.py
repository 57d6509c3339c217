"""What is looked at before a node gets a slot: every difference is one line with node, fact and fix."""

import dataclasses
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from finetune.datasets import catalog
from finetune.settings import DataSettings
from search.slots import preflight
from search.slots.nodes import Node
from search.slots.preflight import Expected

NODE = Node("ab" * 28, "10.0.0.7", {"CPU": 4.0, "GPU": 1.0})
ROOT = Path(__file__).parents[1]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(5):
            colour = (40 * i, 0, 255 if name == "a" else 0)
            Image.new("RGB", (8, 8), colour).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def expected(tmp_path: Path, images: Path) -> Expected:
    (tmp_path / "results").mkdir()
    (tmp_path / "weights.pth").write_bytes(b"12345")
    found = catalog.scan(DataSettings(kind="folder", path=str(images)))
    marker = tmp_path / "results" / ".shared"
    return preflight.expect(marker, found, [str(tmp_path / "weights.pth")], gpu=True)


def look(expected: Expected) -> dict[str, Any]:
    return preflight.look(expected, NODE.id, False)


def test_a_node_that_sees_and_runs_the_same_passes_and_leaves_nothing_behind(expected: Expected) -> None:
    found = look(expected)
    assert found["facts"]["code"] == preflight.provenance.code_hash()
    assert len(found["images"]) >= 4
    assert preflight.compare(expected, NODE, found) == []
    assert os.listdir(expected.marker.parent) == [".shared"]


def test_a_results_folder_that_is_another_one_there_is_refused(
    expected: Expected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same path, other folder: here by a link into the current folder, on a cluster by a local disk."""
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link"
    link.symlink_to("/proc/self/cwd")
    (tmp_path / "elsewhere" / ".shared").write_text("of an earlier study")
    for content, got in (("of an earlier study", "of an earlier study"), (None, "FileNotFoundError")):
        if content is None:
            (tmp_path / "elsewhere" / ".shared").unlink()
        with monkeypatch.context() as there:
            there.chdir(tmp_path / "elsewhere")
            found = look(dataclasses.replace(expected, marker=link / ".shared"))
        (line,) = preflight.compare(expected, NODE, found)
        assert line.startswith(f"node 10.0.0.7 (abababab): the results folder {expected.marker.parent} must")
        assert f"got {got}" in line
        assert "--results /shared/results" in line


def test_a_folder_that_shows_the_marker_but_not_the_answer_is_refused(expected: Expected) -> None:
    """Such as a copy of the results folder, or one that is mounted to be read only."""
    found = look(expected)
    for answer in expected.marker.parent.glob(".shared.*"):
        answer.unlink()
    (line,) = preflight.compare(expected, NODE, found)
    assert "what it writes to" in line


DIFFERENCES = {
    "facts": ({"torch": "2.11.0"}, "torch must be", "got 2.11.0. Install the same torch on all nodes."),
    "code": ({"code": "0123"}, "code must be", "got 0123. Submit the study as a job"),
    "python": ({"Python": "3.9.1"}, "Python must be", "got 3.9.1. Use one Python"),
}


@pytest.mark.parametrize("which", DIFFERENCES)
def test_other_versions_are_named_with_both_values(expected: Expected, which: str) -> None:
    change, rule, got = DIFFERENCES[which]
    found = look(expected)
    found["facts"] |= change
    (line,) = preflight.compare(expected, NODE, found)
    assert rule in line
    assert expected.facts[next(iter(change))] in line
    assert got in line


def test_images_weights_and_gpus_must_be_there(expected: Expected, images: Path, tmp_path: Path) -> None:
    first, second = sorted(expected.images)[:2]
    content = (images / first).read_bytes()
    (images / first).unlink()
    (images / second).write_bytes(content)
    (tmp_path / "weights.pth").write_bytes(b"123")
    found = look(expected) | {"gpus": 0}
    lines = preflight.compare(expected, NODE, found)
    told = "\n".join(lines)
    assert len(lines) == 4
    assert f"image {first} must be as on the driver's node, got none. Put the images where" in told
    assert f"image {second} must be as on the driver's node, got another." in told
    assert "weights.pth must have 5 bytes as on the driver's node, got 3. Put it where" in told
    assert "torch must see the 1 GPU(s) that Ray has, got 0. Check its driver with nvidia-smi" in told


def test_a_driver_without_a_token_is_told_so_at_once(tmp_path: Path) -> None:
    """In a process of its own, as Ray reads its environment once."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        words = [sys.executable, "-c", f"from search.slots import preflight; preflight.join('{address}')"]
        done = subprocess.run(words, env=env, capture_output=True, text=True)
    line = f"PreflightError: cluster {address}: RAY_AUTH_MODE=token needs a token, got none. Copy its token"
    assert line in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "error",
    [
        Exception("The current node timed out during startup. This could happen because some of the raylet"),
        RuntimeError("Failed to start the GCS.\nSee its log."),
        ConnectionError("Could not read the GCS address."),
        TimeoutError(),
    ],
)
def test_a_ray_that_does_not_start_here_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_: Any) -> None:
        raise error

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(preflight.PreflightError) as told:
        preflight.join("local")
    line = str(told.value)
    assert "\n" not in line
    assert line.startswith("Ray: must start on this machine, got ")
    assert "got ." not in line


def test_a_ray_that_is_slow_to_start_is_started_again_and_leaves_no_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[int] = []
    up: list[subprocess.Popen[bytes]] = []

    def init(**_: Any) -> None:
        process = subprocess.Popen(["sleep", "600"])
        begun.append(process.pid)
        if len(begun) < 3:
            raise Exception("The current node timed out during startup.")
        up.append(process)

    monkeypatch.setattr("ray.init", init)
    preflight.join("local")
    (last,) = up
    try:
        left = [process for process in psutil.Process().children() if process.pid in begun]
        assert [p.pid for p in left if p.status() != psutil.STATUS_ZOMBIE] == [last.pid]
        assert len(begun) == 3
    finally:
        last.kill()
        last.wait()


def test_a_full_disk_is_not_taken_for_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/ray")

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(OSError, match="No space left"):
        preflight.join("local")


def test_a_cluster_of_one_node_costs_nothing(expected: Expected) -> None:
    """No task runs: Ray is not even started here."""
    assert preflight.check(expected, [NODE]).passed == (NODE.id,)
