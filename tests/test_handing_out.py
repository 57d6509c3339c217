"""A study from its first trial to its last with the parts that Tune drives, without Ray or training."""

import sys
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Experiment
from ray.tune.search import SearchGenerator

from search.driver import tuner
from search.driver.trial import SlotTrial
from search.driver.tuner import Room
from search.record import reader
from search.record.records import StudyRecord
from search.record.study_folder import StudyFolder
from search.suggest.stopping import EarlyStopping
from tests.by_hand import run_of
from tests.test_choosing import score

SPACE = {"strategy": ["replace", "load", "fuse"]}


def searched(folder: StudyFolder, *, until: int = sys.maxsize, **study: Any) -> StudyRecord:
    """Run a study with two slots, or so many of its trials; return its record."""
    run = run_of(folder, space=SPACE, sampler="auto", epochs=4, **study)
    config = run.config
    stopping = EarlyStopping(
        objective=config.study.objective,
        epochs=4,
        grace=config.grace,
        factor=3,
        rule="asha",
        strategy_of=run.searcher.strategy_of,
        number_of=run.searcher.number_of,
    )
    stopping.replay(run._past)
    tune = SearchGenerator(Room(run.searcher, 2, lambda: max(2, run._room())))
    tune.add_configurations([Experiment("study", SlotTrial, num_samples=sys.maxsize)])
    running: list[Any] = []
    ended = 0
    while ended < until:
        trial = tune.next_trial() if len(running) < 2 else None
        if trial is not None:
            run.watch.on_trial_start(0, [], trial)
            running.append(trial)
            continue
        if not running:
            break
        trial = running.pop(0)
        params = run.searcher.suggested[trial.trial_id].job.params
        for epoch in range(1, 5):
            result = {"epoch": epoch, "val/accuracy": score(params) - 0.05 / epoch}
            run.watch.on_trial_result(0, [], trial, dict(result))
            if stopping.on_trial_result(None, trial, result) == "STOP":
                break
        stopping.on_trial_complete(None, trial, result)
        run.watch.on_trial_complete(0, [], trial)
        tune.on_trial_complete(trial.trial_id, result)
        ended += 1
    run.ledger.flush()
    run.close(1.0)
    return reader.read_study(folder)


def test_a_study_ends_when_it_has_its_trials_that_train_blocks(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    study = searched(StudyFolder(tmp_path / "small"), trials=12)
    counted = [trial for trial in study.trials if trial.counted]
    assert len(counted) == 12
    assert {trial.params["strategy"] for trial in counted} == {"fuse"}
    heads = [trial for trial in study.trials if not trial.counted]
    assert {trial.params["strategy"] for trial in heads} == {"replace", "load"}
    assert study.planned == len(study.trials)
    assert [trial.number for trial in study.trials] == list(range(len(study.trials)))


def test_a_study_that_was_cut_off_comes_to_the_same_number_of_trials(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    folder = StudyFolder(tmp_path / "small")
    first = searched(folder, trials=12, until=7)
    assert sum(trial.interrupted for trial in first.trials) >= 1
    study = searched(folder, trials=12)
    done = [trial for trial in study.trials if not trial.interrupted]
    assert sum(trial.counted for trial in done) == 12
    tried = [tuple(sorted(trial.params.items())) for trial in done]
    assert len(set(tried)) == len(tried), "starts and interrupted trials ran once"


def test_a_node_that_is_short_of_memory_is_one_line_and_other_errors_stay(tmp_path: Path) -> None:
    """The words are those of Ray's memory monitor, which ended a process of Tune's when it was tried."""
    said = "2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2)"
    error = RuntimeError(
        f"Caught unexpected exception: {said} was 4.17GB used / 23.54GB limit (0.17)\n\nMuch"
    )
    told = str(tuner.short_of_memory(error, tmp_path))
    assert told.startswith(
        f"{tmp_path}: the node must have memory for the study, got 4.17GB used / 23.54GB limit"
    )
    assert f"`python -m search resume {tmp_path}` goes on" in told
    assert "\n" not in told
    assert tuner.short_of_memory(RuntimeError("Caught unexpected exception: another"), tmp_path) is None
