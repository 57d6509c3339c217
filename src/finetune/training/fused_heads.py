"""Train many heads on the same stored features together: one batched product replaces N small ones.

Each head has the initial weights, image order, learning rates and decay of a trial of its own. Only rounding
differs, and the choice of the activations that dropout drops.

Shapes: T heads of a pack, N training images, R stored rows, B images of a batch, D features, H hidden
units (of the widest head; narrower ones are padded with zeros, which stay zero), C classes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.evaluation.scores import BATCH
from finetune.images import order
from finetune.model.head import MLPHead
from finetune.settings import ALL, TrialSettings
from finetune.strategy import REPLACE
from finetune.training import optimize
from finetune.training.losses import Loss
from finetune.training.run import Run

PACK_BYTES = 8 * 2**30
"""Memory for weights, gradients, optimiser state and best weights of the heads in one pack."""
COPIES = 6
"""Most copies of its weights that a head needs: itself, gradient, two moments, the best, one to spare."""
SCORED_AT_ONCE = 2**27
"""Most hidden activations or logits of validation images in memory at a time."""
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Constants of Adam and AdamW: torch's defaults, which the training loop uses, too."""


@dataclass(frozen=True)
class Stored:
    """Pooled features of a frozen backbone, on the device where heads are trained."""

    train: Tensor
    """Features of the training images, (R, D), float32, in the order in which they are stored."""
    labels: Tensor
    """Labels of the training images, int64 (N,), on the CPU."""
    val: Tensor
    """Features of the M validation images, (M, D), float32."""
    val_labels: Tensor
    """Labels of the validation images, int64 (M,), on the device."""
    classes: int
    places: Callable[[int], Tensor | None] = lambda view: None
    """Function from a view to the row of each training image, int64 (N,) on the CPU; None if in order."""
    view: Callable[[int], int] = lambda epoch: epoch - 1
    """Function from an epoch, counted from 1, to the view used in it."""
    weights: Tensor | None = None
    """Weight of each training image, (N,); None: all weigh 1."""


@dataclass(frozen=True)
class Trained:
    """One head after training."""

    epochs: list[dict[str, float]]
    """`epoch`, `train/loss`, `val/loss`, `val/accuracy`, `val/balanced_accuracy` of each epoch."""
    state: dict[str, Tensor]
    """Weights of the epoch with the best validation accuracy, named as in `MLPHead`, on the CPU."""


@torch.no_grad()
def stored(run: Run) -> Stored:
    """Return the stored features of a trial's run, all of whose blocks must be frozen.

    Raises:
        ValueError: a block is trained, or the features are not stored.
    """
    data, device = run.data, run.world.device
    train, val = run.inputs.feed("train", view=0), run.inputs.feed("val")
    if train.rows is None or not run.model.pools:
        raise ValueError("fused heads: every block must be frozen and its features stored")
    rows = (run.inputs.read(part, train.blocks).float() for part in train.rows.split(BATCH))
    others = val.batches(torch.arange(data.size("val")).split(BATCH))
    return Stored(
        torch.cat([train.finish(x) for x in rows]),
        data.labels("train"),
        torch.cat([val.finish(x) for x in others]),
        data.labels("val").to(device),
        len(data.classes),
        lambda view: data.places("train", view),
        data.view,
        data.weights("train"),
    )


def can_fuse(settings: TrialSettings) -> bool:
    """Return True if `train` gives the same result as the training loop with these settings."""
    plain = settings.mix == "none" and not settings.ema_decay and not settings.unfreeze_epochs
    plain = plain and not settings.data.has_parts
    return plain and settings.strategy == REPLACE.name and settings.frozen_layers == ALL


def train(heads: Sequence[TrialSettings], data: Stored, *, pack_bytes: int = PACK_BYTES) -> list[Trained]:
    """Train all heads and return them in the order of `heads`.

    Heads of one pack share the kind of optimiser, batch size, epochs, and whether they have hidden units. The
    packs are trained one after another.

    Raises:
        ValueError: a head cannot be fused (see `can_fuse`).
    """
    if not all(can_fuse(head) for head in heads):
        raise ValueError("fused heads: must be `replace` on frozen blocks, unmixed, unaveraged, got others")
    found: dict[int, Trained] = {}
    for numbers in packs(heads, data, pack_bytes):
        pack = Pack([heads[number] for number in numbers], data)
        found |= dict(zip(numbers, pack.train(), strict=True))
    return [found[number] for number in range(len(heads))]


def packs(heads: Sequence[TrialSettings], data: Stored, pack_bytes: int = PACK_BYTES) -> list[list[int]]:
    """Group the heads that train together, by number: heads with the same steps and similar widths.

    On a GPU, a step of a pack costs milliseconds of kernel launches however few heads it has. So all widths
    that fit into `pack_bytes` form one pack there, sorted by width so that little is padded
    (docs/decisions.md).
    """
    alike: dict[tuple[object, ...], list[int]] = {}
    together = data.train.device.type != "cpu"
    for number in sorted(range(len(heads)), key=lambda n: heads[n].head_size if together else 0):
        head = heads[number]
        doubled = head.head_size and 2 ** math.ceil(math.log2(head.head_size))  # less than half is padding
        wide = bool(head.head_size) if together else doubled
        key = (head.optimizer, head.data.batch_size, head.epochs, wide)
        alike.setdefault(key, []).append(number)
    found = []
    for numbers in alike.values():
        features, first = data.train.shape[1], heads[numbers[0]]
        width = max(heads[number].head_size for number in numbers) or data.classes
        floats = COPIES * features * width + COPIES * first.data.batch_size * (features + width)
        most = max(1, pack_bytes // (4 * floats))
        found += [numbers[begin : begin + most] for begin in range(0, len(numbers), most)]
    return found


class Pack:
    """Heads that train together: their stacked weights, and one optimiser with a learning rate per head."""

    def __init__(self, heads: Sequence[TrialSettings], data: Stored) -> None:
        self.heads, self.data, self.device = heads, data, data.train.device
        self.drawn = [initial(head, data.train.shape[1], data.classes).state_dict() for head in heads]
        self.hidden = max(head.head_size for head in heads)
        layers = 2 if self.hidden else 1
        drawn = [list(state.values()) for state in self.drawn]  # weight and bias of each layer in turn
        self.weights = [self._stacked([w[2 * layer].T for w in drawn]) for layer in range(layers)]
        self.biases = [self._stacked([w[2 * layer + 1][None] for w in drawn]) for layer in range(layers)]
        self.parameters = [p.requires_grad_() for p in (*self.weights, *self.biases)]
        self.losses = [
            Loss(head, data.labels, data.weights, classes=data.classes, device=torch.device("cpu"))
            for head in heads
        ]
        self.shares = self._column([head.dropout for head in heads])[:, None, None]
        self._words: dict[tuple[int, int], Tensor] = {}
        self.drops = any(head.dropout for head in heads)
        self.seeds = _scrambled(self._column([head.seed for head in heads], torch.int64))
        steps = len(order.epoch_batches(heads[0], data.labels, 1))
        self.optimizer = _Optimizer(self.parameters, heads, steps)

    def train(self) -> list[Trained]:
        """Train all heads and return them."""
        epochs: list[list[dict[str, float]]] = [[] for _ in self.heads]
        best = [p.detach().clone() for p in self.parameters]
        top = torch.full((len(self.heads),), -math.inf, device=self.device)
        for epoch in range(1, self.heads[0].epochs + 1):
            losses = self._epoch(epoch)
            scores = self._scores()
            better = scores["val/accuracy"] > top  # never for NaN
            top = torch.where(better, scores["val/accuracy"], top)
            for kept, p in zip(best, self.parameters, strict=True):
                kept.copy_(torch.where(better[:, None, None], p.detach(), kept))
            table = {"train/loss": losses, **scores}
            columns = {name: values.tolist() for name, values in table.items()}
            for number, rows in enumerate(epochs):
                rows.append({"epoch": epoch} | {name: column[number] for name, column in columns.items()})
        on_cpu = [kept.cpu() for kept in best]
        return [Trained(rows, self._state(on_cpu, number)) for number, rows in enumerate(epochs)]

    def logits(self, x: Tensor, drop: Callable[[Tensor], Tensor] = lambda h: h) -> Tensor:
        """Return logits (T, B, C) for features `x` (T or 1, B, D)."""
        h = x.expand(len(self.heads), *x.shape[1:])
        if self.hidden:
            h = torch.baddbmm(self.biases[0], h, self.weights[0]).relu()
        return torch.baddbmm(self.biases[-1], drop(h), self.weights[-1])

    def _epoch(self, epoch: int) -> Tensor:
        """Train one epoch; return each head's weighted mean loss (T,), measured before each step."""
        data, heads = self.data, self.heads
        orders = [order.epoch_batches(head, data.labels, epoch) for head in heads]
        images = torch.stack([torch.cat(batches) for batches in orders])  # (T, images of the epoch)
        # A row holds one stored view of an image; `places` finds the row of this epoch's view.
        places = data.places(data.view(epoch))
        rows = (images if places is None else places[images]).to(self.device)
        targets, sums = self._targets(images, [len(batch) for batch in orders[0]])
        shift = self._per_head([loss.shift for loss in self.losses])[:, None]  # (T, 1, C)
        gammas = [loss.gamma for loss in self.losses]
        gamma = self._column(gammas)[:, None, None] if any(gammas) else None
        total = torch.zeros(len(heads), device=self.device)
        begin = 0
        for step, batch in enumerate(orders[0]):
            part = slice(begin, begin + len(batch))
            begin += len(batch)
            x = data.train[rows[:, part]]  # (T, B, D)
            logits = self.logits(x, self._dropout(epoch, step))
            loss = _loss(logits + shift, targets[:, part], gamma)  # (T,)
            # Heads do not share parameters, so the gradient of the sum holds each head's own gradient.
            self.optimizer.step(torch.autograd.grad((loss / sums[step]).sum(), self.parameters))
            total += loss.detach()
        return total / sums.sum(dim=0)

    def _targets(self, images: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
        """Return smoothed, weighted targets (T, images, C), and each batch's sum of weights (steps, T)."""
        weights = torch.stack([loss.weights for loss in self.losses]).gather(1, images)  # (T, images)
        smoothing = torch.tensor([loss.smoothing for loss in self.losses])[:, None, None]
        hot = F.one_hot(self.data.labels[images], self.data.classes)
        targets = weights[..., None] * ((1 - smoothing) * hot + smoothing / self.data.classes)
        sums = torch.stack([part.sum(dim=1) for part in weights.double().split(sizes, dim=1)]).float()
        return targets.to(self.device), sums.to(self.device)

    def _dropout(self, epoch: int, step: int) -> Callable[[Tensor], Tensor]:
        """Return the dropout function for activations (T, B, F).

        A draw depends on the head's seed, epoch, step and place only, and not on the other heads of the pack.
        """
        if not self.drops:
            return lambda h: h
        shares = self.shares
        seeds = _scrambled(self.seeds + (epoch << 32) + step)[:, None, None]

        def drop(h: Tensor) -> Tensor:
            draws = (_scrambled(seeds + self._places(*h.shape[1:])) >> 40).abs() / 2.0**23  # 0 <= draw <= 1
            return h * (draws >= shares) / (1 - shares)

        return drop

    def _places(self, batch: int, width: int) -> Tensor:
        """Return a hash of each place in a batch's activations, int64 (B, F); computed once per shape."""
        if (batch, width) not in self._words:
            rows = torch.arange(batch, device=self.device)[:, None] << 20
            self._words[batch, width] = _scrambled(rows + torch.arange(width, device=self.device))
        return self._words[batch, width]

    @torch.no_grad()
    def _scores(self) -> dict[str, Tensor]:
        """Return each head's validation metrics, each (T,), on the device."""
        labels, classes = self.data.val_labels, self.data.classes
        widest = max(self.hidden, classes, 1)
        step = max(1, SCORED_AT_ONCE // (len(self.heads) * widest))
        sizes = labels.bincount(minlength=classes).float()  # (C,)
        loss = torch.zeros(len(self.heads), device=self.device)
        right = torch.zeros(len(self.heads), classes, device=self.device)
        for x, answers in zip(self.data.val.split(step), labels.split(step), strict=True):
            logits = self.logits(x[None])  # (T, B, C)
            log_p = F.log_softmax(logits, dim=2)
            loss -= log_p[:, torch.arange(len(x), device=self.device), answers].sum(dim=1)
            hits = (logits.argmax(dim=2) == answers).float()
            right.index_add_(1, answers, hits)
        occurs = (sizes > 0).float()
        recall = (right / sizes.clamp(min=1) * occurs).sum(dim=1) / occurs.sum()
        return {
            "val/loss": loss / len(labels),
            "val/accuracy": right.sum(dim=1) / len(labels),
            "val/balanced_accuracy": recall,
        }

    def _state(self, kept: Sequence[Tensor], number: int) -> dict[str, Tensor]:
        """Return the weights of one head, without padding, by their names in `MLPHead`."""
        layers, state = len(self.weights), {}
        for place, (name, drawn) in enumerate(self.drawn[number].items()):
            layer, of_bias = divmod(place, 2)
            stack = kept[layers + layer] if of_bias else kept[layer].transpose(1, 2)
            part = stack[number, 0] if of_bias else stack[number]
            state[name] = part[tuple(slice(size) for size in drawn.shape)].clone()
        return state

    def _stacked(self, parts: Sequence[Tensor]) -> Tensor:
        """Stack matrices of different shapes into one tensor on the device, padded with zeros."""
        rows, columns = (max(part.shape[dim] for part in parts) for dim in (0, 1))
        whole = torch.zeros(len(parts), rows, columns)
        for place, part in zip(whole, parts, strict=True):
            place[: part.shape[0], : part.shape[1]] = part
        return whole.to(self.device)

    def _column(self, values: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(self.device)

    def _per_head(self, rows: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(rows)).to(self.device)


class _Optimizer:
    """SGD with momentum, Adam or AdamW as in torch, with separate rates and decays for each head.

    Args:
        parameters: stacked parameters, each (T, ., .).
        heads: settings of the heads, all with the same kind of optimiser.
        steps_per_epoch: steps per epoch, the same for every head.
    """

    def __init__(
        self, parameters: Sequence[Tensor], heads: Sequence[TrialSettings], steps_per_epoch: int
    ) -> None:
        self.parameters, self.kind, self.steps = parameters, heads[0].optimizer, 0
        self.moments = [torch.zeros_like(p) for p in parameters]
        self.squares = [] if self.kind == "sgd" else [torch.zeros_like(p) for p in parameters]
        device = parameters[0].device
        self.decays, self.momenta, self.clips = (
            torch.tensor([getattr(head, name) for head in heads], device=device)[:, None, None]
            for name in ("weight_decay", "momentum", "clip_norm")
        )
        self.clipped = any(head.clip_norm for head in heads)
        rates = torch.tensor([rates_of(head, steps_per_epoch) for head in heads], dtype=torch.float64)
        self.rates = rates.T.float().to(device)[..., None, None]  # (steps, T, 1, 1)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Take one step; each gradient has the shape of its parameter."""
        rate = self.rates[self.steps]
        self.steps += 1
        if self.clipped:
            squares = sum(g.square().sum(dim=(1, 2), keepdim=True) for g in gradients)
            share = (self.clips / (torch.as_tensor(squares).sqrt() + 1e-6)).clamp(max=1)  # as clip_grad_norm_
            gradients = [g * torch.where(self.clips > 0, share, 1.0) for g in gradients]
        for number, (p, g, m) in enumerate(zip(self.parameters, gradients, self.moments, strict=True)):
            if self.kind == "adamw":
                p.mul_(1 - rate * self.decays)
            else:
                g = torch.addcmul(g, p, self.decays)
            if self.kind == "sgd":
                p.sub_(rate * m.mul_(self.momenta).add_(g))
            else:
                self._adam(p, g, m, self.squares[number], rate)

    def _adam(self, p: Tensor, g: Tensor, m: Tensor, v: Tensor, rate: Tensor) -> None:
        """Update a parameter by Adam (Kingma and Ba, ICLR 2015)."""
        m.lerp_(g, 1 - BETAS[0])
        v.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
        corrected = v.sqrt().div_(math.sqrt(1 - BETAS[1] ** self.steps)).add_(EPSILON)
        p.sub_(rate / (1 - BETAS[0] ** self.steps) * m / corrected)


def initial(head: TrialSettings, features: int, classes: int) -> MLPHead:
    """Return the initial head of a trial, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(head.seed)
        return MLPHead(features, head.head_size, classes, head.dropout)


def rates_of(head: TrialSettings, steps_per_epoch: int) -> list[float]:
    """Return a head's learning rate at each step."""
    peak = torch.optim.SGD([torch.zeros(1)], lr=head.learning_rate)
    course = optimize.Rates(peak, head, steps_per_epoch=steps_per_epoch)
    return [head.learning_rate * course.factor(step) for step in range(head.epochs * steps_per_epoch)]


def _loss(logits: Tensor, targets: Tensor, gamma: Tensor | None) -> Tensor:
    """Return each head's sum of losses (T,), as computed by `Loss`, for logits and targets (T, B, C)."""
    log_p = F.log_softmax(logits, dim=2)
    if gamma is not None:
        rest = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).eps)
        targets = targets * rest**gamma
    return -(targets * log_p).sum(dim=(1, 2))


def _scrambled(words: Tensor) -> Tensor:
    """Return int64 words whose bits depend on all bits of `words` (the finisher of splitmix64)."""
    words = (words ^ (words >> 30)) * -0x40A7B892E31B1A47
    words = (words ^ (words >> 27)) * -0x6B2FB644ECCEEE15
    return words ^ (words >> 31)
