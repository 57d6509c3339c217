"""Bugs put into the product, each of which states of crashes.py must show.

`python -m tests.chaos.planted [WORDS]` tries all, or those whose names have one of the words.

Each takes the place of a function for one run. A bug that no state shows is a hole in the checks.
"""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from finetune.disk import atomic, checkpoint
from search.record import kept, ledger, sqlite, study_folder
from search.record.kept import Kept
from search.record.ledger import Ledger
from search.record.study_folder import StudyFolder
from search.views import table
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


write, suggested, end = Ledger._write, Ledger.suggested, Ledger.end
add, sweep = Kept.add, Kept.sweep
mirror_write, checkpoint_write = sqlite.Mirror.write, checkpoint.write


def _only_last(folder: StudyFolder, old: Sequence[str], new: str) -> None:
    folder.trial(new).mkdir(parents=True, exist_ok=True)
    os.replace(folder.last_weights(old[0]), folder.last_weights(new))


def _copied(folder: StudyFolder, old: Sequence[str], new: str) -> None:
    folder.trial(new).mkdir(parents=True, exist_ok=True)
    for weights in (folder.best_weights, folder.last_weights):
        if weights(old[0]).exists():
            shutil.copyfile(weights(old[0]), weights(new))
            weights(old[0]).unlink()


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


def _forgets_before(number: int, trials: Any) -> list[int]:
    return [number]


def _without(name: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: fact for key, fact in attributes.items() if key != name}


def _suggested_alone(book: Ledger, number: int, attributes: Mapping[str, Any]) -> None:
    suggested(book, number, _without("continues", attributes))


def _ends_without_history(book: Ledger, number: int, state: str, value: Any, facts: Any, **then: Any) -> None:
    end(book, number, state, value, _without("history", facts), **then)


def _first_state_only(mirror: Any, trials: Sequence[Any]) -> None:
    mirror_write(mirror, [trial for trial in trials if trial.number not in mirror._open])


def _begins_at_once(book: Ledger, call: Callable[[], None]) -> None:
    call()


def _slow_write(book: Ledger, dirty: dict[int, Any]) -> None:
    time.sleep(0.5)
    write(book, dirty)


@contextlib.contextmanager
def _at_once() -> Iterator[None]:
    slowly = mock.patch.object(Ledger, "_write", _slow_write)
    with slowly, mock.patch.object(Ledger, "once_written", _begins_at_once):
        yield


def _keeps_one_less(kept: Kept, *given: Any, **facts: Any) -> None:
    add(kept, *given, **facts)
    for entry in kept._entries[1:]:
        kept._folder.best_weights(entry.id).unlink(missing_ok=True)


def _epochs_late(path: Path, tensors: Any, facts: dict[str, Any]) -> None:
    checkpoint_write(path, tensors, facts | {"epoch": facts["epoch"] - 2})


@contextlib.contextmanager
def _not_durable(path: Path, *, durable: bool = False) -> Iterator[Path]:
    with atomic.replacing(path) as temporary:
        yield temporary


def _loses(part: str) -> Any:
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
    "epochs are not written": lambda: _loses("intermediate_values"),
    "what was sampled is not written": lambda: _loses("params"),
    "a trial ends without its history": lambda: mock.patch.object(Ledger, "end", _ends_without_history),
    "only a trial's first state is written": lambda: mock.patch.object(
        sqlite.Mirror, "write", _first_state_only
    ),
    "a trial does not say what it continues": lambda: mock.patch.object(
        Ledger, "suggested", _suggested_alone
    ),
    "files of the trial before the last are forgotten": lambda: mock.patch.object(
        crashes, "lineage", _forgets_before
    ),
    "a sweep forgets what an interrupted trial had continued": lambda: mock.patch.object(
        kept, "lineage", _forgets_before
    ),
    "a trial begins before the record has it": _at_once,
    "files are handed over before the record has the trial": lambda: mock.patch.object(
        Ledger, "flush", _nothing
    ),
    "weights of one trial less are kept": lambda: mock.patch.object(Kept, "add", _keeps_one_less),
    "checkpoints name an earlier epoch": lambda: mock.patch.object(checkpoint, "write", _epochs_late),
    "the table is written in place": lambda: mock.patch.object(table, "replacing", _in_place),
    "the table is not synced": lambda: mock.patch.object(table, "replacing", _not_durable),
    "the config is not synced": lambda: mock.patch.object(study_folder, "replacing", _not_durable),
    "best and last weights share a file": lambda: mock.patch.object(
        StudyFolder, "last_weights", StudyFolder.best_weights
    ),
    "trials of a dead driver stay running": lambda: mock.patch.object(ledger, "fail_orphans", _nothing),
}


def main() -> int:
    words = sys.argv[1:]
    chosen = {name: plant for name, plant in PLANTED.items() if not words or any(w in name for w in words)}
    missed = 0
    for name, plant in chosen.items():
        with plant():
            try:
                _, count, wrong = crashes.enumerate_states(lengths=2, until_wrong=True)
                told = wrong[0] if wrong else ""
            except Exception as error:  # the session itself does not get through
                count, told = 0, f"{type(error).__name__}: {error}"
        print(f"{'caught' if told else 'MISSED'}: {name} ({count} states): {told[:100]}", flush=True)
        missed += not told
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
