"""The mirrors: whatever they write many trials at a time is what Optuna would have written one by one."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import event

from search.record.mirror import PlainMirror, Writer, fits, make
from search.record.sqlite import Mirror
from search.record.storage import open_storage

Kind = type[Mirror] | type[PlainMirror]

TABLES = {
    "trials": "number, study_id, state, datetime_start, datetime_complete",
    "trial_params": "number, param_name, param_value, distribution_json",
    "trial_values": "number, objective, value, value_type",
    "trial_intermediate_values": "number, step, intermediate_value, intermediate_value_type",
    "trial_user_attributes": "number, key, value_json",
    "trial_system_attributes": "number, key, value_json",
}


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[RDBStorage]:
    yield from opened(tmp_path / "ours.db")


@pytest.fixture
def by_optuna(tmp_path: Path) -> Iterator[RDBStorage]:
    yield from opened(tmp_path / "theirs.db")


def opened(path: Path) -> Iterator[RDBStorage]:
    storage = open_storage(path)
    optuna.create_study(storage=storage, study_name="study", direction="maximize")
    yield storage
    storage.remove_session()
    storage.engine.dispose()


def memory() -> optuna.Study:
    """A study with every kind of parameter, value, fact, state and number that is not finite."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial({"rate": 0.01})
    for state, values in [
        (TrialState.COMPLETE, [0.5, math.nan, 0.9]),
        (TrialState.PRUNED, [math.inf]),
        (TrialState.FAIL, []),
        (TrialState.COMPLETE, [-math.inf, 0.1]),
        (TrialState.RUNNING, [0.3]),
    ]:
        trial = study.ask()
        trial.suggest_float("rate", 1e-4, 1.0, log=True)
        trial.suggest_int("width", 0, 512, step=64)
        trial.suggest_categorical("strategy", ("replace", None, 3))
        trial.set_user_attr("params", {"rate": 0.01, "strategy": "größer"})
        trial.set_user_attr("history", [{"epoch": 1, "val/loss": 0.25}])
        for epoch, value in enumerate(values, start=1):
            trial.report(value, epoch)
        if state != TrialState.RUNNING:
            best = math.inf if len(values) == 2 else 0.9
            study.tell(trial, best if state == TrialState.COMPLETE else None, state)
    return study


def rows(storage: RDBStorage) -> dict[str, list[Any]]:
    with storage.engine.connect() as database:
        return {
            table: [
                tuple(row)
                for row in database.exec_driver_sql(
                    f"select {columns} from {table}"
                    + (" join trials using (trial_id)" if table != "trials" else "")
                    + f" order by {columns}"
                )
            ]
            for table, columns in TABLES.items()
        }


def mirror(storage: RDBStorage, kind: Kind = Mirror) -> Writer:
    return kind(storage, storage.get_study_id_from_name("study"))


both = pytest.mark.parametrize("kind", [Mirror, PlainMirror])


def test_the_tables_are_written_only_with_the_optuna_that_they_are_known_of(
    stored: RDBStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(make(stored, "study"), Mirror)
    monkeypatch.setattr(optuna, "__version__", "5.1.0")
    assert isinstance(make(stored, "study"), PlainMirror)
    assert fits("5.0.3")
    assert not fits("5.1.0")


@both
def test_the_rows_are_those_that_optuna_writes(stored: RDBStorage, by_optuna: RDBStorage, kind: Kind) -> None:
    trials = memory().get_trials(deepcopy=False)
    mirror(stored, kind).write(trials)
    for trial in trials:
        by_optuna.create_new_trial(by_optuna.get_study_id_from_name("study"), template_trial=trial)
    ours = rows(stored)
    assert all(ours[table] for table in TABLES)
    assert ours == rows(by_optuna)


@both
def test_a_trial_that_is_written_as_it_goes_on_ends_like_one_written_once(
    stored: RDBStorage, by_optuna: RDBStorage, kind: Kind
) -> None:
    ours = mirror(stored, kind)
    study = optuna.create_study(direction="maximize")
    trial = study.ask()
    trial.suggest_float("rate", 0, 1)
    trial.set_user_attr("params", {"rate": 0.5})

    def now() -> FrozenTrial:
        return study.get_trials()[0]

    ours.write([now()])
    assert rows(stored)["trials"][0][2] == "RUNNING"
    for epoch in (1, 2, 3):
        trial.report(epoch / 10, epoch)
        ours.write([now()])
        ours.write([now()])
    trial.set_user_attr("seconds", 1.5)
    study.tell(trial, 0.3)
    ours.write([now()])
    mirror(by_optuna).write([now()])
    # Optuna's own call enters the time at which it is told of the end.
    without_end = 4 if kind is PlainMirror else None
    assert [row[:without_end] for row in rows(stored).pop("trials")] == [
        row[:without_end] for row in rows(by_optuna).pop("trials")
    ]
    assert {name: now for name, now in rows(stored).items() if name != "trials"} == {
        name: now for name, now in rows(by_optuna).items() if name != "trials"
    }
    assert len(rows(stored)["trial_intermediate_values"]) == 3


@both
def test_an_epoch_that_arrives_while_a_round_is_committed_is_written_by_the_next(
    stored: RDBStorage, kind: Kind
) -> None:
    """The trial may be the one that Optuna goes on writing into."""
    study = optuna.create_study(direction="maximize")
    trial = study.ask()
    frozen = study._storage.get_trial(trial._trial_id)
    ours = mirror(stored, kind)
    late = [0.25]

    @event.listens_for(stored.engine, "commit")
    def report(_connection: object) -> None:
        if late:
            frozen.intermediate_values[1] = late.pop()

    ours.write([frozen])
    assert rows(stored)["trial_intermediate_values"] == []
    ours.write([frozen])
    assert [row[2] for row in rows(stored)["trial_intermediate_values"]] == [0.25]


@both
def test_optuna_goes_on_with_what_was_mirrored(stored: RDBStorage, kind: Kind) -> None:
    """Its numbers, its best trial and its sampler take the mirrored trials for their own."""
    mirror(stored, kind).write(memory().get_trials(deepcopy=False)[:4])
    study = optuna.load_study(storage=stored, study_name="study")
    assert study.best_trial.number == 3
    assert study.ask().number == 4
    assert study.trials[0].distributions["rate"] == optuna.distributions.FloatDistribution(1e-4, 1, log=True)


def test_a_round_is_written_whole_or_not_at_all(stored: RDBStorage) -> None:
    good, bad, *_ = memory().get_trials()
    bad.user_attrs["fact"] = object()  # JSON cannot hold it
    ours = mirror(stored)
    with pytest.raises(TypeError, match="JSON"):
        ours.write([good, bad])
    assert not any(rows(stored).values())
