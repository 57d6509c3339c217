"""The ledger: what memory says is what the file says, whatever happens to the process."""

import gc
import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import event

from search.errors import RecordLost, StudyError
from search.record import ledger, reader
from search.record.ledger import PAUSE_SECONDS, Ledger
from search.record.reader import read
from search.record.storage import OLD_NAME, let_go, only_study, open_storage
from search.suggest.sampler import make
from tests import mounts
from tests.waiting import eventually


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "optuna.db"


def open_ledger(path: Path) -> Ledger:
    return Ledger(path, metric="val/accuracy", sampler=make("tpe", seed=0))


def test_optunas_dashboard_shows_the_name_of_the_study_and_of_its_metric(path: Path) -> None:
    for _ in range(2):
        Ledger(path, metric="val/accuracy", sampler=make("tpe", seed=0), name="flowers").close()
        storage = open_storage(path)
        assert optuna.get_all_study_names(storage) == ["flowers"]
        assert optuna.load_study(storage=storage, study_name="flowers").metric_names == ["val/accuracy"]
        let_go(storage)


def test_a_record_of_an_earlier_version_opens_and_keeps_its_name(path: Path) -> None:
    open_ledger(path).close()
    book = Ledger(path, metric="val/accuracy", sampler=make("tpe", seed=0), name="flowers")
    book.suggested(book.ask().number, {"params": {}})
    book.close()
    assert len(read(path)[0]) == 1
    storage = open_storage(path)
    assert optuna.get_all_study_names(storage) == [OLD_NAME]
    let_go(storage)


def stored(path: Path) -> list[optuna.trial.FrozenTrial]:
    storage = open_storage(path)
    study = optuna.load_study(storage=storage, study_name=only_study(storage))
    trials = study.get_trials()
    storage.remove_session()
    storage.engine.dispose()
    return trials


def play(book: Ledger, state: str, values: list[float]) -> int:
    trial = book.ask()
    trial.suggest_float("learning_rate/fuse", 1e-4, 1e-1, log=True)
    book.suggested(trial.number, {"params": {"learning_rate": 0.01}})
    for epoch, value in enumerate(values, start=1):
        book.report(trial.number, epoch, value)
    best = max(values, default=None)
    book.end(trial.number, state, best, {"epochs": len(values), "error": None})
    return trial.number


def test_states_values_and_epochs_are_stored_as_optuna_knows_them(path: Path) -> None:
    book = open_ledger(path)
    for state, values in [("COMPLETE", [0.5, 0.9, 0.8]), ("PRUNED", [0.2]), ("FAIL", [])]:
        play(book, state, values)
    book.close()
    complete, pruned, failed = stored(path)
    assert [t.state for t in (complete, pruned, failed)] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
    ]
    assert complete.value == 0.9
    assert complete.intermediate_values == {1: 0.5, 2: 0.9, 3: 0.8}
    assert pruned.intermediate_values == {1: 0.2}
    assert complete.params.keys() == {"learning_rate/fuse"}
    assert complete.user_attrs["params"] == {"learning_rate": 0.01}
    assert complete.datetime_start is not None
    assert complete.datetime_complete is not None


def test_a_record_is_read_as_optuna_reads_it(path: Path) -> None:
    book = open_ledger(path)
    for state, values in [
        ("COMPLETE", [0.5, math.nan]),
        ("PRUNED", [0.2]),
        ("FAIL", []),
        ("COMPLETE", [0.1]),
    ]:
        play(book, state, values)
    running = book.ask()
    book.suggested(running.number, {"params": {"strategy": "fuse"}})
    book.report(running.number, 1, 0.5)
    book.close()
    assert reader.read(path)[0] == [reader.to_record(trial) for trial in stored(path)]


def test_a_running_trial_is_in_the_file_within_a_moment(path: Path) -> None:
    book = open_ledger(path)
    trial = book.ask()
    book.suggested(trial.number, {"params": {}})
    book.report(trial.number, 1, 0.25)
    eventually(lambda: path.exists() and stored(path), "a trial in the file")
    assert stored(path)[0].state == TrialState.RUNNING
    book.end(trial.number, "COMPLETE", 0.25, {})
    book.close()
    assert stored(path)[0].state == TrialState.COMPLETE


def test_an_epoch_does_not_wait_for_the_next_one_to_be_written(path: Path) -> None:
    """Short epochs may come before a long one, and a crash in that one."""
    book = open_ledger(path)
    trial = book.ask()
    book.suggested(trial.number, {"params": {}})
    for epoch in (1, 2, 3):
        book.report(trial.number, epoch, epoch / 10)
    book.flush()
    assert stored(path)[0].intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3}
    book.end(trial.number, "COMPLETE", 0.3, {})
    book.close()


def test_a_reopened_ledger_goes_on_counting_and_learning(path: Path) -> None:
    book = open_ledger(path)
    for value in (0.1, 0.2, 0.3):
        play(book, "COMPLETE", [value])
    book.close()
    again = open_ledger(path)
    assert [t.value for t in again.trials] == [0.1, 0.2, 0.3]
    assert play(again, "COMPLETE", [0.4]) == 3
    again.close()
    assert [t.number for t in stored(path)] == [0, 1, 2, 3]


def test_a_killed_driver_leaves_its_trials_and_their_orphans_fail_on_the_next_start(path: Path) -> None:
    script = textwrap.dedent(f"""
        import signal
        from pathlib import Path
        from search.record.ledger import Ledger
        from search.suggest.sampler import make
        book = Ledger(Path({str(path)!r}), metric="val/accuracy", sampler=make("random", seed=0))
        for number in range(4):
            trial = book.ask()
            trial.suggest_float("x", 0, 1)
            book.suggested(trial.number, {{"params": {{"x": 0.5}}}})
            book.report(trial.number, 1, 0.5)
            if number < 2:
                book.end(trial.number, "COMPLETE", 0.5, {{}})
        book.flush()
        print("ready", flush=True)
        signal.pause()
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    book = open_ledger(path)
    states = [record.state for record in book.records()]
    assert states == ["COMPLETE", "COMPLETE", "FAIL", "FAIL"]
    orphan = book.records()[3]
    assert orphan.interrupted
    assert orphan.error == "interrupted: the study's driver died"
    book.close()


def test_a_trial_that_was_announced_is_in_the_file_even_if_the_driver_is_killed_at_once(path: Path) -> None:
    script = textwrap.dedent(f"""
        from functools import partial
        from pathlib import Path
        from search.record.ledger import Ledger
        from search.suggest.sampler import make
        book = Ledger(Path({str(path)!r}), metric="val/accuracy", sampler=make("random", seed=0))
        while True:
            trial = book.ask()
            trial.suggest_float("x", 0, 1)
            book.suggested(trial.number, {{"params": {{"x": 0.5}}}})
            book.report(trial.number, 1, 0.5)
            book.end(trial.number, "COMPLETE", 0.5, {{}}, then=partial(print, trial.number, flush=True))
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    announced = [int(process.stdout.readline()) for _ in range(50)]
    os.kill(process.pid, signal.SIGKILL)
    announced += [int(line) for line in process.stdout if line.endswith("\n")]
    process.wait()
    process.stdout.close()
    done = [trial.number for trial in stored(path) if trial.state == TrialState.COMPLETE]
    assert done == list(range(len(done)))
    assert set(announced) <= set(done)


def test_memory_does_not_keep_the_long_facts_of_ended_trials(path: Path) -> None:
    """They are in the file; a study of thousands of trials must fit into the driver."""
    book = open_ledger(path)
    trial = book.ask()
    book.suggested(trial.number, {"params": {}})
    history = [{"epoch": 1.0, "val/accuracy": 0.5}]
    book.end(trial.number, "COMPLETE", 0.5, {"history": history, "effective": {"a": 1}, "epochs": 1})
    (kept,) = book.records()
    assert (kept.epochs, kept.history, kept.effective) == (1, [], {})
    book.close()
    (record,) = reader.read(path)[0]
    assert (record.epochs, record.history, record.effective) == (1, history, {"a": 1})


def test_a_resumed_study_does_not_hold_the_long_facts_of_earlier_trials_either(tmp_path: Path) -> None:
    trials, epochs = 40, [{"epoch": epoch, "val/accuracy": epoch / 7} for epoch in range(1000)]
    # What the libraries hold is the same for short facts.
    short = opened_again(tmp_path / "short", trials, epochs[:1])
    long = opened_again(tmp_path / "long", trials, epochs)
    assert long - short < trials * len(json.dumps(epochs)) / 4
    assert [record.history for record in reader.read(tmp_path / "long")[0]] == [epochs] * trials


def opened_again(path: Path, trials: int, history: list[dict[str, float]]) -> int:
    """Return the bytes that a record of trials with this history holds when it is opened again."""
    book = open_ledger(path)
    for _ in range(trials):
        number = book.ask().number
        book.suggested(number, {"params": {}})
        book.end(number, "COMPLETE", 0.5, {"history": history, "effective": {"a": 1}, "epochs": len(history)})
    book.close()
    open_ledger(path).close()  # what the first reading leaves in the libraries' caches is not the ledger's
    tracemalloc.start()
    try:
        again = open_ledger(path)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert [(record.epochs, record.history, record.effective) for record in again.records()] == [
        (len(history), [], {})
    ] * trials
    again.close()
    return held


def test_every_epoch_is_in_the_file_however_long_a_commit_takes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs arrive while the writer reads trials and commits them: none counts as stored that is not."""
    monkeypatch.setattr(ledger, "PAUSE_SECONDS", 0.0)
    chance, slow = random.Random(0), random.Random(1)
    book = open_ledger(path)

    @event.listens_for(book._storage.engine, "commit")
    def take_long(_connection: object) -> None:
        time.sleep(slow.uniform(0, 0.02))

    going: dict[int, list[dict[str, float]]] = {}
    begun, trials, epochs = 0, 2000, 6
    while begun < trials or going:
        if begun < trials and len(going) < 16:
            trial = book.ask()
            book.suggested(trial.number, {"params": {}})
            going[trial.number] = []
            begun += 1
        number = chance.choice(list(going))
        history = going[number]
        history.append({"epoch": len(history) + 1, "val/accuracy": chance.random()})
        book.report(number, len(history), history[-1]["val/accuracy"])
        if chance.random() < 0.05:
            time.sleep(chance.uniform(0, 0.005))
        if len(history) == epochs:
            best = max(epoch["val/accuracy"] for epoch in history)
            book.end(number, "COMPLETE", best, {"history": going.pop(number)})
    book.close()
    kept = stored(path)
    assert len(kept) == trials
    for one in kept:
        assert one.intermediate_values == {e["epoch"]: e["val/accuracy"] for e in one.user_attrs["history"]}


def test_reading_does_not_disturb_a_study_that_runs(path: Path) -> None:
    book = open_ledger(path)
    play(book, "COMPLETE", [0.5])
    book.set_fact("state", "running")
    trial = book.ask()
    book.suggested(trial.number, {"params": {}})
    eventually(lambda: len(reader.read(path)[0]) == 2, "two trials in the file")
    records, facts = reader.read(path)
    assert [r.state for r in records] == ["COMPLETE", "RUNNING"]
    assert facts["state"] == "running"
    book.end(trial.number, "FAIL", None, {"error": "x"})
    book.close()


def test_a_record_that_somebody_waits_to_read_appears_whole(tmp_path: Path) -> None:
    """Optuna finishes a half made file when it opens it: then the driver, which does so too, would fail."""
    paths = [tmp_path / f"{i}.db" for i in range(10)]
    read = []

    def wait_and_read() -> None:
        for path in paths:
            eventually(path.exists, "a record")
            read.append(reader.read(path))

    waiting = threading.Thread(target=wait_and_read, daemon=True)
    waiting.start()
    for path in paths:
        open_ledger(path).close()
    waiting.join()
    assert read == [([], {})] * len(paths)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".db", ".db-wal", ".db-shm"}


def test_a_writer_that_cannot_write_stops_the_search_instead_of_losing_trials(path: Path) -> None:
    book = open_ledger(path)
    trial = book.ask()
    book.suggested(trial.number, {"params": {}})
    eventually(lambda: stored(path), "a trial in the file")
    storage = open_storage(path)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("drop table trial_intermediate_values")
    storage.engine.dispose()
    time.sleep(PAUSE_SECONDS)
    book.report(trial.number, 1, 0.5)
    with pytest.raises(RecordLost, match=r"the record must be writable .* got no such table"):
        book.close()


FILL = """
def fill(folder):
    with open(folder + "/ballast", "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)) == 4096:
                pass
        except OSError:
            pass
"""


def test_a_disk_that_fills_up_ends_the_study_in_one_line_and_the_process_in_peace(tmp_path: Path) -> None:
    """The record keeps what it had, and its file is let go of although closing the trials fails."""
    script = """
        import sys
        from pathlib import Path
        from search.views.tensorboard import Board
        from search.config.study import StudyConfig
        from search.errors import RecordLost
        from search.record.ledger import Ledger
        from search.suggest.sampler import make
        from search.driver.ending import Clock
        from search.driver.study_run import StudyRun
        folder = sys.argv[1]
        book = Ledger(Path(folder, "optuna.db"), metric="val/accuracy", sampler=make("random", seed=0))
        trial = book.ask()
        book.suggested(trial.number, {"params": {}})
        book.report(trial.number, 1, 0.5)
        book.flush()
        fill(folder)
        class Watch:
            def interrupt(self):
                for epoch in range(2, 2000):
                    book.report(trial.number, epoch, 0.5)
                book.flush()
                book.end(trial.number, "FAIL", None, {"interrupted": True, "history": [{"epoch": 1}] * 20000})
        run = StudyRun.__new__(StudyRun)
        run.ledger, run.watch = book, Watch()
        run.board = Board(Path(folder, "tensorboard"), StudyConfig.from_folder("."))
        run.clock = Clock(book)
        try:
            run.close(1.0)
        except RecordLost as error:
            print(error)
        held = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        print(sum("optuna.db" in name for name in held))
    """
    with mounts.small(tmp_path / "small", "1m") as folder:
        done = subprocess.run(
            [sys.executable, "-c", FILL + textwrap.dedent(script), str(folder)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        line, held = done.stdout.splitlines()
        assert "the record must be writable while a study runs, got " in line
        assert held == "0"
        (folder / "ballast").unlink()
        (record,) = reader.read(folder / "optuna.db")[0]
        assert (record.state, record.epochs) == ("RUNNING", 1)


def test_a_record_that_cannot_be_made_leaves_no_half_of_it(tmp_path: Path) -> None:
    with mounts.small(tmp_path / "small", "64k") as folder:
        with pytest.raises(StudyError, match=r"the record must be writable .*full"):
            open_ledger(folder / "optuna.db")
        assert list(folder.iterdir()) == []
