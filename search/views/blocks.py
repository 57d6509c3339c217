"""List a backbone's blocks for the command line, and write the table of all backbones for the docs.

`python -m search.views.blocks > docs/models.md` writes the table.
"""

from typing import Any

import torch
from torch import nn

from finetune.model import backbones
from finetune.model.backbones import Backbone
from finetune.model.known_backbones import reads_clips
from search.views.terminal import console, print_line, print_table

_INTRODUCTION = """\
# Supported models

Every classifier of images in torchvision, and of clips, by torchvision's name.
This page is written by `python -m search.views.blocks > docs/models.md`.

- **blocks**: the units that `frozen_layers` counts, from 0 to all. `python -m search blocks NAME` lists them.
- **features**: channels of the pooled activations behind the last block, which a new head reads.
- **parameters**: blocks and source FC for 1000 classes, without auxiliary classifiers.
- **image_size**: what the model can read. ViT has position embeddings for the size that its weights are made
  for (`IMAGENET1K_V1` and `SWAG_LINEAR` 224, `SWAG_E2E` 384 to 518 pixels) and interpolates them for others.

| model | blocks | features | parameters | image_size |
|---|---:|---:|---:|---|
"""


_CLIPS = """
## Models that read clips

Every classifier of `torchvision.models.video`. They read all `data.frames` frames of a sample at once and
give it one row of features; [text-and-clips.md](text-and-clips.md) says what they can do. Their weights are
`KINETICS400_V1`, made for 112 pixels (r3d, mc3, r2plus1d) or 224 (the others).

| model | blocks | features | parameters | image_size | frames |
|---|---:|---:|---:|---|---|
"""
SHOWN_FRAMES = 16
"""Frames of the clips whose shapes are listed."""


def listing(name: str, image_size: int) -> dict[str, Any]:
    """Return the blocks of a backbone with parameter counts and output shapes, without allocating weights.

    Shapes are those of one image, without the batch dimension.

    Raises:
        BackboneError: there is no such backbone, or it cannot read images of this size.
    """
    backbone = _outline(name)
    frames = max(SHOWN_FRAMES, backbone.frames.least) if backbone.frames else None
    h = torch.empty(1, 3, *([frames] if frames else []), image_size, image_size, device="meta")
    blocks = []
    for block_name, block in zip(backbone.block_names, backbone.blocks, strict=True):
        h = block(h)
        blocks.append({"name": block_name, "parameters": _parameters(block), "output": list(h.shape[1:])})
    return {
        "backbone": name,
        "image_size": image_size,
        **({"frames": frames} if frames else {}),
        "blocks": blocks,
        "features": backbone.features,
        "source_fc": {
            "parameters": _parameters(backbone.source_fc),
            "output": list(backbone.source_fc(h).shape[1:]),
        },
        "parameters": _parameters(backbone),
    }


def show(listed: dict[str, Any]) -> None:
    """Print the result of `listing` as a table, in the order in which an image passes the blocks."""
    rows = [
        (str(i), block["name"], f"{block['parameters']:,}", _shape(block["output"]))
        for i, block in enumerate(listed["blocks"], start=1)
    ]
    fc = listed["source_fc"]
    rows.append(("", "(source FC)", f"{fc['parameters']:,}", _shape(fc["output"])))
    out = console()
    header = ("frozen_layers", "block", "parameters", "output")
    print_table(out, header, rows, right=frozenset({"frozen_layers", "parameters"}))
    clips = f"clips of {listed['frames']} frames" if "frames" in listed else "images"
    print_line(
        out,
        f"{listed['backbone']}: {len(listed['blocks'])} blocks, {listed['features']} features, "
        f"{listed['parameters']:,} parameters; shapes for {clips} of {listed['image_size']} pixels",
    )


def document() -> str:
    """Return the page of all backbones for the docs, as Markdown."""
    names = backbones.names()
    images, clips = ([name for name in names if reads_clips(name) == clips] for clips in (False, True))
    return _INTRODUCTION + "".join(map(_row, images)) + _CLIPS + "".join(map(_row, clips))


def _row(name: str) -> str:
    backbone = _outline(name)
    counts = f"{len(backbone.blocks)} | {backbone.features} | {_parameters(backbone):,}"
    frames = f" | {backbone.frames}" if backbone.frames else ""
    return f"| {name} | {counts} | {backbone.sides}{frames} |\n"


def _outline(name: str) -> Backbone:
    with torch.device("meta"):
        return backbones.build(name).eval()


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _shape(sizes: list[int]) -> str:
    return "×".join(map(str, sizes))


if __name__ == "__main__":
    print(document(), end="")
