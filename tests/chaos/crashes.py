"""States in which a crash may leave a study's files, enumerated and read: `python -m tests.chaos.crashes`.

A session writes a study as a driver and its workers do, without Ray: the ledger, checkpoints, weights, config
and table, with a driver that dies and one that goes on. Each rename, removal, sync and commit is a point of a
log. For each point there are these states:

- the process dies there: what was written since the last point is there by a part, at many lengths;
- the machine loses its power there: a file that was not synced since it was written is empty or cut.

The log of SQLite is cut between two commits only, as `synchronous=full` syncs a commit before it returns.
Each state becomes a folder, which the product reads and prepares to go on from. No trial whose end was
announced may be lost, no file may stop it, and no checkpoint may be lost that was saved.
"""

import argparse
import contextlib
import csv
import hashlib
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from finetune.disk import atomic, checkpoint
from finetune.errors import CheckpointError
from finetune.metrics import Objective
from search.config import config_file
from search.config.study import StudyConfig
from search.record import reader
from search.record.kept import Kept
from search.record.ledger import Ledger
from search.record.records import StudyRecord, TrialRecord, lineage
from search.record.study_folder import StudyFolder, trial_id, write_text
from search.suggest import sampler
from search.views import table
from tests.chaos import checker
from tests.small import STUDY, merged

METRIC = "val/accuracy"
EPOCHS, TRIALS, KEPT = 3, 6, 2
OF_SQLITE = 4
"""Lengths of each write of SQLite: reading one takes a fifth of a second."""
RENAMES = ("replace", "rename")
Tree = dict[str, bytes | None]
"""Content of each file below the study's folder; None for a folder."""


@dataclass(frozen=True)
class Point:
    """The files at one moment, and what the study has promised by then."""

    what: str
    tree: Tree
    dirty: frozenset[str]
    """Files that were written and not synced since."""
    announced: dict[int, float]
    """Trials whose end was announced, with their best value."""
    saved: dict[int, int]
    """For each trial that runs, the epoch of its last checkpoint."""


@dataclass
class Recorder:
    """Records a point at each call that changes names or syncs files, below one folder."""

    root: Path
    points: list[Point] = field(default_factory=list)
    known: Tree = field(default_factory=dict)
    """The files at the last point, under their present names."""
    dirty: set[str] = field(default_factory=set)
    announced: dict[int, float] = field(default_factory=dict)
    saved: dict[int, int] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.RLock)

    def tree(self) -> Tree:
        """Return the files as they are now."""
        found: Tree = {}
        for path in sorted(self.root.rglob("*")):
            with contextlib.suppress(FileNotFoundError):
                found[str(path.relative_to(self.root))] = path.read_bytes() if path.is_file() else None
        return found

    def note(self, what: str) -> None:
        """Record a point; the ledger's thread does so, too."""
        with self.lock:
            self._note(what)

    def _note(self, what: str) -> None:
        tree = self.tree()
        for name, content in tree.items():
            if content is not None and self.known.get(name) != content and not _of_sqlite(name):
                self.dirty.add(name)
        self.known = dict(tree)
        self.dirty &= tree.keys()
        self.points.append(Point(what, tree, frozenset(self.dirty), dict(self.announced), dict(self.saved)))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Record a point before and after each such call."""
        own = {name: getattr(os, name) for name in ("replace", "rename", "unlink", "fsync", "mkdir", "rmdir")}

        def watched(name: str) -> Callable[..., Any]:
            def call(*given: Any, **options: Any) -> Any:
                self.note(f"before {name}")
                paths = [str(path) for path in given if not isinstance(path, int)]
                if name == "fsync":
                    paths = [os.readlink(f"/proc/self/fd/{given[0]}")]
                answer = own[name](*given, **options)
                names = [os.path.relpath(path, self.root) for path in paths]
                if name == "fsync":
                    self.dirty.discard(names[0])
                elif name in RENAMES and names[0] in self.dirty:
                    self.dirty.discard(names[0])
                    self.dirty.add(names[1])
                elif name in RENAMES:
                    self.dirty.discard(names[1])
                if name in RENAMES:  # the content is known, only its name is new
                    self.known[names[1]] = self.known.pop(names[0], None)
                self.note(f"{name} {' '.join(names)}")
                return answer

            return call

        for name in own:
            setattr(os, name, watched(name))
        try:
            yield
        finally:
            for name, function in own.items():
                setattr(os, name, function)


def _of_sqlite(name: str) -> bool:
    return ".db" in name


def config_of(results: Path) -> StudyConfig:
    study = {"name": "small", "trials": TRIALS, "epochs": EPOCHS, "keep_checkpoints": KEPT, "baselines": []}
    return StudyConfig.from_dict(merged(STUDY | {"results": str(results)}, {"study": study}))


def session(folder: StudyFolder, recorder: Recorder) -> None:
    """Write a study: a driver that dies with a trial half done, and one that goes on to the end."""
    config = config_of(folder.root.parent)
    with recorder.watching():
        write_text(folder.config, config.to_yaml())
        book = _open(folder)
        kept = Kept(folder, objective=Objective(METRIC), count=KEPT, earlier=[])
        for number in range(TRIALS // 2):
            _trial(folder, recorder, book, kept, number, range(1, EPOCHS + 1))
        _trial(folder, recorder, book, kept, TRIALS // 2, range(1, EPOCHS))  # the driver dies now
        book.flush()
        recorder.note("the driver dies")
        book.close()
        again = _open(folder)
        kept = Kept(folder, objective=Objective(METRIC), count=KEPT, earlier=again.records())
        old, new = TRIALS // 2, TRIALS // 2 + 1
        _ask(again, new, continues=old)
        again.flush()  # as StudyRun._job does
        recorder.note("flush")
        folder.hand_over([trial_id(each) for each in lineage(old, again.records())], trial_id(new))
        recorder.saved[new] = recorder.saved.pop(old)
        _trial(folder, recorder, again, kept, new, range(EPOCHS, EPOCHS + 1), asked=True)
        for number in range(new + 1, TRIALS + 1):
            _trial(folder, recorder, again, kept, number, range(1, EPOCHS + 1))
        again.set_fact("state", "finished")
        kept.sweep(again.records())
        again.close()
        table.to_csv(reader.read_study(folder), folder.table)
    recorder.note("the end")


def _open(folder: StudyFolder) -> Ledger:
    return Ledger(folder.database, metric=METRIC, sampler=sampler.make("random", seed=0))


def _ask(book: Ledger, number: int, continues: int | None = None) -> None:
    trial = book.ask()
    assert trial.number == number
    trial.suggest_float("learning_rate", 1e-4, 1.0, log=True)
    facts: dict[str, Any] = {"params": {"learning_rate": 0.01 * (number + 1)}}
    book.suggested(number, facts | ({} if continues is None else {"continues": continues}))


def continues(number: int) -> int | None:
    """Return the trial that a trial of the session continues."""
    return TRIALS // 2 if number == TRIALS // 2 + 1 else None


def value(number: int, epoch: int) -> float:
    return round(random.Random(f"{number} {epoch}").random(), 6)


def _trial(
    folder: StudyFolder,
    recorder: Recorder,
    book: Ledger,
    kept: Kept,
    number: int,
    epochs: range,
    asked: bool = False,
) -> None:
    """Do with the files what a trial does, with the product's own functions."""
    name, first = trial_id(number), number - 1 if asked else number
    if not asked:
        _ask(book, number)
        begun = threading.Event()  # a slot gets it once the record has it
        book.once_written(begun.set)
        begun.wait()
    best = -1.0
    for epoch in range(1, epochs[-1] + 1):
        best = max(best, value(first, epoch))
        if epoch in epochs:
            tensors = {"w": torch.full((400,), float(epoch))}
            if best == value(first, epoch):
                checkpoint.write(folder.best_weights(name), tensors, {"epoch": epoch, "trial": first})
            checkpoint.write(folder.last_weights(name), tensors, {"epoch": epoch, "trial": first})
            recorder.saved[number] = epoch
        book.report(number, epoch, value(first, epoch))
    if epochs[-1] < EPOCHS:
        return
    atomic.settle(folder.best_weights(name))  # as finetune.worker does
    atomic.settle(folder.last_weights(name))
    history = [{"epoch": epoch, METRIC: value(first, epoch)} for epoch in range(1, EPOCHS + 1)]
    facts = {
        "metrics": {"best": max(history, key=lambda e: e[METRIC]), "last": history[-1]},
        "epochs": EPOCHS,
        "history": history,
    }

    def announced() -> None:
        recorder.announced[number] = best
        recorder.note("announced")
        kept.add(number, name, complete=True, value=best)

    book.end(number, "COMPLETE", best, facts, then=announced)
    book.flush()
    folder.last_weights(name).unlink()
    recorder.saved.pop(number, None)


# The states


def states(
    points: Sequence[Point], lengths: int, chance: random.Random
) -> Iterator[tuple[str, Tree, Point, bool]]:
    """Yield each state as (what happened, the files, the last point before it, whether power was lost)."""
    for before, now in itertools.pairwise(points):
        yield f"dies after {before.what}", before.tree, before, False
        changed = [
            name
            for name, content in now.tree.items()
            if content is not None and before.tree.get(name) != content and now.what.split()[0] not in RENAMES
        ]
        for name in changed:
            if name.endswith("-shm"):
                continue
            content, old = now.tree[name] or b"", before.tree.get(name) or b""
            start = len(old)
            low = start if name.endswith("-wal") and start < len(content) else 0
            most = min(lengths, OF_SQLITE) if _of_sqlite(name) else lengths
            base = before.tree
            if name.endswith("-wal") and content[:32] != old[:32]:  # the log before is in the database by now
                base = base | {name.removesuffix("-wal"): now.tree[name.removesuffix("-wal")]}
            for length in _lengths(low, len(content), most, chance):
                # SQLite writes its file in place; the others are new ones.
                part = content[:length] + (old[length:] if name.endswith(".db") else b"")
                yield f"{name} at {length} bytes, then dies", base | {name: part}, before, False
        for name in before.dirty:
            content = before.tree[name] or b""
            for length in {0, len(content) // 2, max(0, len(content) - 1)}:
                yield f"{name} unsynced at {length}", before.tree | {name: content[:length]}, before, True
        if len(before.dirty) > 1:
            nothing: Tree = dict.fromkeys(before.dirty, b"")
            yield "nothing unsynced is left", before.tree | nothing, before, True


def _lengths(low: int, high: int, most: int, chance: random.Random) -> list[int]:
    every = range(low, high)
    return sorted(every if len(every) <= most else chance.sample(every, most))


class Reader:
    """Reads states as `results` and `resume` do; what a record says is read once for equal bytes of it."""

    def __init__(self) -> None:
        self._read: dict[bytes, tuple[StudyRecord, list[TrialRecord]]] = {}

    def problems(self, root: Path, point: Point, power_lost: bool) -> list[str]:
        """Return what is wrong with a state."""
        folder, wrong = StudyFolder(root), []
        if not folder.database.exists():
            return [] if not point.announced else ["the record is gone"]
        config_file.load(folder.config)
        record, earlier = self._record(folder)
        found = {trial.number: trial for trial in record.trials}
        stored = {trial.number: trial for trial in checker.trials(folder.database)}
        for number, best in point.announced.items():
            trial = found.get(number)
            if trial is None or trial.state != "COMPLETE" or trial.metrics["best"].get(METRIC) != best:
                wrong.append(f"trial {number} is lost")
            elif len(trial.history) != EPOCHS or len(stored[number].values) != EPOCHS:
                wrong.append(f"trial {number} has lost epochs")
            elif not stored[number].sampled:
                wrong.append(f"trial {number} has lost what was sampled")
        for number in point.saved:
            if number in found and stored[number].facts.get("continues") != continues(number):
                wrong.append(f"trial {number} does not say what it continues")
        wrong += _goes_on(folder, earlier, point, power_lost)
        for number in sorted(point.announced, key=lambda number: -point.announced[number])[:KEPT]:
            try:
                checkpoint.read(folder.best_weights(trial_id(number)))
            except CheckpointError as error:
                wrong.append(f"weights of one of the best trials: {error}")
        return wrong + _of_table(folder)

    def _record(self, folder: StudyFolder) -> tuple[StudyRecord, list[TrialRecord]]:
        digest = hashlib.sha256()
        for path in sorted(folder.root.glob("optuna.db*")):
            digest.update(path.name.encode() + path.read_bytes())
        if digest.digest() not in self._read:
            record = reader.read_study(folder)
            with contextlib.closing(_open(folder)) as book:
                self._read[digest.digest()] = record, book.records()
        return self._read[digest.digest()]


def _of_table(folder: StudyFolder) -> list[str]:
    if not folder.table.exists():
        return []
    with folder.table.open(newline="") as file:
        states = [row["state"] for row in csv.DictReader(file)]
    return [] if states == ["COMPLETE"] * TRIALS else [f"the table has the rows {states}"]


def _goes_on(
    folder: StudyFolder, earlier: Sequence[TrialRecord], point: Point, power_lost: bool
) -> list[str]:
    """Go on from a state as `resume` does with files, up to where trials start."""
    unknown = folder.remove_unknown(len(earlier))
    wrong = [f"files of {name} are removed" for name in unknown if int(name[-4:]) in point.saved]
    wrong += [f"trial {trial.number} runs for ever" for trial in earlier if trial.state == "RUNNING"]
    # A resumed study that ends before its first trial sweeps, too.
    Kept(folder, objective=Objective(METRIC), count=KEPT, earlier=earlier).sweep(earlier)
    continued = {trial.continues for trial in earlier}
    trials = list(earlier)
    for trial in [t for t in earlier if t.interrupted and t.number not in continued]:
        new = len(trials)
        trials.append(
            TrialRecord(number=new, id=trial_id(new), state="RUNNING", params={}, continues=trial.number)
        )
        folder.hand_over([trial_id(n) for n in lineage(trial.number, trials)], trial_id(new))
        wrong += _has_checkpoint(folder, new, trial.number, point, power_lost)
    Kept(folder, objective=Objective(METRIC), count=KEPT, earlier=earlier).sweep(trials)
    return wrong


def _has_checkpoint(folder: StudyFolder, new: int, old: int, point: Point, power_lost: bool) -> list[str]:
    saved = max(point.saved.get(number, 0) for number in (old, continues(old)) if number is not None)
    if power_lost or not saved:
        return []  # `last` is not synced: a trial may begin anew when the power is lost
    try:
        _, facts = checkpoint.read(folder.last_weights(trial_id(new)))
    except CheckpointError as error:
        return [f"trial {old} was saved at epoch {saved}: {error}"]
    return [] if facts["epoch"] >= saved - 1 else [f"trial {old} is at {facts['epoch']}, {saved} was saved"]


def materialise(tree: Tree, root: Path) -> None:
    """Write a state's files."""
    for name, content in tree.items():
        path = root / name
        if content is None:
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def enumerate_states(
    lengths: int, most: int | None = None, seed: int = 0, until_wrong: bool = False
) -> tuple[int, int, list[str]]:
    """Record a session and read its states; return the numbers of points and states, and what is wrong.

    Args:
        lengths: lengths of each file that is being written.
        most: states to read, chosen at random; None: all.
        seed: of that choice.
        until_wrong: end with the first state that is wrong; they are read in random order.
    """
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = StudyFolder(Path(name) / "results" / "small")
        folder.root.mkdir(parents=True)
        recorder = Recorder(folder.root)
        session(folder, recorder)
        every = list(states(recorder.points, lengths, chance))
        if most is not None and len(every) > most:
            every = chance.sample(every, most)
        if until_wrong:
            chance.shuffle(every)
        wrong: list[str] = []
        read, done = Reader(), 0
        for number, (what, tree, point, power_lost) in enumerate(every):
            root = Path(name) / "state" / "small"
            root.mkdir(parents=True)
            materialise(tree, root)
            try:
                found = read.problems(root, point, power_lost)
            except Exception as error:
                found = [f"{type(error).__name__}: {error}"]
            wrong += [f"{number}, {what}: {one}" for one in found]
            shutil.rmtree(root)
            done += 1
            if wrong and until_wrong:
                break
    return len(recorder.points), done, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, default=64, help="lengths of each file that is being written")
    parser.add_argument("--most", type=int, help="states to read, chosen at random; left out: all")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    points, count, wrong = enumerate_states(given.lengths, given.most, given.seed)
    print(json.dumps({"points": points, "states": count, "lost": len(wrong), "seed": given.seed}))
    print("\n".join(wrong[:20]), file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
