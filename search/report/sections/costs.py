"""Seconds of the trials by how much is frozen, cost and saving of stored features, the verdict's seconds."""

from typing import Any

from search.report.html import Markup, join, table, tag
from search.report.material import Material
from search.report.section import Section

AT = ("analysis", "costs")


def section(material: Material) -> Section | None:
    """Return seconds by how many blocks are frozen, or None where no trial has an epoch."""
    groups = material.value(*AT, "by_frozen_blocks")
    if not groups:
        return None
    rows = [
        [
            one["group"],
            material.number("d", *AT, "by_frozen_blocks", i, "trials"),
            material.number(".3f", *AT, "by_frozen_blocks", i, "epoch_seconds"),
            material.number(".1f", *AT, "by_frozen_blocks", i, "seconds"),
        ]
        for i, one in enumerate(groups)
    ]
    head = ["trials with", "trials", "median seconds of an epoch", "seconds in all"]
    parts: list[Any] = [tag("p", _stored(material))]
    if material.value(*AT, "slowdown_of_the_last_group") is not None:
        last = groups[-1]["group"].removesuffix(" frozen")
        told = [
            "An epoch took ",
            material.number(".3g", *AT, "by_frozen_blocks", 0, "epoch_seconds"),
            " s where all blocks are frozen, and ",
            material.number(".0f", *AT, "slowdown_of_the_last_group"),
            f" times as long where {last} are.",
        ]
        parts.append(tag("p", join(told)))
    parts.append(table(head, rows, caption="Seconds by how much is frozen"))
    if material.value(*AT, "verdict", "trainings"):
        told = [
            "The verdict's ",
            material.number("d", *AT, "verdict", "trainings"),
            " trainings with other seeds took ",
            material.duration(*AT, "verdict", "seconds"),
            ".",
        ]
        parts.append(tag("p", join(told)))
    return Section("costs", "What it cost", parts)


def _stored(material: Material) -> Markup:
    """Return sentences on what stored features cost and saved."""
    words = "Features of frozen blocks are computed once and read by all trials that freeze as many. "
    at = (*AT, "features")
    found = material.value(*at)
    if found is None:
        return join([words, "No trial of this study has read any."])
    read = [
        material.number("d", *at, "trials"),
        " trials read them, in ",
        material.number("d", *at, "epochs"),
    ]
    if not found["images"]:
        return join([words, *read, " epochs. An earlier study had computed them, or nobody noted the cost."])
    told = [
        "Computing them took ",
        material.duration(*at, "seconds"),
        " of a slot for ",
        material.number(",d", *at, "images"),
        " images; ",
        *read,
        " epochs.",
    ]
    saved = found["seconds_saved"]
    if saved is not None and saved > 0:
        told += [
            " At that speed, computing them anew in each of these epochs would have taken about ",
            material.duration(*at, "seconds_saved"),
            " more.",
        ]
    return join([words, *told])
