"""Look before a study runs: data, weights, backbone and capacity, without training anything."""

from typing import Any

from finetune import file_cache, inspect_data
from search import inputs, needs, nodes
from search.nodes import Resources
from search.space import Space
from search.study import StudyConfig

KEPT = {"features": "features of frozen blocks", "copies": "copies of far images and weights"}


def plan(config: StudyConfig) -> dict[str, Any]:
    """Return what a run of this config would do.

    Raises:
        FinetuneError: images or weights are not as the config says.
        CapacityError: the slots do not fit on this machine (or on the cluster of RAY_ADDRESS).
    """
    # Torch is needed to look at weights and backbones; the other commands start without it.
    from finetune import weights

    file_cache.limit(needs.copies_bytes(config))
    images = inputs.scan(config, lenient=True)
    space = Space(config)
    origin = {}
    for name in config.backbones:
        wanted = space.weights(config.model.weights_of(name), config.image_sizes[0])
        if wanted.source is not None:
            source = inputs.source_images(config, name)
            count = len(source.splits["train"])
            origin[name] = f"to be pretrained on {count} images of {', '.join(source.classes)}"
        else:
            origin[name] = weights.describe(name, wanted)
    copies = file_cache.here()
    up = resources()
    slots = needs.capacity(config, up)
    study, features = config.study, needs.feature_settings(config)
    return {
        "study": {"name": study.name, "trials": study.trials, "epochs": study.epochs, "metric": study.metric},
        "data": inspect_data.inspect(images),
        "model": {name: {"blocks": n, "weights": origin[name]} for name, n in config.blocks.items()},
        "space": config.model_dump(mode="json")["space"],
        "early_stopping": {"enabled": config.early_stopping.enabled, "grace": config.grace},
        "slots": {
            "count": min(slots.slots, slots.fit(up)),
            "asked_for": slots.ask,
            "workers": slots.workers,
            "cpus_per_worker": slots.cpus,
            "gpu": slots.gpu,
        },
        "kept": {
            "features": {
                "dir": features.folder,
                "bytes": 0 if features.mode == "off" else features.budget_bytes,
            },
            "copies": {"dir": str(copies.root), "bytes": copies.budget_bytes},
        },
        "results": str(config.folder),
    }


def resources() -> list[Resources]:
    """Return what each node of the cluster of RAY_ADDRESS has, or else this machine, by Ray's names."""
    if needs.is_here():
        return [nodes.here()]
    from search.runner import connected

    with connected():
        return [node.resources for node in nodes.up()]


def lines(planned: dict[str, Any]) -> list[str]:
    """Return the plan for people."""
    study, slots = planned["study"], planned["slots"]
    worker = f"{slots['workers']} worker(s) of {slots['cpus_per_worker']} CPU(s)"
    text = [
        f"study {study['name']}: {study['trials']} trials of up to {study['epochs']} epochs, "
        f"best {study['metric']} wins",
        f"slots: {slots['count']}, each {worker}" + (" and a GPU each" if slots["gpu"] else ", no GPU"),
    ]
    if slots["asked_for"] > slots["count"]:
        text.append(f"more nodes are asked for, for {slots['asked_for']} slots")
    text += inspect_data.lines(planned["data"])
    for name, model in planned["model"].items():
        text.append(f"{name}: {model['blocks']} blocks, {model['weights']}")
    text += [f"space.{key}: {value}" for key, value in planned["space"].items()]
    stop = planned["early_stopping"]
    text.append(f"early stopping after {stop['grace']} epoch(s)" if stop["enabled"] else "no early stopping")
    for what, kept in planned["kept"].items():
        text.append(f"{KEPT[what]}: up to {kept['bytes'] / 2**30:g} GiB on each node, in {kept['dir']}")
    return [*text, f"results: {planned['results']}"]


def errors(planned: dict[str, Any]) -> list[str]:
    """Return what stands in the way of a run."""
    return [finding["text"] for finding in planned["data"]["findings"] if finding["grade"] == "error"]
