"""Everything to run the study again: command, code, versions, data and the whole config."""

import shlex
from typing import Any

from search.report.html import details, join, lines, table, tag
from search.report.material import Material
from search.report.section import Section

AT = ("study", "provenance")


def section(material: Material) -> Section:
    """Return the command and the facts that must be equal for the same results."""
    facts = material.record.provenance
    rows: list[list[Any]] = []
    for name in ("commit", "code", "data_fingerprint", "seed", "python"):
        if facts.get(name) is not None:
            rows.append([name.replace("_", " "), material.quote(*AT, name)])
    rows += [[name, material.quote(*AT, "packages", name)] for name in facts.get("packages") or {}]
    rows += [
        [f"{split} images", material.number("d", *AT, "images", split)] for split in facts.get("images") or {}
    ]
    if not material.shareable:
        for name, title in (("skipped", "skipped images"), ("excluded", "images left out by data.exclude")):
            if facts.get(name) is not None:
                rows.append([title, material.number("d", *AT, name)])
        rows += [[name, _slot(material, name)] for name in _slots(facts)]
    parts: list[Any] = [
        tag("p", "The same code, data and seed give the same trials on the same kind of device.")
    ]
    if not material.shareable:
        command = ["python", "-m", "search", "run", f"{material.record.folder}/study.yaml"]
        parts.append(tag("pre", shlex.join(command)))
    parts.append(table(["fact", "value"], rows, caption="What the record holds", aligned=False))
    if material.config and not material.shareable:
        parts.append(details("study.yaml", tag("pre", lines(material.config))))
    return Section("reproduce", "How to reproduce", parts)


def _slots(facts: dict[str, Any]) -> list[str]:
    slots = facts.get("slots") or {}
    return [name for name, slot in slots.items() if isinstance(slot, dict)]


def _slot(material: Material, name: str) -> object:
    at = (*AT, "slots", name)
    told = [material.quote(*at, key) for key in ("device", "host") if material.value(*at, key)]
    return join(told, " on ")
