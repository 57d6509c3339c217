"""The ranked table."""

import re
from typing import Any

from search.record.records import TrialRecord
from search.report.html import Markup, details, join, table, tag, text
from search.report.material import Material
from search.report.section import Section
from search.views.ranking import state_of
from search.views.table import cell

SHOWN = 12
"""Trials in the first table; the second one, which opens on a click, has all of them."""
FIRST = ("strategy", "learning_rate", "head_size", "frozen_layers")


def section(material: Material) -> Section:
    """Return the best trials and the baselines, and below them every trial with all searched settings."""
    ranked = material.ranked
    short = [trial for i, trial in enumerate(ranked) if i < SHOWN or trial.baseline]
    searched = _searched(material)
    parts: list[Any] = [_table(material, short, FIRST, "The best trials, and the baselines")]
    if ranked:
        every = (*FIRST, *(name for name in searched if name not in FIRST))
        whole = _table(material, ranked, every, "Every trial; click a column to sort by it", sortable=True)
        parts.append(details("All trials with every searched setting", whole))
    return Section("trials", "Ranked trials", parts)


def _table(
    material: Material,
    trials: list[TrialRecord],
    settings: tuple[str, ...],
    caption: object,
    *,
    sortable: bool = False,
) -> Markup:
    score = f"best {material.metric}"
    head = ["rank", "trial", score, *map(_title, settings), "state", "epochs", "seconds"]
    rows = (_row(material, trial, settings) for trial in trials)
    return table(head, rows, caption=caption, sortable=sortable)


def _searched(material: Material) -> list[str]:
    """Return the settings that differ between trials."""
    values: dict[str, set[str]] = {}
    for trial in material.record.trials:
        for name, value in trial.params.items():
            values.setdefault(name, set()).add(repr(value))
    count = len(material.record.trials)
    sizes = {name: sum(name in t.params for t in material.record.trials) for name in values}
    return [name for name, seen in values.items() if len(seen) > 1 or sizes[name] < count]


def _title(name: str) -> str:
    return name.replace("_", " ")


def _row(material: Material, trial: TrialRecord, settings: tuple[str, ...]) -> list[object]:
    at = material.place(trial)
    name = tag("span", trial.id, class_="id")
    if trial.baseline:
        name = join([name, " ", tag("span", trial.baseline, class_="pill")])
    return [
        material.number("d", "analysis", "ranks", trial.id),
        name,
        material.score_of(trial),
        *(_setting(material, trial, name) for name in settings),
        state_of(trial),
        material.number("d", *at, "epochs"),
        material.number(".1f", *at, "seconds"),
    ]


def _setting(material: Material, trial: TrialRecord, name: str) -> object:
    """Return a setting as the table in a terminal shows it, each number of it with its place."""
    value, used = trial.params.get(name, trial.effective.get(name)), trial.effective
    where = "params" if name in trial.params else "effective"
    if value is None or cell(trial, name) == "all":
        return cell(trial, name).replace("-", "–") if value is None else "all"
    if name == "frozen_layers" and isinstance(value, float) and "frozen_blocks" in used:
        return join(
            [
                setting(material, "effective", "frozen_blocks", trial),
                " (",
                setting(material, where, name, trial),
                ")",
            ]
        )
    if name == "learning_rate" and "learning_rate_limit" in used:
        limit = setting(material, "effective", "learning_rate_limit", trial)
        return join([limit, " (", setting(material, where, name, trial), ")"])
    return setting(material, where, name, trial)


def setting(material: Material, where: str, name: str, trial: TrialRecord) -> Markup:
    """Return one of a trial's `params` or `effective` settings with its place."""
    at = (*material.place(trial), where, name)
    value = material.value(*at)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return material.quote(*at) if re.search(r"\d", str(value)) else text(value)
    return material.number(".3g" if isinstance(value, float) else "d", *at)
