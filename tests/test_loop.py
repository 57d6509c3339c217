"""One trial, without Ray: it learns, ends honestly, goes on where it was, and repeats itself."""

import dataclasses
import itertools
import math
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from finetune import model_folder
from finetune.disk import checkpoint
from finetune.errors import DataError, NonFiniteLoss
from finetune.messages import Effective, Epoch, Keep, Message, Note
from finetune.settings import DataSettings, SourceSettings, TrialSettings, WeightsSettings
from finetune.training import building, loop
from finetune.training.run import Run
from finetune.training.workers import World
from tests.processes import finish

Trained = Callable[[TrialSettings], tuple[list[dict[str, float]], Path]]
Left = Callable[[TrialSettings, Path], Keep]


def digits(classes: str, **options: Any) -> DataSettings:
    return DataSettings(
        kind="digits", classes=tuple(classes), image_size=32, horizontal_flip=False, **options
    )


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


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
    return Keep(metric="val/accuracy", **paths, **options)


def epochs(messages: list[Message]) -> list[dict[str, float]]:
    """Return the epochs' metrics without those that a clock gives."""
    timed = ("seconds", "images_per_second")
    return [{k: v for k, v in m.metrics.items() if k not in timed} for m in messages if isinstance(m, Epoch)]


def train(settings: TrialSettings, folder: Path, **options: Any) -> list[Message]:
    messages: list[Message] = []
    loop.train(settings, keep=keep(folder), report=messages.append, **options)
    return messages


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return a function that trains settings once, and returns their epochs and folder for all tests."""
    known: dict[str, tuple[list[dict[str, float]], Path]] = {}

    def make(settings: TrialSettings) -> tuple[list[dict[str, float]], Path]:
        name = repr(settings)
        if name not in known:
            folder = tmp_path_factory.mktemp("trained")
            known[name] = epochs(train(settings, folder)), folder
        return known[name]

    return make


def test_every_epoch_reports_losses_metrics_rate_and_speed(settings: TrialSettings, tmp_path: Path) -> None:
    first, *rest = train(settings, tmp_path)
    assert isinstance(first, Effective)
    metrics = [m.metrics for m in rest if isinstance(m, Epoch)]
    assert [m["epoch"] for m in metrics] == [1, 2, 3, 4]
    assert {"train/loss", "val/loss", "val/accuracy", "learning_rate", "seconds"} <= metrics[0].keys()
    assert metrics[-1]["train/loss"] < metrics[0]["train/loss"]


def test_targets_take_the_memory_of_a_few_batches_and_are_those_of_a_whole_epoch(
    settings: TrialSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of an epoch of ImageNet would take 14 GiB in each worker."""
    monkeypatch.setattr("finetune.training.run.TARGETS_AT_ONCE", 2 * 32 * 3)  # two batches of three classes
    settings = dataclasses.replace(settings, imbalance="class_weights")
    run = Run(settings, World())
    order = run._order(1)
    images = torch.cat(order)
    whole = run.loss.targets(run.labels[images], run.loss.weights[images])
    parts = list(run._targets(order))
    assert [len(part) for part in parts] == [len(batch) for batch in order]
    assert torch.equal(torch.cat(parts), whole)
    assert len(order) > 2
    assert max(part.untyped_storage().nbytes() for part in parts) <= 2 * 32 * 3 * 4


def test_the_same_settings_give_the_same_epochs_in_any_order_of_trials(
    settings: TrialSettings, tmp_path: Path
) -> None:
    other = dataclasses.replace(settings, strategy="load", learning_rate=0.1, seed=1, optimizer="adam")
    alone = epochs(train(settings, tmp_path / "a"))
    train(other, tmp_path / "b")
    torch.manual_seed(12345)
    assert epochs(train(settings, tmp_path / "c")) == alone


WAYS: dict[str, dict[str, Any]] = {
    "plain": {"optimizer": "adamw", "warmup_epochs": 1.5},
    "careful": {
        **{"layer_decay": 0.8, "unfreeze_epochs": 1, "l2_sp": 0.01, "ema_decay": 0.9, "clip_norm": 1.0},
        "imbalance": "class_balanced",
    },
    "mixed": {"mix": "mixup", "accumulate": 2, "imbalance": "balanced_sampling", "optimizer": "adam"},
    "cut": {"mix": "cutmix", "ema_decay": 0.5, "imbalance": "focal", "unfreeze_epochs": 2},
}
"""Options that keep a state, or draw random numbers, between two epochs."""


@pytest.mark.thorough(
    but=(
        "careful",
        "cut",
    )
)
@pytest.mark.parametrize("way", WAYS)
def test_an_interrupted_run_goes_on_to_the_result_of_an_uninterrupted_one(
    settings: TrialSettings, tmp_path: Path, way: str
) -> None:
    data = dataclasses.replace(settings.data, augment="none" if way == "plain" else "trivial")
    settings = dataclasses.replace(settings, data=data, **WAYS[way])
    whole = epochs(train(settings, tmp_path / "whole"))

    class Dies(Exception):
        pass

    messages: list[Message] = []

    def die_after_epoch_2(message: Message) -> None:
        messages.append(message)
        if isinstance(message, Epoch) and message.number == 2:
            raise Dies

    part = keep(tmp_path / "part", every_seconds=0.0)
    with pytest.raises(Dies):
        loop.train(settings, keep=part, report=die_after_epoch_2)
    messages.clear()
    loop.train(settings, keep=part, report=messages.append)
    assert epochs(messages) == whole
    for name, tensor in checkpoint.read(tmp_path / "whole" / "best.safetensors")[0].items():
        assert torch.equal(checkpoint.read(part.best)[0][name], tensor)


def test_a_run_that_is_to_move_ends_after_its_epoch_and_goes_on_elsewhere(
    settings: TrialSettings, tmp_path: Path, trained: Trained
) -> None:
    """No epoch is trained twice, and the result is that of a run that stayed."""
    whole, _ = trained(settings)
    messages: list[Message] = []
    there = keep(tmp_path / "moved")
    asked = iter((False, True))  # after the first epoch and after the second
    left = loop.train(settings, keep=there, report=messages.append, should_move=lambda: next(asked))
    assert (left.state, left.epochs) == ("moved", 2)
    again: list[Message] = []
    end = loop.train(settings, keep=there, report=again.append)
    assert end.state == "complete"
    assert epochs(again) == whole
    assert [m.number for m in again if isinstance(m, Epoch) and m in messages] == [1, 2]  # times and all


def cut_off(settings: TrialSettings, folder: Path) -> Keep:
    """Train one epoch and a half, as an interrupted trial that wrote a checkpoint."""
    part = keep(folder, every_seconds=0.0)
    questions = itertools.count(1)  # one per batch, four batches per epoch
    stop = {"should_stop": lambda: next(questions) == 6}
    assert loop.train(settings, keep=part, report=lambda _: None, **stop).epochs == 1
    assert part.last.exists()
    return part


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    """Return a function that copies what a trial has left, which was cut off once for all tests."""
    known: dict[str, Path] = {}

    def make(settings: TrialSettings, to: Path) -> Keep:
        name = repr(settings)
        if name not in known:
            known[name] = tmp_path_factory.mktemp("left")
            cut_off(settings, known[name])
        shutil.copytree(known[name], to, dirs_exist_ok=True)
        return keep(to, every_seconds=0.0)

    return make


def of_other_settings(path: Path) -> None:
    tensors, facts = checkpoint.read(path)
    facts["settings"]["learning_rate"] = 0.5
    checkpoint.write(path, tensors, facts)


def of_other_weights(path: Path) -> None:
    tensors, facts = checkpoint.read(path)
    checkpoint.write(path, tensors, facts | {"read": facts["read"] | {"weights": "other"}})


def without(part: str) -> Callable[[Path], None]:
    """Write the checkpoint anew without the tensors whose names begin so."""

    def lose(path: Path) -> None:
        tensors, facts = checkpoint.read(path)
        checkpoint.write(path, {k: v for k, v in tensors.items() if not k.startswith(part)}, facts)

    return lose


def lose_a_tensor_but_not_the_header(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        told = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    tensors.pop(next(name for name in tensors if name.startswith("optimizer.")))
    save_file(tensors, path, metadata=told)


def zero_its_end(path: Path) -> None:
    """As a file system may leave it after a loss of power."""
    data = path.read_bytes()
    path.write_bytes(data[:-1000] + bytes(1000))


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(random.Random(0).randbytes(5000)),
    "end of zeros": zero_its_end,
    "other settings": of_other_settings,
    "other weights": of_other_weights,
    "no model": without("model."),
    "a tensor less": lose_a_tensor_but_not_the_header,
    "no facts": lambda path: checkpoint.write(path, checkpoint.read(path)[0], {}),
    "facts of another kind": lambda path: checkpoint.write(path, {}, {"settings": 3, "history": "x"}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_is_of_no_use_sends_its_trial_to_its_start_and_that_is_told(
    settings: TrialSettings, tmp_path: Path, damage: str, trained: Trained, left: Left
) -> None:
    whole, _ = trained(settings)
    part = left(settings, tmp_path)
    DAMAGES[damage](part.last)
    messages: list[Message] = []
    assert loop.train(settings, keep=part, report=messages.append).state == "complete"
    assert [type(m) for m in messages[:3]] == [Effective, Note, Epoch]
    assert isinstance(messages[1], Note)
    assert re.match(r"trained from its start: .*checkpoint.* must .*, got ", messages[1].text)
    assert epochs(messages) == whole


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "missing"])
def test_best_weights_that_are_of_no_use_send_a_trial_to_its_start(
    settings: TrialSettings, tmp_path: Path, damage: str, trained: Trained, left: Left
) -> None:
    whole, _ = trained(settings)
    part = left(settings, tmp_path)
    if damage == "missing":
        part.best.unlink()
    else:
        DAMAGES[damage](part.best)
    messages: list[Message] = []
    loop.train(settings, keep=part, report=messages.append)
    assert [type(m) for m in messages[:3]] == [Effective, Note, Epoch]
    assert epochs(messages) == whole
    assert checkpoint.read(part.best)[1]["metrics"]["epoch"] in (1, 2, 3, 4)


def test_equal_checkpoints_are_equal_files(tmp_path: Path) -> None:
    """The SHA-256 of pretrained weights tells whether a trial may go on with them."""
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, dtype=torch.bfloat16), "n": torch.tensor(7)}
    facts = {"settings": {"x": 1}, "more": [1, 2]}
    for number in range(20):
        checkpoint.write(tmp_path / str(number), tensors, facts)
        assert checkpoint.read(tmp_path / str(number))[1] == facts
    assert len({(tmp_path / str(number)).read_bytes() for number in range(20)}) == 1


@pytest.mark.thorough
def test_two_workers_begin_anew_together(settings: TrialSettings, tmp_path: Path) -> None:
    """Neither may wait for the other in an epoch that the other one skips."""
    script = Path(__file__).parent / "two_workers.py"
    short = dataclasses.replace(settings, epochs=2)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "last0").write_bytes(b"damaged")
    done = finish(sys.executable, script, tmp_path / "two", given=repr([short.to_dict(), short.to_dict()]))
    assert done.returncode == 0, done.stderr
    anew, fresh = (epochs([Epoch(m) for m in told]) for told in eval(done.stdout))
    assert anew == fresh


def test_a_trial_goes_on_wherever_its_images_weights_and_cache_have_gone(tmp_path: Path) -> None:
    """Other places decide nothing; what is read there has hashes of its own."""
    here, there = tmp_path / "here", tmp_path / "there"
    for label, shade in {"dark": 40, "light": 180}.items():
        (here / "images" / label).mkdir(parents=True)
        for number in range(50):
            colour = (shade + number, number, 255 - shade)
            Image.new("RGB", (32, 32), colour).save(here / "images" / label / f"{number}.png")
    save_file(torchvision.models.shufflenet_v2_x0_5().state_dict(), here / "weights.safetensors")

    def of(root: Path) -> TrialSettings:
        return TrialSettings(
            data=DataSettings(kind="folder", path=str(root / "images"), image_size=32, batch_size=20),
            backbone="shufflenet_v2_x0_5",
            weights=WeightsSettings(file=str(root / "weights.safetensors")),
            strategy="replace",
            learning_rate=0.01,
            epochs=2,
            cache_dir=str(root / "cache"),
        )

    part = cut_off(of(here), tmp_path / "trial")
    here.rename(there)
    messages: list[Message] = []
    loop.train(of(there), keep=part, report=messages.append)
    assert [type(m) for m in messages] == [Effective, Epoch, Epoch]
    there.rename(tmp_path / "elsewhere")
    facts = model_folder.write(part.best, tmp_path / "model", {}, now=of(tmp_path / "elsewhere"))
    assert facts["metrics"]["validation"]["images"] > 0  # they were read at their new place
    assert facts["settings"]["data"]["path"] is None  # which is nobody's business who gets the model


def test_a_trial_that_is_complete_is_not_trained_again(
    settings: TrialSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver may have died, or been stopped, before it heard of the last epochs."""
    told = train(settings, tmp_path)
    best = (tmp_path / "best.safetensors").read_bytes()
    monkeypatch.setattr(Run, "train_epoch", None)
    assert train(settings, tmp_path) == told
    assert (tmp_path / "best.safetensors").read_bytes() == best


def test_the_best_epoch_is_kept_and_not_the_last(settings: TrialSettings, trained: Trained) -> None:
    messages, folder = trained(settings)
    best = max(messages, key=lambda m: (m["val/accuracy"], -m["epoch"]))
    tensors, facts = checkpoint.read(folder / "best.safetensors")
    assert facts["metrics"]["epoch"] == best["epoch"]
    run = Run(settings, World())
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
    # The blocks begin to train in epoch 3, when the first steps, whose loss a trial survives, are over.
    wild = dataclasses.replace(settings, backbone_rate=1e30, unfreeze_epochs=2)
    with pytest.raises(
        NonFiniteLoss, match=r"epoch 3, batch \d+: the training loss must stay finite, got (nan|inf)\. Lower"
    ):
        train(wild, tmp_path)


def test_what_is_effective_is_read_back_from_the_parts(settings: TrialSettings, tmp_path: Path) -> None:
    told = train(dataclasses.replace(settings, epochs=1, backbone_rate=0.1), tmp_path)[0]
    assert isinstance(told, Effective)
    effective = told.facts
    assert effective["optimizer"] == "sgd"
    assert effective["learning_rates"]["head"] == pytest.approx(0.02)
    assert effective["learning_rates"]["blocks.conv5"] == pytest.approx(0.002)
    assert effective["frozen_blocks"] == 10
    assert effective["dropout"] == 0.3
    assert effective["trainable_parameters"] < effective["total_parameters"]


@pytest.mark.thorough
def test_two_workers_evaluate_every_image_once_and_train_like_one(
    settings: TrialSettings, tmp_path: Path
) -> None:
    """Without batch norm in the trained part, the mean over two workers is the mean over all images."""
    data = dataclasses.replace(settings.data, classes=tuple("345678"))  # six: top-5 is told, too
    plain = dataclasses.replace(
        settings, strategy="replace", frozen_layers=-1, dropout=0.0, head_size=16, data=data
    )
    averaged = {"ema_decay": 0.9, "clip_norm": 0.5, "accumulate": 2}
    whole = {"backbone": "squeezenet1_1", "weights": WeightsSettings(), "frozen_layers": 8}
    thawing = {"unfreeze_epochs": 1, "layer_decay": 0.8, "l2_sp": 0.01, "learning_rate": 0.01}
    trials = [
        plain,
        dataclasses.replace(plain, imbalance="class_weights", label_smoothing=0.1, **averaged),
        dataclasses.replace(plain, imbalance="balanced_sampling", **whole, **thawing),
    ]
    batch_norms = dataclasses.replace(settings, unfreeze_epochs=1, **averaged)
    script = Path(__file__).parent / "two_workers.py"
    given = repr([trial.to_dict() for trial in (*trials, batch_norms)])
    done = finish(sys.executable, script, tmp_path / "two", given=given)
    assert done.returncode == 0, done.stderr
    told = eval(done.stdout, {"nan": float("nan")})  # our own process's list of lists of dicts
    assert all(math.isfinite(epoch["val/loss"]) for epoch in told.pop())
    for number, (trial, two) in enumerate(zip(trials, told, strict=True)):
        one = epochs(train(trial, tmp_path / f"one{number}"))
        timed = {"seconds", "images_per_second"}
        assert [{k: v for k, v in epoch.items() if k not in timed} for epoch in two] == [
            pytest.approx(epoch, rel=1e-3, abs=1e-6) for epoch in one
        ]
        for ours, theirs in zip(one, two, strict=True):
            assert {name for name in ours if name.startswith("val/recall/")} == {
                f"val/recall/{name}" for name in "345678"
            }
            assert {"val/ece", "val/top5", "val/balanced_accuracy"} <= ours.keys()
            assert theirs["val/accuracy"] == ours["val/accuracy"]


@pytest.mark.parametrize("metric", ["val/top5", "val/recall/8", "val/acuracy"])
def test_a_metric_that_the_images_do_not_tell_is_refused_before_training(
    settings: TrialSettings, tmp_path: Path, metric: str
) -> None:
    told: list[Message] = []
    other = dataclasses.replace(keep(tmp_path), metric=metric)
    with pytest.raises(DataError, match=rf"study\.metric: must be one .*, got '{metric}'\. .*Known: "):
        loop.train(settings, keep=other, report=told.append)
    assert not told


class Small:
    """A device with room for so many images at a time."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.seen: list[int] = []

    def __call__(self, model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if model.training and torch.is_grad_enabled():
            self.seen.append(len(inputs[0]))
            if len(inputs[0]) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory")


def on(device: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    build = building.model

    def small(*arguments: Any, **options: Any) -> Any:
        model = build(*arguments, **options)
        model.head.new.register_forward_pre_hook(device)
        return model

    monkeypatch.setattr("finetune.training.building.model", small)


def test_a_step_that_finds_too_little_memory_is_taken_in_smaller_parts(
    settings: TrialSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dataclasses.replace(settings, frozen_layers=-1, dropout=0.0, strategy="replace", epochs=2)
    expected = epochs(train(settings, tmp_path / "whole"))
    device = Small(room=10)
    on(device, monkeypatch)
    found = epochs(train(settings, tmp_path / "parts"))
    assert [m.pop("accumulate") for m in found] == [4, 4]
    assert device.seen[:2] == [32, 16]
    assert max(device.seen[2:]) <= 8
    for whole, parts in zip(expected, found, strict=True):
        assert parts == pytest.approx(whole, rel=1e-3)


def test_a_trial_that_goes_on_keeps_the_parts_that_it_found(
    settings: TrialSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Small(room=10)
    on(device, monkeypatch)
    moves = iter((False, True))
    train(settings, tmp_path, should_move=lambda: next(moves))
    device.seen.clear()
    train(settings, tmp_path)
    assert max(device.seen) <= 8


def test_memory_that_does_not_do_for_two_images_ends_the_trial(
    settings: TrialSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(Small(room=1), monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        train(settings, tmp_path)
