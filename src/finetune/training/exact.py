"""Train an exact trial: read the stored features of a frozen backbone and solve for its head."""

import dataclasses
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor, nn

from finetune.disk import checkpoint
from finetune.evaluation.scores import BATCH
from finetune.exact import sample_heads
from finetune.exact import solve as solving
from finetune.exact.rows import Rows
from finetune.exact.solve import Choice, Loaded
from finetune.frozen.features import Feed, Inputs
from finetune.frozen.samples import rows_of
from finetune.messages import Effective, Epoch, Keep, Note, Report
from finetune.metrics import check as check_metric
from finetune.model import source_rows, strategies
from finetune.model.backbones import last_layer
from finetune.model.exact_head import ExactHead, ExactShape
from finetune.model.head import FuseHead
from finetune.model.sample_head import SampleHead, SampleShape
from finetune.model.strategies import Head
from finetune.settings import FeatureSettings, TrialSettings, WeightsSettings
from finetune.training.workers import World

if TYPE_CHECKING:
    from finetune.training.run import Run

MOST_BYTES = 2 * 2**30
"""Most features that a worker reads into memory; of more images it leaves out mirrored copies, then
images."""
BY_CLASS = ("val/balanced_accuracy", "val/macro_f1", "val/recall/")
"""Metrics for which all classes count alike when heads are chosen."""


def train(run: "Run", keep: Keep, report: Report, latencies: Path | None = None) -> None:
    """Solve for the head, measure it on the validation images, and write the files of a complete trial.

    Args:
        run: the trial, newly built.
        keep: the files to write.
        report: receives the messages.
        latencies: folder of the study's latencies; None: the cost of the model is not measured.

    Raises:
        FinetuneError: data or weights are not as the settings say.
    """
    begin = time.perf_counter()
    check_metric(keep.metric, run.data.classes, run.data.labels("val").tolist())
    sample: SampleShape | None = None
    by_class = keep.metric.startswith(BY_CLASS)
    if isinstance(run.model.head, SampleHead):
        solved, choice = sample_heads.solve(run.model.head, read(run), _shares(run, by_class))
        state, sample = solved.state_dict(), solved.shape
    else:
        choice = solve(run, by_class=by_class)
        state = {f"new.{name}": tensor for name, tensor in choice.best.state.items()}
    best = choice.best
    final = type(run)(run.settings, run.world, run.features, shape=best.shape, sample=sample)
    final.model.head.load_state_dict(final.model.head.state_dict() | state)
    final.model.to(run.world.device)
    report(Effective(final.effective() | final.costs(latencies) | {"exact": described(choice)}))
    metrics: dict[str, float] = {"epoch": 1, "train/loss": best.score.loss}
    metrics |= {
        "train/held_out_accuracy": best.score.accuracy,
        "train/held_out_error": best.score.accuracy_error,
    }
    metrics |= {f"val/{name}": value for name, value in final.evaluate("val").items()}
    seconds = time.perf_counter() - begin
    metrics |= {
        "learning_rate": 0.0,
        "seconds": seconds,
        "images_per_second": run.data.size("train") / seconds,
    }
    if run.world.rank == 0:
        facts = {"settings": run.settings.to_dict(), "metrics": metrics, "exact": best.shape.to_dict()}
        facts |= {} if sample is None else {"sample": sample.to_dict()}
        checkpoint.write(keep.best, final.model.trained_state(), facts)
    report(Note(told(choice)))
    report(Epoch(metrics))


def told(choice: Choice) -> str:
    """Return one line about a solved head."""
    score = choice.best.score
    return (
        f"{choice.best.name}: {100 * score.accuracy:.1f} % (± {100 * score.accuracy_error:.1f}) of the "
        f"training images right in the fold that was left out; chosen from {choice.heads} heads"
    )


def described(choice: Choice) -> dict[str, Any]:
    """Return the facts of a choice for the record."""
    return {
        "head": choice.best.name,
        "penalty": choice.best.penalty,
        "heads": choice.heads,
        "seconds": round(choice.seconds, 3),
        "candidates": {one.name: round(one.score.loss, 4) for one in choice.others},
    }


def solve(run: "Run", *, by_class: bool, linear: bool = False) -> Choice:
    """Return the head that is solved from the stored features of a run with strategy `exact`.

    Heads are judged with the classes as frequent as among the validation images, or all alike if `by_class`.
    Nothing else is known of the validation images.
    """
    rows = read(run)
    return solving.solve(rows, shares=_shares(run, by_class), loaded=loaded(run, rows), linear=linear)


def _shares(run: "Run", by_class: bool) -> Tensor:
    """Return the share of each class where heads are judged, (C,), up to a factor."""
    sizes = run.data.labels("val").bincount(minlength=len(run.data.classes))
    return (sizes > 0).double() if by_class else sizes.double()


@torch.no_grad()
def read(run: "Run") -> Rows:
    """Return this worker's share of the training images' features, in memory, on the CPU."""
    data, head, world = run.data, run.model.head, run.world
    images, frames = data.size("train"), rows_of(run.settings)
    views = run.inputs.data.sheet("train", 0).rows // (images * frames)
    taken, views = _taken(head, images, views, world.size)
    own = torch.arange(world.rank, len(taken), world.size)
    places = torch.cat([taken[own] + images * view for view in range(views)])
    if isinstance(head, SampleHead):
        pooled, answers = _samples(run, head, places), None
    else:
        pooled, answers = _images(run, places)
    weights, groups = data.weights("train"), data.groups("train")
    return Rows(
        pooled,
        answers,
        own.repeat(views),
        data.labels("train")[taken],
        torch.ones(len(taken)) if weights is None else weights[taken] / weights[taken].mean(),
        places >= images,
        len(data.classes),
        _summed(run),
        world.size,
        None if groups is None else groups[taken],
    )


def _images(run: "Run", places: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return pooled features (R, D) of rows of images, and the source softmax (R, K) if the head reads it."""
    head = run.model.head
    assert isinstance(head, ExactHead)
    head.eval()  # the source FC may contain a dropout
    pooled, answers = [], []
    for part in reduced(run.inputs, run.inputs.feed("train", view=0), places):
        features, said = head.parts(part)
        pooled.append(features.float().cpu())
        if said is not None:
            answers.append(said.float().cpu())
    return torch.cat(pooled), torch.cat(answers) if answers else None


def _samples(run: "Run", head: SampleHead, places: Tensor) -> Tensor:
    """Return rows (R, F) of samples, as a head that reads all their parts takes them."""
    frames = rows_of(run.settings)
    every = (places[:, None] * frames + torch.arange(frames)).flatten()
    feed = run.inputs.feed("train", view=0)
    found = [part.float().cpu() for part in reduced(run.inputs, feed, every)]
    images = torch.cat(found).view(len(places), -1)
    marks, vectors = torch.ones(len(places), 2), torch.zeros(len(places), 0)
    if head.shape.reads_text and run.texts is not None:
        samples = places % run.data.size("train")
        vectors, there = (part[samples] for part in run.texts.vectors("train"))
        marks[:, 1] = there.float()
    return torch.cat([images, vectors, marks], dim=1)


def _taken(head: Head, images: int, views: int, workers: int) -> tuple[Tensor, int]:
    """Return the images that all workers together read, and in how many views: as many as fit into memory."""
    if isinstance(head, ExactHead):
        last = head.new[-1]
        assert isinstance(last, nn.Linear)
        numbers = last.in_features  # this head reads all features
    else:
        assert isinstance(head, SampleHead)
        numbers = head.shape.row
    most = workers * MOST_BYTES // (4 * numbers)
    views = views if images * views <= most else 1
    return torch.arange(images)[:: -(-images // most)], views


def reduced(inputs: Inputs, feed: Feed, mine: Tensor) -> Iterator[Tensor]:
    """Yield the reduced activations of rows of the training images' sheet, from the store or from images."""
    if feed.rows is not None:
        for places in mine.split(BATCH):
            yield feed.finish(inputs.read(feed.rows[places.to(feed.rows.device)], feed.blocks).float())
        return
    images = inputs.data.size("train")
    order = [
        (mine[mine // images == view] % images).split(BATCH) for view in range(int(mine.max()) // images + 1)
    ]
    for view, parts in enumerate(order):
        # As in evaluation: neither cropped nor mirrored.
        for pixels, _ in inputs.data.batches("train", parts):
            yield inputs.features(inputs.images(pixels.flip(-1) if view else pixels), feed.how)


def _summed(run: "Run") -> Any:
    def total(sums: Tensor) -> Tensor:
        if run.world.size > 1:
            sums = sums.to(run.world.device)
            torch.distributed.all_reduce(sums)
        return sums.cpu()

    return total


def loaded(run: "Run", rows: Rows) -> Loaded | None:
    """Return the function that gives the rows of `load`, or None where its head is no single layer."""
    head, plain = run.model.head, rows.plain
    if rows.answers is None or not isinstance(head, ExactHead) or len(plain) != len(rows.labels):
        return None
    layer = last_layer(head.source_fc)
    alone = sum(p.numel() for p in head.source_fc.parameters()) == sum(p.numel() for p in layer.parameters())
    if not isinstance(layer, nn.Linear) or layer.in_features != rows.pooled.shape[1] or not alone:
        return None
    answers = rows.answers[plain].double()

    def made(used: Tensor) -> tuple[Tensor, Tensor]:
        members = torch.nn.functional.one_hot(rows.labels, rows.classes).double() * used[:, None]
        # A class without an image among those used gets the mean of all.
        relation = (members.T @ answers + answers.mean(0) * 1e-6) / (members.sum(0)[:, None] + 1e-6)
        weight, bias = source_rows.mixed_rows(layer, relation.to(layer.weight))
        return weight.flatten(1).T.cpu().float(), bias.cpu().float()

    return made


def begins(model: strategies.TransferModel) -> bool:
    """Return True if the head can begin with the exact solution: that of `fuse`, if it is one Linear."""
    return isinstance(model.head, FuseHead) and len(model.head.new) == 2  # dropout and Linear


@torch.no_grad()
def begin(run: "Run") -> None:
    """Set the head of a newly built run of `fuse` to the exact solution; all workers must call this."""
    kind: Any = type(run)  # mypy takes a class whose objects cannot be hashed for one that cannot
    weight, bias = _linear(kind, frozen(run.settings), run.world, run.features)
    assert isinstance(run.model.head, FuseHead)
    last = run.model.head.new[-1]
    assert isinstance(last, nn.Linear)
    # Without pretrained weights the answers of the source say nothing, and their weights stay zero.
    last.weight.zero_()[:, : weight.shape[1]] = weight.to(last.weight.device)
    last.bias.copy_(bias)


@lru_cache(maxsize=4)
def _linear(
    kind: Any, settings: TrialSettings, world: "World", features: FeatureSettings | None
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the linear head that is solved for; trials of a process share it."""
    state = solve(kind(settings, world, features), by_class=False, linear=True).best.state
    return state["1.weight"], state["1.bias"]


def frozen(settings: TrialSettings) -> TrialSettings:
    """Return the settings of an exact trial with the images, backbone and weights of another trial."""
    return TrialSettings(
        data=dataclasses.replace(settings.data, crop_scale=1.0, augment="none"),
        backbone=settings.backbone,
        weights=settings.weights,
        strategy="exact",
        epochs=1,
        learning_rate=0.0,
        precision=settings.precision,
        seed=settings.seed if settings.weights == WeightsSettings() else 0,
        cache_dir=settings.cache_dir,
    )


def probe(weights: WeightsSettings) -> ExactShape:
    """Return the shape of the head that reads the features: with answers if the source has learned any."""
    return ExactShape(answers=weights != WeightsSettings())
