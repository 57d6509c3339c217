"""Studies whose trials train nothing: all of a study's own machinery, with a worker that reports at once."""

import functools
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar
from unittest import mock

import optuna
import ray

from search.config.study import StudyConfig
from search.driver import runner, tuner
from search.record.storage import only_study, open_storage
from search.record.study_folder import StudyFolder
from search.slots import slots

Result = TypeVar("Result")


def fresh_ray(measure: Callable[[], Result], environment: Mapping[str, str] = MappingProxyType({})) -> Result:
    """Return what `measure` returns, run in a Ray of its own whose processes have `environment`."""
    tuner.quieten()
    with mock.patch.dict(os.environ, environment):  # Ray's processes inherit it
        ray.init(
            num_cpus=4, address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
    try:
        return measure()
    finally:
        ray.shutdown()


def study(trials: int, *, epochs: int, concurrent: int, sampler: str) -> list[float]:
    """Run a study; return when each trial ended, in order, in seconds since the epoch."""
    with tempfile.TemporaryDirectory() as folder:
        record = _run(
            StudyConfig.from_dict(
                {
                    "study": {
                        **{"name": "noop", "trials": trials, "epochs": epochs},
                        **{"baselines": [], "sampler": sampler},
                    },
                    "data": {"kind": "digits"},
                    "early_stopping": {"enabled": False},
                    "resources": {"slots": concurrent, "gpu": False},
                    "results": folder,
                }
            ),
            functools.partial(serve, epochs=epochs),
        )
        states = {trial.state for trial in record.trials}
        if states != {"COMPLETE"} or len(record.trials) != trials:
            raise RuntimeError(f"benchmark: {trials} trials must complete, got {len(record.trials)} {states}")
        storage = open_storage(StudyFolder(Path(record.folder)).database)
        done = optuna.load_study(storage=storage, study_name=only_study(storage)).get_trials(deepcopy=False)
        storage.remove_session()
        storage.engine.dispose()
    return sorted(t.datetime_complete.timestamp() for t in done if t.datetime_complete)


def _run(config: StudyConfig, worker: Callable[[dict[str, Any]], None]) -> Any:
    real, slots.serve = slots.serve, worker
    try:
        return runner.run(config)
    finally:
        slots.serve = real


def serve(config: dict[str, Any], *, epochs: int) -> None:
    """Serve trials like a real worker, but report made-up epochs at once instead of training."""
    from finetune import worker
    from finetune.datasets import catalog
    from finetune.messages import Effective, End, Epoch
    from finetune.training.loop import Outcome
    from search.driver.effective import CHECKED, CHECKED_OF_DATA

    fingerprint = functools.cache(lambda data: catalog.scan(data).fingerprint)

    def train(settings: Any, *, report: Any, **_: Any) -> Outcome:
        used = {name: getattr(settings, name) for name in (*CHECKED, "epochs")}
        used |= {name: getattr(settings.data, name) for name in CHECKED_OF_DATA}
        used |= {"learning_rates": {"head": settings.learning_rate}}
        used |= {"frozen_blocks": settings.frozen_layers, "blocks": settings.frozen_layers}
        report(Effective({"data_fingerprint": fingerprint(settings.data)} | used))
        for epoch in range(1, epochs + 1):
            scores = {"val/accuracy": 0.5, "val/loss": 1.0, "train/loss": 1.0, "learning_rate": 0.1}
            report(Epoch({"epoch": epoch, "seconds": 0.0} | scores))
        return Outcome("complete", epochs)

    worker.loop.train = train
    worker._export = lambda job, world: End("complete")
    worker.slot_loop(config)
