"""Settings that mattered: importance within each strategy, all settings side by side, and each one alone."""

from typing import Any

from search.record.records import TrialRecord
from search.report import figures, space_figures
from search.report.html import Markup, join, table, tag
from search.report.material import Material
from search.report.section import Figure, Section
from search.report.sections.trials import setting
from search.views.analysis import importance
from search.views.analysis.trials import groups, scored

SLICES = 8
"""Settings that get a picture of their own; the most important come first."""
TOLD = 10
"""Trials in the table of a setting."""
AT = ("analysis", "importance")


def section(material: Material) -> Section | None:
    """Return importances, parallel coordinates and slices, or None if fewer than two trials have a score."""
    trials = scored(material.record)
    searched = importance.searched(trials)
    if len(trials) < 2 or not searched:
        return None
    found: dict[str, dict[str, float]] = material.value(*AT)
    parts: list[Any] = [_importances(material, found) if found else _no_importances(material)]
    parts.append(_parallel(material, searched))
    weight = {name: max((of.get(name, 0.0) for of in found.values()), default=0.0) for name in searched}
    first = sorted((n for n in searched if n != "strategy"), key=lambda n: -weight[n])[:SLICES]
    if first:
        strategies = dict.fromkeys(str(t.params.get("strategy")) for t in trials)
        dots = (
            tag("span", tag("i", style=f"background:{figures.colour(s)}"), s, class_="key")
            for s in strategies
        )
        parts.append(tag("p", "Each setting alone, a dot for each trial: ", *dots))
    parts += [_slice(material, trials, name) for name in first]
    return Section("space", "What mattered", parts)


def _no_importances(material: Material) -> Markup:
    least = material.number("d", "analysis", "rules", "least_trials_for_importance")
    return tag("p", "Importance needs ", least, " sampled trials of one strategy; no strategy has them.")


def _importances(material: Material, found: dict[str, dict[str, float]]) -> Figure:
    told = []
    for strategy, values in found.items():
        name = max(values, key=lambda name: values[name])
        share = material.percent(0, *AT, strategy, name)
        told.append(join([f"{name.replace('_', ' ')} within {strategy} (", share, ")"]))
    rows = [
        [strategy, name.replace("_", " "), material.number(".3f", *AT, strategy, name)]
        for strategy, values in found.items()
        for name in values
    ]
    sentence = join(
        [
            "What explains most of the differences: ",
            join(told, ", "),
            ". Each strategy is looked at alone, as they do not share all settings (PED-ANOVA; stopped "
            "trials count with the score that they reached).",
        ]
    )
    numbers = table(["strategy", "setting", "share"], rows, caption="Importance within each strategy")
    return Figure("importance", space_figures.importances(found), sentence, numbers, height=_bars(found))


def _bars(found: dict[str, dict[str, float]]) -> int:
    return 130 + 26 * max(len(values) for values in found.values()) * len(found)


def _parallel(material: Material, searched: list[str]) -> Figure:
    numeric = [n for n in searched if n != "strategy"]
    best = material.record.best
    chosen = "" if best is None else f" The best, {best.id}, is drawn thick."
    sentence = join(
        [
            f"Each line is a trial, from its settings on the left to its {material.metric} on the right; "
            f"click a group in the legend to hide it.{chosen}"
        ]
    )
    at = ("analysis", "groups")
    rows = [
        [
            material.named(*at, name),
            material.number("d", *at, name, "trials"),
            material.number(".4f", *at, name, "lowest"),
            material.number(".4f", *at, name, "highest"),
        ]
        for name in material.value(*at)
    ]
    numbers = table(["group", "trials", "lowest", "highest"], rows, caption="Groups of the lines")
    shown = ["strategy"] * ("strategy" in searched) + numeric
    figure = space_figures.parallel(groups(material.record), shown, material)
    return Figure("parallel", figure, sentence, numbers, height=400)


def _slice(material: Material, trials: list[TrialRecord], name: str) -> Figure:
    mine = [t for t in trials if t.params.get(name) is not None]
    top = sorted(mine, key=lambda t: material.record.objective.key(material.score(t)))[:TOLD]
    title = name.replace("_", " ")
    sentence = join([f"{title}: the best score has ", _value(material, top[0], name), "."])
    rows = [
        [t.id, str(t.params.get("strategy", "–")), _value(material, t, name), material.score_of(t)]
        for t in top
    ]
    numbers = table(["trial", "strategy", title, material.metric], rows, caption=f"The best by {title}")
    return Figure(
        f"slice-{name}",
        space_figures.of_setting(mine, name, material),
        sentence,
        numbers,
        height=240,
        small=True,
    )


def _value(material: Material, trial: TrialRecord, name: str) -> object:
    """Return the value that was searched; the figure shows the same."""
    if importance.is_all(name, trial.params[name]):
        return "all"
    return setting(material, "params", name, trial)
