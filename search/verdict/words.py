"""The verdict on a search: scores over several seeds, turned into words with intervals by one function."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from finetune.metrics import Objective
from search.verdict.paired import LEAST_SEEDS, Interval, Runs, difference

CONFIDENCE = 0.95
"""Confidence that all intervals of a verdict hold at once: each has 1 - 0.05 / their number (Bonferroni)."""
SPLITS = {"test": "test", "val": "validation"}
"""Name of each split for people."""

Outcome = Literal["better", "worse", "cannot be told apart", "not measured"]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One setting of the search, trained again with other seeds."""

    trial: str
    """Id of its trial in the search, such as `trial-0008`."""
    strategy: str
    baseline: str | None = None
    """`recipe` or `scratch`, or None."""
    chosen: float
    """The validation score of the trial, which was one of those that the search chose from."""
    again: tuple[float, ...] = ()
    """Validation scores of the same setting with other seeds, (S,)."""
    failed: int = 0
    """Number of further seeds that failed or did not fit into the budget."""
    runs: Runs | None = None
    """The same S models on the images that the verdict is measured on; None if there are none."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The winner against one other setting."""

    against: str
    """`recipe`, `runner-up`, or the name of a strategy."""
    trial: str
    outcome: Outcome
    difference: float | None = None
    """Mean score of the winner minus the other's, positive if the winner is better; None if not measured."""
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    """Seeds that both have."""
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Luck:
    """The winner's curse: how much of the score that chose the winner it did not keep over other seeds."""

    chosen: float
    mean: float
    """Mean validation score over the other seeds."""
    difference: float
    """The part that was luck; positive if the score that chose the winner was too good."""
    won_by_luck: bool
    """True if another setting has at least this mean, so that the winner's place was luck."""
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A statement about the winner of a search, in words and in numbers."""

    winner: str | None
    """Id of the trial, None if no trial completed."""
    sentence: str
    """The verdict in one or two sentences."""
    split: str
    """`test` or `val`: the images that it was measured on; empty if it was not measured."""
    images: int = 0
    seeds: int = 0
    """Seeds of the winner besides the one that was chosen."""
    score: float | None = None
    """Mean score of the winner over the seeds on these images."""
    comparisons: tuple[Comparison, ...] = ()
    luck: Luck | None = None
    note: str = ""
    """Limits of the verdict: nothing independent was measured, seeds failed."""

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as plain JSON values."""
        return asdict(self)

    @property
    def lines(self) -> list[str]:
        """The verdict as lines, the most important first."""
        luck = [self.luck.sentence] if self.luck else []
        return [
            self.sentence,
            *(c.sentence for c in self.comparisons),
            *luck,
            *[self.note][: bool(self.note)],
        ]


def from_json(values: dict[str, Any]) -> Verdict:
    """Return the verdict that `to_json` gave.

    Raises:
        TypeError: a field is missing or unknown.
    """
    luck = values["luck"]
    return Verdict(
        **values
        | {
            "comparisons": tuple(Comparison(**one) for one in values["comparisons"]),
            "luck": None if luck is None else Luck(**luck),
        }
    )


def verdict(
    winner: Contestant | None, others: Sequence[Contestant], *, objective: Objective, split: str
) -> Verdict:
    """Return what the scores say about the winner.

    Args:
        winner: the setting that the search chose; None if no trial completed.
        others: the settings that it is compared with, the runner-up first.
        objective: the study's metric, such as `val/accuracy`.
        split: `test`, or `val` if there are no test images.
    """
    if winner is None:
        return Verdict(
            winner=None,
            sentence=f"No verdict: no trial completed with {objective.metric}.",
            split="",
            comparisons=(),
        )
    scale = Scale(objective.metric)
    pairs = _pairs(winner, others)
    level = 1 - (1 - CONFIDENCE) / max(1, len(pairs))
    compared = tuple(_compare(winner, other, name, level, objective, split) for name, other in pairs)
    runs = winner.runs
    measured = runs is not None and runs.are_enough
    luck = _luck(winner, others, objective) if len(winner.again) and not _is_solved(winner) else None
    return Verdict(
        winner=winner.trial,
        sentence=_sentence(winner, compared, luck, scale, split if measured else ""),
        split=split if measured else "",
        images=runs.credits.shape[1] if runs is not None and measured else 0,
        seeds=len(winner.again),
        score=float(runs.scores.mean()) if runs is not None and measured else None,
        comparisons=compared,
        luck=luck,
        note=_note(winner, others, split, measured=measured),
    )


@dataclass(frozen=True)
class Scale:
    """Format of the scores and differences of a metric."""

    metric: str

    @property
    def is_share(self) -> bool:
        """True if the metric is a share, whose differences are told in points (hundredths)."""
        return self.metric.removeprefix("val/") not in ("loss",)

    def gain(self, value: float) -> str:
        """Return a difference as text with its sign."""
        if self.is_share:
            return f"{100 * value:+.2f} points"
        return f"{value:+.4f}"

    def bounds(self, low: float, high: float) -> str:
        """Return an interval as text."""
        if self.is_share:
            return f"{100 * low:+.2f} to {100 * high:+.2f}"
        return f"{low:+.4f} to {high:+.4f}"


def name_of(contestant: Contestant) -> str:
    """Return a setting's name for people, such as `trial-0008 (fuse)`."""
    if contestant.baseline:
        return f"{contestant.trial} (the {contestant.baseline})"
    return f"{contestant.trial} ({contestant.strategy})"


def _is_solved(contestant: Contestant) -> bool:
    return contestant.runs is not None and contestant.runs.solved


def _seeds(contestant: Contestant) -> int:
    return len(contestant.runs.scores) if contestant.runs else 0


def _pairs(winner: Contestant, others: Sequence[Contestant]) -> list[tuple[str, Contestant]]:
    """Return whom the winner is compared with: the recipe, the runner-up, the best of each other strategy."""
    pairs: list[tuple[str, Contestant]] = []
    recipe = next((one for one in others if one.baseline == "recipe"), None)
    if recipe is not None:
        pairs.append(("recipe", recipe))
    sampled = [one for one in others if one.baseline is None]
    if sampled:
        pairs.append(("runner-up", sampled[0]))
    seen = {winner.strategy} | {one.strategy for name, one in pairs if name == "runner-up"}
    for one in sampled:
        if one.strategy not in seen:
            seen.add(one.strategy)
            pairs.append((one.strategy, one))
    return pairs


def _compare(
    winner: Contestant,
    other: Contestant,
    name: str,
    level: float,
    objective: Objective,
    split: str,
) -> Comparison:
    scale = Scale(objective.metric)
    title = {"recipe": "Against the recipe", "runner-up": "Against the runner-up"}.get(
        name, f"Against the best of {name}"
    )
    whom = f"{title} ({other.trial}{'' if name == 'recipe' else f', {other.strategy}'})"
    seeds = min((_seeds(one) for one in (winner, other) if not _is_solved(one)), default=1)
    if winner.runs is None or other.runs is None or not (winner.runs.are_enough and other.runs.are_enough):
        gain = scale.gain(objective.gain(winner.chosen, other.chosen))
        why = f"{seeds} of the {LEAST_SEEDS} other seeds that it takes" if seeds else "one seed each"
        return Comparison(
            against=name,
            trial=other.trial,
            outcome="not measured",
            seeds=seeds,
            sentence=f"{whom}: {gain} on validation with {why}, so it may be luck.",
        )
    found = difference(winner.runs, other.runs, level=level, objective=objective)
    outcome = _outcome(found)
    images = winner.runs.credits.shape[1]
    where = SPLITS[split]
    told = {"better": "better", "worse": "worse", "cannot be told apart": "cannot be told apart"}[outcome]
    return Comparison(
        against=name,
        trial=other.trial,
        outcome=outcome,
        difference=found.difference,
        low=found.low,
        high=found.high,
        seeds=seeds,
        sentence=f"{whom}: {told}, {scale.gain(found.difference)} "
        f"({scale.bounds(found.low, found.high)}) on {images} {where} images over {seeds} seeds.",
    )


def _outcome(found: Interval) -> Outcome:
    if found.low > 0:
        return "better"
    return "worse" if found.high < 0 else "cannot be told apart"


def _luck(winner: Contestant, others: Sequence[Contestant], objective: Objective) -> Luck:
    mean, scale = float(np.mean(winner.again)), Scale(objective.metric)
    lost = objective.gain(winner.chosen, mean)
    means = [(one, float(np.mean(one.again))) for one in others if len(one.again)]
    better = [(one, its) for one, its in means if objective.gain(its, mean) >= 0 < lost]
    seeds = f"{len(winner.again)} other seed{'s'[: len(winner.again) > 1]}"
    kept = f"The score that chose {winner.trial}, {winner.chosen:.4f}, became {mean:.4f} over {seeds}"
    amount = scale.gain(abs(lost)).lstrip("+")
    what = f"{amount} of it {'were' if scale.is_share else 'was'} luck" if lost > 0 else "none of it was luck"
    beaten = ""
    if better:
        first, its = max(better, key=lambda one: objective.worth(one[1]))
        beaten = f"; its first place too: {name_of(first)} has {its:.4f}"
    return Luck(
        chosen=winner.chosen,
        mean=mean,
        difference=lost,
        won_by_luck=bool(better),
        sentence=f"{kept}: {what}{beaten}.",
    )


def _sentence(
    winner: Contestant, compared: Sequence[Comparison], luck: Luck | None, scale: Scale, split: str
) -> str:
    """Return the verdict in one or two sentences."""
    who = f"{winner.trial} ({winner.baseline or winner.strategy})"
    if not split or winner.runs is None or not any(one.outcome != "not measured" for one in compared):
        if not compared:
            return f"{who} won; there is no other setting to compare it with."
        return f"{who} has the best score, but whether it is really better was not measured over seeds."
    by = {outcome: [one for one in compared if one.outcome == outcome] for outcome in _ORDER}
    parts = []
    if by["better"]:
        parts.append("is better than " + _list(by["better"], scale))
    if by["worse"]:
        parts.append("is worse than " + _list(by["worse"], scale))
    if by["cannot be told apart"]:
        parts.append("cannot be told apart from " + _list(by["cannot be told apart"], None))
    if by["not measured"]:
        parts.append("was not measured against " + _list(by["not measured"], None))
    start = f"{who} won by luck: it" if luck is not None and luck.won_by_luck else who
    images, seeds = winner.runs.credits.shape[1], max(one.seeds for one in compared)
    if not winner.runs.solved:
        seeds = len(winner.again)
    where = f"on {images} {SPLITS[split]} images over {seeds} seeds"
    return f"{start} {', and '.join(parts)}: {where}."


_ORDER: tuple[Outcome, ...] = ("better", "worse", "cannot be told apart", "not measured")


def _list(compared: Sequence[Comparison], scale: Scale | None) -> str:
    def told(one: Comparison) -> str:
        name = {"recipe": "the recipe", "runner-up": f"the runner-up {one.trial}"}.get(
            one.against, f"the best of {one.against}"
        )
        if scale is None or one.difference is None or one.low is None or one.high is None:
            return name
        return f"{name} ({scale.gain(one.difference)}, {scale.bounds(one.low, one.high)})"

    names = [told(one) for one in compared]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _note(winner: Contestant, others: Sequence[Contestant], split: str, *, measured: bool) -> str:
    notes = []
    if measured and split == "val":
        notes.append(
            "There are no test images, so nothing independent was measured: the same images chose the winner."
        )
    failed = [one for one in (winner, *others) if one.failed]
    if failed:
        told = ", ".join(f"{one.trial} ({one.failed})" for one in failed)
        notes.append(f"Seeds that failed or did not fit into the budget: {told}.")
    return " ".join(notes)
