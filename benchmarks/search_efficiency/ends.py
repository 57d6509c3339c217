"""Replayed searches of the own space: when their patience would end them, and which trial they return.

    python -m benchmarks.search_efficiency.ends [--seeds 5] [--trials 24]

Searches are those of own.py. Patience: the share of searches that it ends, the share of the cost that this
saves, and the accuracy of the choice that it loses against the whole search, in points and in standard errors
of the validation accuracy. Choice: the accuracy by which a rule chose a trial and its epoch, and the accuracy
behind it, which no validation image has chosen.
"""

import argparse
from typing import Any

import numpy as np
import optuna

from benchmarks import report
from benchmarks.chosen_by import RULES
from benchmarks.search_efficiency import own
from benchmarks.search_efficiency.own import TABLE, WAYS, Recording, Search
from search.suggest import patience

LEAST = (0.25, 0.5, 1.0)
"""Shares of a standard error below which the expected gain ends a search; the product's is patience.SHARE."""


class Watched(Search):
    """A search whose ended trials are kept."""

    trials = 24

    def __post_init__(self) -> None:
        super().__post_init__()
        self.curves: list[tuple[np.ndarray, np.ndarray]] = []
        """Accuracies of each ended trial, as they were seen and as they are without luck."""
        self.scores: list[tuple[str, float]] = []
        self.ends: dict[float, tuple[float, float, int]] = {}
        """Share of a standard error -> cost, accuracy of the choice and trials when it would have ended."""

    def note(self, running: Any) -> None:
        """Keep an ended trial, and whether the search would end after it."""
        seen = running.seen[: running.epoch]
        self.curves.append((seen, running.curve[: running.epoch]))
        self.scores.append((running.params["strategy"], float(np.clip(running.best, 0, 1))))
        left = self.trials - self.ended
        if left <= 0 or not self.chooser.samples:
            return
        images = self.recording.tasks[self.task].val_images
        for share in LEAST:
            patience.SHARE = share
            if share not in self.ends and patience.is_enough(self.scores, images, left):
                self.ends[share] = self.cost, self.chosen[1], self.ended

    def run(self) -> "Watched":
        """Search until so many counted trials have ended."""
        self.start()
        while self.ended < self.trials:
            self.step()
        return self


def chosen(search: Watched, rule: Any) -> tuple[float, float]:
    """Return the accuracy by which a rule chooses among the ended trials, and the one behind it."""
    epochs = search.recording.epochs
    seen = np.full((len(search.curves), epochs), -1.0)
    real = np.zeros_like(seen)
    for row, (one, two) in enumerate(search.curves):
        seen[row, : len(one)], real[row, : len(two)] = one, two
    # A stopped trial has no later epochs: rules see its last one there, and cannot choose it.
    filled = np.where(seen < 0, np.nan, seen)
    for epoch in range(1, epochs):
        filled[:, epoch] = np.where(np.isnan(filled[:, epoch]), filled[:, epoch - 1], filled[:, epoch])
    scores = np.where(seen < 0, -1.0, rule(filled))
    place = np.unravel_index(np.argmax(scores), scores.shape)
    return float(seen[place]), float(real[place])


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--noise", type=float, default=1.0)
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    recording, Watched.trials = Recording(TABLE), asked.trials
    found = [
        Watched(recording, task, WAYS[0], seed * 1000 + task, asked.noise).run()
        for seed in range(asked.seeds)
        for task in range(len(recording.tasks))
    ]
    rows = []
    for share in LEAST:
        saved, lost, errors, early = [], [], [], 0
        for search in found:
            cost, value, _ = search.ends.get(share, (search.cost, search.chosen[1], search.ended))
            images = recording.tasks[search.task].val_images
            early += share in search.ends
            saved.append(1 - cost / search.cost)
            lost.append(100 * (search.chosen[1] - value))
            errors.append(lost[-1] / 100 / patience.standard_error(search.chosen[1], images))
        rows.append((f"{share:g}", f"{early}/{len(found)}", f"{np.mean(saved):.2f}", f"{np.mean(lost):+.2f}",
                     f"{np.mean(errors):+.2f}", f"{np.max(errors):+.2f}"))  # fmt: skip
    report.table(("below", "ended", "cost saved", "points lost", "standard errors", "worst"), rows)
    draw = np.random.default_rng(0)
    plain = np.array([chosen(search, RULES["best epoch of the best trial"]) for search in found])
    rows = []
    for name, rule in RULES.items():
        pairs = np.array([chosen(search, rule) for search in found])
        off = 100 * (pairs[:, 1] - plain[:, 1])
        means = [off[draw.integers(len(off), size=len(off))].mean() for _ in range(2000)]
        low, high = np.quantile(means, (0.025, 0.975))
        best = np.mean([own.Recording.best(recording, search.task) for search in found])
        rows.append((name, f"{pairs[:, 0].mean():.4f}", f"{pairs[:, 1].mean():.4f}",
                     f"{100 * (pairs[:, 0] - pairs[:, 1]).mean():+.2f}",
                     f"{100 * (best - pairs[:, 1].mean()):.2f}",
                     f"{off.mean():+.2f} [{low:+.2f}, {high:+.2f}]"))  # fmt: skip
    report.table(("rule", "chosen by", "judged by", "optimism", "from the best", "minus first"), rows)


if __name__ == "__main__":
    main()
