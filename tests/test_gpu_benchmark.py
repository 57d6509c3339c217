"""The benchmark for GPUs runs on a CPU from end to end, small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("right.frozen", "right.features", "right.seed", "right.memory", "right.syncs", "right.graphs")
PARTS += ("right.models", "right.exact", "right.samples")
PARTS += ("fast.heads", "fast.exact", "fast.steps", "fast.small", "fast.extraction", "fast.pipeline")


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.thorough
@pytest.mark.slow
def test_every_part_runs_on_a_cpu_and_the_last_line_is_its_results(tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    done = run("--quick", "--only", ",".join(PARTS), "--out", str(out))
    found = json.loads(done.stdout.splitlines()[-1])
    assert {part: found[part]["state"] for part in PARTS} == dict.fromkeys(PARTS, "ok"), done.stdout
    assert {part: found[part]["state"] for part in PARTS} == {
        part: json.loads(out.read_text())[part]["state"] for part in PARTS
    }
    assert done.returncode == 0


def test_what_a_gpu_gave_becomes_a_section_and_a_later_run_of_a_part_counts(tmp_path: Path) -> None:
    setup = {"device": "NVIDIA X", "torch": "2.11"}
    first = {"setup": setup, "fast.steps": {"state": "not ok", "seconds": 5.0, "resnet50": {"ours": 1.0}}}
    second = {"setup": setup, "fast.steps": {"state": "ok", "seconds": 4.0, "resnet50": {"ours": 4000.25}}}
    second |= {"right.seed": {"state": "not run"}, "right.memory": {"state": "ok", "parts": 2}}
    for name, found in (("a", first), ("b", second)):
        (tmp_path / name).write_text(json.dumps(found))
    command = [sys.executable, "-m", "benchmarks.gpu_report", "a", "b", "--print"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=300, env=environment
    )
    assert done.stdout.splitlines() == [
        "NVIDIA X; torch 2.11, torchvision ?, cudnn ?, cpus ?, python ?",
        "fast.steps: ok, 4.0 s",
        "    resnet50: ours 4000",
        "right.memory: ok, 0.0 s",
        "    parts 2",
    ]


def test_a_part_that_does_not_exist_is_named() -> None:
    done = run("--only", "right.frosen")
    assert done.returncode == 2
    assert "--only: must name parts, got ['right.frosen']. Known: right.frozen" in done.stderr
