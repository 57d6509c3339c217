"""A model as an ONNX file, which needs neither this project nor PyTorch.

The file's metadata hold what a program must know to prepare images and to name the answers.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from finetune.handing_on.deployed import OUTPUT, Deployed
from finetune.handing_on.parity import Run
from finetune.images.pixels import CROP_SHARE, evaluation_needs

MODULES = ("onnx", "onnxscript", "onnxruntime")
"""Packages that writing and measuring the file needs."""

SHOWN = ("frames", "text_encoder")
"""Facts about samples that the file holds."""


def metadata(facts: dict[str, Any]) -> dict[str, str]:
    """Return the metadata of the file, JSON by name.

    classes      names in the order of the probabilities
    image_size   side of the square input, in pixels
    whole_image  true: the whole image is resized to the square; false: its centre
    trim         share of width and height that is cut off at each edge before the centred square is taken
    resample     filter of the resizing, as Pillow names it
    decode       pixels that a large JPEG must keep on its shorter side, if it is decoded at a fraction
    samples      of a model of samples with text or several frames: `frames`, evenly chosen by time, and the
                 name of the text encoder, which stands in model.yaml, too
    """
    asked = facts["preprocessing"]
    side, whole = asked["image_size"], asked["whole_image"]
    told = {
        "classes": facts["classes"],
        "image_size": side,
        "whole_image": whole,
        "trim": 0.0 if whole else (1 - side / round(side / CROP_SHARE)) / 2,
        "resample": "BILINEAR",
        "decode": evaluation_needs(side, whole),
    }
    if "samples" in facts:
        told["samples"] = {key: facts["samples"][key] for key in SHOWN if key in facts["samples"]}
    return {name: json.dumps(value) for name, value in told.items()}


def write(deployed: Deployed, facts: dict[str, Any], path: Path) -> dict[str, Any]:
    """Write the file, and return what a model.yaml tells of it."""
    with torch.no_grad(), warnings.catch_warnings():
        # All inputs share the axis `batch`, which torch.onnx names once, and says so for each further one.
        warnings.filterwarnings("ignore", message=r"(?s).*axis name: batch will not be used")
        program = torch.onnx.export(
            deployed,
            deployed.example(),
            dynamo=True,
            verbose=False,
            input_names=list(deployed.names),
            output_names=[OUTPUT],
            dynamic_shapes=deployed.shapes(),
        )
    assert program is not None
    program.model.metadata_props.update(metadata(facts))
    program.save(path)
    return {"opset": program.model.opset_imports[""]}


def runner(path: Path) -> Run:
    """Return a function that runs the file on this machine's CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    names = [one.name for one in session.get_inputs()]

    def run(*inputs: torch.Tensor) -> torch.Tensor:
        given = {name: one.numpy() for name, one in zip(names, inputs, strict=True)}
        (found,) = session.run([OUTPUT], given)
        return torch.from_numpy(found)

    return run
