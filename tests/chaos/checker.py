"""Hold the files of a study to what must be true of them after any fault. Nothing of the product is imported.

The record is read by SQL, the table as CSV, event files by TensorBoard's own reader.
"""

import csv
import fcntl
import hashlib
import json
import os
import sqlite3
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FINAL = ("COMPLETE", "PRUNED", "FAIL")


@dataclass
class Trial:
    """One row of the record with all that belongs to it."""

    number: int
    state: str
    facts: dict[str, Any] = field(default_factory=dict)
    values: dict[int, float] = field(default_factory=dict)
    value: float | None = None
    sampled: dict[str, float] = field(default_factory=dict)

    @property
    def interrupted(self) -> bool:
        return bool(self.facts.get("interrupted"))


def trials(database: Path) -> list[Trial]:
    """Return the trials of a record, read by SQL."""
    with closing(sqlite3.connect(database)) as db:
        rows = db.execute("select trial_id, number, state from trials order by number").fetchall()
        found = {key: Trial(number, state) for key, number, state in rows}
        for key, name, text in db.execute("select trial_id, key, value_json from trial_user_attributes"):
            found[key].facts[name] = json.loads(text)
        for key, step, value in db.execute(
            "select trial_id, step, intermediate_value from trial_intermediate_values"
        ):
            found[key].values[step] = value
        for key, name, value in db.execute("select trial_id, param_name, param_value from trial_params"):
            found[key].sampled[name] = value
        for key, value in db.execute("select trial_id, value from trial_values"):
            found[key].value = value
    return list(found.values())


def facts(database: Path) -> dict[str, Any]:
    """Return the facts of the study."""
    with closing(sqlite3.connect(database)) as db:
        rows = db.execute("select key, value_json from study_user_attributes").fetchall()
    return {name: json.loads(text) for name, text in rows}


def score(params: dict[str, Any], epoch: int) -> float:
    """Return the score that the made-up training gives, computed here once more."""
    digest = hashlib.sha256(f"{json.dumps(params, sort_keys=True)}{epoch}".encode()).hexdigest()
    return int(digest[:8], 16) / 2**32


def problems(
    folder: Path,
    *,
    planned: int,
    epochs: int,
    kept: int = 5,
    hits: int = 0,
    anew: int = 0,
    made_up: bool = True,
) -> list[str]:
    """Return all that is wrong with a finished study.

    Args:
        folder: its results folder.
        planned: number of trials that it was to have.
        epochs: epochs of each trial.
        kept: `study.keep_checkpoints`.
        hits: number of faults that may each have cost an epoch of each of two trials.
        anew: further epochs that damaged checkpoints may have cost.
        made_up: whether its scores are those of `score`.
    """
    wrong: list[str] = []
    found = trials(folder / "optuna.db")
    counted = [trial for trial in found if not trial.interrupted]
    if (state := facts(folder / "optuna.db").get("state")) != "finished":
        wrong.append(f"the study is {state}")
    if [trial.number for trial in found] != list(range(len(found))):
        wrong.append("numbers of trials have a gap")
    if len(counted) != planned:
        wrong.append(f"{len(counted)} trials count, {planned} were planned")
    for trial in found:
        wrong += _of_trial(trial, epochs, made_up)
    wrong += _continued(found)
    wrong += _of_files(folder, found, kept, made_up)
    wrong += _trained(folder, hits, anew)
    wrong += _table(folder, found)
    wrong += _boards(folder, counted)
    return wrong


def _of_trial(trial: Trial, epochs: int, made_up: bool) -> list[str]:
    name, wrong = f"trial {trial.number}", []
    if trial.state not in FINAL:
        return [f"{name} is {trial.state}"]
    told = trial.facts.get("history", [])
    numbers = [int(epoch["epoch"]) for epoch in told]
    if numbers != list(range(1, len(numbers) + 1)):
        wrong.append(f"{name} has epochs {numbers}")
    # An orphan of a dead driver has what was written by then, and no history.
    if "history" in trial.facts and sorted(trial.values) != numbers:
        wrong.append(f"{name}: {sorted(trial.values)} are stored of epochs {numbers}")
    if any(trial.values.get(n) != e["val/accuracy"] for n, e in zip(numbers, told, strict=True)):
        wrong.append(f"{name}: stored values differ from its history")
    if not trial.interrupted and trial.state != "COMPLETE":
        wrong.append(f"{name} is {trial.state}: {trial.facts.get('error')}")
    if trial.state == "COMPLETE":
        if len(numbers) != epochs:
            wrong.append(f"{name} is complete with {len(numbers)} epochs of {epochs}")
        if trial.value != max((e["val/accuracy"] for e in told), default=None):
            wrong.append(f"{name} has the value {trial.value}, which is not its best epoch's")
    return wrong + (_of_scores(trial) if made_up else [])


def _of_scores(trial: Trial) -> list[str]:
    params = trial.facts["params"]
    return [
        f"trial {trial.number}: epoch {number} has a score that is not its own"
        for number, value in trial.values.items()
        if value != score(params, number)
    ]


def _continued(found: list[Trial]) -> list[str]:
    """Each interrupted trial is continued once, by a trial with its parameters."""
    wrong = []
    by = defaultdict(list)
    for trial in found:
        if trial.facts.get("continues") is not None:
            by[trial.facts["continues"]].append(trial)
    for trial in found:
        if trial.interrupted and len(by[trial.number]) != 1:
            wrong.append(f"trial {trial.number} was interrupted and continued {len(by[trial.number])} times")
        for later in by[trial.number]:
            if later.facts["params"] != trial.facts["params"]:
                wrong.append(f"trial {later.number} continues {trial.number} with other parameters")
    return wrong


def _of_files(folder: Path, found: list[Trial], kept: int, made_up: bool) -> list[str]:
    wrong = []
    complete = sorted((t for t in found if t.state == "COMPLETE"), key=lambda t: (-(t.value or 0), t.number))
    wanted = {f"trial-{trial.number:04d}" for trial in complete[:kept]}
    there = {path.parent.name for path in folder.glob("trials/*/best.safetensors")}
    if there != wanted:
        wrong.append(f"weights of {sorted(there)} are kept, those of {sorted(wanted)} are the best")
    if left := sorted(str(p.relative_to(folder)) for p in folder.glob("trials/*/last.safetensors")):
        wrong.append(f"checkpoints of ended trials are left: {left}")
    wrong += [told for trial in complete[:kept] if made_up for told in _of_weights(folder, trial)]
    model = folder / "best" / "model.safetensors"
    if complete:
        best_weights = folder / "trials" / f"trial-{complete[0].number:04d}" / "best.safetensors"
        if not model.exists() or not (folder / "best" / "README.md").exists():
            wrong.append("the best model is not exported")
        elif made_up and best_weights.exists() and model.read_bytes() != best_weights.read_bytes():
            wrong.append("the exported model is not the best trial's")
    names = ("*.tmp", ".*.tmp", "*.part", "*-journal", ".shared.*", ".room*")
    if left := sorted({str(p.relative_to(folder)) for name in names for p in folder.rglob(name)}):
        wrong.append(f"temporary files are left: {left}")
    if (folder / ".lock").exists():
        with (folder / ".lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                wrong.append("the lock is held")
    return wrong


def _of_weights(folder: Path, trial: Trial) -> list[str]:
    path = folder / "trials" / f"trial-{trial.number:04d}" / "best.safetensors"
    if not path.exists():
        return []  # told already
    weights = json.loads(path.read_text())
    best = max(trial.values, key=lambda step: (trial.values[step], -step))
    if (weights["epoch"], weights["params"]) == (best, trial.facts["params"]):
        return []
    return [f"{path.parent.name}: its weights are those of epoch {weights['epoch']}, not {best}"]


def _trained(folder: Path, hits: int, anew: int) -> list[str]:
    """An epoch is trained once, and again only where a fault has cost it."""
    log = folder.parent / "trained.log"
    if not log.exists():
        return []
    found = trials(folder / "optuna.db")
    first = {f"trial-{trial.number:04d}": trial for trial in found}
    origin: dict[str, str] = {}
    for name, trial in first.items():
        before = trial.facts.get("continues")
        origin[name] = name if before is None else origin[f"trial-{before:04d}"]
    count: Counter[tuple[str, str]] = Counter()
    for line in log.read_text().splitlines():
        name, epoch, *_ = line.split()
        count[origin.get(name, name), epoch] += 1
    again = sum(times - 1 for times in count.values())
    if again > 2 * hits + anew:
        return [f"{again} epochs were trained again, after {hits} faults of two slots"]
    return []


def _table(folder: Path, found: list[Trial]) -> list[str]:
    with (folder / "trials.csv").open(newline="") as file:
        rows = [(int(row["number"]), row["state"]) for row in csv.DictReader(file)]
    if sorted(rows) != [(trial.number, trial.state) for trial in found if not trial.interrupted]:
        return ["trials.csv differs from the record"]
    return []


def _boards(folder: Path, counted: list[Trial]) -> list[str]:
    """Each trial has event files that TensorBoard reads whole, with each of its epochs."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    wrong = []
    for trial in counted:
        if trial.state != "COMPLETE":
            continue
        runs = [path for path in (folder / "tensorboard").glob(f"{trial.number:04d}*") if path.is_dir()]
        steps: set[int] = set()
        for run in runs:
            events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
            if "val/accuracy" in events.Tags()["scalars"]:
                steps |= {event.step for event in events.Scalars("val/accuracy")}
        if steps != set(trial.values):
            wrong.append(f"trial {trial.number}: TensorBoard has epochs {sorted(steps)}")
    return wrong


def size(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(os.path.getsize(path) for path in folder.rglob("*") if path.is_file())
