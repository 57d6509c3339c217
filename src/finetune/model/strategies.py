"""Turn a pretrained backbone into a model for the new task by the strategy `replace`, `load` or `fuse`.

The frozen blocks come first and stay the same to the bit; the trained blocks and the head follow.

Shapes: B images, D pooled features, K source classes, C classes of the new task.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from finetune.errors import BackboneError, CheckpointError, did_you_mean
from finetune.model import source_rows
from finetune.model.backbones import Backbone, Layer, last_layer, set_rows
from finetune.model.dropout import swap_dropout
from finetune.model.ensemble import EnsembleHead
from finetune.model.exact_head import ExactHead, ExactShape
from finetune.model.head import FuseHead, LoadHead, MLPHead, ReplaceHead
from finetune.model.sample_head import SampleHead, SampleShape
from finetune.model.weights import differences
from finetune.settings import ALL
from finetune.strategy import FUSE, LOAD, REPLACE, STRATEGIES

Head = ReplaceHead | LoadHead | FuseHead | ExactHead | SampleHead | EnsembleHead


class TransferModel(nn.Module):
    """A classifier of frozen prefix, trained trunk and head: images (B, 3, H, W) -> logits (B, C).

    Some backbones read clips (B, 3, T, H, W) instead.

    The prefix has no gradients and stays in `eval` mode even when `train` is called, so that its batch norm
    statistics do not change and its dropout is off. The same holds for the leading blocks of the trunk that
    `thaw` has not unfrozen yet.
    """

    def __init__(self, backbone: Backbone, frozen: int, head: Head) -> None:
        super().__init__()
        self.backbone_name, self.block_names = backbone.name, backbone.block_names
        self.prefix = backbone.blocks[:frozen].requires_grad_(False).eval()
        self.trunk = backbone.blocks[frozen:].requires_grad_(True)
        self.head = head.requires_grad_(True)
        for part in (self.trunk, self.head):
            _keep_inputs(part)
        self.pooled_features = backbone.features
        self.reads_clips = backbone.frames is not None
        self.waiting = 0
        """Number of leading blocks of the trunk that are still frozen."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, C) for images `x` (B, 3, H, W)."""
        return self.from_features(self.features(x))

    @property
    def pools(self) -> bool:
        """True if `features` returns pooled activations: all blocks are frozen, and the head pools first."""
        return not len(self.trunk) and self.head.pools

    def inputs(self, frames: Tensor) -> Tensor:
        """Return the frames (T, 3, S, S) of a sample as the backbone reads them: one by one, or as a clip."""
        return frames.transpose(0, 1)[None] if self.reads_clips else frames

    def features(self, x: Tensor) -> Tensor:
        """Return the input of the trained part, without gradient.

        This is the output of the last frozen block, pooled if `pools`; if no block is frozen, it is `x`.
        """
        with torch.no_grad():  # autograd could not use tensors from inference_mode in the layers that follow
            return self.reduce(self.prefix(x))

    def reduce(self, h: Tensor) -> Tensor:
        """Return the output `h` of the last frozen block, pooled if `pools`."""
        return h if len(self.trunk) else self.head.reduce(h)

    def complete(self, row: Tensor) -> Tensor:
        """Return the row of a head for samples: the trained blocks, and the source FC, have read the frames.

        Args:
            row: the model's input for samples with several parts, (B, T A + E + 2).
        """
        head = self.head
        assert isinstance(head, SampleHead)
        if not head.shape.reads_image or not (len(self.trunk) or head.source_fc is not None):
            return row
        h, rest = head.apart(row)
        return torch.cat([self._read(h).reshape(len(row), -1), rest], dim=1)

    def of_frames(self, frames: Tensor) -> Tensor:
        """Return what a head for samples reads of normalised frames (T, 3, S, S), without gradient.

        It is a row of features for each frame, (T, D), or of a clip that is read as a whole one row (1, D).
        """
        with torch.no_grad():
            return self._read(self.features(self.inputs(frames)))

    def _read(self, h: Tensor) -> Tensor:
        """Return the features of frames that `features` has been through."""
        head = self.head
        assert isinstance(head, SampleHead)
        return head.read(head.reduce(self.trunk(h)) if len(self.trunk) else h)

    def from_features(self, h: Tensor) -> Tensor:
        """Return logits (B, C) for the output `h` of `features`, which is not changed."""
        if isinstance(self.head, SampleHead):
            return self.head.classify(self.complete(h))
        logits: Tensor = self.head(self.trunk(h)) if len(self.trunk) else self.head.classify(h)
        return logits

    def thaw(self, blocks: int) -> bool:
        """Train the last `blocks` blocks of the trunk and freeze its others; return True if that is a change.

        A frozen block has no gradients, stays in `eval` mode and keeps its parameters and buffers.
        """
        waiting = max(0, len(self.trunk) - blocks)
        changed, self.waiting = waiting != self.waiting, waiting
        for place, block in enumerate(self.trunk):
            block.requires_grad_(place >= waiting)
        self.train(self.training)
        return changed

    def train(self, mode: bool = True) -> "TransferModel":
        """Set the unfrozen parts to training or evaluation mode; frozen blocks stay in evaluation mode."""
        self.training = mode
        self.head.train(mode)
        self.trunk.train(mode)
        self.trunk[: self.waiting].eval()
        return self

    def parameter_groups(self) -> list[tuple[str, list[nn.Parameter]]]:
        """Return the trained parameters in named groups, each parameter once.

        The groups are `head`, then `source_fc` under `fuse`, then one group per trained block that has
        parameters, such as `blocks.layer4.1`. Under `load` the source FC is the head.
        """
        fused = [(n, m) for n, m in self.head.named_children() if n == "source_fc"]
        head = [m for n, m in self.head.named_children() if n != "source_fc"]
        trained_names = self.block_names[len(self.prefix) :]
        blocks = [(f"blocks.{n}", b) for n, b in zip(trained_names, self.trunk, strict=True)]
        groups = [(name, list(module.parameters())) for name, module in (*fused, *blocks)]
        return [
            ("head", [p for module in head for p in module.parameters()]),
            *((name, parameters) for name, parameters in groups if parameters),
        ]

    def moving_statistics(self) -> dict[str, Tensor]:
        """Return the floating-point buffers that training changes, by their names in `trained_state`."""
        blocks = list(self.trunk.named_children())[self.waiting :]
        parts = {**{f"trunk.{name}": block for name, block in blocks}, "head": self.head}
        return {
            f"{part}.{name}": buffer
            for part, module in parts.items()
            for name, buffer in module.named_buffers()
            if buffer.is_floating_point()
        }

    def trained_state(self) -> dict[str, Tensor]:
        """Return all parameters and buffers outside the prefix, by name, sharing memory with the model."""
        state = self.trunk.state_dict(prefix="trunk.")
        return {**state, **self.head.state_dict(prefix="head.")}

    def load_trained_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy a result of `trained_state` into this model.

        Raises:
            CheckpointError: keys or shapes differ from those of this model.
        """
        wrong = differences(self.trained_state(), state)
        if wrong:
            raise CheckpointError(
                f"checkpoint: must hold what this model trains, got {'; '.join(wrong)}. "
                "Give the checkpoint of a trial with this backbone, strategy, head and frozen_layers."
            )
        self.load_state_dict(dict(state), strict=False)  # `differences` has checked all but the prefix

    def describe(self) -> dict[str, Any]:
        """Return the facts about this model, read from its modules.

        `head` lists [inputs, outputs] of each Linear (or 1x1 convolution) of the new layers; under `load` it
        lists those of the source FC. `head_size` is None under `load`, `dropout` if there is no such layer.
        """
        layers = [m for m in self.head.new.modules() if isinstance(m, Layer)]
        dropouts = [m.p for m in self.head.new.modules() if isinstance(m, nn.Dropout)]
        shapes = [[layer.weight.shape[1], layer.weight.shape[0]] for layer in layers]
        new = next((m for m in self.head.modules() if isinstance(m, MLPHead)), None)
        hidden = new.head_size if new else 0 if len(shapes) == 1 else shapes[0][1]
        return {
            "backbone": self.backbone_name,
            "strategy": self.head.strategy,
            "head": shapes,
            "head_size": None if isinstance(self.head, LoadHead) else hidden,
            "dropout": dropouts[-1] if dropouts else None,
            "blocks": len(self.block_names),
            "frozen_blocks": len(self.prefix),
            "trainable_parameters": sum(p.numel() for p in self.parameters() if p.requires_grad),
            "total_parameters": sum(p.numel() for p in self.parameters()),
        }


def build(
    strategy: str,
    backbone: Backbone,
    *,
    classes: Sequence[str],
    head_size: int,
    dropout: float,
    frozen_layers: int,
    relation: Tensor | None,
    source_names: tuple[str, ...] | None,
    seed: int,
    keeps_relu: bool | None = None,
    exact: ExactShape | None = None,
    sample: SampleShape | None = None,
    seen: tuple[int, ...] = (),
) -> TransferModel:
    """Return the model for a strategy. It is built from the modules of `backbone`, and changes them.

    Args:
        strategy: the name of one of STRATEGIES, or `exact`.
        backbone: the backbone, on any device; the caller must not use it any more.
        classes: names of the new task's classes, in label order.
        head_size: hidden units of the new head; 0 makes it one Linear. `load` ignores it.
        dropout: dropout before the last Linear of the new head; under `load` the source FC keeps its own.
        frozen_layers: number of leading blocks to freeze; ALL (-1) freezes every block.
        relation: for `load`, (C, K) from `source_rows.category_relationship`; not needed if the class names
            equal the source's.
        source_names: names of the source classes in the order of the source FC's outputs, if known.
        seed: seed for the new head's weights; the state of the global generator is left unchanged.
        keeps_relu: for `load`, whether a ReLU behind the source FC's last layer stays (SqueezeNet has one);
            None: only if the class names equal the source's. See `source_rows.without_relu`.
        exact: for `exact`, what the head is made of; its weights begin at zero. None: a linear head.
        sample: what the head is made of where samples have text or several frames; None: they are images.
        seen: shape of what the backbone reads of such a sample, (3, S, S) or (3, T, S, S).

    Raises:
        BackboneError: the strategy is unknown, the backbone has fewer blocks than `frozen_layers`, or `load`
            lacks its relation, or samples with several parts meet a strategy that cannot read them.
    """
    frozen = _cut(backbone, frozen_layers)
    pooled = backbone.features
    head: Head
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if sample is not None:
            if strategy not in (REPLACE.name, FUSE.name, ExactHead.strategy):
                raise BackboneError(
                    f"strategy: must be {REPLACE.name!r} or {FUSE.name!r} for samples with text or several "
                    f"frames, got {strategy!r}. Set it."
                )
            solved = (exact or ExactShape()) if strategy == ExactHead.strategy else None
            head = SampleHead(
                backbone.pool,
                sample,
                head_size=head_size,
                classes=len(classes),
                dropout=dropout,
                exact=solved,
                source_fc=backbone.source_fc if strategy == FUSE.name else None,
                answers=backbone.source_classes if strategy == FUSE.name else 0,
            )
        elif strategy == REPLACE.name:
            head = ReplaceHead(backbone.pool, MLPHead(pooled, head_size, len(classes), dropout))
        elif strategy == FUSE.name:
            new = MLPHead(pooled + backbone.source_classes, head_size, len(classes), dropout)
            head = FuseHead(backbone.pool, backbone.source_fc, new)
        elif strategy == LOAD.name:
            by_name = _load_rows(backbone, classes, relation, source_names)
            if not (by_name if keeps_relu is None else keeps_relu):
                source_rows.without_relu(backbone.source_fc)
            head = LoadHead(backbone.pool, backbone.source_fc)
        elif strategy == ExactHead.strategy:
            head = ExactHead(
                backbone.pool,
                backbone.source_fc,
                exact or ExactShape(),
                features=pooled,
                answers=backbone.source_classes,
                classes=len(classes),
            )
        else:
            raise BackboneError(
                f"strategy: must be one of {', '.join(STRATEGIES)}, got {strategy!r}. "
                + did_you_mean(strategy, tuple(STRATEGIES))
            )
    swap_dropout(head)
    built = TransferModel(backbone, frozen, head)
    if isinstance(head, SampleHead):
        head.cut = (pooled,) if built.pools else _cut_shape(built.prefix, seen)
    return built


@torch.no_grad()
def _cut_shape(prefix: nn.Sequential, seen: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the activations behind blocks for one input, computing nothing."""
    held = {**dict(prefix.named_parameters()), **dict(prefix.named_buffers())}
    outlines = {name: torch.empty_like(tensor, device="meta") for name, tensor in held.items()}
    h = functional_call(prefix, outlines, (torch.empty(1, *seen, device="meta"),))
    return tuple(h.shape[1:])


def _keep_inputs(part: nn.Module) -> None:
    """Turn off `inplace` for activations whose gradient needs their input.

    In place, torch would first copy that input. The results are the same to the bit. ReLU stays in place,
    since its gradient needs only its output.
    """
    for module in part.modules():
        if isinstance(module, nn.Hardtanh | nn.SiLU | nn.Hardswish | nn.Hardsigmoid):  # ReLU6 is a Hardtanh
            module.inplace = False


def _cut(backbone: Backbone, frozen_layers: int) -> int:
    """Return the number of leading blocks to freeze, after checking it."""
    blocks = len(backbone.blocks)
    if frozen_layers == ALL:
        return blocks
    if not 0 <= frozen_layers <= blocks:
        raise BackboneError(
            f"{backbone.name}: frozen_layers must be 0 to {blocks}, the number of its blocks, "
            f"or {ALL} for all, got {frozen_layers}. Use {ALL} to freeze every block."
        )
    return frozen_layers


@torch.no_grad()
def _load_rows(
    backbone: Backbone, classes: Sequence[str], relation: Tensor | None, source_names: Sequence[str] | None
) -> bool:
    """Replace the output rows of the source FC by one row per class; return True if they are the source's.

    If the class names equal the source's, rows are copied by name. Otherwise they are mixtures of the
    source's rows, see `source_rows.mixed_rows`.
    """
    layer = last_layer(backbone.source_fc)
    weight = layer.weight
    bias = weight.new_zeros(len(weight)) if layer.bias is None else layer.bias
    if source_names is not None and sorted(classes) == sorted(source_names):
        rows = source_rows.positions(classes, source_names)
        set_rows(layer, weight[rows], bias[rows])
        return True
    if relation is None or relation.shape != (len(classes), len(weight)):
        got = "no relation" if relation is None else f"a relation of shape {tuple(relation.shape)}"
        raise BackboneError(
            f"{backbone.name}: strategy {LOAD.name!r} needs pretrained weights and a category relationship "
            f"of shape ({len(classes)}, {len(weight)}), got {got}. "
            f"Give pretrained weights and pass category_relationship(...), or use {REPLACE.name!r}."
        )
    set_rows(layer, *source_rows.mixed_rows(layer, relation))
    return False
