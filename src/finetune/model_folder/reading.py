"""Load a model folder, which may come from a stranger, as a network that answers."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from finetune.disk.filesystems import no_pipe, text_of
from finetune.errors import CheckpointError, MissingPackage
from finetune.evaluation import calibration
from finetune.evaluation.calibration import Calibration
from finetune.images.pixels import normalise
from finetune.model import backbones, strategies
from finetune.model.backbones import Backbone
from finetune.model.ensemble import ENSEMBLE, EnsembleHead
from finetune.model.exact_head import ExactShape
from finetune.model.known_backbones import seen_shape
from finetune.model.sample_head import SampleShape
from finetune.model.strategies import TransferModel
from finetune.model_folder.files import FILES, FORMAT, TEXT
from finetune.texts.encoders import Encoder, rebuilt

MOST_PIXELS = 2**13
"""Largest side of a model's input, in pixels."""
MOST_MEMBERS = 100
"""Most heads of an ensemble."""


@dataclass(frozen=True)
class Model:
    """A loaded model folder."""

    net: TransferModel
    facts: dict[str, Any]
    """Content of model.yaml."""
    device: torch.device
    encoder: Encoder | None = None
    """The text encoder of a model that reads text."""

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in the order of the outputs."""
        names: list[str] = self.facts["classes"]
        return names

    @property
    def calibration(self) -> Calibration:
        """The temperature that was fitted on the validation images."""
        return Calibration(self.facts.get("calibration", {}).get("temperature", 1.0))

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Return calibrated probabilities (B, C), float32, for uint8 images (B, 3, S, S)."""
        steps = self.facts["preprocessing"]
        pixels = normalise(images.to(self.device), steps["mean"], steps["std"])
        logits: Tensor = self.net(pixels)
        return self.calibration.of(logits).cpu()


def load(folder: Path, *, device: torch.device | None = None, parts: bool = False) -> Model:
    """Load the model from a folder that `write` made.

    Args:
        folder: the folder.
        device: device of the model; None: the CPU.
        parts: True if the caller can use a model whose samples have text or several frames.

    Raises:
        CheckpointError: a file is missing or damaged, or does not match the others.
    """
    device = device or torch.device("cpu")
    try:
        text, weights = (no_pipe(folder / name) for name in (FILES[1], FILES[0]))
        for path in (text, weights):
            path.stat()  # a missing file is reported before an error in the other one
        facts = yaml.safe_load(text_of(text))
        _check_facts(facts)
        state, encoder = _with_encoder(load_file(weights), folder, facts)
        if not all(torch.isfinite(tensor).all() for tensor in state.values()):
            raise ValueError("weights that are NaN or infinite")
        _check_digest(weights, facts)
        source = facts["source"]
        backbone = backbones.build(
            facts["backbone"], source_classes=source["classes"], image_size=source.get("image_size")
        )
        net = _ensemble(facts, backbone) if facts["strategy"] == ENSEMBLE else _built(facts, backbone)
        net.load_state_dict(state, strict=True)
    except FileNotFoundError:
        missing = [name for name in ("model.yaml", "model.safetensors") if not (folder / name).exists()]
        raise CheckpointError(
            f"{folder}: a model folder must hold model.yaml and model.safetensors, got no "
            f"{' and no '.join(missing)}. Make one with `export DIR --to MODEL_DIR`."
        ) from None
    except MissingPackage:
        raise
    except Exception as error:  # files of strangers can raise any error of any reader
        why = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{folder}: the files of a model folder must be whole and fit together, got {why:.300}. "
            "Export the model again."
        ) from error
    net.to(device, memory_format=backbones.layout(net.backbone_name))  # type: ignore[call-overload]
    if "samples" in facts and not parts:
        raise CheckpointError(
            f"{folder}: its samples have text or several frames, got a command that reads images alone. "
            "Use `predict`, `explain`, `serve` or `export --format`."
        )
    return Model(net.eval(), facts, device, encoder)


def _built(facts: dict[str, Any], backbone: Backbone) -> TransferModel:
    """Return the network that a model.yaml describes, with random weights.

    Args:
        facts: its content; of an ensemble's member, `strategy`, `head` and the rest of the ensemble.
        backbone: the backbone, of which the network becomes a part.
    """
    head = facts["head"]
    return strategies.build(
        facts["strategy"],
        backbone,
        classes=facts["classes"],
        head_size=head["size"],
        dropout=head["dropout"],
        frozen_layers=facts["frozen_layers"],
        # Only its shape matters, since the weights of the file replace the rows made from it.
        relation=torch.zeros(len(facts["classes"]), facts["source"]["classes"]),
        source_names=None,
        seed=0,
        keeps_relu=head.get("keeps_relu", True),  # folders of older versions do not say
        exact=ExactShape.from_dict(head["exact"]) if facts["strategy"] == "exact" else None,
        sample=SampleShape.from_dict(head["sample"]) if "samples" in facts else None,
        seen=seen_shape(
            facts["backbone"], facts["preprocessing"]["image_size"], facts.get("samples", {}).get("frames", 1)
        ),
    )


def _ensemble(facts: dict[str, Any], backbone: Backbone) -> TransferModel:
    """Return the network of an ensemble: one backbone, and the heads of its members.

    Raises:
        ValueError: the members are none that `write` writes.
    """
    members = facts["head"]["members"]
    if not isinstance(members, list) or not 0 < len(members) <= MOST_MEMBERS:
        raise ValueError(f"an ensemble with members {members!r:.80}")
    shares = [member["share"] for member in members]
    if not all(isinstance(one, float) and 0 < one <= 1 for one in shares) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"an ensemble with shares {shares!r:.80}, which are to add up to 1")
    if any(member["strategy"] == ENSEMBLE for member in members) or "samples" in facts:
        raise ValueError("an ensemble of ensembles, or of samples with several parts")
    heads = [
        _built({**facts, "strategy": member["strategy"], "head": member}, backbone.fork(-1)).head
        for member in members
    ]
    return TransferModel(backbone, len(backbone.blocks), EnsembleHead(backbone.pool, heads, shares))


def _with_encoder(
    state: dict[str, Tensor], folder: Path, facts: dict[str, Any]
) -> tuple[dict[str, Tensor], Encoder | None]:
    """Return the weights of the network, and the text encoder of a model that reads text.

    Raises:
        ValueError: the files of the encoder do not fit together.
    """
    told = facts.get("samples", {})
    if "text_encoder" not in told:
        return state, None
    words = no_pipe(folder / TEXT).read_text(encoding="utf-8")
    if hashlib.sha256(words.encode()).hexdigest() != told["text_sha256"]:
        raise ValueError(f"another {TEXT} than the one that model.yaml names")
    own = {name.removeprefix("text."): tensor for name, tensor in state.items() if name.startswith("text.")}
    rest = {name: tensor for name, tensor in state.items() if not name.startswith("text.")}
    return rest, rebuilt(told["text_encoder"], own, words)


def _check_digest(weights: Path, facts: dict[str, Any]) -> None:
    """Check that the weights are those that the model.yaml was written for.

    Raises:
        ValueError: they are others.
    """
    named = facts.get("provenance", {}).get("model_sha256")
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    if named not in (None, found):
        raise ValueError(f"weights of SHA-256 {found:.12}..., where model.yaml names {named!s:.12}...")


def _check_facts(facts: Any) -> None:
    """Check the content of a model.yaml before a model is built from it.

    Raises:
        ValueError: a value is one that `write` never writes.
    """
    if not isinstance(facts, dict) or "format" not in facts:
        raise ValueError("a model.yaml without a format")
    if facts["format"] not in (1, FORMAT):
        raise ValueError(
            f"format {facts['format']!r:.40} in model.yaml, where this version knows 1 and {FORMAT}"
        )
    warmth = facts.get("calibration", {}).get("temperature", 1.0)
    if not isinstance(warmth, float) or not calibration.LEAST <= warmth <= calibration.MOST:
        raise ValueError(f"calibration with temperature {warmth!r:.40}")
    classes, steps = facts["classes"], facts["preprocessing"]
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
        raise ValueError("classes that are no list of names")
    side, mean, std = steps["image_size"], steps["mean"], steps["std"]
    numbers = [*mean, *std]
    if len(mean) != 3 or len(std) != 3 or not all(isinstance(n, float | int) for n in numbers):
        raise ValueError(f"preprocessing with mean {mean!r:.60} and std {std!r:.60}, not three numbers each")
    if not all(map(math.isfinite, numbers)) or 0 in std:
        raise ValueError(f"preprocessing with mean {mean!r:.60} and std {std!r:.60}")
    sized = type(side) is int and side <= MOST_PIXELS
    if not sized or not isinstance(steps["whole_image"], bool):
        raise ValueError(f"preprocessing with image_size {side!r:.40}")
    backbones.check_image_size(facts["backbone"], side)
