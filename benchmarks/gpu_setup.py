"""Common parts of the checks and timings on a GPU: images, settings, clocks."""

import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from finetune.settings import DataSettings, FeatureSettings, SourceSettings, TrialSettings, WeightsSettings
from finetune.training.workers import World

CLASSES = 8
PHOTO_SIDE = 256


@dataclass(frozen=True)
class Setup:
    """Device, images and size of a run."""

    device: torch.device
    quick: bool
    images: Path | None
    weights: Path | None
    scratch: Path

    def size(self, whole: int, quick: int) -> int:
        """Return a number of images, steps or pixels: the whole one, or the quick one."""
        return quick if self.quick else whole

    @property
    def world(self) -> World:
        """One worker on this device."""
        return World(device=self.device)

    def photos(self) -> Path:
        """Return a folder of JPEGs: coloured stripes under noise, made on first use."""
        folder = self.scratch / "photos"
        train, val = self.size(2048, 32), self.size(256, 16)
        if not folder.exists():
            for split in ("train", "val"):
                for label in range(CLASSES):
                    (folder / split / f"class{label}").mkdir(parents=True)
            places = [("train", n) for n in range(train)] + [("val", n) for n in range(val)]
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda place: _photo(folder, *place), places))
        return folder

    def trial(self, backbone: str, data: DataSettings, **options: Any) -> TrialSettings:
        """Return a trial on these images, random weights and all blocks trained unless said otherwise."""
        usual: dict[str, Any] = {
            **{"weights": WeightsSettings(), "strategy": "replace", "frozen_layers": 0, "epochs": 100},
            **{"learning_rate": 0.01, "cache_dir": str(self.scratch / "cache")},
        }
        return TrialSettings(backbone=backbone, data=data, **(usual | options))

    def photo_data(self, **options: Any) -> DataSettings:
        """Return the made photographs."""
        usual: dict[str, Any] = {"image_size": self.size(224, 32), "horizontal_flip": False}
        return DataSettings(kind="folder", path=str(self.photos()), **(usual | options))

    def real_data(self, **options: Any) -> DataSettings:
        """Return the given images."""
        usual: dict[str, Any] = {"image_size": 128, "horizontal_flip": False}
        return DataSettings(kind="folder", path=str(self.images), **(usual | options))

    def digits(self, classes: str = "56789", **options: Any) -> DataSettings:
        """Return scikit-learn's digits of these classes, 32 pixels."""
        usual: dict[str, Any] = {"image_size": 32, "horizontal_flip": False, "validation_share": 0.5}
        return DataSettings(kind="digits", classes=tuple(classes), **(usual | options))

    def digit_weights(self) -> WeightsSettings:
        """Return weights that are pretrained on other digits, on first use."""
        return WeightsSettings(source=SourceSettings(data=self.digits("01234"), epochs=self.size(3, 1)))

    def weights_alike(self) -> WeightsSettings:
        """Return weights that are the same on all devices: the given ones, or random ones.

        Pretraining on other digits would train them anew on each kind of device.
        """
        return WeightsSettings(file=str(self.weights.resolve()) if self.weights else None)

    def store(self, name: str) -> FeatureSettings:
        """Return a place for features, as of a study of many trials."""
        return FeatureSettings(folder=str(self.scratch / name), budget_bytes=2**34, trials=1000)

    def clock(self) -> float:
        """Return seconds, once the device has done all it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, call: Callable[[], object], *, rounds: int = 3, warm: int = 1) -> float:
        """Return the median seconds of a call, the first ones left out."""
        found = []
        for _ in range(warm + rounds):
            began = self.clock()
            call()
            found.append(self.clock() - began)
        return statistics.median(found[warm:])


def say(*words: object) -> None:
    """Print at once."""
    print(*words, flush=True)
    sys.stdout.flush()


def _photo(folder: Path, split: str, number: int) -> None:
    label, draws = number % CLASSES, np.random.default_rng([len(split), number])
    ramp = np.arange(PHOTO_SIDE) * (label + 1) * 2 * np.pi / PHOTO_SIDE
    stripes = np.sin(ramp[:, None] * (label % 2) + ramp[None] * (1 - label % 2) + draws.uniform(0, 6))
    colour = draws.uniform(40, 100, size=3)
    pixels = 128 + stripes[..., None] * colour
    coarse = draws.normal(0, 30, size=(32, 32, 3)).repeat(8, axis=0).repeat(8, axis=1)
    image = Image.fromarray(np.clip(pixels + coarse, 0, 255).astype(np.uint8))
    image.save(folder / split / f"class{label}" / f"{number:05}.jpg", quality=90)
