"""Read and write YAML: a safe reader that remembers the place of every key and value, and a writer.

Plain values are read by the rules of YAML 1.2: `1e-3` is a number, `true` and `false` are the only
booleans, and `no`, `on`, `10:30` or a date are text. Aliases, merge keys and tags are refused: a
config has no use for them, and a small file with aliases can expand to gigabytes.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml

from finetune.errors import clipped
from search.config.problems import Path, Place, Problem

_NULL, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float"))
_STR = "tag:yaml.org,2002:str"
# The core schema, YAML 1.2.2 section 10.3.2, without its octal and hexadecimal numbers.
_PLAIN = (
    (_NULL, re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    (_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    (_INT, re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")),
    (
        _FLOAT,
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
)


WIDTH = 160
"""Characters of an excerpt at most; of a longer line, only the part near the mistake is shown."""


class _Reader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own way; none of its 1.1 rules

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            reader: Any = self
            mark = reader.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="an alias, which a config may not have", problem_mark=mark)
        return super().compose_node(parent, index)


class _Writer(yaml.SafeDumper):
    """Writer that quotes every text which YAML 1.1 or our reader would take for another type."""


for _tag, _pattern, _first in _PLAIN:
    _Reader.add_implicit_resolver(_tag, _pattern, _first)
    _Writer.add_implicit_resolver(_tag, _pattern, _first)


def dump(values: Mapping[str, Any]) -> str:
    """Return `values` as YAML from which `Text` reads equal values."""
    return yaml.dump(values, Dumper=_Writer, sort_keys=False, allow_unicode=True)


class Text:
    """A YAML text with its values as plain Python objects and the place of each."""

    def __init__(self, text: str, name: str) -> None:
        """Read `text` and collect its mistakes in `problems`; `name` is the file's name in places."""
        self._name = name
        self._lines = text.splitlines()
        self.problems: list[Problem] = []
        self._root: yaml.Node | None = None
        self.values: Any = None
        try:
            self._root = yaml.compose(text, Loader=_Reader)
            self.values = self._value(self._root) if self._root else None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what = " ".join(filter(None, (error.context, error.problem)))
            self._refuse(self._place(mark, None), f"must be valid YAML, got {what}. Correct this line.")
        except yaml.reader.ReaderError as error:
            text = f"must be plain text, got the character #x{error.character:04x}. Delete it."
            self._refuse(Place(name), text)
        except RecursionError:
            self._refuse(Place(name), "must be nested less, got too many levels. Write fewer brackets.")

    def place(self, path: Path, key: bool) -> Place:
        """Return the place of the value at `path`, or of its key; if missing, of the nearest key above it."""
        node, name = self._root, None
        for depth, part in enumerate(path):
            if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
                name, node = None, node.value[part]
                continue
            pairs = node.value if isinstance(node, yaml.MappingNode) else ()
            found = [(k, v) for k, v in pairs if k.value == part]
            if not found:
                return self._place(name.start_mark, name.end_mark) if depth and name else Place(self._name)
            name, node = found[0]
        # A collection in block style spans many lines: point at its key instead.
        block = isinstance(node, yaml.CollectionNode) and not node.flow_style
        shown = name if name is not None and (key or block) else node
        if not shown:
            return Place(self._name)
        written = node.value if shown is node and isinstance(node, yaml.ScalarNode) else ""
        return replace(self._place(shown.start_mark, shown.end_mark), written=written)

    def contains(self, path: Path) -> bool:
        """Return True if the text has a value at `path`."""
        inner = self.values
        for part in path:
            if not isinstance(inner, dict) or part not in inner:
                return False
            inner = inner[part]
        return True

    def _place(self, start: Any, end: Any) -> Place:
        """Return the place between two marks: `name:line:column`, and the line with the part underlined."""
        line = self._lines[start.line].replace("\t", " ") if start.line < len(self._lines) else ""
        stop = end.column if end is not None and end.line == start.line else len(line)
        first = max(0, start.column - WIDTH // 2) if len(line) > WIDTH else 0
        line = line[first : first + WIDTH]
        width = min(stop, first + WIDTH) - start.column if end is not None else 1
        under = " " * (start.column - first) + "^" * max(1, width)
        excerpt = f"{start.line + 1:>5} | {line}\n      | {under}"
        where = f"{self._name}:{start.line + 1}:{start.column + 1}"
        return Place(where, excerpt, (start.line + 1, start.column + 1))

    def _refuse(self, place: Place, text: str) -> None:
        self.problems.append(Problem(place, text))

    def _value(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item) for item in node.value]
        try:
            return _scalar(node.tag, node.value)
        except (KeyError, ValueError):
            text = f"must be a plain value, got {node.value[:40]!r} as {node.tag}. Write a word or number."
            self._refuse(self._place(node.start_mark, node.end_mark), text)
            return None

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in node.value:
            place = self._place(key.start_mark, key.end_mark)
            if not isinstance(key, yaml.ScalarNode):
                self._refuse(place, "a key must be a word, got a collection. Write `key: value`.")
            elif key.value in values:
                text = f"a key must stand once in its mapping, got '{clipped(key.value)}' again. Delete one."
                self._refuse(place, text)
            else:
                values[key.value] = self._value(value)
        return values


def _scalar(tag: str, text: str) -> Any:
    if tag == _NULL:
        return None
    if tag == _BOOL:
        return text.lower() == "true"
    if tag == _FLOAT:
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return {_INT: int, _STR: str}[tag](text)
