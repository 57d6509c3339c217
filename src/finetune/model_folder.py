"""Write, load and use model folders. A model folder holds one trained model with everything needed to use it.

Its files are `model.safetensors` (all weights), `model.yaml` (description and metrics) and `README.md` (a
short model card). There are no pickles, so a folder from a stranger can be loaded safely.
"""

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune import model_card, steps
from finetune.datasets.findings import listed
from finetune.datasets.sources import EXTENSIONS
from finetune.disk import checkpoint
from finetune.disk.atomic import replacing
from finetune.disk.filesystems import no_pipe
from finetune.errors import CheckpointError, DataError
from finetune.images.pixels import load_image, normalise
from finetune.model import backbones, strategies
from finetune.model.exact_head import ExactHead, ExactShape
from finetune.model.strategies import TransferModel
from finetune.settings import FeatureSettings, TrialSettings
from finetune.training import calibration, loop, outputs, shared
from finetune.training.calibration import Calibration
from finetune.training.evaluate import BATCH
from finetune.training.loop import World
from finetune.training.outputs import Outputs

FORMAT = 2
"""Version of model.yaml. Version 1 has no `calibration`; its models answer with the temperature 1."""
FILES = ("model.safetensors", "model.yaml", "README.md")
"""Files of a model folder, in the order in which they are written."""
ANSWERS, MISTAKES, BATCH_SEEN = "answers.npz", "mistakes.json", "batch.json"
"""Files about a measured model in its study's record."""
SPLITS = (("validation", "val"), ("test", "test"))
"""Splits that an export measures: name in model.yaml, name in the catalog."""
TOP = 5
"""Number of most probable classes that a prediction lists."""


@dataclass(frozen=True)
class Model:
    """A loaded model folder."""

    net: TransferModel
    facts: dict[str, Any]
    """Content of model.yaml."""
    device: torch.device

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


def write(
    checkpoint_path: Path,
    to: Path,
    provenance: dict[str, Any],
    *,
    world: World | None = None,
    features: FeatureSettings | None = None,
    now: TrialSettings | None = None,
    answers: Path | None = None,
) -> dict[str, Any]:
    """Write a trial's best weights as the model folder `to`, and measure them on validation and test images.

    Only this function and `measure` read the test split. All workers of `world` measure; the first writes.

    Args:
        checkpoint_path: checkpoint with the trial's best weights.
        to: folder to write; it must be new, empty or a model folder.
        provenance: facts about the study that are added to model.yaml.
        world: this worker and its group; None: one worker on the CPU.
        features: store from which images and features that the trials left there are read.
        now: settings with the present paths of images, weights and cache, in case they moved since the trial.
        answers: folder of the record that gets the answer on each validation and test image, and the most
            confident mistakes as pictures; None: none. A folder that cannot be written gets nothing.

    Returns:
        The content of model.yaml.

    Raises:
        CheckpointError: `checkpoint_path` has no intact checkpoint, or `to` cannot become a model folder.
        DataError: the images are missing or have changed.
    """
    world = world or World()
    tensors, stored = checkpoint.read(checkpoint_path)
    _claim(to)
    settings = TrialSettings.from_dict(stored["settings"])
    # `choices` leaves out the paths: only settings of the same trial may replace those of the checkpoint.
    if now is not None and now.choices() == settings.choices():
        settings = now
    shape = ExactShape.from_dict(stored["exact"]) if "exact" in stored else None
    run = loop.Run(settings, world, features, shape=shape)
    run.model.load_trained_state(tensors)
    metrics: dict[str, Any] = {"validation": None, "test": None}
    found: dict[str, Outputs] = {}
    for name, split in SPLITS:
        if run.data.size(split):
            scores, found[split] = outputs.measure(run, split)
            metrics[name] = scores | {"images": run.data.size(split)}
    metrics["validation"]["epoch"] = stored["metrics"]["epoch"]
    fitted = calibration.fit(found["val"].logits, found["val"].labels)
    facts = _facts(run, metrics, provenance)
    facts["calibration"] = calibration.facts(
        fitted, {name: (found[s].logits, found[s].labels) for name, s in SPLITS if s in found}
    )
    if world.rank == 0:
        if answers is not None:
            _keep_answers(answers, run, found, fitted)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in run.model.state_dict().items()}
        with replacing(to / FILES[0]) as path:
            save_file(state, path)
        digest = hashlib.sha256((to / FILES[0]).read_bytes()).hexdigest()
        facts["provenance"]["model_sha256"] = digest
        text = yaml.safe_dump(_plain(facts), sort_keys=False, allow_unicode=True)
        with replacing(to / FILES[1]) as path:
            path.write_text(text, encoding="utf-8")
        with replacing(to / FILES[2]) as path:
            path.write_text(model_card.text(facts), encoding="utf-8")
    return facts


def measure(
    checkpoint_path: Path, answers: Path, *, world: World, features: FeatureSettings | None = None
) -> None:
    """Measure a trial's best weights on validation and test images, and keep the answers in a folder.

    Raises:
        CheckpointError: `checkpoint_path` has no intact checkpoint.
        DataError: the images are missing or have changed.
        OSError: the answers cannot be written.
    """
    tensors, stored = checkpoint.read(checkpoint_path)
    run = loop.Run(TrialSettings.from_dict(stored["settings"]), world, features)
    run.model.load_trained_state(tensors)
    found = {s: outputs.measure(run, s)[1] for _, s in SPLITS if run.data.size(s)}
    fitted = calibration.fit(found["val"].logits, found["val"].labels)
    if world.rank == 0:
        outputs.save(answers / ANSWERS, found, fitted)


def _keep_answers(to: Path, run: loop.Run, found: dict[str, Outputs], fitted: Calibration) -> None:
    """Write answers and mistakes for the record; a record that cannot be written must not stop an export."""
    split = "test" if "test" in found else "val"
    with suppress(OSError):
        outputs.save(to / ANSWERS, found, fitted)
        outputs.save_mistakes(to / MISTAKES, run, split, found[split], fitted)
        outputs.save_batch(to / BATCH_SEEN, run)


def _claim(to: Path) -> None:
    """Create the folder of a model, or check that an existing one holds only a model folder or parts of one.

    Raises:
        CheckpointError: the folder holds other files, or cannot be created or written.
    """
    try:
        to.mkdir(parents=True, exist_ok=True)
        names = {path.name.removesuffix(".tmp") for path in to.iterdir() if path.name[0] != "."}
        if not os.access(to, os.W_OK):
            raise PermissionError("no permission to write there")
    except OSError as error:
        raise CheckpointError(
            f"{to}: a model folder must be a folder that can be written, got {type(error).__name__}: "
            f"{error}. Choose another."
        ) from error
    begun = names <= set(FILES[:2])  # an export that was interrupted; the card comes last
    if not begun and not _is_ours(to / FILES[1]):
        raise CheckpointError(
            f"{to}: a model folder must be new, empty or a model folder, got one with "
            f"{listed(sorted(names))}. Choose another: its README.md would be replaced."
        )


def _is_ours(path: Path) -> bool:
    """Return True if `path` is a model.yaml that `write` made."""
    try:
        facts = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(facts, dict) and {"format", "backbone", "strategy", "classes"} <= facts.keys()


def _facts(run: loop.Run, metrics: dict[str, Any], provenance: dict[str, Any]) -> dict[str, Any]:
    settings = run.settings
    source = shared.pretrained(settings.backbone, settings.weights, settings.cache_dir, run.world.device.type)
    prints = {"data_fingerprint": run.data.fingerprint, "weights_sha256": source.sha256}
    return {
        "format": FORMAT,
        "backbone": settings.backbone,
        "strategy": settings.strategy,
        "head": {
            "size": settings.head_size,
            "dropout": settings.dropout,
            "keeps_relu": bool(strategies.relus_behind(run.model.head.new)),
            **_exact(run),
        },
        "frozen_layers": settings.frozen_layers,
        "source": {
            "weights": source.origin,
            "classes": source.source_classes,
            "image_size": source.image_size,
            "sha256": source.sha256,
        },
        "classes": list(run.data.classes),
        "preprocessing": {
            "whole_image": run.data.whole,
            "image_size": settings.data.image_size,
            "mean": list(source.mean),
            "std": list(source.std),
        },
        "metrics": metrics,
        "settings": settings.to_dict(),
        "provenance": provenance | prints,
    }


def _exact(run: loop.Run) -> dict[str, Any]:
    """Return what an exact head is made of, as model.yaml has it."""
    head = run.model.head
    return {"exact": head.shape.to_dict()} if isinstance(head, ExactHead) else {}


def load(folder: Path, *, device: torch.device | None = None) -> Model:
    """Load the model from a folder that `write` made.

    Raises:
        CheckpointError: a file is missing or damaged, or does not match the others.
    """
    device = device or torch.device("cpu")
    try:
        text, weights = (no_pipe(folder / name) for name in (FILES[1], FILES[0]))
        for path in (text, weights):
            path.stat()  # a missing file is reported before an error in the other one
        facts = yaml.safe_load(text.read_text(encoding="utf-8"))
        _check_facts(facts)
        state = load_file(weights)
        if not all(torch.isfinite(tensor).all() for tensor in state.values()):
            raise ValueError("weights that are NaN or infinite")
        source = facts["source"]
        backbone = backbones.build(
            facts["backbone"], source_classes=source["classes"], image_size=source.get("image_size")
        )
        net = strategies.build(
            facts["strategy"],
            backbone,
            classes=facts["classes"],
            head_size=facts["head"]["size"],
            dropout=facts["head"]["dropout"],
            frozen_layers=facts["frozen_layers"],
            # Only its shape matters, since the weights of the file replace the rows made from it.
            relation=torch.zeros(len(facts["classes"]), source["classes"]),
            source_names=None,
            seed=0,
            keeps_relu=facts["head"].get("keeps_relu", True),  # folders of older versions do not say
            exact=ExactShape.from_dict(facts["head"]["exact"]) if facts["strategy"] == "exact" else None,
        )
        net.load_state_dict(state, strict=True)
    except FileNotFoundError:
        missing = [name for name in ("model.yaml", "model.safetensors") if not (folder / name).exists()]
        raise CheckpointError(
            f"{folder}: a model folder must hold model.yaml and model.safetensors, got no "
            f"{' and no '.join(missing)}. Make one with `export DIR --to MODEL_DIR`."
        ) from None
    except Exception as error:  # files of strangers can raise any error of any reader
        why = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{folder}: the files of a model folder must be whole and fit together, got {why:.300}. "
            "Export the model again."
        ) from error
    net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Model(net.eval(), facts, device)


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
    if not isinstance(side, int) or not isinstance(steps["whole_image"], bool):
        raise ValueError(f"preprocessing with image_size {side!r:.40}")
    backbones.check_image_size(facts["backbone"], side)


def predict(model: Model, paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield a dict per image: `path`, `class`, `probability`, `top` (most probable classes) and `error`.

    If an image cannot be read, `class` and `probability` are None, `top` is empty, and `error` is the reason;
    otherwise `error` is None.
    """
    with steps.step("classify", len(paths), "images", patience=1.0) as told:
        for start in range(0, len(paths), BATCH):
            part = paths[start : start + BATCH]
            yield from _predict(model, part)
            told.add(len(part))


def _predict(model: Model, part: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield the dicts of one batch of images."""
    seen = [_pixels(model, path) for path in part]
    images = [pixels for pixels in seen if isinstance(pixels, Tensor)]
    rows = iter(model.probabilities(torch.stack(images)) if images else ())
    for path, pixels in zip(part, seen, strict=True):
        if not isinstance(pixels, Tensor):
            yield {"path": str(path), "class": None, "probability": None, "top": [], "error": pixels}
            continue
        row = next(rows)
        best = row.topk(min(TOP, len(row)))
        top = [
            {"class": model.classes[index], "probability": value}
            for value, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]
        yield {"path": str(path)} | top[0] | {"top": top, "error": None}


def _pixels(model: Model, path: Path) -> Tensor | str:
    """Return the image as the model's input, uint8 (3, S, S), or the reason why it cannot be read."""
    asked = model.facts["preprocessing"]
    try:
        return load_image(path, asked["image_size"], whole=asked["whole_image"])
    except DataError as error:
        return str(error)


def find_images(paths: Sequence[Path]) -> list[Path]:
    """Return the given files, and all images below the given folders, sorted by path within each folder.

    Raises:
        DataError: a path does not exist or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = sorted(
                p
                for p in path.rglob("*")
                if p.suffix.lower() in EXTENSIONS
                and not p.is_dir()
                and not any(x.startswith(".") for x in p.relative_to(path).parts)
            )
            if not below:
                raise DataError(
                    f"{path}: a folder must hold images, got none. Known: {', '.join(sorted(EXTENSIONS))}."
                )
            found += below
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{path}: an image must exist, got no such file. Check the path.")
    return found


def _plain(value: Any) -> Any:
    """Return `value` with tuples replaced by lists, since YAML has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
