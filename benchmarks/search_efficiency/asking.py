"""Cost of a suggestion: `python -m benchmarks.search_efficiency --ask 100 1000 10000`.

Studies of the default space with so many earlier trials, a fifth of them stopped. "wait" is what a free
slot waits for the chooser, which has its next trial ready; "ask" is what choosing takes meanwhile. Optuna's
own TPE is asked for the same space. Milliseconds of processor time, medians.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import optuna
from optuna.trial import TrialState

from benchmarks import report
from search.config.study import StudyConfig
from search.record.ledger import Ledger
from search.suggest.chooser import Chooser
from search.suggest.models import samplers
from search.suggest.space import Space

ASKED = 10
SAMPLERS = ("auto", "tpe", "random")


def main(sizes: Sequence[int]) -> None:
    """Print a table, and the same as JSON, for studies with so many earlier trials."""
    config = StudyConfig.from_dict({"study": {"name": "ask"}, "data": {"path": "/images"}})
    space = Space(config)
    rows, last = [], {}
    for size in sizes:
        trials = earlier(space, size)
        own = median(_plain(space, trials))
        rows.append((str(size), "Optuna's TPE", "", f"{own:.1f}"))
        for name in SAMPLERS:
            waits, asks = _ours(space, trials, name)
            rows.append((str(size), name, f"{median(waits):.2f}", f"{median(asks):.1f}"))
            last[f"{name} {size}"] = {"wait": median(waits), "ask": median(asks), "optuna": own}
    report.table(("trials", "sampler", "wait", "ask"), rows)
    report.last_line(last | {"load": report.load()})


def earlier(space: Space, count: int) -> list[optuna.trial.FrozenTrial]:
    """Return so many ended trials of a space."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(count):
        trial = study.ask()
        params = space.suggest(trial)
        trial.set_user_attr("params", params)
        value = 0.5 + 0.1 * (params["strategy"] == "fuse") - params["learning_rate"]
        for epoch in range(1, 9 if number % 5 else 3):
            trial.report(value - 0.1 / epoch, epoch)
        stopped = number % 5 == 0
        study.tell(trial, None if stopped else value, TrialState.PRUNED if stopped else TrialState.COMPLETE)
    return study.get_trials(deepcopy=False)


def _plain(space: Space, trials: list[optuna.trial.FrozenTrial]) -> list[float]:
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.add_trials(trials)
    return [_milliseconds(lambda: space.suggest(study.ask())) for _ in range(ASKED)]


def _ours(space: Space, trials: list[optuna.trial.FrozenTrial], name: str) -> tuple[list[float], list[float]]:
    with tempfile.TemporaryDirectory() as scratch:
        book = Ledger(Path(scratch) / "optuna.db", metric="val/accuracy", sampler=samplers.make(name, seed=0))
        book._study.add_trials(trials)
        arms = space.arms if samplers.by_bandit(name) else None
        chooser = Chooser(book, space, planned=[], sampled=10 * ASKED, epochs=8, arms=arms)
        chooser.prepare()
        waits, asks = [], []
        for _ in range(ASKED):
            waits.append(_milliseconds(chooser.take))
            asks.append(_milliseconds(chooser.prepare))
        book.close()
    return waits, asks


def _milliseconds(call: Callable[[], object]) -> float:
    begin = time.process_time()
    call()
    return 1000 * (time.process_time() - begin)
