"""The optimiser of one trial: parameter groups, learning rates and the optimiser step."""

import inspect
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.settings import TrialSettings
from finetune.strategy import STRATEGIES


def optimizer(groups: Iterable[tuple[str, list[nn.Parameter]]], settings: TrialSettings) -> Optimizer:
    """Return the optimiser for named parameter groups, in which backbone blocks are in their order.

    Groups of the backbone (`blocks.*`) train at `learning_rate * backbone_rate * layer_decay^d`, where d
    counts them from the head and is 1 for the last block (discriminative fine-tuning: Howard and Ruder, ACL
    2018). All other groups train at `learning_rate`. The group option `l2_sp` is the strength with which a
    group is pulled to its initial weights; such a group has no `weight_decay`, since that would pull it to
    zero (Li et al., ICML 2018).
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


class Rates:
    """Learning rate schedule: a linear warm-up, then a constant rate or a cosine to zero.

    The cosine is Loshchilov and Hutter's (ICLR 2017) without restarts. torch's LambdaLR does the same, but
    adds another wrapper around the optimiser's step, and wrappers are slow (see `step`).

    Args:
        optimizer: the optimiser, whose present rates are taken as the peaks.
        settings: schedule, epochs and warm-up.
        steps_per_epoch: optimiser steps per epoch.
    """

    def __init__(self, optimizer: Optimizer, settings: TrialSettings, *, steps_per_epoch: int) -> None:
        self.course, self.epochs = settings.schedule, settings.epochs
        self.warmup_epochs = settings.warmup_epochs
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        self._optimizer = optimizer
        self._total = self.epochs * steps_per_epoch
        self._warmup = min(round(self.warmup_epochs * steps_per_epoch), self._total)
        self.go_to(0)

    def step(self) -> None:
        """Set the rates for the next step."""
        self.go_to(self.steps + 1)

    def go_to(self, steps: int) -> None:
        """Set the rates to those after `steps` steps, for instance to resume."""
        self.steps, factor = steps, self.factor(steps)
        for group, peak in zip(self._optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor

    def factor(self, step: int) -> float:
        """Return the rate of step `step`, counted from 0, as a multiple of the peak."""
        if step < self._warmup:
            return (step + 1) / self._warmup
        if self.course == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - self._warmup) / max(1, self._total - self._warmup)))


def starts(optimizer: Optimizer) -> list[list[Tensor]]:
    """Return, for each group, copies of the parameters that L2-SP pulls them to; none without `l2_sp`."""
    return [
        [p.detach().clone() for p in group["params"]] if group["l2_sp"] else []
        for group in optimizer.param_groups
    ]


def clear(optimizer: Optimizer) -> None:
    """Drop all gradients, as `zero_grad` does, but without the profiling that torch wraps around that."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


@torch.no_grad()
def step(optimizer: Optimizer, starts: list[list[Tensor]], *, clip_norm: float) -> None:
    """Take one optimiser step; parameters without a gradient stay as they are.

    L2-SP first adds the gradient of l2_sp / 2 * ||w - w_start||^2 (Li et al.). Then all gradients together
    are scaled down to the norm `clip_norm` if they exceed it; 0 turns this off.

    The optimiser's step is called without torch's wrapper for profilers, hooks and the compiler. With the
    wrapper the call took 139 us instead of 81 for a head of 64 units (one core, measured by hand).
    """
    for group, begin in zip(optimizer.param_groups, starts, strict=True):
        pulled = [(p, s) for p, s in zip(group["params"], begin, strict=False) if p.grad is not None]
        if pulled:  # groups without `l2_sp` have no starts
            apart = torch._foreach_sub([p for p, _ in pulled], [s for _, s in pulled])
            torch._foreach_add_([p.grad for p, _ in pulled], apart, alpha=group["l2_sp"])
    if clip_norm:
        nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip_norm)
    inspect.unwrap(type(optimizer).step)(optimizer)


def effective(optimizer: Optimizer, rates: Rates) -> dict[str, object]:
    """Return the options actually in use: kind, peak rates by group, shared options and the schedule.

    `weight_decay` is that of the groups without L2-SP; it is left out if there is none.
    """
    groups = optimizer.param_groups
    decays = [group["weight_decay"] for group in groups if not group["l2_sp"]]
    return {
        "optimizer": type(optimizer).__name__.lower(),
        "learning_rates": {group["name"]: peak for group, peak in zip(groups, rates.peaks, strict=True)},
        "l2_sp": max(group["l2_sp"] for group in groups),
        **{"schedule": rates.course, "epochs": rates.epochs, "warmup_epochs": rates.warmup_epochs},
        **({"weight_decay": decays[0]} if decays else {}),
        **({"momentum": groups[0]["momentum"]} if "momentum" in groups[0] else {}),
    }


def _is_pretrained(group: str, settings: TrialSettings) -> bool:
    """Return True if the group's parameters come from the source; under `load` those of the head do, too."""
    own = STRATEGIES.get(settings.strategy)
    return group != "head" or (own is not None and own.head_is_pretrained)
