"""The `check` command: examine data, weights, backbones and capacity before a study, and train nothing."""

from pathlib import Path
from typing import Any

from finetune import steps
from finetune.datasets import inspection
from finetune.datasets.catalog import Catalog
from finetune.disk import file_cache
from search.config import resolve
from search.config.sections import DATA_FIELDS, EXACT, SETTINGS
from search.config.study import StudyConfig
from search.driver.checks import estimate, findings, inputs
from search.errors import StudyError
from search.private import study as private
from search.slots import capacity, nodes
from search.slots.nodes import Resources
from search.slots.slots import SlotPlan
from search.suggest.space import Space


def plan(
    config: StudyConfig, *, timed: bool = False, suspects: Path | None = None, probed: bool = False
) -> dict[str, Any]:
    """Return the plan of a run with this config, as JSON values by section.

    Args:
        config: the study's config.
        timed: time a few batches in this process, for the section `cost`, which is null otherwise.
        suspects: file that gets the images whose label may be wrong, which are also the section `suspects`;
            None: do not look for them, and the section is null.
        probed: ask behind each block how well classes can be told apart there, for the section `probes`,
            which is null otherwise.

    Raises:
        FinetuneError: images or weights are not as the config says.
        CapacityError: the slots do not fit on this machine (or on the cluster of RAY_ADDRESS).
    """
    # This imports torch, which is needed to look at weights; other commands start without it.
    with steps.step("program", why="loads torch, to look at weights"):
        from finetune.model import weights

    if config.privacy.is_on and (timed or probed or suspects is not None):
        raise StudyError(
            "check: --time, --probe and --suspects do not go with privacy.epsilon, got one of them: a study "
            "takes seconds, and what is said about its images is not paid for. Leave them out."
        )
    file_cache.limit(resolve.copies_bytes(config))
    images = inputs.scan(config, lenient=True)
    space = Space(config)
    origin = {}
    for name in config.backbones:
        wanted = space.weights(config.model.weights_of(name), config.least_image_size)
        if wanted.source is not None:
            source = inputs.source_images(config, name)
            count = len(source.splits["train"])
            origin[name] = f"to be pretrained on {count} images of {', '.join(source.classes)}"
        else:
            origin[name] = weights.describe(name, wanted)
    copies = file_cache.here()
    up = resources()
    slots = capacity.plan(config, up)
    study, features = config.study, resolve.feature_settings(config)
    said = config.model_dump(mode="json")
    doubtful, vectors = (None, inspection.NONE) if suspects is None else _suspects(config, suspects)
    inspected = inspection.inspect(images, vectors)
    if not config.privacy.is_on:
        findings.keep(inspected)
    return {
        "study": {
            "name": study.name,
            "trials": None if study.is_open else study.trials,
            "budget": study.budget,
            "epochs": study.epochs,
            "metric": study.metric,
        },
        "data": inspected,
        "suspects": doubtful,
        "probes": _probes(config) if probed else None,
        "privacy": _privacy(config, images),
        "model": {name: {"blocks": n, "weights": origin[name]} for name, n in config.blocks.items()},
        "space": {
            name: value
            for name, value in said["space"].items()
            if name not in SETTINGS or SETTINGS[name].needs in config.parts
        },
        "seen": {field: said["data"][field] for field in (*DATA_FIELDS, *sorted(config.parts - {"image"}))},
        "early_stopping": {
            "enabled": config.early_stopping.stops,
            "rule": config.early_stopping.rule,
            "grace": config.grace,
        },
        "slots": {
            "count": min(slots.slots, slots.fit(up)),
            "asked_for": slots.ask,
            "workers": slots.workers,
            "cpus_per_worker": slots.cpus,
            "gpu": slots.gpu,
        },
        "cost": _cost(config, images, slots, min(slots.slots, slots.fit(up)), timed=timed),
        "verdict": _verdict(config),
        "kept": {
            "features": {
                "dir": features.folder,
                "bytes": 0 if features.mode == "off" else features.budget_bytes,
            },
            "copies": {"dir": str(copies.root), "bytes": copies.budget_bytes},
        },
        "results": str(config.folder),
    }


def _privacy(config: StudyConfig, images: Catalog) -> Any:
    """Return what a private study promises and pays for as JSON values; None for other studies."""
    if not config.privacy.is_on:
        return None
    planned = private.plan(config, images)
    return planned.to_dict() | {"lines": private.lines(config, images, planned)}


def _suspects(config: StudyConfig, to: Path) -> tuple[Any, inspection.Vectors]:
    """Write images whose label may be wrong to a file; return them as JSON values, and features by path."""
    from search.driver.checks import suspects

    if config.parts != {"image"}:
        raise StudyError(
            "--suspects: reads images alone, got samples with text or several frames. Leave it out."
        )
    found, vectors = suspects.find(config)
    suspects.write(found, to)
    return {"file": str(to), "images": [doubt.to_dict() for doubt in found]}, vectors


def _probes(config: StudyConfig) -> Any:
    """Return how well classes can be told apart behind each block of each backbone, as JSON values."""
    from finetune.explain import probes

    if config.parts != {"image"}:
        raise StudyError(
            "--probe: reads images alone, got samples with text or several frames. Leave it out."
        )
    space, found = Space(config), {}
    for name in config.backbones:
        settings = space.settings(space.baseline(EXACT, name), number=0, cache_dir=str(resolve.cache_dir()))
        told = probes.probe(settings, resolve.feature_settings(config))
        found[name] = {
            "separable": probes.separable(told).to_dict(),
            "blocks": [one.to_dict() for one in told],
        }
    return found


def _cost(config: StudyConfig, images: Catalog, slots: SlotPlan, up: int, *, timed: bool) -> Any:
    """Return the expected cost as JSON values; None if it is not to be timed, or there is no slot yet."""
    if not timed or not up:
        return None
    repeats = _verdict(config)["trainings"]
    costs = estimate.measure(config, images)
    found = estimate.expected(config, images, costs, slots, up, repeats).to_json()
    return found | {"here": capacity.is_here(), "price": config.study.price_per_gpu_hour}


def _verdict(config: StudyConfig) -> dict[str, int]:
    """Return how many settings are trained again, at most, and with how many seeds."""
    settings = config.verdict.top + ("recipe" in config.study.baselines) + len(config.strategies) - 1
    settings = min(settings, config.study.trials)
    seeds = config.verdict.seeds
    return {"settings": settings, "seeds": seeds, "trainings": settings * seeds}


def resources() -> list[Resources]:
    """Return the resources of each node of the cluster of RAY_ADDRESS, or else of this machine."""
    if capacity.is_here():
        return [nodes.here()]
    from search.driver.runner import connected

    with connected():
        return [node.resources for node in nodes.up()]


def errors(planned: dict[str, Any]) -> list[str]:
    """Return the findings about the data that would keep a run from starting."""
    return [finding["text"] for finding in planned["data"]["findings"] if finding["grade"] == "error"]
