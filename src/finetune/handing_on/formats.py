"""Add files of other formats to a model folder. Each has its measured parity; one without it is not kept."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import Tensor

from finetune import extras, model_folder, steps
from finetune.disk.atomic import replacing
from finetune.errors import CheckpointError
from finetune.handing_on import deployed, onnx_file, parity, torch_file
from finetune.handing_on.deployed import INPUT, OUTPUT, PRESENT, TEXT
from finetune.model.sample_head import MARKS
from finetune.model_folder import Model, samples
from finetune.model_folder.samples import Sample

FORMATS: MappingProxyType[str, tuple[ModuleType, str]] = MappingProxyType(
    {"torch": (torch_file, "model.pt2"), "onnx": (onnx_file, "model.onnx")}
)
"""Name of a format -> the module that writes it, and the name of the file."""


def check(names: Sequence[str]) -> None:
    """Check that this machine can write files of these formats, before long work begins.

    Raises:
        MissingPackage: a package is not installed.
    """
    for name in names:
        extras.require(name, f"export --format {name}", FORMATS[name][0].MODULES)


def add(
    folder: Path,
    names: Sequence[str],
    images: Tensor | None = None,
    place: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a model folder's model in other formats beside it, and return the new content of its model.yaml.

    Args:
        folder: a model folder.
        names: keys of FORMATS.
        images: images uint8 (N, S, S, 3) on which the parity is measured; None takes some of the validation
            images.
        place: `path` and `exclude` of the images, which no model.yaml has; None: generated ones are taken.

    Raises:
        CheckpointError: the folder holds no model, or a file does not answer as the model does.
        DataError: the validation images are missing or have changed.
        MissingPackage: a package is not installed.
    """
    check(names)
    model = model_folder.load(folder, parts=True)
    program = deployed.of(model)
    if "samples" in model.facts:
        inputs, answers = _samples(model, program.names, place)
    else:
        found_there = parity.validation_images(model.facts, place) if images is None else images
        inputs, answers = (found_there,), lambda x: model.probabilities(x.permute(0, 3, 1, 2))
    told: dict[str, Any] = dict(model.facts.get("formats", {}))
    for name in names:
        module, file = FORMATS[name]
        why = "traces the model and compares its answers"
        with steps.step(f"write {file}", why=why), replacing(folder / file) as path:
            try:
                facts = module.write(program, model.facts, path)
                found = parity.measured(module.runner(path), answers, *inputs)
            except Exception as error:  # exporters and runtimes raise anything
                lines = [line for line in str(error).splitlines() if line.strip()]
                raise CheckpointError(
                    f"{folder / file}: a {model.facts['backbone']} must be traced and run there, got "
                    f"{type(error).__name__}: {' '.join(lines)[:200]}. Use the model folder itself, or "
                    "another format."
                ) from error
            if not found.holds:
                raise CheckpointError(
                    f"{folder / file}: a file must answer as its model does, within {parity.MOST:g} and "
                    f"without a changed answer, got {found} ({model.facts['backbone']}). It is not kept; use "
                    "the model folder itself, or another format."
                )
            told[name] = {
                "file": file,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "input": program.described(),
                "output": f"{OUTPUT}: float32 (batch, {len(model.classes)})",
                "parity": dataclasses.asdict(found),
                **facts,
            }
    facts = model.facts | {"formats": told}
    model_folder.describe(folder, facts)
    return facts


def _samples(
    model: Model, names: Sequence[str], place: Mapping[str, Any] | None
) -> tuple[tuple[Tensor, ...], parity.Run]:
    """Return inputs of validation samples, and the function that answers them as `predict` does.

    Every fourth sample lacks its text, and another fourth its image, where the model reads both.
    """
    frames, texts = parity.validation_samples(model.facts, place)
    present = torch.ones(len(texts), MARKS)
    if PRESENT in names:
        present[::4, 1], present[2::4, 0] = 0, 0
    present[:, 1] *= torch.tensor([float(bool(text)) for text in texts])
    asked = [Sample("", text if said else "") for text, said in zip(texts, present[:, 1], strict=True)]
    seen = [one if shown else None for one, shown in zip(frames, present[:, 0], strict=True)]
    every = {INPUT: frames.permute(0, 1, 3, 4, 2), PRESENT: present}
    if model.facts["samples"]["frames"] == 1:
        every[INPUT] = every[INPUT][:, 0]
    if TEXT in names and model.encoder is not None:
        every[TEXT] = model.encoder.encode(texts)
    inputs = tuple(every[name] for name in names)
    return inputs, lambda *_: samples.probabilities(model, asked, seen)
