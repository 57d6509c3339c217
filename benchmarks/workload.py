"""Common parts of the search benchmarks: images, weights, the list of trials, and ours on it.

--images DIR --weights FILE   a folder with train and val, and mobilenet_v2's weights
--size S                      side of the images in pixels
(neither)                     scikit-learn's digits, and a small network pretrained on other digits
--quick                       256 training images, one round: under 10 minutes on 2 cores
--rounds R                    repetitions, of which the median counts; default 3, with --quick 1
"""

import argparse
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import psutil
import ray

from finetune.datasets import catalog
from finetune.settings import TrialSettings
from search.config import resolve
from search.config.study import StudyConfig
from search.driver import runner, tuner
from search.record.records import StudyRecord
from search.record.storage import only_study, open_storage
from search.record.study_folder import StudyFolder
from search.suggest.space import Space

SLOTS = 2
QUICK_IMAGES = 256
SAMPLE_SECONDS = 3.0


@dataclass(frozen=True)
class Workload:
    """Images and weights of a benchmark, and how much of them it takes."""

    images: Path | None
    weights: Path | None
    size: int
    quick: bool
    rounds: int
    """Repetitions of what is compared, alternating."""
    scratch: Path
    """A folder of the benchmark's own: results, stored features."""

    def config(self, name: str, *, trials: int, epochs: int, **sections: dict[str, Any]) -> StudyConfig:
        """Return a study without early stopping or baselines, so that every pattern does equal work."""
        if self.images is None:
            data: dict[str, Any] = {"kind": "digits", "classes": list("56789"), "image_size": 32}
            source = {"kind": "digits", "classes": list("01234"), "epochs": 3}
            model: dict[str, Any] = {"backbone": "shufflenet_v2_x0_5", "weights": {"source": source}}
        else:
            data = {"path": str(self.taken()), "image_size": self.size}
            model = {"backbone": "mobilenet_v2", "weights": str(self.weights)}
        values: dict[str, Any] = {
            "study": {
                **{"name": name, "trials": trials, "epochs": epochs, "sampler": "random", "baselines": []},
                "keep_checkpoints": 1,
            },
            "data": data,
            "model": model,
            "early_stopping": {"enabled": False},
            "resources": {"slots": SLOTS, "gpu": False},
            "features": {"dir": str(self.scratch / "features")},
            "results": str(self.scratch / "results"),
        }
        for section, more in sections.items():
            values[section] = {**values.get(section, {}), **more}
        return StudyConfig.from_dict(values)

    def forget(self) -> None:
        """Remove stored features."""
        shutil.rmtree(self.scratch / "features", ignore_errors=True)

    def taken(self) -> Path:
        """Return the folder of images, with `--quick` one that links to the first few of each class."""
        assert self.images is not None
        if not self.quick:
            return self.images.resolve()
        few = self.scratch / "images"
        if not few.exists():
            for split in ("train", "val"):
                folders = sorted(p for p in (self.images / split).iterdir() if p.is_dir())
                share = (
                    QUICK_IMAGES // len(folders) if split == "train" else QUICK_IMAGES // 4 // len(folders)
                )
                for folder in folders:
                    (few / split / folder.name).mkdir(parents=True)
                    for image in sorted(folder.iterdir())[:share]:
                        (few / split / folder.name / image.name).symlink_to(image.resolve())
        return few


@contextmanager
def workload(description: str, *, size: int = 128) -> Iterator[Workload]:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder with train and val; left out: digits")
    parser.add_argument("--weights", type=Path, help="mobilenet_v2's weights, to go with --images")
    parser.add_argument("--size", type=int, default=size, help="side of the images, in pixels")
    parser.add_argument("--quick", action="store_true", help="256 images, one round")
    parser.add_argument("--rounds", type=int, help="repetitions; default 3, with --quick 1")
    options = parser.parse_args()
    if (options.images is None) != (options.weights is None):
        parser.error("--images and --weights go together")
    if options.rounds is None:
        options.rounds = 1 if options.quick else 3
    with tempfile.TemporaryDirectory() as scratch:
        yield Workload(**vars(options), scratch=Path(scratch))


def suggestions(config: StudyConfig) -> list[TrialSettings]:
    """Return the settings of every trial, as the study's own random sampler draws them."""
    space = Space(config)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=config.study.seed))
    where = str(resolve.cache_dir())
    return [
        space.settings(space.suggest(study.ask()), number=number, cache_dir=where)
        for number in range(config.study.trials)
    ]


@dataclass(frozen=True)
class Took:
    """How long a whole study took."""

    whole: float
    """Seconds with everything: Ray's start, slots, extraction, trials, export of the best."""
    steady: float
    """Seconds of all trials at the rate between the first one's end and the last one's."""
    first: float
    """Seconds from the start of the first trial to the end of the first one to end."""
    peak_gib: float
    """Most memory of the driver and everything it started, shared pages counted once (PSS)."""
    record: StudyRecord


def ours(config: StudyConfig) -> Took:
    """Run a study as a user would, in a Ray of its own."""
    tuner.quieten()
    began = time.monotonic()
    with _memory() as peak:
        ray.init(
            num_cpus=4, address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
        try:
            record = runner.run(config)
        finally:
            ray.shutdown()
    whole = time.monotonic() - began
    failed = [trial for trial in record.trials if trial.state != "COMPLETE"]
    assert not failed, failed[0].error
    begins, ends = _times(Path(record.folder))
    steady = (ends[-1] - ends[0]) / max(1, len(ends) - 1) * len(ends)
    return Took(whole, steady, ends[0] - begins[0], max(peak), record)


@contextmanager
def _memory() -> Iterator[list[float]]:
    """Gather the memory of this process and its children, in GiB, every few seconds."""
    found, ended = [0.0], threading.Event()

    def watch() -> None:
        me = psutil.Process()
        while not ended.wait(SAMPLE_SECONDS):
            total = 0
            for process in [me, *me.children(recursive=True)]:
                with suppress(psutil.Error):
                    total += process.memory_full_info().pss
            found.append(total / 2**30)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def _times(folder: Path) -> tuple[Sequence[float], Sequence[float]]:
    """Return when the trials of a study began and ended, in order, in seconds since 1970."""
    storage = open_storage(StudyFolder(folder).database)
    done = optuna.load_study(storage=storage, study_name=only_study(storage)).get_trials(deepcopy=False)
    begins = sorted(t.datetime_start.timestamp() for t in done if t.datetime_start)
    return begins, sorted(t.datetime_complete.timestamp() for t in done if t.datetime_complete)


def count_images(config: StudyConfig) -> int:
    """Return the number of training images."""
    return len(catalog.scan(resolve.data_settings(config)).splits["train"])
