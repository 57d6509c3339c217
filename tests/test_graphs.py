"""Steps that are replayed from a recording, and what happens where none can be made."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finetune.settings import DataSettings, TrialSettings, WeightsSettings
from finetune.training import graphs
from finetune.training.graphs import EAGER_STEPS, Replays
from finetune.training.run import Run
from finetune.training.workers import World


class Fake:
    """A recording that a CPU can make: a replay takes the step with its own images, as a GPU's does."""

    made = 0

    def __init__(
        self, step: graphs.Step, x: Tensor, targets: Tensor, scale: float, parameters: Sequence[Any]
    ) -> None:
        type(self).made += 1
        self.step, self.x, self.targets, self.replays = step, x.clone(), targets.clone(), 0

    def replay(self, x: Tensor, targets: Tensor, scale: float) -> Tensor:
        self.replays += 1
        self.x.copy_(x)
        self.targets.copy_(targets)
        return self.step(self.x, self.targets, torch.tensor(scale))


@pytest.fixture(autouse=True)
def small_and_countable(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(Fake, "made", 0)


def trial(tmp_path: Path, **options: Any) -> TrialSettings:
    data = DataSettings(
        kind="digits", classes=("5", "6", "7"), image_size=32, batch_size=16, validation_share=0.5
    )
    usual: dict[str, Any] = {"strategy": "replace", "epochs": 4, "learning_rate": 0.01, "dropout": 0.3}
    return TrialSettings(
        backbone="shufflenet_v2_x0_5",
        data=data,
        weights=WeightsSettings(),
        cache_dir=str(tmp_path),
        **(usual | options),
    )


def losses(settings: TrialSettings, *, on: bool) -> tuple[list[float | None], Replays]:
    run = Run(settings, World())
    run.replays.on = on
    return [run.train_epoch(epoch, lambda: False) for epoch in (1, 2, 3, 4)], run.replays


OPTIONS: dict[str, Any] = {"frozen_layers": 10, "mix": "mixup", "ema_decay": 0.9, "clip_norm": 1.0}


def test_where_nothing_can_be_recorded_training_goes_on_and_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a GPU a recording fails; the step that tried is taken, no image is lost."""
    monkeypatch.setattr(graphs, "EAGER_STEPS", 2)
    plain, _ = losses(trial(tmp_path, **OPTIONS), on=False)
    tried, replays = losses(trial(tmp_path, **OPTIONS), on=True)
    assert not replays.on
    assert tried == plain


@pytest.mark.parametrize("options", [OPTIONS, {"frozen_layers": 10, "unfreeze_epochs": 2}], ids=str)
def test_replayed_steps_train_as_others_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """The last, smaller batch and blocks that thaw are not replayed from what was recorded without them."""
    monkeypatch.setattr(graphs, "EAGER_STEPS", 2)
    monkeypatch.setattr(graphs, "Recorded", Fake)
    plain, _ = losses(trial(tmp_path, **options), on=False)
    replayed, replays = losses(trial(tmp_path, **options), on=True)
    assert replayed == plain
    assert replays.on
    assert Fake.made > 1 if "unfreeze_epochs" in options else Fake.made >= 1


def test_only_steps_of_a_shape_that_comes_often_are_recorded() -> None:
    weight = nn.Parameter(torch.ones(2))
    replays = Replays([weight], on=True)
    asked = []

    def step(x: Tensor, targets: Tensor, scale: float | Tensor) -> Tensor:
        asked.append(len(x))
        return (x @ weight).sum() * scale

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "Recorded", Fake)
        for number in range(2 * EAGER_STEPS):
            rows = 3 if number % 10 == 9 else 5
            loss = replays.take(step, "all", torch.ones(rows, 2), torch.ones(rows), 0.5)
            assert loss.item() == rows
    assert Fake.made == 1
    assert asked.count(5) + asked.count(3) == 2 * EAGER_STEPS
    replays.drop()
    assert replays.take(step, "all", torch.ones(5, 2), torch.ones(5), 0.5).item() == 5
