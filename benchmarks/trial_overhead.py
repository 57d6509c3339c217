"""Seconds per trial that trains nothing: the documented Ray pattern, the same tuned, slots, Tune's floor.

    python -m benchmarks.trial_overhead [--quick]

A trial reports three epochs and does nothing else, two trials at a time.

P      a Tune function that calls `TorchTrainer.fit()`, as Ray's documentation has it (Train user guide,
       hyperparameter optimisation), reports through `TuneReportCallback`.
P+     P with a 0.1 s poll instead of 2 s, without the helper processes that can be switched off, and
       without Tune's loggers.
ours   a study's own machinery: searcher, ledger on disk, TensorBoard, progress, exchange, one worker
       per slot; only the training itself is left out of the worker.
floor  Tune alone: a function that reports three times, `reuse_actors=True`, no loggers.

P and P+ run few trials, and their seconds per trial are taken from those; ours and the floor run many
and are counted from the first trial to the last, once slots and Tune's actors are up, and as a whole.
"""

import argparse
import functools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import ray
from ray import tune as ray_tune

from benchmarks import report
from search import runner, slots, tuner
from search.layout import StudyFolder
from search.ledger import STUDY_NAME, open_storage
from search.study import StudyConfig
from search.trial import CHECKED, CHECKED_OF_DATA

EPOCHS = 3
CONCURRENT = 2
POLL = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def main() -> None:
    """Measure all four side by side, alternating, and print medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds and trials: minutes instead of an hour"
    )
    quick = parser.parse_args().quick
    rounds, many, few = (1, 200, 4) if quick else (3, 600, 8)
    seconds: dict[str, list[float]] = {"P": [], "P+": [], "ours": [], "floor": []}
    whole: dict[str, list[float]] = {"ours": [], "floor": []}
    for _ in range(rounds):
        for name, measure in (("floor", _floor), ("ours", _ours)):
            total, steady = _fresh(lambda m=measure: m(many))
            seconds[name].append(steady)
            whole[name].append(total)
        seconds["P"].append(_fresh(lambda: _documented(few, {})))
        seconds["P+"].append(_fresh(lambda: _documented(few, POLL)))
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


def _fresh(measure: Callable[[], Any]) -> Any:
    """Return what `measure` returns, run in a Ray of its own."""
    tuner.quieten()
    ray.init(num_cpus=4, address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        return measure()
    finally:
        ray.shutdown()


def _floor(trials: int) -> tuple[float, float]:
    def noop(config: dict[str, Any]) -> None:
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
    """When trials ended."""

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
    with tempfile.TemporaryDirectory() as folder:
        study = {"name": "noop", "trials": trials, "epochs": EPOCHS, "baselines": [], "sampler": "random"}
        config = StudyConfig.from_dict(
            {
                "study": study,
                "data": {"kind": "digits"},
                "early_stopping": {"enabled": False},
                "resources": {"slots": CONCURRENT, "gpu": False},
                "results": folder,
            }
        )
        real, slots.serve = slots.serve, serve_noop
        began = time.monotonic()
        try:
            record = runner.run(config)
        finally:
            slots.serve = real
        total = (time.monotonic() - began) / trials
        assert {trial.state for trial in record.trials} == {"COMPLETE"}
        storage = open_storage(StudyFolder(Path(record.folder)).database)
        done = optuna.load_study(storage=storage, study_name=STUDY_NAME).get_trials(deepcopy=False)
        return total, _steady(sorted(t.datetime_complete.timestamp() for t in done if t.datetime_complete))


def serve_noop(config: dict[str, Any]) -> None:
    """Serve trials like a real worker, but report made-up epochs at once instead of training."""
    from finetune import catalog, worker
    from finetune.loop import Outcome

    fingerprint = functools.cache(lambda data: catalog.scan(data).fingerprint)

    def train(settings: Any, *, report: Any, **_: Any) -> Outcome:
        used = {name: getattr(settings, name) for name in (*CHECKED, "epochs")}
        used |= {name: getattr(settings.data, name) for name in CHECKED_OF_DATA}
        used |= {"learning_rates": {"head": settings.learning_rate}}
        used |= {"frozen_blocks": settings.frozen_layers, "blocks": settings.frozen_layers}
        report({"kind": "effective", "data_fingerprint": fingerprint(settings.data)} | used)
        for epoch in range(1, EPOCHS + 1):
            scores = {"val/accuracy": 0.5, "val/loss": 1.0, "train/loss": 1.0, "learning_rate": 0.1}
            report({"kind": "epoch", "epoch": epoch, "seconds": 0.0} | scores)
        return Outcome("complete", EPOCHS)

    worker.loop.train = train
    worker._export = lambda job, world: {"state": "complete"}
    worker.slot_loop(config)


def _documented(trials: int, environment: dict[str, str]) -> float:
    """Run the documented pattern; return seconds per trial."""
    tuned = bool(environment)

    def drive(config: dict[str, Any]) -> None:
        os.environ.update(environment)
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.tune.integration.ray_train import TuneReportCallback

        TorchTrainer(
            _train_noop,
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(
                name=f"train-{ray_tune.get_context().get_trial_id()}",
                storage_path=config["folder"],
                callbacks=[TuneReportCallback()],
            ),
        ).fit()

    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        ray_tune.Tuner(
            ray_tune.with_resources(drive, tuner.TRIAL_RESOURCES if tuned else {"cpu": 1}),
            param_space={"folder": folder},
            tune_config=ray_tune.TuneConfig(num_samples=trials, max_concurrent_trials=CONCURRENT),
            run_config=ray_tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
    return (time.monotonic() - begin) / trials


def _train_noop() -> None:
    import ray.train

    for epoch in range(1, EPOCHS + 1):
        ray.train.report({"epoch": epoch, "val/accuracy": 0.5})


if __name__ == "__main__":
    main()
