"""One trial, without Ray: it learns, ends honestly, goes on where it was, and repeats itself."""

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import checkpoint, loop
from finetune.errors import CheckpointError, NonFiniteLoss
from finetune.history import Keep
from finetune.settings import DataSettings, SourceSettings, TrialSettings, WeightsSettings


def digits(classes: str, **options: Any) -> DataSettings:
    return DataSettings(
        kind="digits", classes=tuple(classes), image_size=32, horizontal_flip=False, **options
    )


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def settings(cache: str) -> TrialSettings:
    return TrialSettings(
        data=digits("567", batch_size=32, validation_share=0.4, test_share=0.4),
        backbone="shufflenet_v2_x0_5",
        weights=WeightsSettings(source=SourceSettings(data=digits("01"), epochs=1, learning_rate=0.05)),
        strategy="fuse",
        frozen_layers=10,
        learning_rate=0.02,
        dropout=0.3,
        epochs=4,
        seed=7,
        cache_dir=cache,
    )


def keep(folder: Path, **options: Any) -> Keep:
    paths = {"best": folder / "best.safetensors", "last": folder / "last.safetensors"}
    return Keep(metric="val/accuracy", mode="max", **paths, **options)


def epochs(messages: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return the epochs' metrics without those that a clock gives."""
    timed = ("kind", "seconds", "images_per_second")
    return [{k: v for k, v in m.items() if k not in timed} for m in messages if m["kind"] == "epoch"]


def train(settings: TrialSettings, folder: Path, **options: Any) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    loop.train(settings, keep=keep(folder), report=messages.append, **options)
    return messages


def test_every_epoch_reports_losses_metrics_rate_and_speed(settings: TrialSettings, tmp_path: Path) -> None:
    first, *rest = train(settings, tmp_path)
    assert first["kind"] == "effective"
    assert [m["epoch"] for m in rest] == [1, 2, 3, 4]
    assert {"train/loss", "val/loss", "val/accuracy", "learning_rate", "seconds"} <= rest[0].keys()
    assert rest[-1]["train/loss"] < rest[0]["train/loss"]


def test_the_same_settings_give_the_same_epochs_in_any_order_of_trials(
    settings: TrialSettings, tmp_path: Path
) -> None:
    other = dataclasses.replace(settings, strategy="load", learning_rate=0.1, seed=1, optimizer="adam")
    alone = epochs(train(settings, tmp_path / "a"))
    train(other, tmp_path / "b")
    torch.manual_seed(12345)
    assert epochs(train(settings, tmp_path / "c")) == alone


def test_an_interrupted_run_goes_on_to_the_result_of_an_uninterrupted_one(
    settings: TrialSettings, tmp_path: Path
) -> None:
    settings = dataclasses.replace(settings, optimizer="adamw", warmup_epochs=1.5)
    whole = epochs(train(settings, tmp_path / "whole"))

    class Dies(Exception):
        pass

    messages: list[dict[str, Any]] = []

    def die_after_epoch_2(message: dict[str, Any]) -> None:
        messages.append(message)
        if message.get("epoch") == 2:
            raise Dies

    part = keep(tmp_path / "part", every_seconds=0.0)
    with pytest.raises(Dies):
        loop.train(settings, keep=part, report=die_after_epoch_2)
    messages.clear()
    loop.train(settings, keep=part, report=messages.append)
    assert epochs(messages) == whole
    assert not part.last.exists()
    for name, tensor in checkpoint.read(tmp_path / "whole" / "best.safetensors")[0].items():
        assert torch.equal(checkpoint.read(part.best)[0][name], tensor)


def test_a_checkpoint_of_other_settings_is_refused(settings: TrialSettings, tmp_path: Path) -> None:
    part = keep(tmp_path, every_seconds=0.0)
    questions = itertools.count(1)  # one per batch, four batches per epoch
    stop = {"should_stop": lambda: next(questions) == 6}
    assert loop.train(settings, keep=part, report=lambda _: None, **stop).epochs == 1
    assert part.last.exists()
    with pytest.raises(CheckpointError, match=r"must be of the trial's own settings"):
        loop.train(dataclasses.replace(settings, learning_rate=0.5), keep=part, report=lambda _: None)


def test_the_best_epoch_is_kept_and_not_the_last(settings: TrialSettings, tmp_path: Path) -> None:
    messages = epochs(train(settings, tmp_path))
    best = max(messages, key=lambda m: (m["val/accuracy"], -m["epoch"]))
    tensors, facts = checkpoint.read(tmp_path / "best.safetensors")
    assert facts["metrics"]["epoch"] == best["epoch"]
    run = loop.Run(settings, loop.World())
    run.model.load_trained_state(tensors)
    assert run.evaluate("val")["accuracy"] == best["val/accuracy"]


def test_a_stop_takes_effect_between_two_batches(settings: TrialSettings, tmp_path: Path) -> None:
    asked = 0

    def stop_at_the_third_question() -> bool:
        nonlocal asked
        asked += 1
        return asked == 3

    outcome = loop.train(
        settings, keep=keep(tmp_path), report=lambda _: None, should_stop=stop_at_the_third_question
    )
    assert (outcome.state, outcome.epochs, asked) == ("stopped", 0, 3)


def test_a_loss_that_is_not_finite_ends_the_trial_and_says_where(
    settings: TrialSettings, tmp_path: Path
) -> None:
    wild = dataclasses.replace(settings, learning_rate=1e30)
    with pytest.raises(
        NonFiniteLoss, match=r"epoch 1, batch \d+: the training loss must stay finite, got (nan|inf)\. Lower"
    ):
        train(wild, tmp_path)


def test_what_is_effective_is_read_back_from_the_parts(settings: TrialSettings, tmp_path: Path) -> None:
    effective = train(dataclasses.replace(settings, epochs=1, backbone_rate=0.1), tmp_path)[0]
    assert effective["optimizer"] == "sgd"
    assert effective["learning_rates"]["head"] == pytest.approx(0.02)
    assert effective["learning_rates"]["blocks.conv5"] == pytest.approx(0.002)
    assert effective["frozen_blocks"] == 10
    assert effective["dropout"] == 0.3
    assert effective["trainable_parameters"] < effective["total_parameters"]


def test_two_workers_evaluate_every_image_once_and_train_like_one(
    settings: TrialSettings, tmp_path: Path
) -> None:
    """Without batch norm in the trained part, the mean over two workers is the mean over all images."""
    plain = dataclasses.replace(settings, strategy="replace", frozen_layers=-1, dropout=0.0, head_size=16)
    one = epochs(train(plain, tmp_path / "one"))
    script = Path(__file__).parent / "two_workers.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "two")],
        input=repr(plain.to_dict()),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    two = eval(done.stdout, {"nan": float("nan")})  # our own process's list of dicts
    assert len(two) == len(one)
    for ours, theirs in zip(one, two, strict=True):
        assert theirs["val/accuracy"] == ours["val/accuracy"]
        assert theirs["val/loss"] == pytest.approx(ours["val/loss"], rel=1e-4)
        assert theirs["train/loss"] == pytest.approx(ours["train/loss"], rel=1e-4)
