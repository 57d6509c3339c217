"""Settings that mattered: importance within each strategy, all settings side by side, and each one alone."""

from typing import Any

from search.record.records import TrialRecord, standing
from search.report import figures, importance, space_figures
from search.report.html import Markup, number, table, tag
from search.report.material import Material
from search.report.section import Figure, Section

SLICES = 8
"""Settings that get a picture of their own; the most important come first."""


def section(material: Material) -> Section | None:
    """Return importances, parallel coordinates and slices, or None if fewer than two trials have a score."""
    trials = [t for t in standing(material.record.trials) if material.score(t) is not None]
    searched = importance.searched(trials)
    if len(trials) < 2 or not searched:
        return None
    parts: list[Any] = []
    found = importance.within_strategies(trials, material.record.objective)
    if found:
        parts.append(_importances(found))
    else:
        least = importance.LEAST_TRIALS
        parts.append(
            tag("p", f"Importance needs {least} sampled trials of one strategy; no strategy has them.")
        )
    parts.append(_parallel(material, trials, searched))
    weight = {name: max((of.get(name, 0.0) for of in found.values()), default=0.0) for name in searched}
    first = sorted((n for n in searched if n != "strategy"), key=lambda n: -weight[n])[:SLICES]
    if first:
        strategies = dict.fromkeys(str(t.params.get("strategy")) for t in trials)
        dots = (
            tag("span", tag("i", style=f"background:{figures.colour(s)}"), s, class_="key")
            for s in strategies
        )
        parts.append(tag("p", Markup("Each setting alone, a dot for each trial: "), *dots))
    parts += [_slice(material, trials, name) for name in first]
    return Section("space", "What mattered", parts)


def _importances(found: dict[str, dict[str, float]]) -> Figure:
    told = []
    for strategy, values in found.items():
        name, share = max(values.items(), key=lambda item: item[1])
        told.append(f"{name.replace('_', ' ')} within {strategy} ({100 * share:.0f} %)")
    rows = [
        [s, n.replace("_", " "), number(v, ".3f")] for s, values in found.items() for n, v in values.items()
    ]
    sentence = (
        f"What explains most of the differences: {', '.join(told)}. Each strategy is looked at alone, as "
        "they do not share all settings (PED-ANOVA; stopped trials count with the score that they reached)."
    )
    numbers = table(["strategy", "setting", "share"], rows, caption="Importance within each strategy")
    return Figure("importance", space_figures.importances(found), sentence, numbers, height=_bars(found))


def _bars(found: dict[str, dict[str, float]]) -> int:
    return 130 + 26 * max(len(values) for values in found.values()) * len(found)


def _parallel(material: Material, trials: list[TrialRecord], searched: list[str]) -> Figure:
    numeric = [n for n in searched if n != "strategy"]
    best = material.record.best
    chosen = "" if best is None else f" The best, {best.id}, is drawn thick."
    sentence = (
        f"Each line is a trial, from its settings on the left to its {material.metric} on the right; click a "
        f"group in the legend to hide it.{chosen}"
    )
    groups = space_figures.groups(trials, material.record.objective)
    rows = [
        [name, number(len(some), "d"), number(min(scores), ".4f"), number(max(scores), ".4f")]
        for name, some in groups
        if (scores := [s for t in some if (s := material.score(t)) is not None])
    ]
    numbers = table(["group", "trials", "lowest", "highest"], rows, caption="Groups of the lines")
    figure = space_figures.parallel(groups, ["strategy"] * ("strategy" in searched) + numeric, material)
    return Figure("parallel", figure, sentence, numbers, height=400)


def _slice(material: Material, trials: list[TrialRecord], name: str) -> Figure:
    mine = [t for t in trials if t.params.get(name) is not None]
    best = min(mine, key=lambda t: material.record.objective.key(material.score(t)))
    title = name.replace("_", " ")
    value = best.params[name]
    shown = "all" if importance.is_all(name, value) else f"{value:.3g}" if isinstance(value, float) else value
    sentence = f"{title}: the best score has {shown}."
    top = sorted(mine, key=lambda t: material.record.objective.key(material.score(t)))[:10]
    rows = [
        [
            t.id,
            str(t.params.get("strategy", "–")),
            str(t.params[name])
            if isinstance(t.params[name], bool | str) or importance.is_all(name, t.params[name])
            else number(t.params[name], ".3g", *material.place(t), "params", name),
            number(material.score(t), ".4f", *material.place(t), "metrics", "best", material.record.metric),
        ]
        for t in top
    ]
    numbers = table(["trial", "strategy", title, material.metric], rows, caption=f"The ten best by {title}")
    return Figure(
        f"slice-{name}",
        space_figures.of_setting(mine, name, material),
        sentence,
        numbers,
        height=240,
        small=True,
    )
