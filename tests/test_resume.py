"""What a resume does to a study's files, without Ray: nothing that is known is lost or done again."""

import errno
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.messages import Epoch, Note
from finetune.metrics import Objective
from finetune.objectives import Goal
from search.config import config_file
from search.config.study import StudyConfig
from search.driver import exporting, runner
from search.driver.callback import StudyCallback
from search.driver.ending import is_over
from search.driver.trial import SlotTrial
from search.errors import RecordLost, SearchError, SlotsLost, StudyError
from search.record import reader
from search.record.kept import Kept
from search.record.ledger import Ledger
from search.record.records import TrialRecord, lineage
from search.record.study_folder import StudyFolder, trial_id
from search.suggest.sampler import Suggested, make
from search.views import table
from search.views.progress import Progress
from search.views.tensorboard import Board
from tests.by_hand import Exchange, run_of, train_job
from tests.files import changed, contents
from tests.small import merged

Make = Callable[..., StudyConfig]


def record(number: int, score: float, **facts: Any) -> TrialRecord:
    best = {"epoch": 1.0, "val/accuracy": score}
    known = {"state": "COMPLETE", "params": {}, "metrics": {"best": best, "last": best}}
    return TrialRecord(number=number, id=f"trial-{number:04d}", **known | facts)


def weights(folder: StudyFolder) -> set[str]:
    """Return the files that lie in the trials' folders, such as `0003/best`."""
    files = folder.root.glob("trials/*/*.safetensors")
    return {f"{path.parent.name.removeprefix('trial-')}/{path.stem}" for path in files}


def weigh(folder: StudyFolder, trial: str, *names: str) -> None:
    folder.trial(trial).mkdir(parents=True, exist_ok=True)
    for name in names or ("best",):
        (folder.trial(trial) / f"{name}.safetensors").write_bytes(trial.encode())


def keep(folder: StudyFolder, earlier: list[TrialRecord], count: int = 2) -> Kept:
    return Kept(folder, objective=Objective("val/accuracy"), count=count, earlier=earlier)


# Which weights stay


def test_the_best_trials_of_earlier_runs_keep_their_weights(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    trials = [record(n, score) for n, score in enumerate([0.5, 0.9, 0.7, 0.8])]
    for n in (1, 3):
        weigh(folder, f"trial-{n:04d}")
    kept = keep(folder, trials)
    kept.sweep(trials)
    assert weights(folder) == {"0001/best", "0003/best"}
    weigh(folder, "trial-0004")
    kept.add(4, "trial-0004", complete=True, value=0.6)  # not among the best two
    assert weights(folder) == {"0001/best", "0003/best"}
    weigh(folder, "trial-0005")
    kept.add(5, "trial-0005", complete=True, value=0.85)
    kept.sweep([*trials, record(4, 0.6), record(5, 0.85)])
    assert weights(folder) == {"0001/best", "0005/best"}


def test_a_trial_that_was_stopped_early_gives_way_to_a_complete_one(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    trials = [record(0, 0.99, state="PRUNED"), record(1, 0.5), record(2, 0.6)]
    for trial in trials:
        weigh(folder, trial.id)
    keep(folder, trials).sweep(trials)
    assert weights(folder) == {"0001/best", "0002/best"}


def test_a_trial_whose_weights_are_gone_takes_nobodys_place(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    trials = [record(n, score) for n, score in enumerate([0.9, 0.8, 0.7, 0.6])]
    for n in (1, 3):
        weigh(folder, f"trial-{n:04d}")
    keep(folder, trials).sweep(trials)
    assert weights(folder) == {"0001/best", "0003/best"}


def test_an_interrupted_trial_keeps_its_files_until_another_goes_on_with_it(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    cut = {"state": "FAIL", "interrupted": True}
    trials = [record(0, 0.1, **cut), record(1, 0.2, **cut), record(2, 0.3, state="FAIL")]
    trials += [record(3, 0.4, continues=0), record(4, 0.5, state="RUNNING")]
    for trial in trials:
        weigh(folder, trial.id, "best", "last")
    keep(folder, trials).sweep(trials)
    assert weights(folder) == {"0001/best", "0001/last", "0003/best", "0004/best", "0004/last"}


# A study by hand: its record, its trials' weights, its model


def play(book: Ledger, score: float, **facts: Any) -> None:
    """Enter a trial of one epoch."""
    trial = book.ask()
    book.suggested(trial.number, {"params": {"strategy": "replace"}} | facts)
    best = {"epoch": 1.0, "val/accuracy": score}
    book.report(trial.number, 1, score)
    told = {"metrics": {"best": best, "last": best}, "epochs": 1, "history": [best]}
    book.end(trial.number, "COMPLETE", score, told)


@pytest.fixture
def finished(small_study: Make) -> StudyFolder:
    """A study of four trials of one epoch that has finished, with all that a study leaves."""
    config = small_study(study={"epochs": 1})
    folder = StudyFolder.create(Path(config.results), config.study.name)
    folder.config.write_text(config.to_yaml())
    book = Ledger(folder.database, metric="val/accuracy", sampler=make("tpe", seed=0))
    for score in (0.5, 0.9, 0.7, 0.8):
        play(book, score)
    book.set_fact("state", "finished")
    book.set_fact("seconds", 12.5)
    book.close()
    for number in (1, 2, 3):
        weigh(folder, f"trial-{number:04d}")
    for path in (folder.tune, folder.slots, folder.tensorboard):
        path.mkdir()
        (path / "file").write_text("as it was")
    folder.lock.touch()
    model(folder)
    table.to_csv(reader.read_study(folder), folder.table)
    return folder


def model(folder: StudyFolder) -> None:
    """Write what a model folder of trial 1 is told by."""
    folder.best.mkdir()
    (folder.best / "model.safetensors").write_bytes(b"weights")
    provenance = {"trial": "trial-0001", "model_sha256": hashlib.sha256(b"weights").hexdigest()}
    (folder.best / "model.yaml").write_text(yaml.safe_dump({"provenance": provenance}))
    (folder.best / "README.md").write_text("a card")


@pytest.mark.usefixtures("no_ray")
def test_resuming_a_finished_study_shows_it_and_changes_no_file(finished: StudyFolder) -> None:
    before = contents(finished.root)
    for _ in range(2):
        shown = runner.resume(finished.root)
        assert (shown.state, shown.seconds, len(shown.trials)) == ("finished", 12.5, 4)
        assert contents(finished.root) == before


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("lost", ["best", "best/model.yaml", "best/model.safetensors", "best/README.md"])
def test_a_finished_study_whose_model_is_not_whole_is_exported_again_and_then_left_alone(
    finished: StudyFolder, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export(study: StudyFolder, number: int | None, to: Path, *, refit: bool) -> None:
        assert (number, to, refit) == (None, study.best, False)
        shutil.rmtree(to, ignore_errors=True)
        model(study)
        study.test_reads.write_text('{"read": "a", "trial": "trial-0001", "at": "now"}')

    before = contents(finished.root)
    path = finished.root / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.setattr(exporting.export, "export_trial", export)
    told = runner.resume(finished.root)
    assert [read["trial"] for read in told.test_reads] == ["trial-0001"]
    assert changed(before, contents(finished.root)) == ["test_reads.jsonl"]


@pytest.mark.usefixtures("no_ray")
def test_a_table_that_is_missing_or_of_an_earlier_run_is_written(finished: StudyFolder) -> None:
    before = contents(finished.root)
    finished.table.unlink()
    runner.resume(finished.root)
    assert contents(finished.root) == before
    finished.table.write_text("of an earlier run")
    os.utime(finished.table, (1e9, 1e9))
    runner.resume(finished.root)
    assert contents(finished.root) == before


@pytest.mark.usefixtures("no_ray")
def test_a_model_of_an_earlier_best_trial_is_not_taken_for_the_best(finished: StudyFolder) -> None:
    (finished.best / "model.yaml").write_text("provenance: {trial: trial-0003}")
    finished.best_weights("trial-0001").unlink()
    with pytest.raises(SearchError, match=r"the best model must be exported, got .*The record is whole"):
        runner.resume(finished.root)
    assert "0003/best" in weights(finished)


@pytest.mark.usefixtures("no_ray")
def test_a_study_of_an_older_version_is_refused_other_epochs_too(finished: StudyFolder) -> None:
    values = yaml.safe_load(finished.config.read_text())
    finished.config.write_text(yaml.safe_dump(merged(values, {"study": {"epochs": 7}})))
    with pytest.raises(StudyError, match=r"study\.epochs 7 instead of 1"):
        runner.resume(finished.root)


def test_a_study_whose_trials_were_raised_is_not_over(finished: StudyFolder) -> None:
    trials, facts = reader.read(finished.database)
    config = config_file.load(finished.config)
    assert is_over(trials, facts, config.study)
    assert not is_over(trials, facts, config.study.model_copy(update={"trials": 5}))


# What is left of the budget


def use(folder: StudyFolder, seconds: float) -> None:
    """Have the record say that a study has searched so long."""
    book = Ledger(folder.database, metric="val/accuracy", sampler=make("tpe", seed=0))
    book.set_fact("searched", seconds)
    book.close()


def test_the_budget_is_one_for_all_runs_of_a_study(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "small")
    begin = time.monotonic()
    first = run_of(folder, budget="60m")
    assert first.clock.seconds_left is not None
    assert 3600 - (time.monotonic() - begin) <= first.clock.seconds_left <= 3600
    first.close(1.0)
    use(folder, 3000.0)
    begin = time.monotonic()
    second = run_of(folder, budget="60m")
    assert second.clock.seconds_left is not None
    assert 600 - (time.monotonic() - begin) <= second.clock.seconds_left <= 600
    second.close(1.0)
    searched = reader.read(folder.database)[1]["searched"]
    assert 3000 <= searched <= 3000.001 + time.monotonic() - begin  # rounded to milliseconds


def test_the_time_that_is_used_is_noted_while_a_study_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that is killed closes nothing."""
    killed = run_of(StudyFolder(tmp_path / "small"), budget="60m")
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 100)
    killed._room()
    killed.ledger.close()
    assert reader.read(killed.folder.database)[1]["searched"] >= 100


@pytest.mark.usefixtures("no_ray")
def test_a_study_that_its_budget_ended_is_over(tmp_path: Path) -> None:
    """Nothing is trained, neither by the run that finds the budget spent nor by a later one."""
    folder = StudyFolder(tmp_path / "small")
    first = run_of(folder, budget="10s")
    first.ledger.set_fact("state", "running")
    first.close(12.0)
    use(folder, 11.0)
    assert reader.read_study(folder).state == "interrupted"
    second = run_of(folder, budget="10s")
    assert second.search() == "finished"
    second.close(0.0)
    assert runner.resume(folder.root).trials == ()


def test_files_of_trials_that_the_record_has_lost_are_told_and_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody has removed the log of a killed study: no trial may find the checkpoint of another one."""
    folder = StudyFolder(tmp_path / "small")
    folder.root.mkdir()
    with closing(Ledger(folder.database, metric="val/accuracy", sampler=make("tpe", seed=0))) as book:
        play(book, 0.5)
    for number in range(4):
        weigh(folder, f"trial-{number:04d}", "best", "last")
    run = run_of(folder)
    run.close(0.0)
    told = "got nothing of trial-0001, trial-0002, trial-0003. Was optuna.db-wal removed?"
    assert told in capsys.readouterr().err
    assert {path.name for path in folder.trial("").iterdir()} == {"trial-0000"}


def test_checkpoints_that_a_killed_driver_had_moved_by_half_are_found_and_kept(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "small")
    weigh(folder, "trial-0002", "best")
    weigh(folder, "trial-0000", "best", "last")
    made = [interrupted(0), interrupted(1), interrupted(2, continues=0)]
    Kept(folder, objective=Objective("val/accuracy"), count=1, earlier=[]).sweep(made)
    assert folder.last_weights("trial-0000").exists(), "trial 2 has not got it yet, and will be continued"
    folder.hand_over([trial_id(number) for number in lineage(2, made)], "trial-0003")
    assert sorted(path.name for path in folder.trial("trial-0003").iterdir()) == [
        "best.safetensors",
        "last.safetensors",
    ]
    assert not folder.best_weights("trial-0002").exists()


def interrupted(number: int, continues: int | None = None) -> TrialRecord:
    return TrialRecord(
        number=number, id=trial_id(number), state="FAIL", params={}, interrupted=True, continues=continues
    )


# A run that fails


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (SlotsLost("no slot is left"), "no slot is left"),
        (OSError(errno.ENOSPC, "No space left on device", "tune/state.json"), "No space left on device"),
    ],
)
def test_a_study_that_fails_leaves_its_table_and_one_line(
    finished: StudyFolder, failure: Exception, told: str
) -> None:
    whole = finished.table.read_text()
    finished.table.unlink()
    with pytest.raises(SearchError, match=told), runner._whole_in_the_end(finished):
        raise failure
    assert finished.table.read_text() == whole


def test_an_error_that_no_disk_makes_stays_what_it_is(finished: StudyFolder) -> None:
    with pytest.raises(FileNotFoundError), runner._whole_in_the_end(finished):
        (finished.root / "nothing").read_text()


def test_a_disk_that_is_full_is_the_reason_that_a_watch_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune wraps what a callback raises, so the reason is kept."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with closing(Ledger(tmp_path / "optuna.db", metric="val/accuracy", sampler=make("tpe", seed=0))) as book:
        watch, suggested = follow(StudyFolder(tmp_path), book)
        monkeypatch.setattr(Board, "epoch", full)
        with pytest.raises(OSError, match="No space left"):
            begin(watch, suggested, book, 0.5)
        watch._board.close()
        assert isinstance(watch.fatal, RecordLost)
        assert "got No space left on device (some file). The record is whole up to then" in str(watch.fatal)


def test_the_log_of_a_failure_is_found_where_the_study_is_moved_to(tmp_path: Path, small_study: Make) -> None:
    folder = StudyFolder(tmp_path / "here")
    folder.root.mkdir()
    folder.config.write_text(small_study().to_yaml())
    with closing(Ledger(folder.database, metric="val/accuracy", sampler=make("tpe", seed=0))) as book:
        watch, suggested = follow(folder, book)
        trial = begin(watch, suggested, book, 0.5)
        watch.on_trial_result(0, [], trial, {"failed": "it broke", "trace": "at line 7"})
        watch.on_trial_complete(0, [], trial)
    assert reader.read(folder.database)[0][0].log == "trials/trial-0000/error.txt"
    moved = StudyFolder(folder.root.rename(tmp_path / "there"))
    (record,) = reader.read_study(moved).trials
    assert "at line 7" in Path(str(record.log)).read_text()


# The watch of a second run


def follow(folder: StudyFolder, book: Ledger) -> tuple[StudyCallback, dict[str, Suggested]]:
    """Return the watch of a run of a study that keeps the weights of two trials, and its suggestions."""
    suggested: dict[str, Suggested] = {}
    progress = Progress(study="s", planned=6, epochs=2, objective=Objective("val/accuracy"), slots=1)
    board = Board(folder.tensorboard, StudyConfig.from_folder("."))
    board.study.open()
    watch = StudyCallback(
        ledger=book,
        board=board,
        progress=progress,
        folder=folder,
        exchange=Exchange(),
        suggested=suggested,
        goal=Goal("val/accuracy"),
        keep_checkpoints=2,
        left=lambda: 6,
        slots=1,
        lost=lambda: None,
        searched=lambda: 7.0,
    )
    return watch, suggested


def begin(watch: StudyCallback, suggested: dict[str, Suggested], book: Ledger, *scores: float) -> Any:
    """Have a trial of two epochs report these scores; return Tune's trial."""
    number = book.ask().number
    book.suggested(number, {"params": {"strategy": "replace"}})
    name = f"trial-{number:04d}"
    job = train_job(name, {"strategy": "replace"})
    trial: Any = SimpleNamespace(trial_id=str(number), metric_analysis={}, metric_n_steps={})
    suggested[str(number)] = Suggested(number, job)
    watch.on_trial_start(0, [], trial)
    for epoch, score in enumerate(scores, 1):
        watch.on_trial_result(0, [], trial, {"epoch": epoch, "val/accuracy": score})
    return trial


def test_tensorboard_gets_the_best_epoch_of_a_trial_that_runs(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    book = Ledger(folder.database, metric="val/accuracy", sampler=make("tpe", seed=0))
    watch, suggested = follow(folder, book)
    begin(watch, suggested, book, 0.9, 0.5)
    (run,) = folder.tensorboard.glob("0000-*")
    events = EventAccumulator(str(run)).Reload()
    best = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"] if "best" in tag}
    assert best == {"work/best val/accuracy": pytest.approx(0.9), "work/best epoch": 1.0}
    watch._board.close()
    book.close()


def test_a_second_run_removes_only_weights_that_better_trials_displace(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    for scores in ((0.9, 0.5), (0.7, 0.8)):
        book = Ledger(folder.database, metric="val/accuracy", sampler=make("tpe", seed=0))
        watch, suggested = follow(folder, book)
        for score in scores:
            trial = begin(watch, suggested, book, score, score)
            weigh(folder, f"trial-{int(trial.trial_id):04d}")
            watch.on_trial_complete(0, [], trial)
        watch.interrupt()
        book.close()
        watch.sweep()
    assert weights(folder) == {"0000/best", "0003/best"}


def test_a_stopped_study_announces_no_failure_and_keeps_what_is_needed_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = StudyFolder(tmp_path)
    book = Ledger(folder.database, metric="val/accuracy", sampler=make("tpe", seed=0))
    watch, suggested = follow(folder, book)
    ended, cut = (begin(watch, suggested, book, *scores) for scores in ((0.5, 0.6), (0.4,)))
    for name in ("trial-0000", "trial-0001"):
        weigh(folder, name, "best", "last")
    watch.on_trial_complete(0, [], ended)
    watch.interrupt()
    book.close()
    told = capsys.readouterr().err
    assert "trial-0000 COMPLETE" in told
    assert "FAIL" not in told
    assert cut.trial_id not in suggested
    # A complete trial is known to the record from here on; before, its epochs lie in `last`.
    assert weights(folder) == {"0000/best", "0001/best", "0001/last"}
    (first, second), _ = reader.read(folder.database)
    assert (first.state, second.state, second.interrupted) == ("COMPLETE", "FAIL", True)
    assert [epoch["val/accuracy"] for epoch in second.history] == [0.4]


def test_a_note_of_a_worker_comes_into_the_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = Ledger(tmp_path / "optuna.db", metric="val/accuracy", sampler=make("tpe", seed=0))
    watch, suggested = follow(StudyFolder(tmp_path), book)
    trial = begin(watch, suggested, book, 0.5)
    stand_in: Any = SimpleNamespace(metric="val/accuracy", _facts={})
    assert SlotTrial._hear(stand_in, Note("trained from its start: x")) is None
    epoch = SlotTrial._hear(stand_in, Epoch({"epoch": 2, "val/accuracy": 0.6}))
    assert epoch is not None
    watch.on_trial_result(0, [], trial, epoch)
    watch.on_trial_complete(0, [], trial)
    book.close()
    assert "trial-0000: trained from its start: x" in capsys.readouterr().err
    assert reader.read(tmp_path / "optuna.db")[0][0].note == "trained from its start: x"
