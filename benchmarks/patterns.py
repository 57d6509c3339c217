"""Code that users write without this project: Ray's documented pattern, and the same tuned by an expert.

P    a Tune function that calls `TorchTrainer.fit()` (Ray's Train user guide, hyperparameter optimisation):
     torchvision transforms on PIL images in a `DataLoader`, float32, one report per epoch through
     `TuneReportCallback`.
P+   the same with what an expert would turn: images decoded once per trial and kept as uint8, channels last,
     frozen blocks in bfloat16 where that is faster, memory kept between batches, a poll of 0.1 s instead of
     2 s, no preemption watcher, drivers that take no CPU. Reusing Tune's actors is not among them: with a
     Train run inside, the next trial fails ("Could not re-use actor").

Both train the same models as ours (`finetune.model.strategies`), with the same optimiser and schedule, on one
thread per worker, two trials at a time. What they do not have: warm workers, and features of frozen blocks
that trials share.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import transforms

from benchmarks import documented, noop
from finetune.datasets import catalog
from finetune.frozen import execution
from finetune.frozen.execution import Pass
from finetune.images import order
from finetune.images.batches import ImageData
from finetune.images.pixels import CROP_SHARE, normalise
from finetune.settings import TrialSettings
from finetune.training import building, optimize, shared
from search.slots.slots import KEPT_MEMORY


def seconds_per_trial(trials: Sequence[TrialSettings], *, tuned: bool) -> float:
    """Run the trials, two at a time, in a Ray of its own; return seconds per trial, Ray's start left out."""
    frozen_pass = asdict(fastest_pass(trials[0]) if tuned else Pass())
    loops = [{"settings": settings.to_dict(), "frozen_pass": frozen_pass} for settings in trials]
    train = train_tuned if tuned else train_documented
    environment = KEPT_MEMORY if tuned else {}
    return noop.fresh_ray(lambda: documented.seconds_per_trial(train, loops, tuned=tuned), environment)


def train_documented(config: dict[str, Any]) -> None:
    """P's training function: as Ray's and torchvision's documentation have it."""
    settings = TrialSettings.from_dict(config["settings"])
    data = ImageData(catalog.scan(settings.data), settings.data)
    train, _ = usual_loader(settings, "train", training=True)
    val, _ = usual_loader(settings, "val", training=False)
    _train(settings, data, lambda epoch: train, lambda: val, forward=None)


def usual_loader(settings: TrialSettings, split: str, *, training: bool) -> tuple[Any, int]:
    """Return torch's usual `DataLoader` over a split, with torchvision's transforms, and its images."""
    images = catalog.scan(settings.data)
    source = shared.pretrained(settings.backbone, settings.weights, settings.cache_dir, "cpu")
    side, scale = settings.data.image_size, settings.data.crop_scale
    steps: list[Any] = [transforms.Resize((side, side))]
    if training and scale < 1:
        steps = [transforms.RandomResizedCrop(side, scale=(scale, 1))]
    elif not images.whole:
        steps = [transforms.Resize(round(side / CROP_SHARE)), transforms.CenterCrop(side)]
    if training and settings.data.horizontal_flip:
        steps.append(transforms.RandomHorizontalFlip())
    steps += [transforms.ToTensor(), transforms.Normalize(source.mean, source.std)]
    transform, examples = transforms.Compose(steps), images.splits[split]

    class Images(torch.utils.data.Dataset[tuple[Tensor, int]]):
        def __len__(self) -> int:
            return len(examples)

        def __getitem__(self, row: int) -> tuple[Tensor, int]:
            return transform(images.open(examples[row])), examples[row].label

    size = settings.data.batch_size
    return torch.utils.data.DataLoader(Images(), batch_size=size, shuffle=training), len(examples)


def train_tuned(config: dict[str, Any]) -> None:
    """P+'s training function."""
    settings = TrialSettings.from_dict(config["settings"])
    images = catalog.scan(settings.data)
    source = shared.pretrained(settings.backbone, settings.weights, settings.cache_dir, "cpu")
    data, frozen_pass = ImageData(images, settings.data), Pass(**config["frozen_pass"])

    def batches(split: str, parts: list[Tensor], view: int | None) -> Iterable[tuple[Tensor, Tensor]]:
        for pixels, labels in data.batches(split, parts, view=view):
            yield normalise(pixels, source.mean, source.std), labels

    def train(epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        parts = order.batches(data.size("train"), settings.data.batch_size, torch.Generator())
        return batches("train", parts, epoch)

    def val() -> Iterable[tuple[Tensor, Tensor]]:
        return batches("val", list(torch.arange(data.size("val")).split(64)), None)

    _train(settings, data, train, val, forward=frozen_pass)


def _train(settings: TrialSettings, data: ImageData, train: Any, val: Any, *, forward: Pass | None) -> None:
    import ray.train

    torch.set_num_threads(1)
    model = building.model(settings, data, torch.device("cpu"))
    if forward is None:
        model.to(memory_format=torch.contiguous_format)  # as torchvision builds it
    optimizer = optimize.optimizer(model.parameter_groups(), settings)
    steps = -(-data.size("train") // settings.data.batch_size)
    rates = optimize.Rates(optimizer, settings, steps_per_epoch=steps)

    def logits(x: Tensor) -> Tensor:
        if forward is None or not len(model.prefix):
            return model(x)
        h = forward.run(model.prefix, x).float()
        return model.from_features(model.reduce(h))

    for epoch in range(settings.epochs):
        model.train()
        for x, labels in train(epoch):
            loss = F.cross_entropy(logits(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
        model.eval()
        right = 0
        with torch.no_grad():
            for x, labels in val():
                right += int((logits(x).argmax(1) == labels).sum())
        ray.train.report({"epoch": epoch + 1, "val/accuracy": right / data.size("val")})


def fastest_pass(settings: TrialSettings) -> Pass:
    """Return the faster of float32 and autocast to bfloat16, however much it rounds (P+ need not look)."""
    torch.set_num_threads(1)
    blocks = shared.pristine(settings, torch.device("cpu")).blocks
    size = settings.data.image_size
    images = torch.rand(settings.data.batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    return min((Pass(), Pass("bfloat16")), key=lambda how: execution.fastest_run(blocks, how, images))
