"""Bugs put into the product, each of which states of crashes.py must show: `python -m tests.chaos.planted`.

Each takes the place of a function for one run. A bug that no state shows is a hole in the checks.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from finetune.disk import atomic, checkpoint
from search.record import ledger, study_folder
from search.record.kept import Kept
from search.record.ledger import Ledger
from search.record.study_folder import StudyFolder
from tests.chaos import crashes

Plant = Callable[[], contextlib.AbstractContextManager[Any]]


@contextlib.contextmanager
def _in_place(path: Path, *, durable: bool = False) -> Iterator[Path]:
    yield path


@contextlib.contextmanager
def _removed_first(path: Path, *, durable: bool = False) -> Iterator[Path]:
    temporary = path.with_name(f".{path.name}.tmp")
    yield temporary
    path.unlink(missing_ok=True)
    os.replace(temporary, path)


def _nothing(*_: Any) -> None:
    """Do nothing."""


def _announced_first(book: Ledger, dirty: dict[int, Any]) -> None:
    for _, then in dirty.values():
        then()
    write(book, dirty)


write = Ledger._write
add, sweep = Kept.add, Kept.sweep


def _only_last(folder: StudyFolder, old: Sequence[str], new: str) -> None:
    folder.trial(new).mkdir(parents=True, exist_ok=True)
    os.replace(folder.last_weights(old[0]), folder.last_weights(new))


def _copied(folder: StudyFolder, old: Sequence[str], new: str) -> None:
    folder.trial(new).mkdir(parents=True, exist_ok=True)
    for weights in (folder.best_weights, folder.last_weights):
        if weights(old[0]).exists():
            shutil.move(weights(old[0]), weights(new))
            weights(new).write_bytes(weights(new).read_bytes())


def _best_goes(kept: Kept, number: int, trial_id: str, *, complete: bool, value: float) -> None:
    add(kept, number, trial_id, complete=complete, value=-value)


def _nothing_is_needed(kept: Kept, trials: Sequence[Any]) -> None:
    for trial in trials:
        kept._folder.last_weights(trial.id).unlink(missing_ok=True)
    sweep(kept, trials)


def _sweeps_the_best(kept: Kept, trials: Sequence[Any]) -> None:
    kept._entries = kept._entries[1:]
    sweep(kept, trials)


def _removes_one_more(folder: StudyFolder, trials: int) -> list[str]:
    found = sorted(path.name for path in folder.trial("").glob("trial-*"))
    gone = [name for name in found if int(name[-4:]) >= trials - 1]
    for name in gone:
        shutil.rmtree(folder.trial(name))
    return gone


def _loses(part: str) -> Any:
    from search.record import sqlite

    tables = {name: table for name, table in sqlite._TABLES.items() if name != part}
    return mock.patch.object(sqlite, "_TABLES", tables)


PLANTED: dict[str, Plant] = {
    "no sync before a rename": lambda: mock.patch.object(atomic, "_sync", _nothing),
    "the best weights are not settled": lambda: mock.patch.object(atomic, "settle", _nothing),
    "checkpoints are written in place": lambda: mock.patch.object(checkpoint, "replacing", _in_place),
    "a checkpoint is removed before its successor is there": lambda: mock.patch.object(
        checkpoint, "replacing", _removed_first
    ),
    "the config is written in place": lambda: mock.patch.object(study_folder, "replacing", _in_place),
    "an end is announced before it is written": lambda: mock.patch.object(Ledger, "_write", _announced_first),
    "facts are not written": lambda: _loses("user_attrs"),
    "scores are not written": lambda: _loses("values"),
    "only one of two files is handed over": lambda: mock.patch.object(StudyFolder, "hand_over", _only_last),
    "files are handed over in place": lambda: mock.patch.object(StudyFolder, "hand_over", _copied),
    "nothing is handed over": lambda: mock.patch.object(StudyFolder, "hand_over", _nothing),
    "a better trial drops the best": lambda: mock.patch.object(Kept, "add", _best_goes),
    "a sweep takes the checkpoints of interrupted trials": lambda: mock.patch.object(
        Kept, "sweep", _nothing_is_needed
    ),
    "a sweep takes the best": lambda: mock.patch.object(Kept, "sweep", _sweeps_the_best),
    "the last known trial counts as unknown": lambda: mock.patch.object(
        StudyFolder, "remove_unknown", _removes_one_more
    ),
    "trials of a dead driver stay running": lambda: mock.patch.object(ledger, "fail_orphans", _nothing),
}


def main() -> int:
    missed = []
    for name, plant in PLANTED.items():
        with plant():
            try:
                _, count, wrong = crashes.enumerate_states(lengths=2)
                told = wrong[0] if wrong else ""
            except Exception as error:  # the session itself does not get through
                count, told = 0, f"{type(error).__name__}: {error}"
        print(f"{'caught' if told else 'MISSED'}: {name} ({count} states): {told[:100]}", flush=True)
        missed += [name] * (not told)
    print(f"{len(PLANTED) - len(missed)} of {len(PLANTED)} caught")
    return int(bool(missed))


if __name__ == "__main__":
    raise SystemExit(main())
