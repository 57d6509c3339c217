"""What a resume does to a study's files, without Ray: nothing that is known is lost or done again."""

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from finetune import catalog
from search import ledger, needs, results, runner
from search.board import Board
from search.errors import SearchError
from search.kept import Kept
from search.layout import StudyFolder
from search.ledger import Ledger
from search.progress import Progress
from search.record import TrialRecord
from search.sampler import Planned, StudySearcher, Suggested, make
from search.slots import SlotPlan
from search.space import Space
from search.study import StudyConfig
from search.study_run import StudyRun, to_do
from search.watch import Watch
from tests.files import contents
from tests.small import STUDY, merged

Make = Callable[..., StudyConfig]


def record(number: int, score: float, **facts: Any) -> TrialRecord:
    best = {"epoch": 1.0, "val/accuracy": score}
    known = {"state": "COMPLETE", "params": {}, "metrics": {"best": best, "last": best}}
    return TrialRecord(number=number, id=f"trial-{number:04d}", **known | facts)


def weigh(folder: StudyFolder, trial: str, *names: str) -> None:
    folder.trial(trial).mkdir(parents=True, exist_ok=True)
    for name in names or ("best",):
        (folder.trial(trial) / f"{name}.safetensors").write_bytes(trial.encode())


def weights(folder: StudyFolder) -> set[str]:
    """Return the files that lie in the trials' folders, such as `0003/best`."""
    files = folder.root.glob("trials/*/*.safetensors")
    return {f"{path.parent.name.removeprefix('trial-')}/{path.stem}" for path in files}


def keep(folder: StudyFolder, earlier: list[TrialRecord], count: int = 2) -> Kept:
    return Kept(folder, metric="val/accuracy", mode="max", count=count, earlier=earlier)


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
    """A study of four trials that has finished, with all that a study leaves."""
    config = small_study()
    folder = StudyFolder.create(Path(config.results), config.study.name)
    folder.config.write_text(config.to_yaml())
    book = Ledger(folder.database, mode="max", sampler=make("tpe", seed=0))
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
    results.to_csv(ledger.read_study(folder), folder.table)
    return folder


def model(folder: StudyFolder) -> None:
    """Write what a model folder of trial 1 is told by."""
    folder.best.mkdir()
    (folder.best / "model.safetensors").write_bytes(b"weights")
    provenance = {"trial": "trial-0001", "model_sha256": hashlib.sha256(b"weights").hexdigest()}
    (folder.best / "model.yaml").write_text(yaml.safe_dump({"provenance": provenance}))
    (folder.best / "README.md").write_text("a card")


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("nothing is to do: Ray must not start")

    monkeypatch.setattr(runner, "connected", refuse)


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
    def export(study: StudyFolder, number: int | None, to: Path) -> None:
        assert (number, to) == (None, study.best)
        shutil.rmtree(to, ignore_errors=True)
        model(study)

    before = contents(finished.root)
    path = finished.root / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.setattr(runner.export, "export_trial", export)
    runner.resume(finished.root)
    assert contents(finished.root) == before


@pytest.mark.usefixtures("no_ray")
def test_a_model_of_an_earlier_best_trial_is_not_taken_for_the_best(finished: StudyFolder) -> None:
    (finished.best / "model.yaml").write_text("provenance: {trial: trial-0003}")
    finished.best_weights("trial-0001").unlink()
    with pytest.raises(SearchError, match=r"the best model must be exported, got .*The record is whole"):
        runner.resume(finished.root)
    assert "0003/best" in weights(finished)


def test_a_study_whose_trials_were_raised_is_not_over(finished: StudyFolder) -> None:
    from search import config_file
    from search.study_run import is_over

    record = ledger.read_study(finished)
    assert is_over(record, config_file.load(finished.config, ["study.trials=4"]).study)
    assert not is_over(record, config_file.load(finished.config, ["study.trials=5"]).study)


# What is left of the budget


def run_of(folder: StudyFolder, **study: Any) -> StudyRun:
    """Return a run of a study in a folder, with slots that do nothing."""
    folder.root.mkdir(exist_ok=True)
    own = {"study": study, "results": str(folder.root.parent)}
    config = StudyConfig.from_dict(merged(STUDY | {"results": own.pop("results")}, own))
    folder.config.write_text(config.to_yaml())
    warm: Any = SimpleNamespace(plan=SlotPlan(slots=1, workers=1, cpus=1, gpu=False), exchange=Exchange())
    images = catalog.scan(needs.data_settings(config))
    return StudyRun(config, folder, images, warm, {"slot-0": {"blocks": {"shufflenet_v2_x0_5": 18}}})


def use(folder: StudyFolder, seconds: float) -> None:
    """Have the record say that a study has searched so long."""
    book = Ledger(folder.database, mode="max", sampler=make("tpe", seed=0))
    book.set_fact("searched", seconds)
    book.close()


def test_the_budget_is_one_for_all_runs_of_a_study(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "small")
    first = run_of(folder, budget="60m")
    assert first.deadline is not None
    assert 3500 < first.deadline - time.monotonic() <= 3600
    first.close(1.0)
    use(folder, 3000.0)
    second = run_of(folder, budget="60m")
    assert second.deadline is not None
    assert 500 < second.deadline - time.monotonic() <= 600
    second.close(1.0)
    assert 3000 <= ledger.read(folder.database)[1]["searched"] < 3100


def test_the_time_that_is_used_is_noted_while_a_study_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that is killed closes nothing."""
    killed = run_of(StudyFolder(tmp_path / "small"), budget="60m")
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 100)
    killed._room()
    killed.ledger.close()
    assert ledger.read(killed.folder.database)[1]["searched"] >= 100


@pytest.mark.usefixtures("no_ray")
def test_a_study_that_its_budget_ended_is_over(tmp_path: Path) -> None:
    """Nothing is trained, neither by the run that finds the budget spent nor by a later one."""
    folder = StudyFolder(tmp_path / "small")
    first = run_of(folder, budget="10s")
    first.ledger.set_fact("state", "running")
    first.close(12.0)
    use(folder, 11.0)
    assert ledger.read_study(folder).state == "interrupted"
    second = run_of(folder, budget="10s")
    assert second.search() == "finished"
    second.close(0.0)
    assert runner.resume(folder.root).trials == ()


# The watch of a second run


class Exchange:
    """Takes what a watch tells the exchange."""

    def __init__(self) -> None:
        self.cancel = self.want = self.offer = SimpleNamespace(remote=lambda *_: None)


def follow(folder: StudyFolder, book: Ledger) -> tuple[Watch, dict[str, Suggested]]:
    """Return the watch of a run of a study that keeps the weights of two trials, and its suggestions."""
    suggested: dict[str, Suggested] = {}
    progress = Progress(study="s", planned=6, epochs=2, metric="val/accuracy", mode="max", slots=1)
    watch = Watch(
        ledger=book,
        board=Board(folder.tensorboard),
        progress=progress,
        folder=folder,
        exchange=Exchange(),
        suggested=suggested,
        metric="val/accuracy",
        mode="max",
        keep_checkpoints=2,
        left=6,
        slots=1,
    )
    return watch, suggested


def begin(watch: Watch, suggested: dict[str, Suggested], book: Ledger, *scores: float) -> Any:
    """Have a trial of two epochs report these scores; return Tune's trial."""
    number = book.ask().number
    book.suggested(number, {"params": {"strategy": "replace"}})
    name = f"trial-{number:04d}"
    job = {"id": name, "params": {"strategy": "replace"}, "settings": {"epochs": 2}}
    trial: Any = SimpleNamespace(trial_id=str(number), metric_analysis={}, metric_n_steps={})
    suggested[str(number)] = Suggested(number, job)
    watch.on_trial_start(0, [], trial)
    for epoch, score in enumerate(scores, 1):
        watch.on_trial_result(0, [], trial, {"epoch": epoch, "val/accuracy": score})
    return trial


def test_a_second_run_removes_only_weights_that_better_trials_displace(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    for scores in ((0.9, 0.5), (0.7, 0.8)):
        book = Ledger(folder.database, mode="max", sampler=make("tpe", seed=0))
        watch, suggested = follow(folder, book)
        for score in scores:
            trial = begin(watch, suggested, book, score, score)
            weigh(folder, f"trial-{int(trial.trial_id):04d}")
            watch.on_trial_complete(0, [], trial)
        watch.interrupt()
        book.close()
        watch.sweep()
    assert weights(folder) == {"0000/best", "0003/best"}


# What is planned again


FROZEN: list[Any] = [
    {"low": 0.0, "high": 1.0},
    {"low": 0.0, "high": 1.0, "step": 0.25},
    {"low": 0.1, "high": 0.9},
    {"low": 0, "high": "all"},
    {"low": 2, "high": 18, "step": 4},
    {"low": 2, "high": "all", "step": 3},
    [0, 0.5, "all"],
    [3, 9, "all"],
    ["all"],
    0.5,
    7,
    {"replace": "all", "load": {"low": 0.0, "high": 1.0}, "fuse": {"low": 0, "high": 9}},
]
OTHERS: list[dict[str, Any]] = [
    {"learning_rate": {"low": 1e-4, "high": 0.1, "log": True}, "head_size": [0, 64]},
    {"learning_rate": [0.003, 0.006, 0.01], "optimizer": ["adam", "sgd"], "backbone_rate": [0.1, 1.0]},
    {"learning_rate": {"low": 0.001, "high": 0.021, "step": 0.001}, "dropout": {"low": 0, "high": 0.5}},
    {"learning_rate": 0.01, "momentum": {"low": 0.8, "high": 0.99}, "head_size": {"low": 0, "high": 64}},
]


@pytest.mark.parametrize("others", OTHERS)
@pytest.mark.parametrize("frozen", FROZEN, ids=str)
def test_a_start_that_was_tried_is_not_planned_again(
    tmp_path: Path, frozen: Any, others: dict[str, Any]
) -> None:
    given = {"data": {"crop_scale": [1.0, 0.5]}, "space": {"frozen_layers": frozen} | others}
    config = StudyConfig.from_dict(merged(STUDY, given))
    # 19 blocks: the half of them is no round share.
    space = Space(config)
    planned, _ = to_do([], config.study, space)
    book = Ledger(tmp_path / "optuna.db", mode="max", sampler=make("tpe", seed=0))
    for plan in planned:
        suggest(book, space, plan)
    book.close()
    trials, _ = ledger.read(tmp_path / "optuna.db")
    assert len(trials) == len(planned)
    again, sampled = to_do(trials, config.study, space)
    assert (again, sampled) == ([], config.study.trials - len(planned))


def suggest(book: Ledger, space: Space, plan: Planned | None = None) -> dict[str, Any]:
    """Open a trial as a study does, and end it well; return its parameters."""
    jobs: list[dict[str, Any]] = []

    def job(number: int, params: dict[str, Any], plan: Planned | None) -> dict[str, Any]:
        return {"id": f"trial-{number:04d}", "params": params, "number": number}

    searcher = StudySearcher(
        book,
        space,
        metric="val/accuracy",
        mode="max",
        planned=[] if plan is None else [plan],
        sampled=int(plan is None),
        make_job=job,
        offer=jobs.append,
    )
    searcher.suggest("a")
    number = jobs[0]["number"]
    best = {"epoch": 1.0, "val/accuracy": number / 100}
    facts = {"metrics": {"best": best, "last": best}, "epochs": 1, "history": [best]}
    book.report(number, 1, number / 100)
    book.end(number, "COMPLETE", number / 100, facts)
    params: dict[str, Any] = jobs[0]["params"]
    return params
