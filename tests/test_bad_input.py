"""Bad input gets the one line that docs/bad-input.md has for it, and leaves nothing behind."""

import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bad_input import table

PAGE = Path(__file__).parents[1] / "docs" / "bad-input.md"
CASES = table.cases()
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")
LONGEST = 20_000
"""Characters of the longest answer: a config tells all of its mistakes at once."""
PARTS = 8
"""Parts of the cases; one of them is asked every day."""


def lines() -> dict[str, str]:
    """Return what the page says about each case."""
    text = PAGE.read_text(encoding="utf-8").partition("```text\n")[2].rpartition("```")[0]
    said = text.splitlines()
    return {case: line.removeprefix("    ") for case, line in zip(said[::2], said[1::2], strict=True)}


LINES = lines()


@pytest.fixture(autouse=True)
def recursion() -> Iterator[None]:
    """Set the usual limit, which decides what is nested too deep: other tests and libraries change it."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "d"
    table.sound(folder)
    return folder


def test_the_page_has_every_case_and_no_other() -> None:
    assert LINES.keys() == CASES.keys(), "write it again: python -m tests.bad_input"
    assert len(CASES) >= 500


@pytest.mark.thorough(but=(0,))
@pytest.mark.parametrize("part", range(PARTS))
def test_bad_input_gets_its_line(
    part: int, template: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    wrong = {}
    for case in [case for case in CASES if zlib.crc32(case.encode()) % PARTS == part]:
        with table.folder(template) as place, table.refusing_ray():
            words = CASES[case](place)
            answer = table.ask(words, place)
            left = [name for name in ("canary", "../canary") if (place / name).exists()]
        fine = answer.code in (0, 1, 2) and "Traceback" not in answer.err and len(answer.err) < LONGEST
        if not fine or left or answer.line != LINES[case] or CONTROL.search(answer.out + answer.err):
            wrong[case] = {"answer": answer, "left": left, "page": LINES[case]}
    assert wrong == {}, "if the new lines are better: python -m tests.bad_input"
