"""Generate the two descriptions of the config keys: `configs/schema.json` and `docs/config.md`.

Run `python -m search.config.schema` (or `make schema`) whenever a key or its docstring changes.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from search.config.domain import Range
from search.config.study import SCHEMA_FILE, schema

PAGE_FILE = SCHEMA_FILE.parents[1] / "docs" / "config.md"

_HEAD = """\
# Keys of a config file

This page is generated from the classes that read a config (`make schema`); `configs/schema.json` says the
same to an editor. Relative paths in a file start at the file's own folder, and `--set section.key=VALUE`
changes one key.

**Searched keys** are marked with *searched* below. Each takes one of four forms:

```yaml
learning_rate: 0.01                                   # a value: fixed
learning_rate: [0.001, 0.01]                          # a list: one of these
learning_rate: {low: 1e-4, high: 1e-1, log: true}     # a range, both ends included; `step` makes it a grid
learning_rate: {replace: 0.01, fuse: {low: 1e-4, high: 1e-2}}   # one of the above for each strategy
```
"""


def text() -> str:
    """Return the content of `configs/schema.json`."""
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


def page() -> str:
    """Return the content of `docs/config.md`: a table of keys for each section."""
    whole = schema()
    parts = [_HEAD]
    for section, key in whole["properties"].items():
        definition = _definition(key, whole)
        if "properties" not in definition:
            parts.append(f"## `{section}`\n\n{_line(key['description'])} Default: {_default(key)}.\n")
            continue
        parts.append(f"## `{section}`\n\n{_line(definition['description'])}\n\n{_table(definition, whole)}")
        if section == "model":
            source = whole["$defs"]["Source"]
            parts.append(
                f"### `model.weights.source`\n\n{_line(source['description'])}\n\n{_table(source, whole)}"
            )
    return "\n".join(parts)


def _table(definition: Mapping[str, Any], whole: Mapping[str, Any]) -> str:
    required = definition.get("required", ())
    rows = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for name, key in definition["properties"].items():
        default = "required" if name in required else _default(key)
        values = " or ".join(dict.fromkeys(_values(key, whole))) or "text"
        rows.append(f"| `{name}` | {values} | {default} | {_line(key['description'])} |")
    return "\n".join(rows) + "\n"


def _values(key: Mapping[str, Any], whole: Mapping[str, Any]) -> Iterator[str]:
    """Yield a few words for each kind of value that a key takes."""
    if _is_searched(key):
        yield " or ".join(_values(key["oneOf"][0], whole)) + " (*searched*)"
        return
    for form in key.get("anyOf", key.get("oneOf", [key])):
        if "$ref" in form:
            yield "a mapping"
        elif "enum" in form or "const" in form:
            yield ", ".join(f"`{value}`" for value in form.get("enum", [form.get("const")]))
        elif "pattern" in form:
            yield f"`{form['pattern'].lstrip('^')}`".replace(".+", "<name>")
        elif "anyOf" in form or "oneOf" in form:
            yield from _values(form, whole)
        elif form.get("type") == "array":
            yield "list of " + " or ".join(_values(form.get("items", {}), whole))
        elif form.get("type") in _WORDS:
            yield _WORDS[form["type"]] + _bounds(form)


def _is_searched(key: Mapping[str, Any]) -> bool:
    """Return whether a key is searched: it takes one value or a list of values to choose from."""
    return any(form.get("type") == "array" for form in key.get("oneOf", ()))


_WORDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "object": "a mapping",
}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _bounds(form: Mapping[str, Any]) -> str:
    told = [f"{sign} {form[name]:g}" for name, sign in _BOUNDS.items() if name in form]
    return f" {', '.join(told)}" if told else ""


def _default(key: Mapping[str, Any]) -> str:
    return "none" if key.get("default") is None else f"`{_yaml(key['default'])}`"


def _yaml(value: Any) -> str:
    """Return a default as a user would write it in a config."""
    if isinstance(value, Mapping):
        order = sorted(value, key=lambda name: (*Range.model_fields, *value).index(name))
        return "{" + ", ".join(f"{name}: {_yaml(value[name])}" for name in order) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def _definition(key: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any]:
    refs = [key, *key.get("allOf", ())]
    found = [form["$ref"] for form in refs if "$ref" in form]
    definition: Mapping[str, Any] = whole["$defs"][found[0].rpartition("/")[2]] if found else key
    return definition


def _line(text: str) -> str:
    """Return a description as a single line that a cell of a Markdown table can hold."""
    prose_and_code = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(prose_and_code))


if __name__ == "__main__":
    SCHEMA_FILE.write_text(text(), encoding="utf-8")
    PAGE_FILE.write_text(page(), encoding="utf-8")
