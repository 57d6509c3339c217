"""Costs and savings of early stopping, replayed on a study whose trials all ran to their end.

    python -m search run CONFIG --set early_stopping.enabled=false --set study.sampler=random
    python -m benchmarks.early_stopping RESULTS_DIR [--trials 24] [--orders 1000]

Draws many short studies from the recorded trials, in random order and without the baselines, and judges
them by the rule of `search.suggest.stopping`, with its rivals set by strategy or all in one. Trials run one
after another here; in a study several run at a time, and the first ones of each strategy face fewer rivals.

regret   best value of all recorded trials minus that of the trials that ran to their end; mean
epochs   that the short study trained; mean
ended    trials that ran to their end; mean
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

from benchmarks import report
from search.record.reader import read_study
from search.record.records import StudyRecord, TrialRecord
from search.record.study_folder import StudyFolder
from search.suggest.stopping import EarlyStopping

EVERYONE = "everyone"


@dataclass(frozen=True)
class Rule:
    """A rule to compare; with `grace` 0 all trials run to their end."""

    grace: int
    factor: int = 3
    by_strategy: bool = True


RULES = [
    Rule(0),
    *(Rule(grace, 3, by) for by in (False, True) for grace in (1, 2, 3)),
    Rule(2, 2),
    Rule(2, 4),
]


def main() -> None:
    """Print one line per rule."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="folder of the recorded study")
    parser.add_argument("--trials", type=int, default=24, help="of each short study")
    parser.add_argument("--orders", type=int, default=1000, help="short studies")
    asked = parser.parse_args()
    study = read_study(StudyFolder.open(asked.results))
    trials = [t for t in study.trials if t.baseline is None and t.state == "COMPLETE"]
    if len(trials) < asked.trials:
        parser.error(
            f"--trials: must be at most {len(trials)}, the complete trials of {asked.results}, "
            f"got {asked.trials}. Record more, or ask for shorter studies."
        )
    draw = random.Random(0)
    orders = [draw.sample(trials, asked.trials) for _ in range(asked.orders)]
    goal = _best(study, trials)
    rows = []
    for rule in (rule for rule in RULES if rule.grace <= study.epochs):
        outcomes = [replay(study, order, rule) for order in orders]
        regret = mean(abs(goal - best) for best, _, _ in outcomes)
        epochs, ended = (mean(outcome[place] for outcome in outcomes) for place in (1, 2))
        rivals = "strategy" if rule.by_strategy else "all"
        name = (str(rule.grace), str(rule.factor), rivals) if rule.grace else ("none", "", "")
        rows.append((*name, f"{regret:.4f}", f"{epochs:.1f}", f"{ended:.1f}"))
    print(f"{study.name}: {len(trials)} trials of {study.epochs} epochs, best {study.metric} {goal:.4f}")
    report.table(("grace", "factor", "rivals", "regret", "epochs", "ended"), rows)
    report.last_line({"study": study.name, "trials": len(trials), "best": goal, "rules": rows})


def replay(study: StudyRecord, order: Sequence[TrialRecord], rule: Rule) -> tuple[float, int, int]:
    """Return the best value of a trial that ran to its end, all epochs trained, and how many trials ended."""
    names = {t.id: t.params["strategy"] if rule.by_strategy else EVERYONE for t in order}
    stopping = EarlyStopping(
        objective=study.objective,
        epochs=study.epochs,
        grace=max(1, rule.grace),
        factor=rule.factor,
        rule="asha" if rule.grace else "none",
        strategy_of=names.get,
    )
    trained, ended = 0, []
    for trial in order:
        tune_trial: Any = SimpleNamespace(trial_id=trial.id)
        for result in trial.history:
            trained += 1
            if stopping.on_trial_result(None, tune_trial, result) == "STOP":
                break
        else:
            ended.append(trial)
        stopping.on_trial_complete(None, tune_trial, {})
    return _best(study, ended), trained, len(ended)


def _best(study: StudyRecord, trials: Sequence[TrialRecord]) -> float:
    values = [trial.metrics["best"][study.metric] for trial in trials]
    return max(values, key=study.objective.worth)


if __name__ == "__main__":
    main()
