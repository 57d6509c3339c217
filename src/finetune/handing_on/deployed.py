"""The whole way from pixels to probabilities as one module, so that whoever runs it cannot get a step wrong.

Shapes: B images, S side of the square in pixels, C classes.
"""

import copy

import torch
from torch import Tensor, nn

from finetune.model_folder import Model

INPUT, OUTPUT = "images", "probabilities"
"""Names of the input and output of every exported program."""


class Deployed(nn.Module):
    """Calibrated probabilities (B, C), float32, for RGB images uint8 (B, S, S, 3), as Pillow gives them."""

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
        pixels = images.permute(0, 3, 1, 2).to(torch.float32).div(255).sub(self.mean).div(self.std)
        probabilities: Tensor = (self.net(pixels).float() / self.temperature).softmax(1)
        return probabilities

    def traced(self) -> torch.export.ExportedProgram:
        """Return the module as a program with any number of images at a time."""
        example = torch.zeros(2, self.side, self.side, 3, dtype=torch.uint8)
        with torch.no_grad():
            return torch.export.export(
                self, (example,), dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}}
            )
