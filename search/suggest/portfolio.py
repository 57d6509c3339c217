"""A portfolio: settings that together were good on every recorded study, to be tried first.

    python -m search.suggest.portfolio FOLDERS... [--to FILE]

makes one from the results folders of finished studies: how far each of their settings was from the best of
each study. Which of them a new study begins with, and in which order, depends on how much it is like each
recorded study. The one that is shipped is portfolio.json; `study.warm_start` adds studies of one's own.
"""

import argparse
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.disk.filesystems import text_of
from search.config import config_file
from search.config.sections import SETTINGS
from search.errors import StudyError
from search.record import reader
from search.record.records import TrialRecord
from search.record.study_folder import StudyFolder
from search.suggest.space import Space

SHIPPED = Path(__file__).with_name("portfolio.json")
SIZE = 8
"""Settings that a study begins with at most; a third of its trials, if that is less."""
FIELDS = tuple(name for name, setting in SETTINGS.items() if setting.carried)
"""Fields of a setting that are carried over to another study."""
MEDIAN = 1.0
WORST = 2.0
"""Largest loss that counts, in distances from a study's best trial to its median one."""
NEAR = 0.25
"""Distance below which a portfolio holds only one of two settings."""
ENOUGH = 5
"""Trials that train blocks without which a study tells too little of them."""

Setting = dict[str, Any]


@dataclass(frozen=True)
class Situation:
    """Size and difficulty of a study's data; None where it is not known."""

    images: int | None = None
    """Training images."""
    classes: int | None = None
    frozen: float | None = None
    """Best score of a head on frozen features, from 0 (chance) to 1: near the source task it is high."""

    def far(self, other: "Situation") -> float:
        """Return how far two situations are apart; a factor of ten in images or classes is 1."""
        parts = []
        for mine, theirs in ((self.images, other.images), (self.classes, other.classes)):
            if mine and theirs:
                parts.append(math.log10(mine / theirs))
        if self.frozen is not None and other.frozen is not None:
            parts.append(3 * (self.frozen - other.frozen))
        return math.hypot(*parts) if parts else 0.0


@dataclass(frozen=True)
class Recorded:
    """One finished study, as much of it as a portfolio needs."""

    situation: Situation
    settings: tuple[Setting, ...]
    """Settings of the trials that trained blocks."""
    losses: tuple[float, ...]
    """Distance of each from the study's best: 0 is the best, 1 the median, at most WORST."""


@dataclass(frozen=True)
class Portfolio:
    """Settings, and what each is expected to lose on each recorded study."""

    situations: tuple[Situation, ...]
    settings: tuple[Setting, ...]
    losses: np.ndarray
    """(studies, settings)."""

    def order(self, situation: Situation) -> list[Setting]:
        """Return the settings, the most useful first; studies in a similar situation count more.

        A setting that is nearly another one is left out, and one that is expected to be worse than the median
        trial.
        """
        if not self.settings:
            return []
        weights = np.array([math.exp(-situation.far(other)) for other in self.situations])
        found: list[Setting] = []
        for i in greedy(-self.losses, len(self.settings), weights):
            mean = float(weights @ self.losses[:, i] / weights.sum())
            if mean <= MEDIAN and all(_far(self.settings[i], other) >= NEAR for other in found):
                found.append(self.settings[i])
        return found

    def grown(self, recorded: Iterable[Recorded]) -> "Portfolio":
        """Return the portfolio with further studies, and the best settings of each of these."""
        recorded = list(recorded)
        settings = list(self.settings)
        for study in recorded:
            best = sorted(zip(study.losses, range(len(study.losses)), strict=True))[:SIZE]
            settings += [study.settings[i] for _, i in best if study.settings[i] not in settings]
        own = [
            Recorded(s, self.settings, tuple(row))
            for s, row in zip(self.situations, self.losses, strict=True)
        ]
        studies = [*own, *recorded]
        losses = [[expected(setting, study) for setting in settings] for study in studies]
        return Portfolio(tuple(s.situation for s in studies), tuple(settings), np.array(losses))

    def to_json(self) -> str:
        """Return the portfolio as text for a file."""
        studies = [vars(situation) for situation in self.situations]
        losses = [[round(float(loss), 3) for loss in column] for column in self.losses.T]
        settings = [s | {"losses": column} for s, column in zip(self.settings, losses, strict=True)]
        lines = ",\n".join(f"  {json.dumps(setting)}" for setting in settings)
        return f'{{"studies": {json.dumps(studies)},\n "settings": [\n{lines}\n]}}\n'

    @classmethod
    def read(cls, file: Path = SHIPPED) -> "Portfolio":
        """Return the portfolio in a file."""
        said = json.loads(text_of(file))
        losses = [setting.pop("losses") for setting in said["settings"]]
        situations = tuple(Situation(**study) for study in said["studies"])
        return cls(
            situations, tuple(said["settings"]), np.array(losses).T.reshape(len(situations), len(losses))
        )


EMPTY = Portfolio((), (), np.zeros((0, 0)))


def greedy(scores: np.ndarray, size: int, weights: np.ndarray | None = None) -> list[int]:
    """Return the columns that together lose least, the most useful first.

    Each step adds the column that lowers most the mean loss of the best chosen so far (TabRepo, AutoML 2024).
    A loss is the distance to the best of the row, in distances from there to the row's median.

    Args:
        scores: (tasks, configurations); larger is better.
        size: number of columns to choose, if there are as many.
        weights: (tasks); None: all tasks count alike.
    """
    best, middle = scores.max(axis=1, keepdims=True), np.median(scores, axis=1, keepdims=True)
    loss = np.minimum((best - scores) / np.maximum(best - middle, 1e-9), WORST)
    shares = np.ones(len(scores)) if weights is None else weights
    shares = shares / shares.sum()
    chosen: list[int] = []
    so_far = np.full((len(scores), 1), WORST)
    for _ in range(min(size, scores.shape[1])):
        total = shares @ np.minimum(so_far, loss)
        # Where nothing is left to gain, the one that is best on average comes next.
        total = total + 1e-6 * (shares @ loss)
        total[chosen] = np.inf
        chosen.append(int(total.argmin()))
        so_far = np.minimum(so_far, loss[:, chosen[-1:]])
    return chosen


def expected(setting: Setting, study: Recorded) -> float:
    """Return the loss of a setting on a study, from the study's trials that are like it."""
    far = np.array([_far(setting, other) for other in study.settings])
    losses = np.array(study.losses)
    if far.min() == 0:
        return float(losses[far == 0].mean())
    weights = np.exp(-2 * (far**2 - far.min() ** 2))
    # Far from all trials little is known: the loss of an average trial.
    known = math.exp(-2 * float(far.min()) ** 2)
    return float(known * (weights @ losses) / weights.sum() + (1 - known) * losses.mean())


def _far(one: Setting, two: Setting) -> float:
    """Return the distance of two settings; a factor of ten in a rate, or all blocks, is 2."""
    total = 0.0
    for name in FIELDS:
        a, b = one.get(name), two.get(name)
        if name in ("learning_rate", "backbone_rate") and a and b:
            total += (2 * math.log10(a / b)) ** 2
        elif name == "frozen_layers":
            total += (2 * (float(a or 0) - float(b or 0))) ** 2
        elif name == "head_size":
            total += 0.25 * (bool(a) != bool(b))
        else:
            total += a != b
    return math.sqrt(total)


def recorded(folder: Path) -> Recorded | None:
    """Return what a finished study tells of trials that train blocks; None if it tells too little.

    Raises:
        StudyError: the folder holds no study, or its record cannot be read.
    """
    found = StudyFolder.open(folder)
    config = config_file.load(found.config)
    trials, facts = reader.read(found.database)
    space = Space(config)
    ended = [t for t in trials if t.state in ("COMPLETE", "PRUNED") and "weights" not in t.params]
    scored = [(t, config.study.objective.worth(t.metrics["best"][config.study.metric])) for t in ended
              if config.study.metric in t.metrics["best"]]  # fmt: skip
    trained = [(t, score) for t, score in scored if space.trains(t.params)]
    if len(trained) < ENOUGH:
        return None
    scores = np.array([score for _, score in trained])
    spread = max(float(scores.max() - np.median(scores)), 1e-9)
    losses = np.minimum((scores.max() - scores) / spread, WORST)
    return Recorded(
        situation_of(facts, scored, space),
        tuple(setting_of(trial, space) for trial, _ in trained),
        tuple(float(loss) for loss in losses),
    )


def setting_of(trial: TrialRecord, space: Space) -> Setting:
    """Return the fields of a trial that are carried over, its frozen blocks as a share."""
    said = {name: trial.params[name] for name in FIELDS if name in trial.params}
    rates = {name: float(f"{said[name]:.3g}") for name in ("learning_rate", "backbone_rate") if name in said}
    return said | rates | {"frozen_layers": round(1 - space.trained_share(trial.params), 3)}


def situation_of(
    facts: Mapping[str, Any], scored: Sequence[tuple[TrialRecord, float]], space: Space
) -> Situation:
    """Return the situation of a recorded study."""
    images = facts.get("provenance", {}).get("images", {}).get("train") or None
    classes = facts.get("provenance", {}).get("classes")
    heads = [score for trial, score in scored if not space.trains(trial.params)]
    if not heads or not classes or not 0 <= max(heads) <= 1:
        return Situation(images, classes)
    return Situation(images, classes, round((max(heads) - 1 / classes) / (1 - 1 / classes), 3))


def starts(space: Space, portfolio: Portfolio, situation: Situation, *, trials: int) -> list[dict[str, Any]]:
    """Return the trials that a study begins with: a start of each strategy's heads, then the portfolio's.

    The portfolio gets a third of the study's trials, and SIZE at most. Where it has nothing in the space, the
    usual start of a strategy takes its place.
    """
    usual = space.starts()
    found = [params for params in usual if not space.trains(params)]
    most = len(found) + max(1, min(SIZE, trials // 3))
    for setting in [*portfolio.order(situation), *({"usual": params} for params in usual)]:
        params = setting.get("usual") or space.placed(setting)
        if len(found) < most and params is not None and params not in found:
            found.append(params)
    return found


def main() -> None:
    """Make a portfolio from recorded studies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="results folders of finished studies")
    parser.add_argument("--to", type=Path, default=SHIPPED, help="file to write; default: the shipped one")
    parser.add_argument("--size", type=int, default=3 * SIZE, help="settings to keep")
    asked = parser.parse_args()
    studies = []
    for folder in asked.folders:
        study = recorded(folder)
        if study is None:
            raise StudyError(
                f"{folder}: at least {ENOUGH} trials must have trained blocks, got fewer. Leave it out."
            )
        studies.append(study)
        print(f"{folder}: {len(study.settings)} trials, {study.situation}")
    whole = EMPTY.grown(studies)
    kept = greedy(-whole.losses, asked.size)
    made = Portfolio(whole.situations, tuple(whole.settings[i] for i in kept), whole.losses[:, kept])
    asked.to.write_text(made.to_json(), encoding="utf-8")
    for setting in made.order(Situation())[:SIZE]:
        print(setting)


if __name__ == "__main__":
    main()
