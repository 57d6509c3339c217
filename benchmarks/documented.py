"""Ray's documented pattern: a Tune function that calls `TorchTrainer.fit()`, one Train run per trial.

As in Ray's Train user guide, hyperparameter optimisation; epochs are reported through `TuneReportCallback`.
Apart from `patterns`, which imports torch: the driver of a study does not.
"""

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune as ray_tune

from search.driver import tuner

POLL = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1", "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
CONCURRENT = 2


def seconds_per_trial(
    train: Callable[[dict[str, Any]], None], loops: Sequence[dict[str, Any]], *, tuned: bool
) -> float:
    """Run a trial of `train` with each of `loops`, two at a time; return seconds per trial.

    Args:
        train: the worker's function; reports to Ray Train.
        loops: what each trial's `train` gets.
        tuned: poll every 0.1 s instead of 2 s, no preemption watcher, drivers that take no CPU.
    """

    def drive(config: dict[str, Any]) -> None:
        if tuned:
            os.environ.update(POLL)
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.tune.integration.ray_train import TuneReportCallback

        TorchTrainer(
            train,
            train_loop_config=config["loop"],
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=RunConfig(
                name=f"train-{ray_tune.get_context().get_trial_id()}",
                storage_path=config["folder"],
                callbacks=[TuneReportCallback()],
            ),
        ).fit()

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = ray_tune.Tuner(
            ray_tune.with_resources(drive, tuner.TRIAL_RESOURCES if tuned else {"cpu": 1}),
            param_space={"folder": folder, "loop": ray_tune.grid_search(list(loops))},
            tune_config=ray_tune.TuneConfig(max_concurrent_trials=CONCURRENT),
            run_config=ray_tune.RunConfig(storage_path=folder, verbose=0),
        ).fit()
        assert not found.errors, found.errors[0]
    return (time.monotonic() - began) / len(loops)
