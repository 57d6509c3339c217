"""Heads trained side by side are the heads that the training loop trains one by one."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.disk import checkpoint
from finetune.messages import Epoch, Keep, Message
from finetune.settings import DataSettings, FeatureSettings, SourceSettings, TrialSettings, WeightsSettings
from finetune.training import fused_heads, loop
from finetune.training.run import Run
from finetune.training.workers import World


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fused")


def head(folder: Path, seed: int, **options: Any) -> TrialSettings:
    source = SourceSettings(data=DataSettings(kind="digits", classes=("0", "1"), image_size=32), epochs=1)
    return TrialSettings(
        data=DataSettings(
            kind="digits", classes=("5", "6", "7", "8"), image_size=32, batch_size=48, validation_share=0.4
        ),
        backbone="shufflenet_v2_x0_5",
        weights=WeightsSettings(source=source),
        strategy="replace",
        epochs=3,
        seed=seed,
        cache_dir=str(folder / "cache"),
        **options,
    )


def stored(settings: TrialSettings, folder: Path) -> FeatureSettings:
    return FeatureSettings(folder=str(folder / "features"), budget_bytes=2**30, trials=1000)


def data(settings: TrialSettings, folder: Path) -> fused_heads.Stored:
    return fused_heads.stored(Run(settings, World(), stored(settings, folder)))


def one_by_one(settings: TrialSettings, folder: Path, number: int) -> tuple[list[dict[str, float]], Any]:
    best = folder / f"{number}-best.safetensors"
    keep = Keep(metric="val/accuracy", best=best, last=folder / "last.safetensors")
    found: list[Message] = []
    loop.train(settings, keep=keep, report=found.append, features=stored(settings, folder))
    return [dict(m.metrics) for m in found if isinstance(m, Epoch)], checkpoint.read(best)[0]


WAYS: list[dict[str, Any]] = [
    {},
    {"head_size": 24},
    {"head_size": 17, "imbalance": "class_weights", "label_smoothing": 0.1},
    {"optimizer": "adamw", "weight_decay": 0.3, "schedule": "constant"},
    {"optimizer": "adam", "weight_decay": 0.01, "clip_norm": 0.3},
    {"imbalance": "focal", "focal_gamma": 1.5},
    {"imbalance": "balanced_sampling", "warmup_epochs": 1.0, "momentum": 0.5},
    {"imbalance": "logit_adjustment", "clip_norm": 0.5, "weight_decay": 0.02, "head_size": 30},
]


def test_each_head_of_a_pack_is_the_head_that_the_training_loop_trains(folder: Path) -> None:
    draw = random.Random(0)
    heads = [
        head(folder, seed, learning_rate=0.05 * 2 ** draw.uniform(-2, 1), **way)
        for seed, way in enumerate([*WAYS, *WAYS[:3]])
    ]
    heads = [
        dataclasses.replace(h, learning_rate=h.learning_rate / 10) if h.optimizer != "sgd" else h
        for h in heads
    ]
    found = fused_heads.train(heads, data(heads[0], folder))
    for number, (settings, together) in enumerate(zip(heads, found, strict=True)):
        alone, state = one_by_one(settings, folder, number)
        for name in ("train/loss", "val/loss", "val/accuracy", "val/balanced_accuracy"):
            expected = [m[name] for m in alone]
            assert [m[name] for m in together.epochs] == pytest.approx(expected, rel=2e-4), (settings, name)
        for name, weights in together.state.items():
            torch.testing.assert_close(weights, state[f"head.new.{name}"], rtol=1e-3, atol=1e-5)


def test_a_head_with_dropout_is_the_same_in_any_pack(folder: Path) -> None:
    heads = [head(folder, s, learning_rate=0.05, dropout=d) for s, d in enumerate((0.5, 0.2, 0.0))]
    pixels = data(heads[0], folder)
    together = fused_heads.train(heads, pixels)
    for settings, one in zip(heads, together, strict=True):
        (alone,) = fused_heads.train([settings], pixels)
        assert [m["val/loss"] for m in alone.epochs] == pytest.approx(
            [m["val/loss"] for m in one.epochs], rel=1e-4
        )
    without = fused_heads.train([dataclasses.replace(heads[0], dropout=0.0)], pixels)[0]
    assert without.epochs[-1]["train/loss"] < together[0].epochs[-1]["train/loss"]


def test_dropout_drops_the_share_it_is_told_and_keeps_the_mean(folder: Path) -> None:
    heads = [head(folder, s, learning_rate=0.05, dropout=d) for s, d in enumerate((0.5, 0.2))]
    pack = fused_heads.Pack(heads, data(heads[0], folder))
    ones = torch.ones(2, 400, 500)
    dropped = pack._dropout(1, 0)(ones)
    assert (dropped == 0).float().mean(dim=(1, 2)).tolist() == pytest.approx([0.5, 0.2], abs=0.005)
    assert dropped.mean(dim=(1, 2)).tolist() == pytest.approx([1, 1], abs=0.01)
    assert not torch.equal(dropped, pack._dropout(1, 1)(ones))


def test_packs_fit_in_the_memory_they_are_given(folder: Path) -> None:
    heads = [head(folder, s, learning_rate=0.05, head_size=(0, 20, 30, 100)[s % 4]) for s in range(40)]
    pixels = data(heads[0], folder)
    assert [len(pack) for pack in fused_heads.packs(heads, pixels)] == [10, 20, 10]
    assert max(len(pack) for pack in fused_heads.packs(heads, pixels, pack_bytes=4 * 2**20)) < 10
    whole = sorted(number for pack in fused_heads.packs(heads, pixels, 1) for number in pack)
    assert whole == list(range(40))


def test_on_a_gpu_all_widths_go_together_until_memory_ends_the_widest_among_themselves(folder: Path) -> None:
    heads = [head(folder, s, learning_rate=0.05, head_size=(0, 20, 30, 100)[s % 4]) for s in range(40)]
    pixels = data(heads[0], folder)
    elsewhere = dataclasses.replace(pixels, train=pixels.train.to("meta"))  # not a CPU
    assert [len(pack) for pack in fused_heads.packs(heads, elsewhere)] == [10, 30]
    widths = [
        [heads[number].head_size for number in pack]
        for pack in fused_heads.packs(heads, elsewhere, 2 * 10**7)
    ]
    flat = [width for pack in widths for width in pack]
    assert len(widths) > 2
    assert flat == sorted(flat)
    assert {len({width > 0 for width in pack}) for pack in widths} == {1}


def test_what_cannot_be_fused_is_refused(folder: Path) -> None:
    mixed = head(folder, 0, learning_rate=0.05, ema_decay=0.9)
    with pytest.raises(ValueError, match="fused heads: must be"):
        fused_heads.train([mixed], data(mixed, folder))
