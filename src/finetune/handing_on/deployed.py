"""The whole way from pixels to probabilities as one module, so that whoever runs it cannot get a step wrong.

Shapes: B images or samples, T frames of a sample, S side of the square in pixels, E numbers of a text's
vector, C classes.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from finetune.frozen.samples import read_frames
from finetune.model.sample_head import MARKS, SampleHead
from finetune.model_folder import Model

INPUT, OUTPUT = "images", "probabilities"
"""Names of the first input and of the output of every exported program."""
TEXT, PRESENT = "text", "present"
"""Names of the further inputs of a model that reads text."""


def of(model: Model) -> "Deployed":
    """Return the module for a loaded model folder."""
    return DeployedSamples(model) if "samples" in model.facts else Deployed(model)


class Deployed(nn.Module):
    """Calibrated probabilities (B, C), float32, for RGB images uint8 (B, S, S, 3), as Pillow gives them."""

    names: tuple[str, ...] = (INPUT,)
    """Names of the inputs, in order."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        asked = model.facts["preprocessing"]
        # A copy in plain order: torch.export.save warns of weights whose channels come last.
        self.net = copy.deepcopy(model.net).to(memory_format=torch.contiguous_format)
        self.temperature = model.calibration.temperature
        self.side: int = asked["image_size"]
        self.mean, self.std = (
            nn.Buffer(torch.tensor(asked[name], dtype=torch.float32).view(3, 1, 1))
            for name in ("mean", "std")
        )
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return probabilities (B, C) for images (B, S, S, 3)."""
        return self._calibrated(self.net(self._pixels(images)))

    def example(self) -> tuple[Tensor, ...]:
        """Return inputs of two images or samples."""
        return (torch.zeros(2, self.side, self.side, 3, dtype=torch.uint8),)

    def shapes(self) -> dict[str, Any]:
        """Return which dimensions of the inputs may vary, as torch.export takes it."""
        batch = torch.export.Dim("batch")
        return {name: {0: batch} for name in self.names}

    def described(self) -> str:
        """Return the inputs in words."""
        return f"{INPUT}: uint8 (batch, {self.side}, {self.side}, 3), RGB"

    def traced(self) -> torch.export.ExportedProgram:
        """Return the module as a program with any number of images at a time."""
        with torch.no_grad():
            return torch.export.export(self, self.example(), dynamic_shapes=self.shapes())

    def _pixels(self, images: Tensor) -> Tensor:
        return images.permute(0, 3, 1, 2).to(torch.float32).div(255).sub(self.mean).div(self.std)

    def _calibrated(self, logits: Tensor) -> Tensor:
        probabilities: Tensor = (logits.float() / self.temperature).softmax(1)
        return probabilities


class DeployedSamples(Deployed):
    """Calibrated probabilities (B, C) for samples with text or several frames.

    The inputs are those of these that the model reads: `images`, uint8 (B, S, S, 3) or, of clips, the frames
    (B, T, S, S, 3); `text`, the vector of the text, float32 (B, E), which the text encoder makes; and
    `present`, float32 (B, 2), 1 or 0 for an image and 1 or 0 for a text that is there.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        head = self.net.head
        assert isinstance(head, SampleHead)
        self.shape, self.width = head.shape, head.width
        self.frames: int = model.facts["samples"]["frames"]
        self.picks = nn.Buffer(read_frames(self.net.reads_clips, self.shape.frames, self.frames))
        both = self.shape.reads_image and self.shape.reads_text
        read = (self.shape.reads_image, self.shape.reads_text, both)
        self.names = tuple(
            name for name, is_read in zip((INPUT, TEXT, PRESENT), read, strict=True) if is_read
        )

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return probabilities (B, C) for the inputs in the order of `names`."""
        given = dict(zip(self.names, inputs, strict=True))
        parts = []
        if INPUT in given:
            images = given[INPUT]
            used = images.index_select(1, self.picks) if self.frames > 1 else images[:, None]
            x = self._pixels(used.flatten(0, 1))
            if self.net.reads_clips:
                x = x.unflatten(0, (-1, self.frames)).transpose(1, 2)
            features = self.net.reduce(self.net.prefix(x))
            parts.append(features.reshape(-1, self.width))
        if TEXT in given:
            parts.append(given[TEXT])
        parts.append(given[PRESENT] if PRESENT in given else parts[0].new_ones(parts[0].shape[0], MARKS))
        return self._calibrated(self.net.from_features(torch.cat(parts, dim=1)))

    def example(self) -> tuple[Tensor, ...]:
        """Return inputs of two samples."""
        frames = (self.frames,) if self.frames > 1 else ()
        every = {
            INPUT: torch.zeros(2, *frames, self.side, self.side, 3, dtype=torch.uint8),
            TEXT: torch.zeros(2, self.shape.text),
            PRESENT: torch.ones(2, MARKS),
        }
        return tuple(every[name] for name in self.names)

    def shapes(self) -> dict[str, Any]:
        """Return which dimensions of the inputs may vary, as torch.export takes it."""
        return {"inputs": tuple(super().shapes().values())}

    def described(self) -> str:
        """Return the inputs in words."""
        frames = f"{self.frames}, " if self.frames > 1 else ""
        every = {
            INPUT: f"{INPUT}: uint8 (batch, {frames}{self.side}, {self.side}, 3), RGB",
            TEXT: f"{TEXT}: float32 (batch, {self.shape.text}), by the text encoder",
            PRESENT: f"{PRESENT}: float32 (batch, 2), 1 for an image and for a text that is there, else 0",
        }
        return "; ".join(every[name] for name in self.names)
