"""Is it fast on a GPU: each part measures ours beside a reference; `python -m benchmarks.gpu` prints it."""

import dataclasses
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_setup import CLASSES, Setup, say
from finetune.datasets import catalog
from finetune.exact import closed_form
from finetune.frozen import execution
from finetune.images import order
from finetune.images.batches import ImageData
from finetune.settings import ALL, TrialSettings
from finetune.training import fused_heads, optimize, shared
from finetune.training.losses import Loss
from finetune.training.run import Run

Found = dict[str, Any]
Batches = list[tuple[Tensor, Tensor]]

MODELS = ("resnet50", "convnext_tiny", "vit_b_16", "mobilenet_v2")
BATCH = 128
DEFAULT_BATCH = 32
"""The product's default; a GPU waits for the processor that launches its steps."""
SEARCHED = "resnet50"
"""Backbone that gains from cuDNN's search for kernels; others do not (docs/decisions.md)."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def models(setup: Setup) -> Sequence[str]:
    """Return the backbones that are measured."""
    return ("shufflenet_v2_x0_5",) if setup.quick else MODELS


def peak(setup: Setup) -> float:
    """Return floating-point operations per second of a large bfloat16 matrix product."""
    side = setup.size(8192, 512)
    a = torch.randn(side, side, dtype=torch.bfloat16, device=setup.device)

    def product() -> None:
        for _ in range(setup.size(20, 1)):
            a @ a

    return 2 * side**3 * setup.size(20, 1) / setup.seconds(product)


def flops(name: str, side: int, setup: Setup, *, training: bool) -> float:
    """Return the floating-point operations for one image: a step of training, or a forward pass."""
    model = torchvision.models.get_model(name, weights=None, num_classes=CLASSES).to(setup.device)
    x = torch.zeros(2, 3, side, side, device=setup.device)
    with FlopCounterMode(display=False) as counter:
        if training:
            model(x).sum().backward()
        else:
            with torch.no_grad():
                model.eval()(x)
    return float(counter.get_total_flops()) / 2


class Ours:
    """The product's own training of all blocks, in epochs of so many batches."""

    def __init__(self, name: str, setup: Setup, *, batch: int, steps: int, compiled: bool = False) -> None:
        data = setup.photo_data(batch_size=batch)
        self.run = Run(setup.trial(name, data, precision="bfloat16"), setup.world)
        for images in self.run.data.batches("train", torch.arange(self.run.data.size("train")).split(64)):
            del images  # decoded from here on
        whole, self.batch, self.steps, self.epochs = self.run._order, batch, steps, 0
        self.run._order = lambda epoch: whole(epoch)[:steps]  # type: ignore[method-assign]
        if compiled:
            self.run.step_model = torch.compile(self.run.step_model)  # type: ignore[assignment]

    def epoch(self) -> None:
        """Train one epoch, images included."""
        self.epochs += 1
        self.run.train_epoch(self.epochs, lambda: False)

    def rate(self, setup: Setup, *, warm: int = 1) -> float:
        """Return images per second."""
        return self.batch * self.steps / setup.seconds(self.epoch, rounds=2, warm=warm)

    def bare_rate(self, setup: Setup) -> float:
        """Return images per second of the steps alone, the images on the device."""
        run = self.run
        feed = run.inputs.feed("train", view=0)
        x = next(iter(feed.batches([torch.arange(self.batch)])))
        (targets,) = run._targets([torch.arange(self.batch)])

        def steps() -> None:
            for _ in range(self.steps):
                optimize.clear(run.optimizer)
                run._backward(feed, x, targets, scale=1 / self.batch)
                optimize.step(run.optimizer, run.starts, clip_norm=0.0)
                run.rates.step()

        return self.batch * self.steps / setup.seconds(steps, rounds=2)


class Reference:
    """Training as torchvision's and timm's scripts do it, its batches ready in pinned memory.

    Automatic mixed precision, channels last, fused SGD; the next batch is copied and normalised on a
    stream of its own while the device computes.
    """

    def __init__(self, name: str, setup: Setup, *, batch: int, steps: int, compiled: bool = False) -> None:
        self.device, self.batch, self.steps = setup.device, batch, steps
        model = torchvision.models.get_model(name, weights=None, num_classes=CLASSES)
        self.model: Any = model.to(setup.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, fused=True)
        if compiled:
            self.model = torch.compile(self.model)
        side = setup.size(224, 32)
        draws = torch.Generator().manual_seed(0)
        self.batches: Batches = []
        for _ in range(min(steps, 8)):
            images = torch.randint(0, 256, (batch, 3, side, side), generator=draws, dtype=torch.uint8)
            labels = torch.randint(0, CLASSES, (batch,), generator=draws)
            pinned = setup.device.type == "cuda"
            self.batches.append((images.pin_memory(), labels.pin_memory()) if pinned else (images, labels))

    def epoch(self) -> None:
        """Train one epoch."""
        self.model.train()
        for x, labels in _ahead(self._order(), self.device):
            self.step(x, labels)

    def step(self, x: Tensor, labels: Tensor) -> None:
        """Take one step."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss = F.cross_entropy(self.model(x), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def rate(self, setup: Setup, *, warm: int = 1) -> float:
        """Return images per second."""
        return self.batch * self.steps / setup.seconds(self.epoch, rounds=2, warm=warm)

    def graphed_rate(self, setup: Setup) -> float:
        """Return images per second of steps whose passes are replayed as CUDA graphs."""
        x, labels = next(_ahead(iter(self.batches), self.device))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=False):
            self.model = torch.cuda.make_graphed_callables(self.model, (x.clone(),))

        def steps() -> None:
            for _ in range(self.steps):
                with torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=False):
                    loss = F.cross_entropy(self.model(x), labels)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self.optimizer.step()

        return self.batch * self.steps / setup.seconds(steps, rounds=2)

    def _order(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.batches[step % len(self.batches)] for step in range(self.steps))


def _ahead(batches: Iterator[tuple[Tensor, Tensor]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches on the device, the next one on its way: timm's `PrefetchLoader`."""
    mean, std = (torch.tensor([255 * v for v in value], device=device).view(3, 1, 1) for value in (MEAN, STD))
    stream = torch.cuda.Stream() if device.type == "cuda" else None
    ready: tuple[Tensor, Tensor] | None = None
    for images, labels in batches:
        with torch.cuda.stream(stream):
            x = images.to(device, non_blocking=True).to(torch.float32).sub_(mean).div_(std)
            x = x.contiguous(memory_format=torch.channels_last)
            following = x, labels.to(device, non_blocking=True)
        if ready is not None:
            yield ready
        if stream is not None:
            torch.cuda.current_stream().wait_stream(stream)
            for tensor in following:
                tensor.record_stream(torch.cuda.current_stream())
        ready = following
    if ready is not None:
        yield ready


@contextmanager
def searching_kernels(on: bool) -> Iterator[None]:
    """Let cuDNN try which kernels are fastest, as the reference scripts do, or take what it expects."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def steps(setup: Setup) -> Found:
    """Training steps, all blocks trained, bfloat16: ours with its images, against the reference."""
    return _steps(setup, models(setup), batch=setup.size(BATCH, 8), steps=setup.size(16, 2))


def small(setup: Setup) -> Found:
    """The same with the product's usual batch; and what CUDA graphs would give."""
    names = models(setup) if setup.quick else ("resnet50", "mobilenet_v2")
    return _steps(setup, names, batch=setup.size(DEFAULT_BATCH, 8), steps=setup.size(64, 2), graphs=True)


def _steps(setup: Setup, names: Sequence[str], *, batch: int, steps: int, graphs: bool = False) -> Found:
    table: dict[str, dict[str, float]] = {}
    most = peak(setup)
    say(f"a bfloat16 matrix product reaches {most / 1e12:.0f} TFLOP/s")
    for name in names:
        row: dict[str, float] = {}
        ours = Ours(name, setup, batch=batch, steps=steps)
        row["ours"] = ours.rate(setup)
        if graphs and setup.device.type == "cuda":
            ours.run.replays.on = True
            row["ours_replayed"] = ours.rate(setup)
            row["recorded"] = ours.run.replays.records
            ours.run.replays.drop()
        row["bare"] = ours.bare_rate(setup)
        del ours
        reference = Reference(name, setup, batch=batch, steps=steps)
        row["reference"] = reference.rate(setup)
        if name == SEARCHED:
            with searching_kernels(True):
                row["reference_searched"] = reference.rate(setup, warm=2)
        if graphs and setup.device.type == "cuda":
            row["graphs"] = reference.graphed_rate(setup)
        del reference
        operations = flops(name, setup.size(224, 32), setup, training=True)
        row["share_of_peak"] = row["ours"] * operations / most
        row["ours_over_reference"] = row["ours"] / max(row["reference"], row.get("reference_searched", 0.0))
        table[name] = row
        say(f"steps of {batch}, {name}: " + "  ".join(f"{k} {v:.4g}" for k, v in row.items()))
    return {"ok": _enough(setup, table, "ours_over_reference", 0.97), "peak": most, **table}


def compiled(setup: Setup) -> Found:
    """The same, compiled: what it costs before the first step and gives in each."""
    table: dict[str, dict[str, float]] = {}
    for name in models(setup) if setup.quick else ("vit_b_16", "resnet50"):
        row: dict[str, float] = {}
        for which, kind in (("ours", Ours), ("reference", Reference)):
            training: Any = kind(
                name, setup, batch=setup.size(BATCH, 8), steps=setup.size(10, 2), compiled=True
            )
            began = setup.clock()
            training.epoch()
            row[f"{which}_first_epoch"] = setup.clock() - began
            row[which] = training.rate(setup)
            say(f"compiled, {name}: {which} {row[which]:.0f} images/s, {row[f'{which}_first_epoch']:.0f} s")
            torch.compiler.reset()
            del training
        table[name] = row | {"ours_over_reference": row["ours"] / row["reference"]}
    return {"ok": _enough(setup, table, "ours_over_reference", 0.97), **table}


def extraction(setup: Setup) -> Found:
    """Filling an empty store from decoded images, against a bare forward with data on the device."""
    table: dict[str, dict[str, float]] = {}
    for name in models(setup) if setup.quick else ("resnet50", "vit_b_16", "mobilenet_v2"):
        side, row = setup.size(224, 32), dict[str, float]()
        settings = setup.trial(name, setup.photo_data(), frozen_layers=ALL, epochs=5)
        blocks = shared.pristine(settings, setup.device).blocks
        bare: dict[int, float] = {}
        for batch in (setup.quick and (8,)) or (32, 256, 512):
            x = torch.rand(batch, 3, side, side, device=setup.device)
            x = x.contiguous(memory_format=torch.channels_last)
            how = execution.usual("auto", setup.device)
            bare[batch] = batch / setup.seconds(partial(how.run, blocks, x))
        row |= {f"bare_{batch}": rate for batch, rate in bare.items()}
        row["ours"] = _fill(settings, setup)
        row["ours_over_bare"] = row["ours"] / max(bare.values())
        table[name] = row
        say(f"extraction, {name}: " + "  ".join(f"{k} {v:.4g}" for k, v in row.items()))
    return {"ok": _enough(setup, table, "ours_over_bare", 0.6), **table}


def _enough(setup: Setup, table: dict[str, dict[str, float]], name: str, least: float) -> bool:
    """True if a ratio is large enough everywhere; on a CPU the parts only show that they run."""
    return setup.device.type == "cpu" or min(row[name] for row in table.values()) >= least


def _fill(settings: TrialSettings, setup: Setup) -> float:
    """Return images per second of filling an empty store, images decoded before."""
    place = setup.store("fast-features")
    run = Run(settings, setup.world, place)
    for batch in run.data.batches("train", torch.arange(run.data.size("train")).split(64)):
        del batch
    best = 0.0
    for _ in range(2):
        for file in setup.scratch.glob("fast-features/*.bin"):
            file.unlink()
        for file in setup.scratch.glob("fast-features/*.json"):
            file.unlink()
        run.inputs._feeds.clear()
        began = setup.clock()
        feed = run.inputs.feed("train", view=0)
        took = setup.clock() - began
        if feed.rows is None:
            return float("nan")
        best = max(best, run.data.size("train") / took)
    return best


def pipeline(setup: Setup) -> Found:
    """Images per second that the data side makes, on this machine's processors."""
    row: dict[str, float] = {}
    ways: dict[str, dict[str, Any]] = {
        "mirrored": {"horizontal_flip": True},
        "crops": {"horizontal_flip": True, "crop_scale": 0.35},
        "crops_trivial": {"horizontal_flip": True, "crop_scale": 0.35, "augment": "trivial"},
    }
    for threads in (8,) if setup.quick else (16,):
        for name, options in ways.items():
            data = setup.photo_data(**options)
            images = ImageData(catalog.scan(data), data, threads=threads)
            order = torch.arange(images.size("train")).split(128)
            for epoch in range(2):  # the first one decodes
                began = time.perf_counter()
                for x, _ in images.batches("train", order, view=epoch):
                    del x
                kind = "decoding_" if epoch == 0 else ""
                row[f"{kind}{name}_{threads}"] = images.size("train") / (time.perf_counter() - began)
    say("pipeline: " + "  ".join(f"{k} {v:.0f}" for k, v in row.items()))
    return {"ok": True, **row}


def heads(setup: Setup) -> Found:
    """Heads on stored features, fused, against the same heads one by one in the training loop."""
    settings = setup.trial(
        "mobilenet_v2",
        setup.photo_data() if not setup.quick else setup.digits(),
        frozen_layers=ALL,
        epochs=5,
    )
    settings = dataclasses.replace(settings, precision="float32")
    run = Run(settings, setup.world, setup.store("fast-heads"))
    data = fused_heads.stored(run)
    count = min(1000, len(data.labels))
    data = dataclasses.replace(data, labels=data.labels[:count], places=lambda view: None)
    data = _learnable(data)
    row: dict[str, float] = {"images": count, "features": data.train.shape[1]}
    few = _heads(settings, setup.size(4, 2))
    fused_heads.train(few, data)  # warm
    alone = setup.seconds(lambda: [_alone(head, run, data) for head in few], rounds=2, warm=1) / len(few)
    row["alone_per_head"] = alone
    for number in (8, 16) if setup.quick else (64, 256, 1000):
        many = _heads(settings, number)
        began = setup.clock()
        found = fused_heads.train(many, data)
        row[f"fused_{number}"] = setup.clock() - began
        row[f"gain_{number}"] = alone * number / row[f"fused_{number}"]
        best = max(trained.epochs[-1]["val/accuracy"] for trained in found)
        say(
            f"heads: {number} in {row[f'fused_{number}']:.2f} s, alone {alone * 1000:.0f} ms each: "
            f"{row[f'gain_{number}']:.1f} times, best accuracy {best:.3f}"
        )
    together = fused_heads.train(few, data)
    apart = max(
        abs(t.epochs[-1]["train/loss"] - _alone(head, run, data)) / t.epochs[-1]["train/loss"]
        for t, head in zip(together, few, strict=True)
        if not head.dropout
    )
    row["loss_apart"] = apart
    say(f"heads: last training loss differs from one by one by {apart:.1e}")
    gains = [value for key, value in row.items() if key.startswith("gain")]
    return {"ok": (min(gains) >= 10 or setup.device.type == "cpu") and apart < 1e-2, **row}


def _learnable(data: fused_heads.Stored) -> fused_heads.Stored:
    """Return features of the same shapes in which the classes lie apart: there is something to learn."""
    draws = torch.Generator().manual_seed(0)
    means = 0.08 * torch.randn(data.classes, data.train.shape[1], generator=draws)
    found = []
    for labels in (data.labels, data.val_labels.cpu()):
        noise = torch.randn(len(labels), means.shape[1], generator=draws)
        found.append((means[labels] + noise).to(data.train.device))
    return dataclasses.replace(data, train=found[0], val=found[1])


def _heads(settings: TrialSettings, count: int) -> list[TrialSettings]:
    """Return heads as the default space has them."""
    draws = random.Random(0)
    found = []
    for seed in range(count):
        options = {
            "learning_rate": 10 ** draws.uniform(-3, -1),
            "weight_decay": 10 ** draws.uniform(-6, -2),
            "head_size": draws.choice((0, 64, 128, 256)),
            "dropout": draws.choice((0.0, 0.25, 0.5)),
            "label_smoothing": draws.choice((0.0, 0.1)),
        }
        found.append(dataclasses.replace(settings, seed=seed, **options))  # type: ignore[arg-type]
    return found


def _alone(head: TrialSettings, run: Run, data: fused_heads.Stored) -> float:
    """Train one head as the training loop does, on features on the device; return its last training loss."""
    device = run.world.device
    new = fused_heads.initial(head, data.train.shape[1], data.classes).to(device)
    optimizer = optimize.optimizer([("head", list(new.parameters()))], head)
    starts = optimize.starts(optimizer)
    labels = data.labels
    loss = Loss(head, labels, data.weights, classes=data.classes, device=device)
    batches = order.epoch_batches(head, labels, 1)
    rates = optimize.Rates(optimizer, head, steps_per_epoch=len(batches))
    mean = 0.0
    for epoch in range(1, head.epochs + 1):
        batches = order.epoch_batches(head, labels, epoch)
        images = torch.cat(batches)
        targets = loss.targets(labels[images], loss.weights[images])
        numbers, begin = images.to(device), 0
        total = torch.zeros((), device=device)
        new.train()
        for batch in batches:
            part = slice(begin, begin + len(batch))
            begin += len(batch)
            optimize.clear(optimizer)
            value = loss(new(data.train.index_select(0, numbers[part])), targets[part])
            (value / len(batch)).backward()
            optimize.step(optimizer, starts, clip_norm=head.clip_norm)
            rates.step()
            total += value.detach()
        mean = total.item() / len(images)
        with torch.no_grad():
            new.eval()
            run.scores.reset()
            run.scores.update(new(data.val), data.val_labels)
            run.scores.compute()
    return mean


def exactly(setup: Setup) -> Found:
    """Heads in closed form: the device against the processors, and against float64."""
    row: dict[str, float] = {}
    penalties = [10.0**power for power in range(-6, 7)]
    for images, features in [(200, 64)] if setup.quick else [(1000, 1280), (10000, 2048)]:
        draws = torch.Generator().manual_seed(0)
        basis = torch.randn(features // 4, features, generator=draws)
        labels = torch.randint(0, CLASSES, (images,), generator=draws)
        x = (torch.randn(images, features // 4, generator=draws) + labels[:, None]) @ basis / features
        x += 0.1 * torch.randn(images, features, generator=draws)
        answers: dict[str, Tensor] = {}
        for where in ("cpu", setup.device.type):
            for dtype in (torch.float64, torch.float32):
                name = f"{where}_{str(dtype).removeprefix('torch.')}_{images}x{features}"
                moved, wanted = x.to(where), labels.to(where)

                def solve(moved: Tensor = moved, wanted: Tensor = wanted, dtype: Any = dtype) -> Tensor:
                    y = closed_form.targets(wanted, CLASSES).to(dtype)
                    weights = closed_form.balanced(wanted, CLASSES).to(dtype)
                    return closed_form.ridge(moved, y, penalties, weights=weights)(moved[:500])

                row[name] = setup.seconds(solve, rounds=1 if where == "cpu" else 3, warm=1)
                answers[name] = solve().cpu().double()
                if images <= 2000:
                    signs = closed_form.targets(wanted, CLASSES).to(dtype)
                    kernel = partial(closed_form.kernel_ridge, moved, signs, penalties, gamma=0.01)
                    row[f"kernel_{name}"] = setup.seconds(kernel, rounds=1)
        truth = answers[f"cpu_float64_{images}x{features}"]
        for name, found in answers.items():
            row[f"apart_{name}"] = float((found - truth).norm() / truth.norm())
    say("exact: " + "  ".join(f"{k} {v:.3g}" for k, v in row.items()))
    double = [v for k, v in row.items() if k.startswith(f"apart_{setup.device.type}_float64")]
    return {"ok": max(double) < 1e-6, **row}


def cold(setup: Setup) -> Found:
    """Time the first pass and the first step of a shape: in this thread, in others, without cuDNN."""
    table: dict[str, dict[str, float]] = {}
    side, batch = setup.size(128, 32), setup.size(256, 4)
    for name in models(setup) if setup.quick else ("mobilenet_v2", "resnet50"):
        settings = setup.trial(name, setup.photo_data(), frozen_layers=ALL)
        blocks = shared.pristine(settings, setup.device).blocks
        row: dict[str, float] = {}

        def took(label: str, count: int, how: execution.Pass, row: Any = row, blocks: Any = blocks) -> None:
            x = torch.rand(count, 3, side, side, device=setup.device)
            x = x.contiguous(memory_format=torch.channels_last)
            began = setup.clock()
            how.run(blocks, x)
            row[label] = setup.clock() - began

        def elsewhere(label: str, count: int, how: execution.Pass, took: Any = took) -> None:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(took, label, count, how).result()

        half, whole = execution.Pass("bfloat16"), execution.Pass()
        took("first", batch, half)
        took("again", batch, half)
        elsewhere("other_thread", batch, half)
        elsewhere("third_thread", batch, half)
        took("other_batch", batch // 2, half)
        took("float32", batch, whole)
        elsewhere("float32_other_thread", batch, whole)
        with torch.backends.cudnn.flags(enabled=False):
            elsewhere("without_cudnn", batch, half)
            took("without_cudnn_again", batch, half)
        run = Run(setup.trial(name, setup.photo_data(image_size=side), precision="bfloat16"), setup.world)
        feed = run.inputs.feed("train", view=0)
        for label, count in (("step", 32), ("step_again", 32), ("step_other_batch", 24)):
            x = next(iter(feed.batches([torch.arange(count)])))
            (targets,) = run._targets([torch.arange(count)])
            began = setup.clock()
            optimize.clear(run.optimizer)
            run._backward(feed, x, targets, scale=1 / count)
            optimize.step(run.optimizer, run.starts, clip_norm=0.0)
            row[label] = setup.clock() - began
        table[name] = row
        say(f"cold, {name}: " + "  ".join(f"{k} {v:.3f}" for k, v in row.items()))
    return {"ok": True, **table}


PARTS: dict[str, Callable[[Setup], Found]] = {
    **{"steps": steps, "small": small, "extraction": extraction, "pipeline": pipeline},
    **{"heads": heads, "exact": exactly, "compiled": compiled, "cold": cold},
}
