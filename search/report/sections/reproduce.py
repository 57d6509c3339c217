"""Everything to run the study again: command, code, versions, data and the whole config."""

from typing import Any

from search.report.html import details, table, tag
from search.report.material import Material
from search.report.section import Section


def section(material: Material) -> Section:
    """Return the command and the facts that must be equal for the same results."""
    facts = material.record.provenance
    rows: list[list[Any]] = []
    for name in ("commit", "code", "data_fingerprint", "seed", "python"):
        if facts.get(name) is not None:
            rows.append([name.replace("_", " "), str(facts[name])])
    rows += [[name, str(version)] for name, version in (facts.get("packages") or {}).items()]
    images = facts.get("images") or {}
    rows += [[f"{split} images", str(count)] for split, count in images.items()]
    if not material.shareable:
        rows += [["skipped images", str(len(facts.get("skipped") or []))]]
        rows += [["images left out by data.exclude", str(facts.get("excluded") or 0)]]
        rows += [
            [name, f"{slot.get('device', '')} on {slot.get('host', '')}"] for name, slot in _slots(facts)
        ]
    parts: list[Any] = [
        tag("p", "The same code, data and seed give the same trials on the same kind of device.")
    ]
    if not material.shareable:
        parts.append(tag("pre", f"python -m search run {material.record.folder}/study.yaml"))
    parts.append(table(["fact", "value"], rows, caption="What the record holds"))
    if material.config and not material.shareable:
        parts.append(details("study.yaml", tag("pre", material.config)))
    return Section("reproduce", "How to reproduce", parts)


def _slots(facts: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    slots = facts.get("slots") or {}
    return [(name, slot) for name, slot in slots.items() if isinstance(slot, dict)]
