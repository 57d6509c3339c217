"""The optimiser of one trial: one parameter group per part of the model, and its rate over the steps."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from finetune.settings import TrialSettings


def optimizer(groups: Iterable[tuple[str, list[nn.Parameter]]], settings: TrialSettings) -> Optimizer:
    """Return the optimiser over named parameter groups.

    Groups of the backbone (`blocks.*`) train at `learning_rate * backbone_rate`, all others at
    `learning_rate`.
    """
    named = [
        {
            "name": name,
            "params": parameters,
            "lr": settings.learning_rate * (settings.backbone_rate if name.startswith("blocks.") else 1.0),
        }
        for name, parameters in groups
        if parameters
    ]
    decay = settings.weight_decay
    if settings.optimizer == "adam":
        return torch.optim.Adam(named, lr=settings.learning_rate, weight_decay=decay)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(named, lr=settings.learning_rate, weight_decay=decay)
    return torch.optim.SGD(named, lr=settings.learning_rate, momentum=settings.momentum, weight_decay=decay)


def schedule(optimizer: Optimizer, settings: TrialSettings, *, steps_per_epoch: int) -> LambdaLR:
    """Return the rate per step: a linear rise over `warmup_epochs`, then constant or a cosine to zero.

    The cosine is Loshchilov and Hutter's (ICLR 2017, eq. 5) without restarts.
    """
    total = settings.epochs * steps_per_epoch
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), total)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if settings.schedule == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))

    return LambdaLR(optimizer, factor)


def effective(optimizer: Optimizer) -> dict[str, object]:
    """Return what the optimiser really holds: its kind, peak rates by group and shared options."""
    first = optimizer.param_groups[0]
    rates = {group["name"]: group.get("initial_lr", group["lr"]) for group in optimizer.param_groups}
    return {
        "optimizer": type(optimizer).__name__.lower(),
        "learning_rates": rates,
        "weight_decay": first["weight_decay"],
        **({"momentum": first["momentum"]} if "momentum" in first else {}),
    }
