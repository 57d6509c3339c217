"""The plan that `check` prints, in words."""

from typing import Any

from finetune.datasets import inspection
from finetune.datasets.findings import SHOWN
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
