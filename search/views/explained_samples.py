"""Explain a model's answer on a sample with text or several frames.

This module imports torch, so commands import it when they need it.
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from finetune.explain import deletion, overlay
from finetune.explain.maps import Method, maps, noise, resolution, scaled
from finetune.explain.parts import HeldFixed, without_frames, without_parts
from finetune.frozen.samples import read_frames
from finetune.images.pixels import normalise
from finetune.model.sample_head import SampleHead
from finetune.model_folder import Model, samples
from finetune.model_folder.samples import Sample
from search.errors import StudyError

PANELS = 6
"""Most frames of a clip in a picture: those that count most."""


def check(model: Model, folder: Path, method: Method, *, text: str, train: bool) -> None:
    """Check that such an explanation can be made.

    Raises:
        StudyError: it cannot.
    """
    if text and model.encoder is None:
        raise StudyError(f"--text: {folder} must be a model that reads text, got another. Leave it out.")
    if train:
        raise StudyError(
            "--train: the most alike are found among images alone, got samples with text or several frames. "
            "Leave it out."
        )
    if model.facts["samples"]["frames"] > 1 and method in ("integrated-gradients", "occlusion"):
        raise StudyError(
            f"--method: must be grad-cam or random for clips, got {method}, which would need a pass for each "
            "frame and step. Use grad-cam."
        )


def explained(
    model: Model, sample: Sample, method: Method, target: int | None
) -> tuple[dict[str, Any], Image.Image | None]:
    """Return the explanation of a sample, as `explanations.explain` has it, and its picture.

    `parts` has for the image and the text how far the probability falls without it, and `frames` the same for
    each frame of a clip, by its number from 0 among `data.frames`, where a neighbour stands in for it.
    """
    seen = samples.frames_of(model, sample)
    if isinstance(seen, str):
        return {"error": seen}, None
    head, device = model.net.head, model.device
    assert isinstance(head, SampleHead)
    shape = head.shape
    probabilities = samples.probabilities(model, [sample], [seen])[0]
    answer = int(probabilities.argmax()) if target is None else target
    sure = float(probabilities[answer])
    told: dict[str, Any] = {"class": model.classes[answer], "probability": sure, "parts": {}, "frames": None}
    told |= {"missing": samples.lacking(model, sample, seen), "error": None}
    if seen is None or not shape.reads_image:
        return told, None
    text = torch.zeros(shape.text, device=device)
    if shape.reads_text and model.encoder is not None:
        text = model.encoder.encode([sample.text])[0].to(device)
    marks = torch.tensor([1.0, float(bool(sample.text) or model.encoder is None)], device=device)
    picks = read_frames(model.net.reads_clips, shape.frames, model.facts["samples"]["frames"])
    asked = model.facts["preprocessing"]
    x = normalise(seen[picks].to(device), asked["mean"], asked["std"])
    features, held = model.net.of_frames(x), HeldFixed(head, text, marks)

    def falls(logits: Tensor) -> Tensor:
        found = model.calibration.of(logits.reshape(-1, len(model.classes))).cpu()
        return sure - found[:, answer]

    left_out = without_parts(head, features, text, marks)
    told["parts"] = {part: float(falls(logits)) for part, logits in left_out.items()}
    is_clip = len(picks) > 1
    counts = falls(without_frames(model.net, held, x)) if is_clip else torch.zeros(1)
    if is_clip:
        told["frames"] = dict(zip(picks.tolist(), counts.tolist(), strict=True))
    about = torch.tensor([answer])
    marked = maps(model.net, x, about, method, held)

    def answers(pixels: Tensor) -> Tensor:
        return model.calibration.of(held.of_features(model.net.of_frames(pixels)))

    told["deletion"] = float(deletion.area(answers, x, about, marked))
    grid = resolution(model.net, x, method)
    told["random"] = float(deletion.random_area(answers, x, about, grid))
    chance = scaled(noise(len(x), grid), marked.shape[-1])
    shown = sorted(counts.topk(min(PANELS, len(counts))).indices.tolist())
    panels = [(f"{told['class']} {sure:.2f}", overlay.plain(seen[picks[shown[0]]]))]
    for frame in shown:
        name = f"frame {int(picks[frame])}, {float(counts[frame]):+.2f}" if is_clip else method
        panels.append((name, overlay.over(seen[picks[frame]], marked[frame])))
    panels.append(("random", overlay.over(seen[picks[shown[0]]], chance[shown[0]])))
    return told, overlay.strip(panels)


def line(row: dict[str, Any]) -> list[str]:
    """Return what a line tells of parts and frames."""
    told = [f"without {part} {-fall:+.3f}" for part, fall in row["parts"].items()]
    if row["frames"]:
        frame = max(row["frames"], key=row["frames"].get)
        told.append(f"most by frame {frame}: without it {-row['frames'][frame]:+.3f}")
    return told + [f"without {part}" for part in row["missing"]]
