"""Maps of the parts of an image that speak for a class.

    grad-cam              activations of the last block, weighted by the gradient of the class's logit
                          (Selvaraju et al., ICCV 2017); for ViT the patch tokens in front of the last block
    integrated-gradients  gradients along a line from a grey image (Sundararajan et al., ICML 2017)
    occlusion             fall of the logit where a window is blurred (Zeiler and Fergus, ECCV 2014)
    random                no evidence at all: smooth noise that every real map is compared with

A backbone that reads clips is given the frames of one clip as its images, and has a map for each of them.

Shapes: B images, (3, S, S) normalised pixels, (h, w) positions of the last activations, C classes; of clips
(t, h, w) times and positions.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import gaussian_blur

from finetune.errors import FinetuneError
from finetune.model.backbones.transformers import ClassToken
from finetune.model.backbones.video import MultiscaleUnit
from finetune.model.strategies import TransferModel

Method = Literal["grad-cam", "integrated-gradients", "occlusion", "random"]
METHODS: tuple[Method, ...] = get_args(Method)
INSTALL = "pip install 'transfer-search[explain]'"
STEPS = 16
"""Points on the line of integrated gradients."""
AT_ONCE = 32
"""Images that captum runs at once: what it makes of one image would not fit into memory for many."""
PATCHES = 16
"""Patches along each side over which integrated gradients are averaged."""
WINDOWS = 7
"""Windows of occlusion along each side, which overlap by half."""


class Whole(nn.Module):
    """A model with gradients through its frozen blocks, too: pixels (B, 3, S, S) -> logits (B, C).

    Args:
        model: the model.
        head: head to use in place of the model's, such as one that holds a text fixed.
    """

    def __init__(self, model: TransferModel, head: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*model.prefix, *model.trunk)
        self.head = head or model.head
        self.inputs, self.reads_clips = model.inputs, model.reads_clips
        self.has_tokens = isinstance(model.head.pool, ClassToken)
        """True if the blocks turn an image into tokens, of which the head reads the first one only."""
        self.eval()

    @property
    def cut(self) -> int:
        """Number of blocks in front of the activations that `grad-cam` reads.

        Behind the last block of ViT only the class token reaches the logit, and the gradients of all patches
        are zero.
        """
        return len(self.blocks) - self.has_tokens

    def as_map(self, h: Tensor) -> Tensor:
        """Return activations behind `cut` blocks as (B, D, h, w) or (B, D, t, h, w), without class token."""
        if not self.has_tokens:
            return h
        patches = h[:, 1:].transpose(1, 2)
        side = round(patches.shape[2] ** 0.5)
        unit = next((m for m in self.blocks[-1].modules() if isinstance(m, MultiscaleUnit)), None)
        grid: Tensor = patches.unflatten(2, unit.grid if unit else (side, side))
        return grid

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.head(self.blocks(x))
        return logits


def maps(
    model: TransferModel,
    x: Tensor,
    classes: Tensor,
    method: Method = "grad-cam",
    head: nn.Module | None = None,
) -> Tensor:
    """Return a map (B, S, S) for each image, float32 within 0..1, on the CPU; 1 speaks most for the class.

    A map is all zeros if nothing speaks for the class.

    Args:
        model: the model, on any device; it is run in evaluation mode.
        x: normalised images (B, 3, S, S) on the same device.
        classes: class of each image (B,) that the map is about.
        method: one of METHODS.
        head: head to use in place of the model's.

    Raises:
        FinetuneError: the method needs captum, which is not installed.
    """
    was_training = model.training
    try:
        raw = _METHODS[method](Whole(model, head), x, classes.to(x.device))
    finally:
        model.train(was_training)
    return scaled(raw, x.shape[-1])


def scaled(raw: Tensor, side: int) -> Tensor:
    """Return maps (B, h, w) as (B, S, S) on the CPU, from 0 for all that speaks against to 1 for the most."""
    positive = raw.detach().float().relu()
    large = F.interpolate(positive[:, None], size=(side, side), mode="bilinear", align_corners=False)[:, 0]
    most = large.amax((1, 2), keepdim=True)
    return torch.where(most > 0, large / most.clamp(min=torch.finfo(torch.float32).tiny), 0.0).cpu()


def blurred(x: Tensor) -> Tensor:
    """Return images that show no detail any more: a wide Gaussian blur."""
    side = x.shape[-1]
    kernel = min(2 * (side // 4) + 1, 2 * side - 1)
    # torchvision convolves with the whole square kernel; one direction after the other gives the same.
    smooth = x.contiguous()
    for size in ([kernel, 1], [1, kernel]):
        smooth = gaussian_blur(smooth, size, [side / 8, side / 8])
    return smooth


def _grad_cam(whole: Whole, x: Tensor, classes: Tensor) -> Tensor:
    with torch.no_grad():
        front = whole.blocks[: whole.cut](whole.inputs(x))
    with torch.enable_grad():
        h = front.detach().requires_grad_()
        # A copy, since the next layer may work in place.
        logits = whole.head(whole.blocks[whole.cut :](h.clone()))
        gradient = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), h)[0]
    activations, slopes = whole.as_map(h.detach()), whole.as_map(gradient)
    raw = (activations * slopes.mean(tuple(range(2, slopes.dim())), keepdim=True)).sum(1)
    if whole.reads_clips:  # (1, t, h, w), to a map for each frame
        raw = F.interpolate(raw[None], size=(len(x), *raw.shape[2:]), mode="trilinear")[0, 0]
    return raw


def _integrated(whole: Whole, x: Tensor, classes: Tensor) -> Tensor:
    found: Tensor = (
        _captum("IntegratedGradients")(whole)
        .attribute(x, target=classes, n_steps=STEPS, internal_batch_size=max(AT_ONCE, len(x)))
        .sum(1)
    )
    # Single pixels are noise to the eye; a map is read in patches.
    patch = max(1, x.shape[-1] // PATCHES)
    return F.avg_pool2d(found[:, None], 2 * (patch // 2) + 1, stride=1, padding=patch // 2)[:, 0]


def _occlusion(whole: Whole, x: Tensor, classes: Tensor) -> Tensor:
    step = max(1, x.shape[-1] // (WINDOWS + 1))
    window = (x.shape[1], 2 * step, 2 * step)
    found: Tensor = _captum("Occlusion")(whole).attribute(
        x,
        sliding_window_shapes=window,
        strides=(x.shape[1], step, step),
        baselines=blurred(x),
        target=classes,
    )
    return found.sum(1)


def _random(whole: Whole, x: Tensor, classes: Tensor) -> Tensor:
    return noise(len(x), _grid(whole, x))


@torch.no_grad()
def _grid(whole: Whole, x: Tensor) -> tuple[int, int]:
    some = x if whole.reads_clips else x[:1]
    height, width = whole.as_map(whole.blocks[: whole.cut](whole.inputs(some))).shape[-2:]
    return height, width


def resolution(model: TransferModel, x: Tensor, method: Method) -> tuple[int, int]:
    """Return the number of values that a map of a method has along each side, before it is enlarged."""
    if method == "integrated-gradients":
        return PATCHES, PATCHES
    if method == "occlusion":
        return WINDOWS, WINDOWS
    return _grid(Whole(model), x)


def noise(count: int, shape: torch.Size | tuple[int, ...], seed: int = 0) -> Tensor:
    """Return the same random maps (count, h, w) each time."""
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def _captum(name: str) -> Any:
    """Return one of captum's classes."""
    try:
        return getattr(import_module("captum.attr"), name)
    except ImportError:
        raise FinetuneError(
            f"explain: captum must be installed for this map, got none. Run {INSTALL}."
        ) from None


_METHODS: dict[Method, Callable[[Whole, Tensor, Tensor], Tensor]] = {
    "grad-cam": _grad_cam,
    "integrated-gradients": _integrated,
    "occlusion": _occlusion,
    "random": _random,
}
