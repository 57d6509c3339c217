"""A model as a file of torch.export, which needs PyTorch and not this project."""

from pathlib import Path
from typing import Any

import torch

from finetune.handing_on.deployed import Deployed
from finetune.handing_on.parity import Run

MODULES: tuple[str, ...] = ()


def write(deployed: Deployed, facts: dict[str, Any], path: Path) -> dict[str, Any]:
    """Write the file, and return what a model.yaml tells of it."""
    with path.open("wb") as file:  # by its name torch would take only *.pt2
        torch.export.save(deployed.traced(), file)
    return {"torch": str(torch.__version__)}


def runner(path: Path) -> Run:
    """Return a function that runs the file on this machine's CPU."""
    with path.open("rb") as file:
        module = torch.export.load(file).module()

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = module(*inputs)
        return found

    return run
