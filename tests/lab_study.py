"""The small study that the lab's tests run, and what they ask about it. Machines see `shared` at /mnt."""

import json
from typing import Any

import yaml

from search.record.reader import read_study
from search.record.study_folder import StudyFolder
from search.views.table import to_json
from tests import lab as labs
from tests import small
from tests.machine import Machine

STUDY = {
    **small.STUDY,
    "space": {"strategy": "fuse", "frozen_layers": 0, "head_init": "random"},
    "early_stopping": {"enabled": False},
    "results": "/mnt/results",
}


def resources(lab: labs.Lab, environment: str = "") -> str:
    """Return what `ray status` tells, which costs a second of a core."""
    return lab.on("head", f"{environment} RAY_AUTH_MODE=token ray status 2>&1", check=False)


def both_up(lab: labs.Lab) -> bool:
    """Return whether the cluster has both hosts; it is asked only once the worker's Ray is there."""
    return bool(lab.pids("worker", "raylet")) and "/2.0 CPU" in resources(lab)


def write(lab: Machine, name: str, **sections: dict[str, Any]) -> str:
    """Write a config on the laptop and return its path."""
    named = small.merged(STUDY, {"study": {"name": name}})
    values = small.merged(named, sections)
    path = lab.home / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return str(path)


def record(lab: Machine, name: str) -> dict[str, Any]:
    """Read a study's record from the shared folder; `/mnt` on the hosts is a folder of this machine."""
    return to_json(read_study(StudyFolder(lab.shared / "results" / name)), history=True)


def running(lab: Machine, name: str) -> int:
    """Return how many trials have reported an epoch and not ended."""
    file = lab.shared / "results" / name / "optuna.db"
    if not file.exists() or not file.stat().st_size:  # it is empty until the first table is there
        return 0
    return sum(trial["state"] == "RUNNING" and trial["epochs"] > 0 for trial in record(lab, name)["trials"])


def row(lab: Machine, name: str) -> dict[str, Any]:
    rows = {row["study"]: row for row in json.loads(lab.search("status", "--json").stdout)}
    return rows[name]
