"""Whole studies on a real Ray: every way a trial can end, and what is left afterwards."""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from PIL import Image

import search
from finetune.disk import checkpoint
from finetune.messages import End, EndState, Epoch, Keep, Message, Report, TrainJob
from search.config import resolve
from search.config.study import StudyConfig
from search.driver import callback, runner, tuner
from search.driver.seeds import Again, Repeats
from search.driver.trial import SlotTrial
from search.errors import SearchError, SettingsIgnored
from search.record.reader import read_study
from search.record.records import StudyRecord
from search.record.study_folder import StudyFolder
from search.slots import slots
from search.verdict import contest
from search.views import table
from search.views.tensorboard.columns import Columns
from search.views.tensorboard.study_page import STUDY_RUN
from tests import torchless
from tests.small import STUDY, merged
from tests.test_board import read
from tests.waiting import eventually

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
Make = Callable[..., StudyConfig]


def plant(monkeypatch: pytest.MonkeyPatch, train: torchless.Train = torchless.train) -> None:
    """Have slots serve trials with workers that train nothing, by default well."""
    monkeypatch.setattr(slots, "serve", torchless.worker(train))


def ray_processes() -> list[psutil.Process]:
    """Return the processes of this test's own Ray that do something; its raylet is a child of ours."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            title = (process.cmdline() or [""])[0]
            if title.startswith("ray::") and "IDLE" not in title and "Agent" not in title:
                found.append(process)
    return found


def slot_processes() -> list[str]:
    """Return the titles of those that belong to slots."""
    titles = []
    for process in ray_processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            titles.append(process.cmdline()[0])
    names = ("RayTrain", "TrainController", "Supervisor", "Exchange")
    return [title for title in titles if any(name in title for name in names)]


def check_verdict(record: StudyRecord) -> None:
    """Check the trainings with other seeds, and what they say."""
    folder = StudyFolder(Path(record.folder))
    found = contest.of(record)
    chosen = contest.contestants(record, top=2)
    # A head that is solved for has no seed, so it is trained once.
    ids = {
        f"{trial.id}-seed-{seed}"
        for trial in chosen
        for seed in (1, 2)
        if seed == 1 or trial.baseline != "exact"
    }
    assert {repeat["id"] for repeat in record.repeats} == ids
    assert {repeat["state"] for repeat in record.repeats} == {"COMPLETE"}
    assert all(repeat["epochs"] == (1 if repeat["trial"] == "trial-0000" else 3) for repeat in record.repeats)
    assert (found.split, found.images) == ("test", record.provenance["images"]["test"])
    assert found.seeds == (1 if chosen[0].baseline == "exact" else 2)
    assert {one.seeds for one in found.comparisons} == {2}
    assert all(one.outcome != "not measured" for one in found.comparisons)
    assert found.comparisons[0].against == "recipe"
    (shown,) = read(folder.tensorboard).Tensors(STUDY_RUN, "whole study/answer")
    text = shown.tensor_proto.string_val[0].decode()
    assert text.splitlines() == [f"- {line}" for line in table.comparison(record)]
    for name in ids:
        answers = contest.load_answers(folder.answers(name), "test")
        assert len(answers.labels) == found.images
        assert not folder.best_weights(name).exists()
    for_verdict = [read["trial"] for read in record.test_reads if read["why"] == "verdict"]
    assert sorted(for_verdict) == sorted(ids)
    # The seeds differ, and so do the models, but the sampler and the ranks know nothing of them.
    assert len({repeat["metrics"]["val/loss"] for repeat in record.repeats}) == len(ids)
    assert len(record.trials) == 9
    resumed = runner.resume(folder.root)
    assert resumed.repeats == record.repeats


SEARCHED: dict[str, dict[str, Any]] = {
    "study": {"name": "searched", "trials": 8, "baselines": ["exact", "recipe", "scratch"], "seed": 3},
    "verdict": {"seeds": 2},
    "early_stopping": {"enabled": False},
}


@pytest.fixture(scope="module")
def searched(
    tmp_path_factory: pytest.TempPathFactory, cache: Path, local_ray: None
) -> tuple[StudyConfig, StudyRecord]:
    """A study in two slots of real workers, run once for the tests that look at it or go on from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        own = {"resources": {"slots": 2}, "results": str(tmp_path_factory.mktemp("results"))}
        config = StudyConfig.from_dict(merged(STUDY | own, SEARCHED))
        record = runner.run(config)
        wait_for(lambda: not slot_processes())  # they were killed just now
    return config, record


Searched = tuple[StudyConfig, StudyRecord]


@pytest.mark.every_ray
def test_a_study_searches_all_three_strategies_and_leaves_a_whole_record(searched: Searched) -> None:
    config, record = searched
    assert record.state == "finished"
    check_verdict(record)
    assert [trial.number for trial in record.trials] == list(range(9))
    assert [trial.baseline for trial in record.trials[:3]] == ["exact", "recipe", "scratch"]
    assert {trial.state for trial in record.trials} == {"COMPLETE"}
    assert {"exact", "replace", "load", "fuse"} == {trial.params["strategy"] for trial in record.trials}
    assert [trial.epochs for trial in record.trials] == [1, *[3] * 8]
    best = record.best
    assert best is not None
    folder = StudyFolder(Path(record.folder))
    for path in (folder.config, folder.database, folder.table, folder.best / "model.yaml"):
        assert path.is_file(), path
    assert any(folder.tune.rglob("experiment_state*.json"))
    runs = {Columns(config).run_name(trial.id, trial.params, trial.baseline) for trial in record.trials}
    assert {p.name for p in folder.tensorboard.iterdir()} == {STUDY_RUN, *runs}
    assert {trial.slot for trial in record.trials} <= {"slot-0", "slot-1"}
    for trial in record.trials[1:]:
        # A rate at which the loss diverges is lowered, and the trial says to what.
        rate = trial.effective.get("learning_rate_limit", trial.params["learning_rate"])
        assert trial.effective["learning_rates"]["head"] == pytest.approx(rate)
        assert len(trial.history) == trial.epochs
        # A slot begins the first trials before Tune has processes for them: that time counts, too.
        assert trial.seconds > sum(epoch["seconds"] for epoch in trial.history)
        assert not folder.last_weights(trial.id).exists()
    kept = [trial.id for trial in record.trials if folder.best_weights(trial.id).exists()]
    assert best.id in kept
    assert len(kept) <= config.study.keep_checkpoints


def test_a_trial_whose_worker_dies_fails_alone_with_its_reason(
    small_study: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(job: TrainJob, report: Report) -> None:
        if job.settings.learning_rate == 0.0666:
            os.kill(os.getpid(), signal.SIGKILL)
        if job.settings.learning_rate == 0.0667:
            os._exit(3)
        torchless.train(job, report)

    plant(monkeypatch, die)
    rates = [0.01, 0.0666, 0.02, 0.0667, 0.03]
    record = runner.run(
        small_study(
            # It draws each rate once.
            study={"trials": 5, "sampler": "random", "seed": 4, "retries": 0},
            space={"strategy": "replace", "head_size": 0, "learning_rate": rates},
            early_stopping={"enabled": False},
        )
    )
    assert record.state == "finished"
    by_rate = {rate: {t.state for t in record.trials if t.params["learning_rate"] == rate} for rate in rates}
    assert by_rate[0.0666] == by_rate[0.0667] == {"FAIL"}
    assert by_rate[0.01] == by_rate[0.02] == by_rate[0.03] == {"COMPLETE"}
    for trial in record.trials:
        if trial.state == "FAIL":
            assert trial.error is not None
            assert trial.error.startswith("its worker died: worker 0: ")
            assert trial.log is not None
            assert trial.error in Path(trial.log).read_text()


@pytest.mark.thorough
def test_a_worker_that_ignores_its_settings_fails_the_study_loudly(
    small_study: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ignore(job: TrainJob, report: Report) -> None:
        torchless.train(replace(job, settings=replace(job.settings, learning_rate=0.5)), report)

    plant(monkeypatch, ignore)
    config = small_study(space={"strategy": "replace", "learning_rate": 0.25})
    with pytest.raises(SettingsIgnored, match=r"learning_rate 0\.5 instead of 0\.25"):
        runner.run(config)
    record = read_study(StudyFolder(config.folder))
    assert record.state == "interrupted"
    assert record.best is None


@pytest.mark.thorough
def test_a_trial_whose_process_in_tune_is_killed_loses_nothing(
    small_study: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that stands for the trial in Tune dies; its slot trains on, and another process asks it."""
    killed = tmp_path / "killed"
    enter = callback.StudyCallback.on_trial_result

    def kill_the_first(self: callback.StudyCallback, *args: Any, **info: Any) -> None:
        if not killed.exists():
            os.kill(info["result"]["pid"], signal.SIGKILL)
            killed.touch()
        enter(self, *args, **info)

    def last_epoch_waits(job: TrainJob, report: Report) -> None:
        def wait_and_report(message: Message) -> None:
            if isinstance(message, Epoch) and message.number == 3:
                eventually(killed.exists, "the trial's process is killed")
            report(message)

        torchless.train(job, wait_and_report)

    monkeypatch.setattr(callback.StudyCallback, "on_trial_result", kill_the_first)
    plant(monkeypatch, last_epoch_waits)
    record = runner.run(
        small_study(
            study={"trials": 5},
            resources={"slots": 1},
            space={"strategy": "fuse", "frozen_layers": 0},
            early_stopping={"enabled": False},
        )
    )
    assert killed.exists()
    assert record.state == "finished"
    assert [trial.state for trial in record.trials] == ["COMPLETE"] * 5
    assert [[epoch["epoch"] for epoch in trial.history] for trial in record.trials] == [[1, 2, 3]] * 5


@pytest.mark.thorough
def test_a_trial_that_tune_sets_up_in_two_processes_is_heard_whole_and_outside_the_main_thread(
    small_study: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune drops a process that is slow to start, once another one is free for its trial.

    The study runs as in a server: signals belong to the main thread, and nothing else needs it.
    """
    first, second = tmp_path / "first", tmp_path / "second"

    class OneIsSlow(SlotTrial):
        def setup(self, config: dict[str, Any]) -> None:
            super().setup(config)
            if config["id"] != "trial-0001":
                return
            if first.exists():
                second.touch()
            first.touch()
            eventually(second.exists, "the trial is set up in a second process")

    plant(monkeypatch)
    monkeypatch.setattr(tuner, "SlotTrial", OneIsSlow)
    config = small_study(study={"trials": 3}, early_stopping={"enabled": False}, resources={"slots": 2})
    with ThreadPoolExecutor(1) as pool:
        record = pool.submit(runner.run, config).result()
    assert record.state == "finished"
    assert second.exists()
    assert [one.state for one in record.trials] == ["COMPLETE"] * 3
    assert [len(one.history) for one in record.trials] == [3, 3, 3]
    assert all(one.slot and one.effective for one in record.trials)  # the first messages of a trial


@pytest.mark.thorough
def test_a_rate_at_which_the_loss_diverges_is_limited_and_noted(small_study: Make) -> None:
    record = runner.run(
        small_study(
            study={"trials": 3, "sampler": "random"},
            space={"strategy": "replace", "head_size": 0, "learning_rate": [1e30, 0.05]},
            early_stopping={"enabled": False},
        )
    )
    assert (record.state, {trial.state for trial in record.trials}) == ("finished", {"COMPLETE"})
    wild = [trial for trial in record.trials if trial.params["learning_rate"] == 1e30]
    assert wild
    assert all("learning rate limited to " in str(trial.note) for trial in wild)


@pytest.mark.thorough
def test_a_failed_trial_keeps_its_epochs_and_its_process_in_tune(
    small_study: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_late(job: TrainJob, report: Report) -> None:
        def fail_or_report(message: Message) -> None:
            if isinstance(message, Epoch) and message.number == 3:
                raise ArithmeticError("the third epoch must end")
            report(message)

        torchless.train(job, fail_or_report)

    plant(monkeypatch, fail_late)
    processes: set[int] = set()
    enter = callback.StudyCallback.on_trial_result

    def note(self: callback.StudyCallback, *args: Any, **info: Any) -> None:
        processes.add(info["result"]["pid"])
        enter(self, *args, **info)

    monkeypatch.setattr(callback.StudyCallback, "on_trial_result", note)
    record = runner.run(
        small_study(study={"trials": 4}, resources={"slots": 1}, early_stopping={"enabled": False})
    )
    assert record.state == "finished"
    assert record.best is None
    assert [one.state for one in record.trials] == ["FAIL"] * 4
    assert [len(one.history) for one in record.trials] == [2] * 4
    assert {one.error for one in record.trials} == {"the third epoch must end"}
    assert all("ArithmeticError" in Path(str(one.log)).read_text() for one in record.trials)
    assert len(processes) == 1


@pytest.mark.thorough
def test_an_export_that_fails_leaves_a_whole_record_and_the_best_weights(
    small_study: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume makes up for it: see test_resume.py."""

    def refuse(job: Any, report: Report) -> None:
        raise RuntimeError("OSError: no room for a model")

    config = small_study(study={"trials": 3, "keep_checkpoints": 1}, early_stopping={"enabled": False})
    folder = StudyFolder(config.folder)
    monkeypatch.setattr(slots, "serve", torchless.worker(export=refuse))
    wanted = r"the best model must be exported, got OSError: no room for a model\. The record is whole"
    with pytest.raises(SearchError, match=wanted):
        runner.run(config)
    record = read_study(folder)
    assert (record.state, [trial.state for trial in record.trials]) == ("finished", ["COMPLETE"] * 3)
    assert record.best is not None
    files = [path.relative_to(folder.root / "trials") for path in folder.root.glob("trials/*/*.safetensors")]
    assert files == [Path(record.best.id) / "best.safetensors"]
    assert folder.table.read_text().count("COMPLETE") == 3
    assert not folder.best.exists()


@pytest.mark.thorough
@pytest.mark.every_ray
def test_two_workers_per_trial_train_one_study_together(small_study: Make) -> None:
    record = runner.run(
        small_study(
            study={"trials": 2, "metric": "val/loss"},
            resources={"workers_per_trial": 2},
            space={"strategy": ["fuse", "load"]},
        )
    )
    assert record.state == "finished"
    assert record.best is not None
    assert all(trial.effective["workers"] == 2 for trial in record.trials)


def scores(history: list[dict[str, float]]) -> list[dict[str, float]]:
    timed = ("seconds", "images_per_second")
    return [{name: value for name, value in epoch.items() if name not in timed} for epoch in history]


@pytest.mark.thorough
def test_a_folder_behind_a_url_is_searched_without_a_config_file_and_copied_only_within_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for label, colour in {"daisy": 250, "tulip": 90}.items():
        (tmp_path / "flowers" / label).mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (32, 32), (colour, 9 * i, 0)).save(tmp_path / "flowers" / label / f"{i}.png")
    record = search.run(
        f"file://{tmp_path}/flowers", results=str(tmp_path), trials=2, epochs=2, image_size=32,
        backbone="shufflenet_v2_x0_5", weights="none", strategy=["replace", "fuse"], copies_gib=0, slots=1,
        sampler="random", verdict={"seeds": 0},
    )  # fmt: skip
    assert (record.name, record.state) == ("flowers-2", "finished")
    assert [trial.baseline for trial in record.trials] == ["exact", "recipe", None]
    assert {trial.state for trial in record.trials} == {"COMPLETE"}
    assert not (tmp_path / "cache" / "finetune" / "files").exists()


@pytest.mark.thorough
@pytest.mark.parametrize("when", ["starts", "starts again", "hangs"])
def test_nothing_is_left_running_of_a_study_that_ends_while_its_slot(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "serve", hang if when == "hangs" else torchless.worker())
    warm = slots.Slots(slots.SlotPlan(slots=1, workers=1, cpus=1, gpu=False), tmp_path / "slots")
    if when in ("starts", "hangs"):
        what = "TrainController" if when == "starts" else "RayTrainWorker"
        wait_for(lambda: any(what in title for title in slot_processes()))
    else:
        (slot,) = warm.wait().values()
        assert slot["versions"]["torch"] == torchless.NOT_IMPORTED
        (worker,) = (p for p in ray_processes() if "RayTrainWorker" in p.cmdline()[0])
        worker.kill()
        wait_for(lambda: not any("RayTrainWorker" in title for title in slot_processes()))
    warm.close()
    wait_for(lambda: not slot_processes())  # they were killed just now
    assert {group["state"] for group in ray.util.placement_group_table().values()} <= {"REMOVED"}


def hang(config: dict[str, Any]) -> None:
    time.sleep(600)


def wait_for(is_so: Callable[[], bool]) -> None:
    eventually(is_so, slot_processes)


@pytest.mark.thorough
def test_a_stopped_trial_frees_its_slot_and_one_of_a_stopped_study_is_saved(
    small_study: Make, tmp_path: Path
) -> None:
    """A job of many epochs is cancelled for the next one; then one is saved with the epoch that it was in."""
    config = small_study()
    warm = slots.Slots(slots.SlotPlan(slots=1, workers=1, cpus=1, gpu=False), tmp_path / "slots")

    def epochs(name: str) -> int:
        return sum(isinstance(m, Epoch) for m in ray.get(warm.exchange.receive.remote(name)))

    try:
        warm.wait()
        long, short, last = (job(config, name, tmp_path) for name in ("long", "short", "last"))
        long, last = (replace(one, settings=replace(one.settings, epochs=10_000)) for one in (long, last))
        ray.get(warm.offer(long))
        eventually(lambda: epochs("long"), "an epoch of the long trial")
        ray.get(warm.exchange.cancel.remote("long"))
        ray.get(warm.offer(short))
        messages: list[Message] = []
        while not messages or not isinstance(messages[-1], End):
            messages += ray.get(warm.exchange.receive.remote("short", len(messages)))
        assert messages[-1].state == "complete"
        ray.get(warm.offer(last))
        eventually(lambda: epochs("last"), "an epoch of the last trial")
        heard = epochs("last")
    finally:
        warm.close()
    _, facts = checkpoint.read(tmp_path / "last.last")
    assert len(facts["history"]) > heard
    assert (tmp_path / "last.best").exists()


def job(config: StudyConfig, name: str, folder: Path) -> TrainJob:
    from search.suggest.space import Space

    space = Space(config)
    settings = space.settings(space.baseline("recipe"), number=0, cache_dir=str(resolve.cache_dir()))
    keep = Keep(metric="val/accuracy", best=folder / f"{name}.best", last=folder / f"{name}.last")
    features = resolve.feature_settings(config)
    return TrainJob(id=name, settings=settings, features=features, keep=keep, params={}, data_fingerprint="")


@pytest.mark.every_ray
@pytest.mark.thorough
def test_interrupted_trials_are_tried_again_and_a_cold_process_gives_the_bits_of_a_warm_slot(
    searched: Searched, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study that died is resumed: every interrupted trial goes on under a new number.

    Here each gets fresh processes and stored features of its own: same metrics, epoch by epoch, bit for bit.
    """
    shutil.copytree(cache / "finetune" / "weights", tmp_path / "finetune" / "weights")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _, record = searched
    folder = StudyFolder(Path(shutil.copytree(record.folder, tmp_path / "died")))
    config = yaml.safe_load(folder.config.read_text(encoding="utf-8"))
    config["study"]["isolation"], config["verdict"]["seeds"] = "process", 0
    folder.config.write_text(yaml.safe_dump(config), encoding="utf-8")
    forget(folder, numbers=(6, 8))
    again = runner.resume(folder.root)
    assert again.state == "finished"
    assert [t.number for t in again.trials if t.state == "FAIL"] == [6, 8]
    assert [t.continues for t in again.trials[9:]] == [6, 8]
    assert {t.state for t in again.trials[9:]} == {"COMPLETE"}
    for new in again.trials[9:]:
        old = record.trials[new.continues or 0]
        assert new.params == old.params
        assert scores(new.history) == scores(old.history)


@pytest.mark.thorough
def test_a_trial_that_a_slot_has_begun_before_tune_did_is_resumed(
    small_study: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The study is stopped when a slot is through with a trial that Tune has no process for yet."""

    stopping = tmp_path / "stopping"

    class UpTooLate(SlotTrial):
        def setup(self, config: dict[str, Any]) -> None:
            eventually(stopping.exists, "the study is told to stop")
            super().setup(config)

    config = small_study(study={"trials": 2}, early_stopping={"enabled": False}, resources={"slots": 1})
    folder = StudyFolder(config.folder)

    def stop_once_trained() -> None:
        try:
            wait_for(folder.best_weights("trial-0000").exists)
            tunes = signal.getsignal(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            wait_for(lambda: signal.getsignal(signal.SIGINT) is not tunes)  # it has seen the signal
        finally:
            stopping.touch()

    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(tuner, "SlotTrial", UpTooLate)
        stopped = pool.submit(stop_once_trained)
        before = runner.run(config)
        stopped.result()
    assert before.state == "interrupted"
    (begun,) = before.trials
    assert (begun.state, begun.interrupted, begun.error) == ("FAIL", True, "interrupted")
    _, trained = checkpoint.read(folder.last_weights("trial-0000"))
    after = runner.resume(folder.root)
    assert after.state == "finished"
    assert [one.continues for one in after.trials] == [None, 0, None]
    assert [len(one.history) for one in after.trials[1:]] == [3, 3]
    times = [epoch["seconds"] for epoch in after.trials[1].history]
    assert times[: len(trained["history"])] == [epoch["seconds"] for epoch in trained["history"]]


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["Ctrl-C", "budget"])
def test_a_study_that_ends_while_other_seeds_train_keeps_what_it_has(
    small_study: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Two trainings with another seed have ended, a third one runs, and the last one is being offered."""
    running, may_end = tmp_path / "running", tmp_path / "may end"
    begin = Repeats._begin

    def train(job: TrainJob, report: Report) -> EndState | None:
        if job.id.endswith("-seed-2") and not may_end.exists():
            running.touch()
            order = report.exchange.until_stopped.remote(job.id, moving=False)  # type: ignore[attr-defined]
            while not ray.wait([order], timeout=0.1)[0]:
                pass
            return "stopped"
        return torchless.train(job, report)

    plant(monkeypatch, train)
    if how == "budget":
        monkeypatch.setattr(Repeats, "_is_late", property(lambda _: running.exists()))
    config = small_study(
        study={"trials": 2, "baselines": ["recipe"]}, verdict={"seeds": 2}, resources={"slots": 1}
    )

    def interrupted(self: Repeats, again: Again, record: StudyRecord) -> dict[str, Any]:
        if (again.trial.number, again.seed) == (1, 1):
            wait_for(running.exists)
            os.kill(os.getpid(), signal.SIGINT)
        return begin(self, again, record)

    if how == "Ctrl-C":
        monkeypatch.setattr(Repeats, "_begin", interrupted)
    before = runner.run(config)
    assert before.state == ("interrupted" if how == "Ctrl-C" else "finished")
    assert [repeat["id"][-6:] for repeat in before.repeats] == ["seed-1"] * 2
    wait_for(lambda: not slot_processes())
    if how == "Ctrl-C":
        monkeypatch.setattr(Repeats, "_begin", begin)
        may_end.touch()
        after = runner.resume(config.folder)
        assert after.state == "finished"
        assert after.repeats[:2] == before.repeats
        assert len(after.repeats) == 4


def forget(folder: StudyFolder, numbers: tuple[int, ...]) -> None:
    """Put the record back to where these trials still ran, as a killed driver leaves it."""
    import sqlite3

    with sqlite3.connect(folder.database) as database:
        marks = ",".join(str(number) for number in numbers)
        trials = f"(select trial_id from trials where number in ({marks}))"
        database.execute(
            f"update trials set state = 'RUNNING', datetime_complete = null where number in ({marks})"
        )
        database.execute(f"delete from trial_values where trial_id in {trials}")
        database.execute("update study_user_attributes set value_json = '\"running\"' where key = 'state'")
    database.close()
