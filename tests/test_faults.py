"""Faults that are no trial's: processes of a study are killed or stopped, and no result is lost by it."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import ray.cloudpickle
from ray.exceptions import RaySystemError

from finetune.messages import Epoch, Message, Report, TrainJob
from search.config.study import StudyConfig
from search.driver import callback, runner
from search.errors import SlotsLost
from search.record.reader import read_study
from search.record.records import StudyRecord
from search.record.study_folder import StudyFolder
from search.slots import nodes, slots, supervisor
from search.slots.exchange import Exchange
from tests import torchless
from tests.waiting import eventually

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("local_ray")]
Make = Callable[..., StudyConfig]
WATCHDOG_SECONDS = 120


def process_of(title: str) -> psutil.Process | None:
    """Return a process of this test's own Ray whose title begins so; its raylet is a child of ours."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            if process.cmdline()[0].startswith(f"ray::{title}"):
                return process
    return None


def once(folder: Path, at_epoch: int, do: Callable[[], None]) -> torchless.Train:
    """Return a training that does something once, at the end of an epoch of the first trial to get there."""

    def train(job: TrainJob, report: Report) -> None:
        def told(message: Message) -> None:
            report(message)
            if isinstance(message, Epoch) and message.number == at_epoch:
                with contextlib.suppress(FileExistsError):
                    (folder / "done").touch(exist_ok=False)
                    do()

        torchless.train(job, told)

    return train


def plant(monkeypatch: pytest.MonkeyPatch, train: torchless.Train = torchless.train) -> None:
    """Have slots serve trials with workers that train nothing."""
    monkeypatch.setattr(slots, "serve", torchless.worker(train))


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop_myself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def wait_for_ever() -> None:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def assert_nothing_is_lost(record: StudyRecord, retries: int) -> None:
    assert record.state == "finished"
    assert {trial.state for trial in record.trials} == {"COMPLETE"}
    assert [[epoch["epoch"] for epoch in trial.history] for trial in record.trials] == [[1, 2, 3]] * 4
    assert sum(trial.retries for trial in record.trials) == retries


def test_a_trial_whose_worker_is_killed_is_tried_again(
    small_study: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, once(tmp_path, 2, kill_myself))
    record = runner.run(small_study(early_stopping={"enabled": False}))
    assert (tmp_path / "done").exists()
    assert_nothing_is_lost(record, retries=1)


@pytest.mark.thorough
@pytest.mark.parametrize("silent", [wait_for_ever, stop_myself])
def test_a_trial_that_makes_no_progress_is_tried_again(
    silent: Callable[[], None], small_study: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Train's own check does not see a deadlock, as a thread of its own answers it."""
    plant(monkeypatch, once(tmp_path, 2, silent))
    record = runner.run(small_study(study={"trial_timeout": "10s"}, early_stopping={"enabled": False}))
    assert (tmp_path / "done").exists()
    assert_nothing_is_lost(record, retries=1)


@pytest.mark.thorough
def test_a_trial_whose_train_controller_is_killed_is_tried_again(
    small_study: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with at_first_result(monkeypatch, tmp_path, "TrainController", goes_on=False):
        record = runner.run(small_study(resources={"slots": 1}, early_stopping={"enabled": False}))
    assert_nothing_is_lost(record, retries=1)


@pytest.mark.thorough
@pytest.mark.parametrize("who", ["Exchange", "Supervisor"])
def test_a_study_whose_exchange_or_keeper_is_killed_ends_interrupted_and_resumes_whole(
    who: str, small_study: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_study(early_stopping={"enabled": False})
    folder = StudyFolder(config.folder)
    plant(monkeypatch)  # for the resume
    with at_first_result(monkeypatch, tmp_path, who), pytest.raises(SlotsLost) as ended:
        runner.run(config)
    assert folder.table.read_text().count("\n") == 1 + len(read_study(folder).trials)
    name = "exchange" if who == "Exchange" else "supervisor"
    assert f"the {name}" in str(ended.value)
    assert f"`python -m search resume {folder.root}` goes on" in str(ended.value)
    assert "\n" not in str(ended.value)
    record = read_study(folder)
    assert record.state == "interrupted"
    eventually(lambda: ray.available_resources().get("CPU") == 2, "nothing is held of the slots")
    assert all(trial.interrupted for trial in record.trials if trial.state != "COMPLETE")
    if who == "Exchange":  # the record of the other one is no different
        again = runner.resume(folder.root)
        assert again.state == "finished"
        assert sum(trial.state == "COMPLETE" for trial in again.trials) == 4


@contextlib.contextmanager
def at_first_result(
    monkeypatch: pytest.MonkeyPatch, folder: Path, title: str, goes_on: bool = True
) -> Iterator[None]:
    """Kill a process once the driver hears of the first epoch; its trial goes on only then, or not at all."""
    enter = callback.StudyCallback.on_trial_result

    def kill(self: callback.StudyCallback, *args: Any, **info: Any) -> None:
        enter(self, *args, **info)
        if not (folder / "killed").exists():
            process = process_of(title)
            assert process is not None
            process.kill()
            (folder / "killed").touch()

    def wait_for_it() -> None:
        deadline = time.monotonic() + WATCHDOG_SECONDS
        while not (goes_on and (folder / "killed").exists()) and time.monotonic() < deadline:
            time.sleep(0.05)

    with monkeypatch.context() as patch:
        patch.setattr(callback.StudyCallback, "on_trial_result", kill)
        plant(patch, once(folder, 2, wait_for_it))
        yield
    assert (folder / "killed").exists()


@pytest.mark.thorough
def test_who_waits_for_the_first_slot_hears_that_the_keeper_has_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(slots, "serve", lambda config: time.sleep(600))
    plan = slots.SlotPlan(slots=1, workers=1, cpus=1, gpu=False)
    warm = slots.Slots(plan, tmp_path / "slots")
    killed = threading.Event()

    def kill() -> None:
        deadline = time.monotonic() + WATCHDOG_SECONDS
        while (process := process_of("Supervisor")) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if process is not None:
            process.kill()
            killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        with pytest.raises(SlotsLost, match="the supervisor of the slots has died"):
            warm.wait(seconds=WATCHDOG_SECONDS)
    finally:
        warm.close()
        thread.join()
    assert killed.is_set()


@pytest.mark.thorough
@pytest.mark.parametrize("misses", [2, 9])
def test_a_keeper_outlives_a_ray_that_does_not_answer_for_a_moment_but_not_for_long(
    misses: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def about_to_go() -> frozenset[str]:
        looks.append(time.monotonic())
        if len(looks) <= misses:
            raise RaySystemError(ConnectionError("the state service starts again"))
        return frozenset()

    monkeypatch.setattr(supervisor, "MISSES_AT_MOST", 5)
    monkeypatch.setattr(supervisor, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(nodes, "about_to_go", about_to_go)
    exchange = ray.remote(Exchange).options(max_concurrency=100).remote()
    too_large = slots.SlotPlan(slots=1, workers=1, cpus=1000, gpu=False)
    kept = supervisor.Supervisor(exchange, too_large, str(tmp_path), {}, slots.serve, None)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(kept.run)
        deadline = time.monotonic() + WATCHDOG_SECONDS
        while len(looks) < 20 and not running.done() and time.monotonic() < deadline:
            time.sleep(0.05)
        ray.get(exchange.close.remote())
        ended = running.exception(timeout=WATCHDOG_SECONDS)
    assert (ended is None) == (misses == 2), ended
    assert misses == 2 or "the state service starts again" in str(ended)
