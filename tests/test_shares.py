"""Every worker has its share of each batch, or the trial says before training why it cannot."""

import ast
import dataclasses
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from finetune.errors import DataError
from finetune.images import order
from finetune.messages import Keep, Message
from finetune.settings import DataSettings, TrialSettings, WeightsSettings
from finetune.training import loop
from finetune.training.run import Run
from finetune.training.workers import World


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def settings(tmp_path: Path, data: DataSettings, **changes: Any) -> TrialSettings:
    return TrialSettings(
        **{
            "data": data,
            "backbone": "shufflenet_v2_x0_5",
            "weights": WeightsSettings(),
            "strategy": "replace",
            "learning_rate": 0.01,
            "epochs": 1,
            "cache_dir": str(tmp_path / "cache"),
        }
        | changes
    )


def digits(**changes: Any) -> DataSettings:
    return DataSettings(
        **{
            "kind": "digits",
            "classes": ("5", "6"),
            "image_size": 32,
            "validation_share": 0.8,
            "test_share": 0.1,
            "horizontal_flip": False,
        }
        | changes
    )


@pytest.mark.thorough
def test_two_workers_train_where_the_last_batch_and_the_validation_split_have_one_image(
    tmp_path: Path,
) -> None:
    noise = np.random.default_rng(0)
    for place in (*(f"train/{name}/{i}" for name in "ab" for i in range(5)), "val/a/0"):
        (tmp_path / "data" / place).parent.mkdir(parents=True, exist_ok=True)
        pixels = noise.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"data/{place}.png")
    (tmp_path / "data/train/b/4.png").unlink()  # nine images: the last batch of two has one
    data = DataSettings(kind="folder", path=str(tmp_path / "data"), image_size=32, batch_size=2)
    trials = [settings(tmp_path, data, precision=precision).to_dict() for precision in ("exact", "auto")]
    script = Path(__file__).parent / "two_workers.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "two")],
        input=repr(trials),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for (epoch,) in ast.literal_eval(done.stdout.replace("NaN", "None")):
        assert math.isfinite(epoch["train/loss"])
        assert math.isfinite(epoch["val/loss"])
        assert epoch["val/accuracy"] in (0.0, 1.0)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [4, 5, 8])
def test_every_worker_has_an_image_of_every_batch(workers: int, size: int) -> None:
    for images in range(workers, 40):
        labels = torch.arange(images) % 3
        plain = order.batches(images, size, torch.Generator().manual_seed(1), workers=workers)
        balanced = order.balanced_batches(labels, size, torch.Generator().manual_seed(1), workers=workers)
        for batches in (plain, balanced):
            assert all(len(batch[rank::workers]) for batch in batches for rank in range(workers))


def test_a_batch_smaller_than_the_workers_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"every worker needs an image of each batch, got data\.batch_size 3 for 4 workers"
    ):
        Run(settings(tmp_path, digits(batch_size=3)), World(size=4))


BATCH_NORM = r"batch norm must train on more than one value per channel, got one image"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"batch_size": 1}, r" and one pixel of it in stage4\.0\. Give each two"),
        ({"batch_size": 8, "accumulate": 8}, r" per accumulated part and one pixel of it in stage4\.0"),
        ({"batch_size": 1, "unfreeze_epochs": 1}, " and one pixel"),
    ],
)
def test_batch_norm_over_a_single_value_is_refused_before_training_in_our_words(
    tmp_path: Path, changes: dict[str, int], told: str
) -> None:
    data = digits(batch_size=changes.pop("batch_size"))
    reported: list[Message] = []
    keep = Keep(metric="val/accuracy", best=tmp_path / "best", last=tmp_path / "last")
    with pytest.raises(DataError, match=BATCH_NORM + told):
        loop.train(settings(tmp_path, data, frozen_layers=0, **changes), keep=keep, report=reported.append)
    assert reported == []


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        ({"image_size": 64}, {"frozen_layers": 0}),
        ({}, {"frozen_layers": -1}),
        ({}, {"frozen_layers": 0, "backbone": "squeezenet1_1"}),
    ],
    ids=["more than a pixel", "all frozen", "no batch norm"],
)
def test_single_images_train_where_they_can(
    tmp_path: Path, data: dict[str, int], changes: dict[str, Any]
) -> None:
    wanted = settings(
        tmp_path, digits(batch_size=1, validation_share=0.9, test_share=0.05, **data), **changes
    )
    keep = Keep(metric="val/accuracy", best=tmp_path / "best", last=tmp_path / "last")
    outcome = loop.train(dataclasses.replace(wanted, learning_rate=1e-4), keep=keep, report=lambda _: None)
    assert outcome.state == "complete"
