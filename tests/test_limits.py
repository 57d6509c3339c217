"""Learning rates that are too high: noticed in the first steps, lowered by a range test, and told."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import model_folder
from finetune.errors import NonFiniteLoss
from finetune.messages import Effective, Epoch, Keep, Message, Note
from finetune.model import backbones, source_rows, strategies
from finetune.model.known_backbones import OUTLINES
from finetune.settings import DataSettings, TrialSettings, WeightsSettings
from finetune.strategy import FUSE
from finetune.training import limits, loop
from finetune.training.run import Run
from finetune.training.workers import World
from search.driver.effective import check_effective
from search.errors import SettingsIgnored
from tests.by_hand import train_job
from tests.test_families import SMALLEST

KINDS = ("resnet18", "squeezenet1_1", "vit_b_32")
"""Families with batch norm, without it, and with layer norm; all others are tried with --long."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def settings_of(backbone: str, side: int, cache: Path, **options: Any) -> TrialSettings:
    """Return a trial on 27 digits, one batch per epoch."""
    digits: dict[str, Any] = {"kind": "digits", "classes": tuple("567"), "horizontal_flip": False}
    digits |= {"image_size": side, "batch_size": 32, "validation_share": 0.05, "test_share": 0.9}
    usual = {"strategy": "fuse", "weights": WeightsSettings(), "learning_rate": 0.02, "epochs": 6, "seed": 7}
    return TrialSettings(
        data=DataSettings(**digits),
        backbone=backbone,
        cache_dir=str(cache),
        **usual | options,
    )


def train(settings: TrialSettings, folder: Path, **options: Any) -> list[Message]:
    told: list[Message] = []
    keep = Keep(metric="val/accuracy", best=folder / "b.safetensors", last=folder / "l.safetensors")
    loop.train(settings, keep=keep, report=told.append, **options)
    return told


def metrics(told: list[Message]) -> list[dict[str, float]]:
    timed = ("seconds", "images_per_second")
    found = [message.metrics for message in told if isinstance(message, Epoch)]
    return [{name: value for name, value in epoch.items() if name not in timed} for epoch in found]


def judged(losses: list[float]) -> bool:
    """Return what a watch of one epoch says at its end, or at the first loss that is too high."""
    settings = settings_of("alexnet", 64, Path("/none"), epochs=1)
    watch = limits.Watch(settings, classes=5, steps_per_epoch=len(losses))
    for loss in losses:
        watch.add(torch.tensor(loss * 3.0), 3.0)
        if watch.is_too_high():
            return True
    assert watch.is_over
    return False


@pytest.mark.parametrize(
    ("losses", "too_high"),
    [
        ([1.6, 1.5, 1.4, 1.2, 1.1, 1.0], False),
        ([13.9, 13.0, 10.9, 11.1, 9.0, 8.0], False),  # slow, but falling
        ([1.6, 4.5, 2.2, 1.3, 1.1, 1.0], False),  # a spike from which it came back
        ([1.6, 4.5, 2.2, 1.6, 1.61, 1.62], True),  # dead after the spike: as good as guessing
        ([1.6, 1.5, 17.0, 1.0, 1.0, 1.0], True),
        ([13.9, 15.1, 25.8, 343.7, 1.0, 1.0], True),
        ([1.6, math.nan, 1.0, 1.0, 1.0, 1.0], True),
    ],
)
def test_losses_that_blow_up_or_end_at_guessing_after_a_spike_are_too_high(
    losses: list[float], too_high: bool
) -> None:
    assert judged(losses) is too_high


def test_a_trial_that_diverges_is_trained_as_if_it_had_been_given_the_limit(tmp_path: Path) -> None:
    wild = settings_of("squeezenet1_1", 33, tmp_path, learning_rate=30.0)
    told = train(wild, tmp_path / "wild")
    (limit,) = {m.facts["learning_rate_limit"] for m in told[1:] if isinstance(m, Effective)}
    assert limit < 3.0
    (note,) = [message.text for message in told if isinstance(message, Note)]
    assert note.startswith(f"learning rate limited to {limit:.3g}: at 30 the loss diverged within ")
    tame = train(dataclasses.replace(wild, learning_rate=limit), tmp_path / "tame")
    assert len(metrics(told)) == wild.epochs
    assert metrics(told) == metrics(tame)


def test_a_validation_loss_that_is_not_finite_after_the_first_epoch_lowers_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training loss stays finite, as where the running statistics of batch norm blow up."""
    measured, at = Run.evaluate, 1

    def blown_up(run: Run, split: str, *rest: Any) -> dict[str, float]:
        found = measured(run, split, *rest)
        epochs.append(run.limit)
        return found | {"loss": math.nan} if run.limit is None and len(epochs) == at else found

    monkeypatch.setattr(Run, "evaluate", blown_up)
    epochs: list[float | None] = []
    settings = settings_of("squeezenet1_1", 32, tmp_path, learning_rate=0.001, epochs=8)
    told = train(settings, tmp_path)
    (note,) = [message.text for message in told if isinstance(message, Note)]
    assert note.endswith("at 0.001 the validation loss was nan after epoch 1")
    assert [epoch["epoch"] for epoch in metrics(told)] == list(range(1, 9))
    assert epochs[0] is None
    assert all(limit is not None and limit <= 0.0001 for limit in epochs[1:])
    at = 8  # of later epochs it is reported, so that nothing can begin again
    (tmp_path / "late").mkdir()
    epochs.clear()
    with pytest.raises(NonFiniteLoss, match="epoch 8: the validation loss must stay finite, got nan"):
        train(settings, tmp_path / "late")


def test_an_interrupted_trial_goes_on_at_its_limit(tmp_path: Path) -> None:
    wild = settings_of("squeezenet1_1", 33, tmp_path, learning_rate=30.0, epochs=8)
    whole = train(wild, tmp_path / "whole")
    begun = train(wild, tmp_path / "part", should_move=lambda: True)
    assert len(metrics(begun)) == limits.LEAST_STEPS  # with one step in each epoch
    rest = train(wild, tmp_path / "part")
    assert not [message for message in rest if isinstance(message, Note)]
    assert metrics(rest) == metrics(whole)


def test_a_model_that_stands_no_rate_fails(tmp_path: Path) -> None:
    wild = settings_of("squeezenet1_1", 33, tmp_path, weight_decay=1e20)
    with pytest.raises(NonFiniteLoss, match="learning rate: must let the loss fall"):
        train(wild, tmp_path / "wild")


def test_a_trial_may_train_below_the_rate_that_was_suggested_but_not_above(tmp_path: Path) -> None:
    settings = settings_of("squeezenet1_1", 33, tmp_path)
    run = Run(settings, World(), limit=0.004)
    job = dataclasses.replace(train_job("a", {}, settings), data_fingerprint=run.data.fingerprint)
    check_effective(job, run.effective())
    with pytest.raises(SettingsIgnored, match="learning_rate"):
        check_effective(job, Run(settings, World(), limit=0.03).effective())


@pytest.mark.parametrize(
    "backbone",
    [pytest.param(name, marks=pytest.mark.slow if name in KINDS else pytest.mark.long) for name in SMALLEST],
)
def test_the_start_of_fuse_does_not_diverge_on_random_weights(backbone: str, tmp_path: Path) -> None:
    said = {name: value for name, value in FUSE.start.items() if name != "strategy"}
    frozen = int(OUTLINES[backbone].blocks * FUSE.start_frozen)
    settings = settings_of(backbone, SMALLEST[backbone], tmp_path, frozen_layers=frozen, **said)
    losses = [epoch["train/loss"] for epoch in metrics(train(settings, tmp_path / "trial"))]
    assert len(losses) == settings.epochs
    assert min(losses[-2:]) < 1.5 * max(losses[0], math.log(3)), losses


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.material
@pytest.mark.parametrize("backbone", ["squeezenet1_0", "mobilenet_v2"])
def test_the_start_of_fuse_learns_with_and_without_batch_norm(
    backbone: str, tmp_path: Path, material: Path
) -> None:
    data = DataSettings(kind="folder", path=str(material / "data" / "flowers5"), image_size=64)
    settings = TrialSettings(
        data=data,
        backbone=backbone,
        weights=WeightsSettings(file=str(material / "weights" / f"{backbone}.pth")),
        strategy="fuse",
        learning_rate=float(str(FUSE.start["learning_rate"])),
        frozen_layers=int(len(backbones.build(backbone).blocks) * FUSE.start_frozen),
        epochs=3
        if backbone == "squeezenet1_0"
        else 1,  # its limited rate is slow: .62 after three epochs, .40 after one
        cache_dir=str(tmp_path),
    )
    told = train(settings, tmp_path / "trial")
    assert bool([m for m in told if isinstance(m, Note)]) == (backbone == "squeezenet1_0")
    assert metrics(told)[-1]["val/accuracy"] > 0.5  # chance: 0.2; without the limit squeezenet1_0 diverges


def test_load_drops_the_relu_behind_mixed_rows_and_keeps_it_behind_the_sources_own() -> None:
    """SqueezeNet's source FC ends with one. It would silence classes for ever."""

    def loaded(classes: tuple[str, ...], **options: Any) -> list[str]:
        source = backbones.build("squeezenet1_1", source_classes=4)
        model = strategies.build(
            "load",
            source,
            classes=classes,
            head_size=0,
            dropout=0.0,
            frozen_layers=-1,
            relation=torch.full((len(classes), 4), 0.25),
            source_names=tuple("abcd"),
            seed=0,
            **options,
        )
        return source_rows.relus_behind(model.head.new)

    assert loaded(tuple("xyz")) == []
    assert len(loaded(tuple("dcba"))) == 1
    assert loaded(tuple("dcba"), keeps_relu=False) == []
    assert len(loaded(tuple("xyz"), keeps_relu=True)) == 1


def test_a_model_folder_says_whether_the_relu_is_gone_and_older_ones_keep_it(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "squeezenet.pth"
    torch.save(backbones.classifier("squeezenet1_1", source_classes=4).state_dict(), weights)
    given = WeightsSettings(file=str(weights))
    settings = settings_of("squeezenet1_1", 33, tmp_path, strategy="load", weights=given, epochs=1)
    train(settings, tmp_path / "trial")
    model_folder.write(tmp_path / "trial" / "b.safetensors", tmp_path / "model", {}, world=World())
    assert source_rows.relus_behind(model_folder.load(tmp_path / "model").net.head.new) == []
    card = tmp_path / "model" / "model.yaml"
    card.write_text(card.read_text().replace("keeps_relu: false", "other: 1"))
    assert len(source_rows.relus_behind(model_folder.load(tmp_path / "model").net.head.new)) == 1
