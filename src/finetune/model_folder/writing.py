"""Measure a trial's best weights, and write them as a model folder."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor

from finetune import bill_of_materials, model_card
from finetune.disk import checkpoint
from finetune.disk.atomic import replacing
from finetune.disk.filesystems import text_of
from finetune.errors import DataError
from finetune.evaluation import calibration, outputs
from finetune.evaluation.calibration import Calibration
from finetune.evaluation.outputs import Outputs
from finetune.explain import kept, sources
from finetune.messages import Refit
from finetune.model import source_rows
from finetune.model.exact_head import ExactHead, ExactShape
from finetune.model.sample_head import SampleHead, SampleShape
from finetune.model.strategies import TransferModel
from finetune.model_folder import files, portable
from finetune.model_folder.files import DERIVED, FILES, FORMAT, TEXT
from finetune.settings import FeatureSettings, TrialSettings
from finetune.texts.encoders import Texts
from finetune.training import refit as refitting
from finetune.training import shared
from finetune.training.run import Run
from finetune.training.workers import World

ANSWERS, MISTAKES, BATCH_SEEN = "answers.npz", "mistakes.json", "batch.json"
EXPLAINED = "explained.json"
"""Files about a measured model in its study's record."""
SPLITS = (("validation", "val"), ("test", "test"))
"""Splits that an export measures: name in model.yaml, name in the catalog."""


def write(
    checkpoint_path: Path,
    to: Path,
    provenance: dict[str, Any],
    *,
    world: World | None = None,
    features: FeatureSettings | None = None,
    now: TrialSettings | None = None,
    answers: Path | None = None,
    refit: Refit | None = None,
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
        refit: train the trial's settings again on training and validation images, and write that model: the
            scores and the temperature on validation images are those of the trial's weights, the scores on
            test images those of the written model. None: write the trial's weights.

    Returns:
        The content of model.yaml.

    Raises:
        CheckpointError: `checkpoint_path` has no intact checkpoint, or `to` cannot become a model folder.
        DataError: the images are missing or have changed.
    """
    world = world or World()
    tensors, stored = checkpoint.read(checkpoint_path)
    files.claim(to)
    settings = TrialSettings.from_dict(stored["settings"])
    # `choices` leaves out the paths: only settings of the same trial may replace those of the checkpoint.
    if now is not None and now.choices() == settings.choices():
        settings = now
    run = final = trained(tensors, stored, settings, world, features)
    if refit is not None:
        epochs = int(stored["metrics"]["epoch"])
        final = refitting.train(settings, epochs, refit, world=world, features=features)
    metrics: dict[str, Any] = {"validation": None, "test": None}
    found: dict[str, Outputs] = {}
    for name, split in SPLITS:
        if run.data.size(split):
            scores, found[split] = (final if split == "test" else run).measure(split)
            metrics[name] = scores | {"images": run.data.size(split)}
    metrics["validation"]["epoch"] = stored["metrics"]["epoch"]
    fitted = calibration.fit(found["val"].logits, found["val"].labels)
    facts = described(run, metrics, provenance)
    if refit is not None:
        facts |= {"head": head_of(final), "refit": {"epochs": epochs, "images": final.data.size("train")}}
    facts["calibration"] = calibration.facts(
        fitted, {name: (found[s].logits, found[s].labels) for name, s in SPLITS if s in found}
    )
    if world.rank == 0:
        if not settings.data.has_parts and (leans := sources.of_run(final)) is not None:
            facts["source_classes"] = leans
        if answers is not None:
            _keep_answers(answers, run, found, fitted)
        write_files(to, final.model, facts, final.texts)
    return facts


def release(
    run: Run, to: Path, metrics: dict[str, Any], provenance: dict[str, Any], privacy: dict[str, Any]
) -> dict[str, Any]:
    """Write a model that was trained with differential privacy, with nothing else that depends on its images.

    Args:
        run: the model.
        to: folder to write; it must be new, empty or a model folder.
        metrics: scores with their noise, by split.
        provenance: facts about the study.
        privacy: what is promised.

    Returns:
        The content of model.yaml. It has neither the hash of the images nor their place.

    Raises:
        CheckpointError: `to` cannot become a model folder.
    """
    files.claim(to)
    facts = described(run, metrics, provenance) | {"privacy": privacy}
    del facts["provenance"]["data_fingerprint"]
    write_files(to, run.model, facts, None)
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
    run = trained(tensors, stored, TrialSettings.from_dict(stored["settings"]), world, features)
    found = {s: run.measure(s)[1] for _, s in SPLITS if run.data.size(s)}
    fitted = calibration.fit(found["val"].logits, found["val"].labels)
    if world.rank == 0:
        outputs.save(answers / ANSWERS, found, fitted)


def trained(
    tensors: dict[str, Tensor],
    stored: dict[str, Any],
    settings: TrialSettings,
    world: World,
    features: FeatureSettings | None,
) -> Run:
    """Return a trial with the weights of its checkpoint.

    Args:
        tensors: weights of the checkpoint.
        stored: facts of the checkpoint; those of an exact trial have the shapes of its head.
        settings: settings of the trial.
        world: this worker and its group.
        features: store to read from.
    """
    shape = ExactShape.from_dict(stored["exact"]) if "exact" in stored else None
    sample = SampleShape.from_dict(stored["sample"]) if "sample" in stored else None
    run = Run(settings, world, features, shape=shape, sample=sample)
    run.model.load_trained_state(tensors)
    return run


def write_files(to: Path, model: TransferModel, facts: dict[str, Any], texts: Texts | None) -> None:
    """Write the files of a model folder, and the digest of the weights into `facts`."""
    for name in DERIVED:
        (to / name).unlink(missing_ok=True)  # it belongs to the weights that are replaced now
    weights = to / FILES[0]
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    (to / TEXT).unlink(missing_ok=True)
    if texts is not None:
        state |= {f"text.{name}": tensor.contiguous() for name, tensor in texts.encoder.tensors().items()}
        words = texts.encoder.words()
        facts["samples"]["text_sha256"] = hashlib.sha256(words.encode()).hexdigest()
        with replacing(to / TEXT, durable=True) as path:
            path.write_text(words, encoding="utf-8")
    with replacing(weights, durable=True) as path:
        save_file(state, path)
    facts["provenance"]["model_sha256"] = hashlib.sha256(weights.read_bytes()).hexdigest()
    describe(to, facts)


def describe(folder: Path, facts: dict[str, Any]) -> None:
    """Write the description of a model folder, and the list of parts and the card that are made from it.

    Raises:
        OSError: they cannot be written.
    """
    told = yaml.safe_dump(_plain(facts), sort_keys=False, allow_unicode=True)
    for name, text in zip(
        FILES[1:], (told, bill_of_materials.text(facts), model_card.text(facts)), strict=True
    ):
        with replacing(folder / name, durable=True) as path:
            path.write_text(text, encoding="utf-8")


def _keep_answers(to: Path, run: Run, found: dict[str, Outputs], fitted: Calibration) -> None:
    """Write the answers and mistakes that a trial's folder lacks; one that cannot be written stops no export.

    Those that are there stay: they are of the same weights, and another machine's differ in the last digits.
    """
    split = "test" if "test" in found else "val"
    with suppress(OSError, DataError):
        if not (to / ANSWERS).exists():
            outputs.save(to / ANSWERS, found, fitted)
        if not (to / MISTAKES).exists():
            outputs.save_mistakes(to / MISTAKES, run.data, split, found[split], fitted)
        if not (to / BATCH_SEEN).exists():
            outputs.save_batch(to / BATCH_SEEN, run.data, run.first_batch())
        if not run.settings.data.has_parts and not (to / EXPLAINED).exists():
            mistakes = json.loads(text_of(to / MISTAKES))
            kept.save(to / EXPLAINED, run, split, mistakes)


def described(run: Run, metrics: dict[str, Any], provenance: dict[str, Any]) -> dict[str, Any]:
    """Return the content of the model.yaml of a run's model."""
    settings = run.settings
    source = shared.pretrained(settings.backbone, settings.weights, settings.cache_dir, run.world.device.type)
    prints = {"data_fingerprint": run.data.fingerprint, "weights_sha256": source.sha256}
    return {
        "format": FORMAT,
        "backbone": settings.backbone,
        "strategy": settings.strategy,
        "head": head_of(run),
        **_parts(run),
        "frozen_layers": settings.frozen_layers,
        "source": {
            "weights": source.origin if settings.weights.file is None else portable.name(source.origin),
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
        "settings": portable.settings(settings.to_dict()),
        "provenance": portable.provenance(provenance) | prints,
    }


def head_of(run: Run) -> dict[str, Any]:
    """Return the structure of a run's head, as model.yaml has it."""
    settings, head = run.settings, run.model.head
    sample = {"sample": head.shape.to_dict()} if isinstance(head, SampleHead) else {}
    return {
        "size": settings.head_size,
        "dropout": settings.dropout,
        "keeps_relu": not sample and bool(source_rows.relus_behind(head.new)),
        **_exact(run),
        **sample,
    }


def _parts(run: Run) -> dict[str, Any]:
    """Return what a sample is, as model.yaml has it; nothing if it is one image."""
    data = run.settings.data
    if not data.has_parts:
        return {}
    told: dict[str, Any] = {"frames": data.frames}
    if run.texts is not None:
        told |= {"text": list(data.text or ()), "text_encoder": run.settings.text_encoder.partition(":")[0]}
    return {"samples": told}


def _exact(run: Run) -> dict[str, Any]:
    """Return what an exact head is made of, as model.yaml has it."""
    head = run.model.head
    shape = head.shape if isinstance(head, ExactHead) else getattr(head, "exact", None)
    return {} if shape is None else {"exact": shape.to_dict()}


def _plain(value: Any) -> Any:
    """Return `value` with tuples replaced by lists, since YAML has no tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
