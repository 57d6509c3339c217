"""The `check` command: examine data, weights, backbones and capacity before a study, and train nothing."""

from pathlib import Path
from typing import Any

from finetune import steps
from finetune.datasets import inspection
from finetune.datasets.catalog import Catalog
from finetune.datasets.findings import SHOWN
from finetune.disk import file_cache
from search.config import resolve
from search.config.sections import DATA_FIELDS, EXACT, SETTINGS
from search.config.study import StudyConfig
from search.driver import estimate, inputs
from search.errors import StudyError
from search.private import study as private
from search.slots import capacity, nodes
from search.slots.nodes import Resources
from search.slots.slots import SlotPlan
from search.suggest.space import Space
from search.views.terminal import seconds_text

UNITS = {
    "image_size": "pixels",
    "batch_size": "images",
    "head_size": "hidden units",
    "frozen_layers": "blocks",
    "warmup_epochs": "epochs",
    "unfreeze_epochs": "epochs",
}
KEPT = {"features": "features of frozen blocks", "copies": "copies of far images and weights"}


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
    return {
        "study": {
            "name": study.name,
            "trials": None if study.is_open else study.trials,
            "budget": study.budget,
            "epochs": study.epochs,
            "metric": study.metric,
        },
        "data": inspection.inspect(images),
        "suspects": _suspects(config, suspects),
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
    return planned.to_dict() | {"lines": private.lines(config, planned)}


def _suspects(config: StudyConfig, to: Path | None) -> Any:
    """Return images whose label may be wrong as JSON values, and write them to a file, if there is one."""
    if to is None:
        return None
    from search.driver import suspects

    if config.parts != {"image"}:
        raise StudyError(
            "--suspects: reads images alone, got samples with text or several frames. Leave it out."
        )
    found = suspects.find(config)
    suspects.write(found, to)
    return {"file": str(to), "images": [doubt.to_dict() for doubt in found]}


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


def lines(planned: dict[str, Any]) -> list[str]:
    """Return the plan as lines of text."""
    study, slots = planned["study"], planned["slots"]
    if planned["privacy"] is not None:
        return _of_private(planned)
    worker = f"{counted(slots['workers'], 'worker')} of {counted(slots['cpus_per_worker'], 'CPU')}"
    text = [
        f"study {study['name']}: {_trials(study)} of up to "
        f"{counted(study['epochs'], 'epoch')}, best {study['metric']} wins",
        f"slots: {slots['count']}, each {worker}" + (" and a GPU each" if slots["gpu"] else ", no GPU"),
    ]
    text += cost_lines(planned["cost"])
    if slots["asked_for"] > slots["count"]:
        text.append(f"more nodes are asked for, for {counted(slots['asked_for'], 'slot')}")
    text += inspection.lines(planned["data"])
    text += _of_suspects(planned["suspects"])
    text += _of_probes(planned["probes"] or {})
    for name, model in planned["model"].items():
        text.append(f"{name}: {model['blocks']} blocks, {model['weights']}")
    for section, values in (("data", planned["seen"]), ("space", planned["space"])):
        text += [f"{section}.{key}: {in_words(value, UNITS.get(key, ''))}" for key, value in values.items()]
    text += _of_verdict(planned["verdict"])
    stop = planned["early_stopping"]
    grace = counted(stop["grace"], "epoch")
    text.append(
        f"early stopping ({stop['rule']}): every trial gets {grace}"
        if stop["enabled"]
        else "no early stopping"
    )
    for what, kept in planned["kept"].items():
        text.append(f"{KEPT[what]}: up to {kept['bytes'] / 2**30:g} GiB on each node, in {kept['dir']}")
    return [*text, f"results: {planned['results']}"]


def _of_private(planned: dict[str, Any]) -> list[str]:
    """Return the plan of a private study as lines of text."""
    study = planned["study"]
    text = [f"study {study['name']}: {study['trials']} trials on average, best noisy {study['metric']} wins"]
    text += planned["privacy"]["lines"]
    text += inspection.lines(planned["data"])
    text += [
        f"{name}: {model['blocks']} blocks, {model['weights']}" for name, model in planned["model"].items()
    ]
    return [*text, f"results: {planned['results']}"]


def _of_suspects(found: dict[str, Any] | None) -> list[str]:
    """Return lines on the images whose label may be wrong."""
    if found is None:
        return ["labels: `check --suspects FILE` ranks those that may be wrong"]
    images = found["images"]
    told = [
        f"  {one['path']}: {one['label']} {one['given']:.3f}, {one['likely']} {one['probability']:.3f}"
        for one in images[:SHOWN]
    ]
    more = [f"  ... and {len(images) - len(told)} more"] * (len(images) > len(told))
    return [
        f"labels: {counted(len(images), 'training image')} looks like another class to a model that has not "
        f"seen it, in {found['file']}. Look at the first ones: wrong labels gather there.",
        *told,
        *more,
    ]


def _of_probes(found: dict[str, Any]) -> list[str]:
    """Return lines on how well classes can be told apart behind each block."""
    text = []
    for name, told in found.items():
        first = told["separable"]
        text.append(
            f"{name}: as separable as it gets from block {first['frozen_layers']} of {len(told['blocks'])} "
            "on; training images that a linear probe behind each block has right, unseen:"
        )
        text += [
            f"  {one['frozen_layers']:>3} {one['block']}: {100 * one['accuracy']:.1f} % "
            f"(± {100 * one['error']:.1f})"
            for one in told["blocks"]
        ]
    return text


def _of_verdict(planned: dict[str, Any]) -> list[str]:
    """Return the line on the trainings with other seeds, which follow the trials."""
    if not planned["seeds"]:
        return ["no verdict: verdict.seeds is 0"]
    return [
        f"verdict: up to {counted(planned['trainings'], 'training')} after the trials, "
        f"{counted(planned['settings'], 'setting')} with {counted(planned['seeds'], 'other seed')} each"
    ]


def _trials(study: dict[str, Any]) -> str:
    if study["trials"] is None:
        return f"as many trials as {study['budget']} allow,"
    return counted(study["trials"], "trial")


def cost_lines(cost: dict[str, Any] | None) -> list[str]:
    """Return the expected cost as lines of text."""
    if cost is None:
        return ["cost: not timed; `check --time` says how long the study will take"]
    parts = [f"about {seconds_text(cost['seconds'])} for {counted(cost['trials'], 'trial')}"]
    if cost["gpu_hours"]:
        parts.append(f"{cost['gpu_hours']:.3g} GPU-hours")
    if cost["money"] is not None:
        parts.append(f"{cost['money']:.2f} at {cost['price']:g} per GPU-hour")
    text = [f"cost: {', '.join(parts)}, without the start of Ray"]
    if not cost["here"]:
        text.append("warning: the cost was timed on this machine, and the cluster's may differ")
    return text


def counted(number: int, noun: str) -> str:
    """Return `1 epoch` or `2 epochs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def in_words(said: Any, unit: str = "") -> str:
    """Return a config key's JSON value (a range, list or single value) as words, such as `0.001 to 0.1`."""
    if isinstance(said, dict) and "low" in said:
        ends = f"{in_words(said['low'])} to {in_words(said['high'], unit)}"
        if said["step"] is not None:
            return f"{ends} in steps of {in_words(said['step'])}"
        return f"{ends} (logarithmic)" if said["log"] else ends
    if isinstance(said, dict):
        given = {name: value for name, value in said.items() if value is not None}
        return "; ".join(f"{name} {in_words(value, unit)}" for name, value in given.items())
    if isinstance(said, list):
        *others, last = said
        before = ", ".join(map(in_words, others))
        return f"{before} or {in_words(last, unit)}" if others else in_words(last, unit)
    if isinstance(said, bool):
        return str(said).lower()
    if isinstance(said, str):
        return said
    share = "of the " if isinstance(said, float) and unit == "blocks" else ""
    return f"{said:g} {share}{unit}".rstrip()


def errors(planned: dict[str, Any]) -> list[str]:
    """Return the findings about the data that would keep a run from starting."""
    return [finding["text"] for finding in planned["data"]["findings"] if finding["grade"] == "error"]
