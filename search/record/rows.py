"""Read the rows of a record: Optuna's tables, without its objects.

Optuna makes an object of each row, such as a parameter or an epoch, which takes seconds for thousands of
trials. These queries read only what a record needs: the state of each trial and the facts about it.
"""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from optuna.distributions import json_to_distribution
from optuna.trial import TrialState

UNREAD = {
    "trial_params": "param_name, param_value",
    "trial_values": "objective, value, value_type",
    "trial_system_attributes": "key, value_json",
    "trial_intermediate_values": "intermediate_value, intermediate_value_type",
}
"""Tables and columns that only `resume` needs. A record that lacks them is damaged, whoever reads it."""


@dataclass
class Row:
    """A trial as it is stored."""

    number: int
    state: str
    facts: dict[str, Any] = field(default_factory=dict)
    """Its user attributes."""
    epochs: int = 0
    """Number of epochs of which the metric was stored."""


def read(memory: sqlite3.Connection, study: str) -> tuple[list[Row], dict[str, Any]]:
    """Return the trials of a study, in order of their numbers, and the facts about the study.

    Args:
        memory: connection to the database.
        study: name of the study.

    Raises:
        sqlite3.Error: a table or a column is missing, or there is no such study.
        KeyError, TypeError, ValueError: a value is damaged.
    """
    found = memory.execute("select study_id from studies where study_name = ?", (study,)).fetchone()
    if found is None:
        raise sqlite3.DatabaseError(f"no study named '{study}'")
    trials = {
        key: Row(number, TrialState[state].name)
        for key, number, state in memory.execute(
            "select trial_id, number, state from trials where study_id = ? order by number", found
        )
    }
    for key, name, text in memory.execute("select trial_id, key, value_json from trial_user_attributes"):
        if key in trials:
            trials[key].facts[name] = json.loads(text)
    for key, epochs in memory.execute(
        "select trial_id, count(distinct step) from trial_intermediate_values group by trial_id"
    ):
        if key in trials:
            trials[key].epochs = epochs
    _check_unread(memory)
    return list(trials.values()), dict(_facts(memory, found))


def _facts(memory: sqlite3.Connection, study_id: tuple[int]) -> Iterator[tuple[str, Any]]:
    query = "select key, value_json from study_user_attributes where study_id = ?"
    for name, text in memory.execute(query, study_id):
        yield name, json.loads(text)


def _check_unread(memory: sqlite3.Connection) -> None:
    """Read what only `resume` needs, each kind once."""
    for table, columns in UNREAD.items():
        memory.execute(f"select {columns} from {table} limit 1").fetchone()
    for (text,) in memory.execute("select distinct distribution_json from trial_params"):
        json_to_distribution(text)
