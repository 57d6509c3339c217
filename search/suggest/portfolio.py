"""A portfolio: settings that together were good on every recorded study, to be tried first.

    python -m search.suggest.portfolio FOLDERS... [--to FILE]

makes one from the results folders of finished studies, or from tables of recorded trials (recorded.py): how
far each of their settings was from the best of each study. Which of them a new study begins with, and in
which order, depends on how much it is like each recorded study. The one that is shipped is portfolio.json;
`study.warm_start` adds studies of one's own.
"""

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.disk.filesystems import text_of
from search.errors import StudyError
from search.suggest.recorded import (
    ENOUGH,
    FIELDS,
    WORST,
    Recorded,
    Setting,
    Situation,
    read_study,
    tasks,
)
from search.suggest.space import Space

SHIPPED = Path(__file__).with_name("portfolio.json")
SIZE = 8
"""Settings that a study begins with at most; a third of its trials, if that is less."""
MEDIAN = 1.0
NEAR = 0.25
"""Distance below which a portfolio holds only one of two settings."""


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


def made(studies: Sequence[Recorded], size: int = 3 * SIZE) -> Portfolio:
    """Return the portfolio of the settings that together lose least on some studies."""
    whole = EMPTY.grown(studies)
    kept = greedy(-whole.losses, size)
    return Portfolio(whole.situations, tuple(whole.settings[i] for i in kept), whole.losses[:, kept])


def main() -> None:
    """Make a portfolio from recorded studies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", help="results folders or tables")
    parser.add_argument("--to", type=Path, default=SHIPPED, help="file to write; default: the shipped one")
    parser.add_argument("--size", type=int, default=3 * SIZE, help="settings to keep")
    parser.add_argument("--without", nargs="*", default=[], help="images whose tasks in tables are left out")
    asked = parser.parse_args()
    studies: list[Recorded] = []
    for folder in asked.folders:
        if folder.is_dir():
            found = {str(folder): read_study(folder)}
        else:
            found = {task.name: task.recorded() for task in tasks(folder) if task.data not in asked.without}
        for name, study in found.items():
            if study is None:
                raise StudyError(
                    f"{name}: at least {ENOUGH} trials must have trained blocks, got fewer. Leave it out."
                )
            studies.append(study)
            print(f"{name}: {len(study.settings)} trials, {study.situation}")
    best = made(studies, asked.size)
    asked.to.write_text(best.to_json(), encoding="utf-8")
    for setting in best.order(Situation())[:SIZE]:
        print(setting)


if __name__ == "__main__":
    main()
