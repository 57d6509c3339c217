"""The ranked table."""

from typing import Any

from search.record.records import TrialRecord
from search.report.html import Markup, details, number, table, tag
from search.report.material import Material
from search.report.section import Section
from search.views.table import cell, state_of

SHOWN = 12
"""Trials in the first table; the second one, which opens on a click, has all of them."""
FIRST = ("strategy", "learning_rate", "head_size", "frozen_layers")


def section(material: Material) -> Section:
    """Return the best trials and the baselines, and below them every trial with all searched settings."""
    ranked = material.ranked
    short = [trial for i, trial in enumerate(ranked) if i < SHOWN or trial.baseline]
    searched = _searched(material)
    head = ["rank", "trial", f"best {material.metric}", *map(_title, FIRST), "state", "epochs", "seconds"]
    places = {trial.number: place for place, trial in enumerate(ranked, start=1)}
    caption = f"The best of {len(ranked)} trials, and the baselines"
    parts: list[Any] = [
        table(head, (_row(material, t, places[t.number], FIRST) for t in short), caption=caption),
    ]
    if ranked:
        every = [*FIRST, *(name for name in searched if name not in FIRST)]
        wide = ["rank", "trial", f"best {material.metric}", *map(_title, every), "state", "epochs", "seconds"]
        rows = (_row(material, t, places[t.number], every) for t in ranked)
        whole = table(wide, rows, caption="Every trial; click a column to sort by it", sortable=True)
        parts.append(details(f"All {len(ranked)} trials with every searched setting", whole))
    return Section("trials", "Ranked trials", parts)


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


def _row(material: Material, trial: TrialRecord, place: int, settings: Any) -> list[object]:
    record = material.record
    score = trial.metrics["best"].get(record.metric)
    at = material.place(trial)
    name = tag("span", trial.id, class_="id")
    if trial.baseline:
        name = Markup(f"{name} {tag('span', trial.baseline, class_='pill')}")
    return [
        place if trial.state == "COMPLETE" and score is not None else "–",
        name,
        number(score, ".4f", *at, "metrics", "best", record.metric),
        *(_setting(trial, name, at) for name in settings),
        state_of(trial),
        number(trial.epochs, "d", *at, "epochs"),
        number(trial.seconds, ".1f", *at, "seconds"),
    ]


def _setting(trial: TrialRecord, name: str, at: tuple[object, ...]) -> object:
    value = trial.params.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or name == "frozen_layers":
        return cell(trial, name)
    return number(value, ".3g" if isinstance(value, float) else "d", *at, "params", name)
