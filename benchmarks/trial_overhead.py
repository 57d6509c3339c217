"""Seconds per trial that trains nothing: the documented Ray pattern, the same tuned, slots, Tune's floor.

    python -m benchmarks.trial_overhead [--quick]

A trial reports three epochs and does nothing else, two trials at a time.

P      a Tune function that calls `TorchTrainer.fit()`, as Ray's documentation has it (Train user guide,
       hyperparameter optimisation), reports through `TuneReportCallback`.
P+     P with a 0.1 s poll instead of 2 s, without the helper processes that can be switched off, and
       without Tune's loggers.
ours   a study's own machinery: searcher (random: TPE's own time is in `scale`), ledger on disk,
       TensorBoard, progress, exchange, one worker per slot; only the training itself is left out.
floor  Tune alone: a function that reports three times, `reuse_actors=True`, no loggers. The first trial of
       a process waits for the other process: else Tune may have given the second trial to the first process
       by then, asks for another one for the third, and so on; 600 trials once took 0.56 s each.

P and P+ run few trials, and their seconds per trial are taken from those; ours and the floor run many
and are counted from the first trial to the last, once slots and Tune's actors are up, and as a whole.
"""

import argparse
import tempfile
import time
from typing import Any

from ray import tune as ray_tune

from benchmarks import documented, noop, report
from benchmarks.documented import CONCURRENT
from search.driver import tuner

EPOCHS = 3
APART_SECONDS = 2.0
"""At most, between the starts of Tune's two processes."""


def main() -> None:
    """Measure all four side by side, alternating, and print medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one round, fewer trials: two minutes instead of a quarter of an hour",
    )
    quick = parser.parse_args().quick
    rounds, many, few = (1, 200, 4) if quick else (3, 600, 8)
    seconds: dict[str, list[float]] = {"P": [], "P+": [], "ours": [], "floor": []}
    whole: dict[str, list[float]] = {"ours": [], "floor": []}
    for _ in range(rounds):
        for name, measure in (("floor", _floor), ("ours", _ours)):
            total, steady = noop.fresh_ray(lambda m=measure: m(many))
            seconds[name].append(steady)
            whole[name].append(total)
        seconds["P"].append(noop.fresh_ray(lambda: _documented(few, tuned=False)))
        seconds["P+"].append(noop.fresh_ray(lambda: _documented(few, tuned=True)))
    _print(seconds, whole, many, few)


def _print(seconds: dict[str, list[float]], whole: dict[str, list[float]], many: int, few: int) -> None:
    middle = {name: report.median(values) for name, values in seconds.items()}
    overall = {name: report.median(values) for name, values in whole.items()}
    rows = [
        [
            name,
            str(few if name.startswith("P") else many),
            f"{middle[name]:.4f}",
            f"{overall.get(name, middle[name]):.4f}",
        ]
        for name in middle
    ]
    print(f"trials of {EPOCHS} epochs that train nothing, {CONCURRENT} at a time; load {report.load()}")
    report.table(["", "trials", "s/trial", "s/trial with start-up"], rows)
    report.last_line(
        {
            "p_over_ours": middle["P"] / middle["ours"],
            "p_plus_over_ours": middle["P+"] / middle["ours"],
            "ours_over_floor": middle["ours"] / middle["floor"],
            "seconds": middle,
            "seconds_with_start": overall,
            "trials": many,
            "trials_p": few,
            "epochs": EPOCHS,
            "load": report.load(),
        }
    )


def _floor(trials: int) -> tuple[float, float]:
    earlier: list[None] = []  # a copy for each process, which keeps it

    def noop(config: dict[str, Any]) -> None:
        if not earlier:
            time.sleep(APART_SECONDS)
        earlier.append(None)
        for epoch in range(1, EPOCHS + 1):
            ray_tune.report({"epoch": epoch, "val/accuracy": 0.5})

    stamps = _Stamps()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        ray_tune.Tuner(
            ray_tune.with_resources(noop, tuner.TRIAL_RESOURCES),
            tune_config=ray_tune.TuneConfig(
                num_samples=trials, max_concurrent_trials=CONCURRENT, reuse_actors=True
            ),
            run_config=ray_tune.RunConfig(storage_path=folder, callbacks=[stamps], verbose=0),
        ).fit()
    return (time.monotonic() - begin) / trials, stamps.steady()


class _Stamps(ray_tune.Callback):
    """Times at which trials ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_trial_complete(self, **info: Any) -> None:
        self.ends.append(time.monotonic())

    def steady(self) -> float:
        """Seconds per trial once the first tenth is done: Tune's actors are up by then."""
        return _steady(self.ends)


def _steady(ends: list[float]) -> float:
    start = len(ends) // 10
    return (ends[-1] - ends[start]) / (len(ends) - 1 - start)


def _ours(trials: int) -> tuple[float, float]:
    began = time.monotonic()
    ends = noop.study(trials, epochs=EPOCHS, concurrent=CONCURRENT, sampler="random")
    return (time.monotonic() - began) / trials, _steady(ends)


def _documented(trials: int, *, tuned: bool) -> float:
    return documented.seconds_per_trial(_train_noop, trials * [{}], tuned=tuned)


def _train_noop(config: dict[str, Any]) -> None:
    import ray.train

    for epoch in range(1, EPOCHS + 1):
        ray.train.report({"epoch": epoch, "val/accuracy": 0.5})


if __name__ == "__main__":
    main()
