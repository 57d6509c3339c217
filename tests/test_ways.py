"""Ways to fine-tune beyond the plain one: each does what its formula says, and nothing where it is off."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from finetune.disk import checkpoint
from finetune.images import augment
from finetune.messages import Epoch, Keep, Message, TrainJob
from finetune.settings import DataSettings, SourceSettings, TrialSettings, WeightsSettings
from finetune.strategy import STRATEGIES
from finetune.training import loop, optimize
from finetune.training.averaging import Average
from finetune.training.run import Run
from finetune.training.workers import World
from search.config.sections import SETTINGS
from search.config.setting import Asked
from search.driver.effective import check_effective
from search.errors import SettingsIgnored
from search.suggest.space import FIELDS
from tests.by_hand import train_job

BLOCKS = 18
"""Of shufflenet_v2_x0_5."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def settings(tmp_path: Path) -> TrialSettings:
    return TrialSettings(
        data=DataSettings(
            kind="digits", classes=tuple("67"), image_size=32, horizontal_flip=False, test_share=0.7
        ),
        backbone="shufflenet_v2_x0_5",
        weights=WeightsSettings(),
        strategy="fuse",
        frozen_layers=BLOCKS - 3,
        learning_rate=0.02,
        epochs=3,
        seed=7,
        cache_dir=str(tmp_path),
    )


def run_of(settings: TrialSettings, **options: Any) -> Run:
    return Run(dataclasses.replace(settings, **options), World())


def train_epoch(run: Run, epoch: int = 1) -> float:
    loss = run.train_epoch(epoch, lambda: False)
    assert loss is not None
    return loss


def copied(run: Run) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.trained_state().items()}


def moved(before: dict[str, Tensor], run: Run) -> set[str]:
    """Return the parts of the model, such as `trunk.2`, of which anything has changed."""
    changed = [name for name, t in run.model.trained_state().items() if not torch.equal(before[name], t)]
    return {".".join(name.split(".")[: 2 if name.startswith("trunk") else 1]) for name in changed}


def test_rates_fall_from_block_to_block_with_the_distance_from_the_head(settings: TrialSettings) -> None:
    groups = run_of(settings, layer_decay=0.5, backbone_rate=0.1).effective()["learning_rates"]
    names = [name for name in groups if name.startswith("blocks.")]
    assert groups["head"] == groups["source_fc"] == 0.02
    assert [groups[name] for name in names] == pytest.approx([0.02 * 0.1 * 0.5**d for d in (3, 2, 1)])


def test_blocks_thaw_from_the_top_and_until_then_stay_as_they_are(settings: TrialSettings) -> None:
    """Parameters and batch norms' buffers alike; with k = 1 epoch 1 trains the head alone."""
    run = run_of(settings, unfreeze_epochs=1, weight_decay=0.1, ema_decay=0.5)
    before = copied(run)
    first, second, last = (f"trunk.{BLOCKS - i}" for i in (3, 2, 1))  # a slice of blocks keeps its numbers
    expected = [{"head"}, {"head", last}, {"head", last, second}]
    for epoch, parts in enumerate(expected, 1):
        train_epoch(run, epoch)
        assert moved(before, run) == parts
        assert run.average is not None
        waiting = [name for name in before if name.startswith(f"{first}.")]
        assert waiting
        assert all(torch.equal(run.average.state[name], before[name]) for name in waiting)
    train_epoch(run, 4)
    assert moved(before, run) == {"head", last, second, first}


def test_the_statistics_that_workers_average_are_those_that_training_moves(settings: TrialSettings) -> None:
    run = run_of(settings)
    before = copied(run)
    run.model.thaw(1)
    train_epoch(run)
    statistics = run.model.moving_statistics()
    buffers = {name for name, _ in run.model.named_buffers() if not name.startswith("prefix.")}
    changed = {name for name in buffers if not torch.equal(run.model.trained_state()[name], before[name])}
    assert statistics
    assert set(statistics) == {name for name in changed if before[name].is_floating_point()}


def test_every_k_epochs_one_block_thaws(settings: TrialSettings) -> None:
    run = run_of(settings, unfreeze_epochs=2)
    waiting = []
    for epoch in range(1, 9):
        run._thaw(epoch)
        waiting.append(run.model.waiting)
    assert waiting == [3, 3, 2, 2, 1, 1, 0, 0]


def step_by(run: Run, gradient: float) -> None:
    for parameter in run.model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, gradient)
    optimize.step(run.optimizer, run.starts, clip_norm=run.settings.clip_norm)


@pytest.mark.parametrize("strategy", ["replace", "fuse"])
def test_l2_sp_pulls_pretrained_weights_to_their_start_and_new_ones_to_zero(
    settings: TrialSettings, strategy: str
) -> None:
    """w <- w - rate * l2_sp * (w - w_start); weight decay is left to the new head."""
    run = run_of(settings, strategy=strategy, l2_sp=0.5, weight_decay=0.1, momentum=0.0)
    start = copied(run)
    with torch.no_grad():
        for parameter in run.model.parameters():
            parameter.add_(1.0)
    step_by(run, 0.0)
    for name, parameter in run.model.named_parameters():
        if name.startswith("head.new"):
            expected = (start[name] + 1) * (1 - 0.02 * 0.1)
        elif parameter.requires_grad:
            expected = start[name] + 1 - 0.02 * 0.5
        else:
            continue
        assert torch.allclose(parameter, expected, atol=1e-6), name
    effective = run.effective()
    assert (effective["l2_sp"], effective["weight_decay"]) == (0.5, 0.1)


def test_l2_sp_is_nothing_where_no_pretrained_weight_trains(settings: TrialSettings) -> None:
    run = run_of(settings, strategy="replace", frozen_layers=-1, l2_sp=0.5)
    assert run.effective()["l2_sp"] == 0.0


def test_the_gradient_is_clipped_to_the_norm_over_all_weights(settings: TrialSettings) -> None:
    run = run_of(settings, clip_norm=0.25, momentum=0.0)
    before = copied(run)
    step_by(run, 3.0)
    steps = [before[name] - t for name, t in run.model.trained_state().items()]
    norm = torch.cat([s.flatten().double() for s in steps]).norm().item()
    assert norm == pytest.approx(0.02 * 0.25, rel=1e-3)


def test_the_average_follows_its_formula_and_counts_buffers_in(settings: TrialSettings) -> None:
    run = run_of(settings)
    average = Average(run.model, 0.6)
    expected = {name: t.double().clone() for name, t in run.model.trained_state().items()}
    for steps in range(1, 12):
        with torch.no_grad():
            for tensor in run.model.trained_state().values():
                tensor.add_(steps)
        average.update(steps)
        d = min(0.6, (1 + steps) / (10 + steps))
        for name, tensor in run.model.trained_state().items():
            counter = not tensor.is_floating_point()
            expected[name] = tensor.clone() if counter else d * expected[name] + (1 - d) * tensor.double()
    for name, tensor in expected.items():
        assert torch.allclose(average.state[name].double(), tensor.double(), rtol=1e-5), name


def test_the_average_is_what_is_evaluated_and_kept_and_training_goes_on_with_the_weights(
    settings: TrialSettings, tmp_path: Path
) -> None:
    settings = dataclasses.replace(settings, ema_decay=0.9, epochs=1)
    keep = Keep(metric="val/loss", best=tmp_path / "best", last=tmp_path / "last")
    told: list[Message] = []
    loop.train(settings, keep=keep, report=told.append)
    run = run_of(settings)
    train_epoch(run)
    assert run.average is not None
    own = copied(run)
    with run.average.applied():
        assert isinstance(told[-1], Epoch)
        assert run.evaluate("val")["loss"] == told[-1].metrics["val/loss"]
        assert moved(own, run)
    assert not moved(own, run)
    kept, _ = checkpoint.read(keep.best)
    assert all(torch.equal(kept[name], tensor) for name, tensor in run.average.state.items())


@pytest.mark.parametrize("parts", [2, 5, 1000])
def test_an_accumulated_step_is_the_step(settings: TrialSettings, parts: int) -> None:
    """Up to rounding, without batch norm in the trained part."""
    head = {"frozen_layers": -1, "imbalance": "class_weights", "mix": "cutmix", "clip_norm": 1.0}
    one, many = run_of(settings, **head), run_of(settings, **head, accumulate=parts)
    assert train_epoch(many) == pytest.approx(train_epoch(one), rel=1e-4)
    for name, tensor in one.model.trained_state().items():
        assert torch.allclose(many.model.trained_state()[name], tensor, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_targets_are_mixed_in_the_share_of_the_pixels_and_weights_are_kept(
    settings: TrialSettings, kind: str
) -> None:
    torch.manual_seed(0)
    mixing = augment.mixing(dataclasses.replace(settings, mix=kind, mix_alpha=1.0))
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 8, 8)
    targets = torch.eye(4) * torch.tensor([1.0, 2.0, 0.5, 3.0])[:, None]
    mixed, blended = augment.mix(mixing, images, targets)
    assert blended.sum() == pytest.approx(6.5)
    share = (blended / targets.sum(dim=0)).double()  # of each image in each: rows add up to 1
    assert share.sum(dim=1) == pytest.approx(torch.ones(4).numpy(), abs=1e-6)
    assert mixed.double().mean(dim=(1, 2, 3)) == pytest.approx((share @ torch.arange(4.0).double()).numpy())
    assert 0 < share[0, 0] < 1


def test_one_image_has_none_to_be_mixed_with(settings: TrialSettings) -> None:
    mixing = augment.mixing(dataclasses.replace(settings, mix="mixup"))
    image, target = torch.rand(1, 3, 8, 8), torch.ones(1, 2)
    assert augment.mix(mixing, image, target) == (image, target)


def augmented(settings: TrialSettings, **options: Any) -> Run:
    return run_of(settings, data=dataclasses.replace(settings.data, augment="trivial", **options))


def test_a_trivially_augmented_view_is_a_function_of_seed_image_and_view(settings: TrialSettings) -> None:
    data = augmented(settings).data
    images = torch.arange(36)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = data.batch("train", images, view=3)
    assert torch.equal(torch.get_rng_state(), state), "the loop's generator must stay where it is"
    torch.manual_seed(2)
    back = data.batch("train", images.flip(0), view=3)
    assert torch.equal(back.flip(0), first)
    assert not torch.equal(data.batch("train", images, view=4), first)
    assert not torch.equal(data.batch("train", images), first), "evaluation sees the image itself"
    assert not torch.equal(augmented(settings, seed=5).data.batch("train", images, view=3), first)


def test_trivial_augment_is_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """With equal draws, each operation gives the pixels that torchvision's own class gives."""

    class Draws:
        """Stands for random.Random and for torch's generator: an operation, a strength, a sign."""

        def __init__(self, place: int) -> None:
            self.place = place

        def choice(self, items: list[Any]) -> Any:
            return items[self.place]

        def randrange(self, bins: int) -> int:
            return 11

        def random(self) -> float:
            return 0.1

    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    theirs = v2.TrivialAugmentWide()
    items = list(theirs._AUGMENTATION_SPACE.items())
    monkeypatch.setattr(torch, "randint", lambda *_: torch.tensor(11))
    monkeypatch.setattr(torch, "rand", lambda *_: torch.tensor(0.1))
    for place, item in enumerate(items):
        monkeypatch.setattr(theirs, "_get_random_item", lambda _, item=item: item)
        assert torch.equal(augment.trivial(image, Draws(place)), theirs(image)), item[0]  # type: ignore[arg-type]


def test_everything_is_off_by_default(settings: TrialSettings) -> None:
    effective = run_of(settings).effective()
    off = {"imbalance": "none", "mix": "none", "ema_decay": 0.0, "l2_sp": 0.0, "clip_norm": 0.0}
    assert {name: effective[name] for name in off} == off
    assert (effective["accumulate"], effective["unfreeze_epochs"]) == (1, 0)


EVERYTHING: dict[str, Any] = {
    "strategy": "fuse",
    "head_size": 16,
    "dropout": 0.25,
    "frozen_layers": BLOCKS - 2,
    "backbone_rate": 0.5,
    "layer_decay": 0.75,
    "momentum": 0.8,
    "weight_decay": 0.01,
    "warmup_epochs": 0.5,
    "label_smoothing": 0.1,
    "unfreeze_epochs": 1,
    "l2_sp": 0.1,
    "ema_decay": 0.9,
    "clip_norm": 1.0,
    "accumulate": 2,
    "mix": "cutmix",
    "mix_alpha": 0.4,
}
"""A trial that fine-tunes in nearly every way at once; those that exclude each other are planted alone."""
PLANTED: dict[str, tuple[dict[str, Any], Any, str]] = {
    "strategy": ({}, "replace", "strategy 'fuse' instead of 'replace'"),
    "backbone": ({}, "resnet18", "backbone 'shufflenet_v2_x0_5' instead of 'resnet18'"),
    "optimizer": ({}, "adamw", "optimizer 'sgd' instead of 'adamw'"),
    "frozen_layers": ({}, BLOCKS - 1, "frozen_layers 16 instead of 17"),
    "imbalance": ({}, "class_weights", "imbalance 'none' instead of 'class_weights'"),
    "mix": ({}, "mixup", "mix 'cutmix' instead of 'mixup'"),
    "learning_rate": ({}, 0.03, "learning_rate 0.02 instead of 0.03"),
    "head_size": ({}, 32, "head_size 16 instead of 32"),
    "backbone_rate": ({}, 0.1, "learning_rate of blocks.conv5 0.0075 instead of 0.0015"),
    "momentum": ({}, 0.9, "momentum 0.8 instead of 0.9"),
    "weight_decay": ({}, 0.02, "weight_decay 0.01 instead of 0.02"),
    "dropout": ({}, 0.5, "dropout 0.25 instead of 0.5"),
    "schedule": ({}, "constant", "schedule 'cosine' instead of 'constant'"),
    "warmup_epochs": ({}, 1.0, "warmup_epochs 0.5 instead of 1.0"),
    "label_smoothing": ({}, 0.2, "label_smoothing 0.1 instead of 0.2"),
    "focal_gamma": ({"imbalance": "focal", "focal_gamma": 1.0}, 2.0, "focal_gamma 1.0 instead of 2.0"),
    "class_balanced_beta": (
        {"imbalance": "class_balanced", "class_balanced_beta": 0.9},
        0.999,
        "class_balanced_beta 0.9 instead of 0.999",
    ),
    "logit_adjustment_tau": (
        {"imbalance": "logit_adjustment", "logit_adjustment_tau": 0.5},
        1.0,
        "logit_adjustment_tau 0.5 instead of 1.0",
    ),
    "layer_decay": ({}, 0.5, "learning_rate of blocks.conv5 0.0075 instead of 0.005"),
    "unfreeze_epochs": ({}, 2, "unfreeze_epochs 1 instead of 2"),
    "l2_sp": ({}, 0.2, "l2_sp 0.1 instead of 0.2"),
    "ema_decay": ({}, 0.99, "ema_decay 0.9 instead of 0.99"),
    "clip_norm": ({}, 2.0, "clip_norm 1.0 instead of 2.0"),
    "accumulate": ({}, 4, "accumulate 2 instead of 4"),
    "mix_alpha": ({}, 0.2, "mix_alpha 0.4 instead of 0.2"),
    "head_init": ({"head_size": 0}, "exact", "head_init 'random' instead of 'exact'"),
    "batch_size": ({}, 16, "batch_size 32 instead of 16"),
    "image_size": ({}, 64, "image_size 32 instead of 64"),
    "crop_scale": ({}, 0.5, "crop_scale 1.0 instead of 0.5"),
    "horizontal_flip": ({}, True, "horizontal_flip False instead of True"),
    "augment": ({}, "trivial", "augment 'none' instead of 'trivial'"),
}
"""Searchable field -> what the worker used beside EVERYTHING, what the trial said, how that is told."""


def job_of(settings: TrialSettings, run: Run) -> TrainJob:
    fields = settings.to_dict()
    params = dict.fromkeys([*fields, *fields["data"]])
    asked = Asked(STRATEGIES[settings.strategy], fields, lambda: True)
    for field, setting in SETTINGS.items():
        if field in params and not (setting.needs == "image" and setting.is_used(asked)):
            del params[field]
    return dataclasses.replace(train_job("a", params, settings), data_fingerprint=run.data.fingerprint)


def test_every_searchable_field_is_planted_once() -> None:
    of_parts = {field for field, setting in SETTINGS.items() if setting.needs != "image"}
    assert set(PLANTED) == set(FIELDS) - of_parts


@pytest.mark.parametrize("field", PLANTED)
def test_a_worker_that_used_another_value_is_found_out(settings: TrialSettings, field: str) -> None:
    """The worker reads back what it built; any searchable field that is not the trial's is named."""
    options, value, told = PLANTED[field]
    run = run_of(settings, **(EVERYTHING | options))
    job = job_of(run.settings, run)
    check_effective(job, run.effective())
    if hasattr(run.settings.data, field):
        told_to = dataclasses.replace(
            run.settings, data=dataclasses.replace(run.settings.data, **{field: value})
        )
    else:
        told_to = dataclasses.replace(run.settings, **{field: value})
    with pytest.raises(SettingsIgnored) as caught:
        check_effective(dataclasses.replace(job, settings=told_to), run.effective())
    assert told in str(caught.value)


@pytest.mark.parametrize("strategy", ["replace", "load", "fuse"])
def test_every_strategy_reports_what_it_was_given_and_nothing_may_be_left_out(
    settings: TrialSettings, strategy: str, tmp_path: Path
) -> None:
    source = SourceSettings(data=dataclasses.replace(settings.data, classes=tuple("01")), epochs=1)
    run = run_of(settings, strategy=strategy, frozen_layers=-1, weights=WeightsSettings(source=source))
    job, effective = job_of(run.settings, run), run.effective()
    check_effective(job, effective)
    for name in ("imbalance", "schedule", "augment", "frozen_blocks", "epochs", "accumulate"):
        silent = {key: fact for key, fact in effective.items() if key != name}
        told = "frozen_layers" if name == "frozen_blocks" else name
        with pytest.raises(SettingsIgnored, match=f"{told} None instead of"):
            check_effective(job, silent)
