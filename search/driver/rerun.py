"""Train one trial again in this process, without Ray, to reproduce a failure or to use a debugger."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from finetune.messages import Effective, Epoch, Keep, Note
from finetune.training.workers import World
from search.config.resolve import cache_dir, copies_bytes, feature_settings
from search.config.study import StudyConfig
from search.driver.trial import compact
from search.errors import StudyError
from search.record import reader
from search.record.study_folder import StudyFolder
from search.suggest.space import Space


def run_only(
    folder: StudyFolder, config: StudyConfig, number: int, say: Callable[[str], None]
) -> dict[str, float]:
    """Train trial `number` of a study again and return its last epoch's metrics.

    The record is not changed; weights go to a temporary folder.

    Args:
        folder: the study's results folder.
        config: the study's config.
        number: number of the trial.
        say: called with each line of the report.

    Raises:
        StudyError: the study has no such trial.
        FinetuneError: the trial failed.
    """
    import torch

    from finetune.disk import file_cache
    from finetune.training import loop

    if config.privacy.is_on:
        raise StudyError(
            f"{folder.root}: --only-trial must not repeat a private trial, got {number}: it would "
            "be a second draw. `resume` goes on with an interrupted study."
        )
    trials = {trial.number: trial for trial in reader.read_study(folder).trials}
    if number not in trials:
        raise StudyError(f"{folder.root}: --only-trial must be one of 0 to {len(trials) - 1}, got {number}.")
    trial = trials[number]
    settings = Space(config).settings_of(trial, cache_dir=str(cache_dir()))
    say(f"{trial.id}: {settings}")
    history: list[dict[str, float]] = []

    def report(message: Effective | Note | Epoch) -> None:
        match message:
            case Epoch(metrics):
                history.append(dict(metrics))
                told = compact(metrics, config.study.metric)
                say("  ".join(f"{k} {v:.4g}" for k, v in told.items() if k != "recalls"))
            case Effective(facts):
                say(f"effective: {facts}")
            case Note(text):
                say(f"note: {text}")

    torch.set_num_threads(config.resources.cpus_per_worker)  # as in a slot, for bit-identical results
    file_cache.limit(copies_bytes(config))
    device = torch.device("cuda" if torch.cuda.is_available() and config.resources.gpu else "cpu")
    with tempfile.TemporaryDirectory() as scratch:
        keep = Keep(
            metric=config.study.metric,
            best=Path(scratch) / "best.safetensors",
            last=Path(scratch) / "last.safetensors",
        )
        world = World(device=device)
        loop.train(settings, keep=keep, report=report, world=world, features=feature_settings(config))
    return history[-1]
