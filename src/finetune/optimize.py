"""The optimiser of one trial: one parameter group per part of the model, its rate, and one step of it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from finetune.settings import Schedule, TrialSettings


def optimizer(groups: Iterable[tuple[str, list[nn.Parameter]]], settings: TrialSettings) -> Optimizer:
    """Return the optimiser over named parameter groups, the backbone's in the order of its blocks.

    Groups of the backbone (`blocks.*`) train at `learning_rate * backbone_rate * layer_decay^d`, where d
    counts them from the head: 1 for the last one (discriminative fine-tuning: Howard and Ruder, ACL
    2018); all others at `learning_rate`. Each group says in `l2_sp` how strongly it is pulled to where it
    started; one that is pulled there has no `weight_decay`, which would pull it to zero (Li et al., ICML
    2018).
    """
    named = [(name, parameters) for name, parameters in groups if parameters]
    blocks = [name for name, _ in named if name.startswith("blocks.")]
    rates = {
        name: settings.backbone_rate * settings.layer_decay**distance
        for distance, name in enumerate(reversed(blocks), 1)
    }
    options = [
        {
            "name": name,
            "params": parameters,
            "lr": settings.learning_rate * rates.get(name, 1.0),
            "l2_sp": settings.l2_sp if _is_pretrained(name, settings) else 0.0,
        }
        for name, parameters in named
    ]
    for group in options:
        group["weight_decay"] = 0.0 if group["l2_sp"] else settings.weight_decay
    if settings.optimizer == "adam":
        return torch.optim.Adam(options, lr=settings.learning_rate, fused=True)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(options, lr=settings.learning_rate, fused=True)
    return torch.optim.SGD(options, lr=settings.learning_rate, momentum=settings.momentum, fused=True)


@dataclass  # not frozen: LambdaLR writes its fields when a checkpoint is restored
class RateFactor:
    """Step -> the rate as a multiple of its peak: a linear rise, then constant or a cosine to zero.

    The cosine is Loshchilov and Hutter's (ICLR 2017) without restarts.
    """

    schedule: Schedule
    epochs: int
    warmup_epochs: float
    steps_per_epoch: int

    def __call__(self, step: int) -> float:
        """Return the factor of step `step`, from 0."""
        total = self.epochs * self.steps_per_epoch
        warmup = min(round(self.warmup_epochs * self.steps_per_epoch), total)
        if step < warmup:
            return (step + 1) / warmup
        if self.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def schedule(optimizer: Optimizer, settings: TrialSettings, *, steps_per_epoch: int) -> LambdaLR:
    """Return what sets the rate of each step to its peak times a `RateFactor`."""
    factor = RateFactor(settings.schedule, settings.epochs, settings.warmup_epochs, steps_per_epoch)
    return LambdaLR(optimizer, factor)


def starts(optimizer: Optimizer) -> list[list[Tensor]]:
    """Return copies of the parameters that are to be pulled back, by group; none for other groups."""
    return [
        [p.detach().clone() for p in group["params"]] if group["l2_sp"] else []
        for group in optimizer.param_groups
    ]


@torch.no_grad()
def step(optimizer: Optimizer, starts: list[list[Tensor]], *, clip_norm: float) -> None:
    """Take one step along the gradients; parameters without gradient stay as they are.

    L2-SP adds the gradient of l2_sp / 2 * ||w - w_start||^2 (Li et al.); then all
    gradients together are scaled down to the norm `clip_norm` where they exceed it; 0: never.
    """
    for group, begin in zip(optimizer.param_groups, starts, strict=True):
        for parameter, start in zip(group["params"], begin, strict=False):  # no starts: no pull
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=group["l2_sp"])
    if clip_norm:
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip_norm)
    optimizer.step()


def effective(optimizer: Optimizer, schedule: LambdaLR) -> dict[str, object]:
    """Return what both really hold: the kind, peak rates by group, shared options, the rate's course.

    `weight_decay` is that of the groups that are not pulled to where they started, where there are any.
    """
    groups = optimizer.param_groups
    decays = [group["weight_decay"] for group in groups if not group["l2_sp"]]
    return {
        "optimizer": type(optimizer).__name__.lower(),
        "learning_rates": {group["name"]: group.get("initial_lr", group["lr"]) for group in groups},
        "l2_sp": max(group["l2_sp"] for group in groups),
        **{name: getattr(schedule.lr_lambdas[0], name) for name in ("schedule", "epochs", "warmup_epochs")},
        **({"weight_decay": decays[0]} if decays else {}),
        **({"momentum": groups[0]["momentum"]} if "momentum" in groups[0] else {}),
    }


def _is_pretrained(group: str, settings: TrialSettings) -> bool:
    """True if the group's parameters are the source's; under `load` the head's are made of them."""
    return group != "head" or settings.strategy == "load"
