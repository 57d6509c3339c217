"""The benchmark for GPUs runs on a CPU from end to end, small."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("right.frozen", "right.features", "right.seed", "right.memory", "right.syncs")
PARTS += ("fast.heads", "fast.exact", "fast.steps", "fast.small", "fast.extraction", "fast.pipeline")


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)


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


def test_a_part_that_does_not_exist_is_named() -> None:
    done = run("--only", "right.frosen")
    assert done.returncode == 2
    assert "--only: must name parts, got ['right.frosen']. Known: right.frozen" in done.stderr
