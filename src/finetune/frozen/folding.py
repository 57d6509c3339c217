"""Fuse frozen convolutions with batch norm, sum and activation into one kernel.

torch.compile does the same with frozen blocks on CPUs (`torch/_inductor/fx_passes/mkldnn_fusion.py`). Here
the blocks call the same oneDNN kernels themselves, so nothing is compiled.
"""

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse as fold_batch_norms
from torchvision.ops import StochasticDepth

FORMAT = 1
"""Version of the folding. Raise it when a change alters the rounding of folded blocks."""

Activation = tuple[str, list[float], str]
"""Name, bounds and variant of an activation, as oneDNN takes them."""

ACTIVATIONS: dict[Callable[..., Any], Activation] = {
    nn.ReLU: ("relu", [], ""),
    nn.ReLU6: ("hardtanh", [0.0, 6.0], ""),
    nn.SiLU: ("swish", [], ""),
    nn.Hardswish: ("hardswish", [], ""),
    F.relu: ("relu", [], ""),
}
SUMS = (operator.add, operator.iadd)
IDLE = (nn.Identity, nn.Dropout, StochasticDepth)
"""Modules that do nothing in evaluation mode."""


def is_worth_it(blocks: nn.Module) -> bool:
    """True if there are convolutions, and batch norms or activations that they can absorb."""
    kinds = {type(module) for module in blocks.modules()}
    return nn.Conv2d in kinds and not kinds.isdisjoint({nn.BatchNorm2d, *ACTIVATIONS})


def fold(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of frozen blocks, in evaluation mode, that computes the same in fewer steps.

    The copy differs by rounding only, provided that torch.fx traces the blocks correctly. It may trace them
    wrongly, so compare the outputs. A module that it cannot trace as a whole is folded part by part.

    Args:
        module: the blocks, on the CPU. Neither they nor the copy may be trained.
        dtype: the type of the convolutions, float32 or bfloat16.
    """
    try:
        traced = fold_batch_norms(module)
    except Exception:  # a forward pass may fail to trace with any kind of error
        copied = copy.copy(module)
        copied._modules = {name: fold(child, dtype) for name, child in module.named_children()}
        return copied
    assert isinstance(traced, fx.GraphModule)
    if _has_kernels(dtype):
        _drop_idle(traced)
        for node in list(traced.graph.nodes):
            if node.op == "call_module" and _is_plain(traced.get_submodule(node.target)):
                _take_in_what_follows(traced, node, dtype)
        traced.recompile()
    return traced.to(memory_format=torch.channels_last)


class FoldedConvolution(nn.Module):
    """A convolution, an optional sum and an optional activation as one kernel."""

    weight: Tensor

    def __init__(self, convolution: nn.Conv2d, activation: Activation | None, dtype: torch.dtype) -> None:
        super().__init__()
        bias = convolution.bias
        self.register_buffer("weight", convolution.weight.detach().to(dtype))
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype))
        self.how = (
            list(convolution.padding),
            list(convolution.stride),
            list(convolution.dilation),
            convolution.groups,
        )
        self.activation = activation
        self._packed: Tensor | None = None

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Return activation(convolution(x) + other) for `x` (B, C, H, W); `other` has its shape."""
        x = x.to(self.weight.dtype)
        if self._packed is None:  # once: otherwise oneDNN reorders the weights at every call
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self.how, list(x.shape))
        parameters = (self._packed, self.bias, *self.how)
        call = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            h: Tensor = call(x, *parameters, *(self.activation or ("none", [], "")))
        else:
            after = self.activation or (None, [], None)
            h = call.binary(x, other.to(x.dtype), *parameters, "add", 1.0, *after)
        return h


def _has_kernels(dtype: torch.dtype) -> bool:
    """True if oneDNN is available and computes in `dtype` on this CPU."""
    there = torch.backends.mkldnn.is_available()
    return there and (dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def _is_plain(module: nn.Module) -> bool:
    """True for a convolution with zero padding of a fixed number of pixels on either side."""
    return (
        type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    )


def _drop_idle(traced: fx.GraphModule) -> None:
    """Remove the calls of IDLE modules from the graph."""
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and isinstance(traced.get_submodule(node.target), IDLE):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)


def _take_in_what_follows(traced: fx.GraphModule, node: fx.Node, dtype: torch.dtype) -> None:
    """Replace a convolution, and the sum and activation behind it, by one FoldedConvolution.

    A sum or activation is absorbed only if it is the only reader of the result before it.
    """
    taken, others = [node], []
    follower = _only_user(node)
    if follower and follower.op == "call_function" and follower.target in SUMS:
        others = [argument for argument in follower.args if argument is not node]
        taken.append(follower)
        follower = _only_user(follower)
    activation = _activation(traced, follower) if follower else None
    if activation and follower:
        taken.append(follower)
    # The fused module takes the convolution's name. Its call stands where the last absorbed node stood,
    # since `others` may be computed between the convolution and the sum.
    convolution = traced.get_submodule(str(node.target))
    assert isinstance(convolution, nn.Conv2d)
    parent, _, name = str(node.target).rpartition(".")
    setattr(traced.get_submodule(parent), name, FoldedConvolution(convolution, activation, dtype))
    with traced.graph.inserting_before(taken[-1]):
        step = traced.graph.call_module(str(node.target), (node.args[0], *others))
    taken[-1].replace_all_uses_with(step)
    for done in reversed(taken):
        traced.graph.erase_node(done)


def _only_user(node: fx.Node) -> fx.Node | None:
    """Return the node that reads this one's result; None if none or several do."""
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _activation(traced: fx.GraphModule, node: fx.Node) -> Activation | None:
    """Return the activation that a node applies; None if it is no activation that oneDNN can fuse."""
    if node.op == "call_module":
        return ACTIVATIONS.get(type(traced.get_submodule(str(node.target))))
    return ACTIVATIONS.get(node.target) if node.op == "call_function" and callable(node.target) else None
