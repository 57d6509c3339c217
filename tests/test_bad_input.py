"""Bad input gets one line, without a traceback, a hang or a control character: docs/bad-input.md."""

import re
import zlib
from pathlib import Path

import pytest

from tests.bad_input import table

PAGE = Path(__file__).parents[1] / "docs" / "bad-input.md"
CASES = table.cases()
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")
LONGEST = 20_000
"""Characters of the longest answer: a config tells all of its mistakes at once."""


def lines() -> dict[str, str]:
    """Return what the page says about each case."""
    text = PAGE.read_text(encoding="utf-8").partition("```text\n")[2].rpartition("```")[0]
    said = text.splitlines()
    return {case: line.removeprefix("    ") for case, line in zip(said[::2], said[1::2], strict=True)}


LINES = lines()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "d"
    table.sound(folder)
    return folder


def test_the_page_has_every_case_and_no_other() -> None:
    assert LINES.keys() == CASES.keys(), "write it again: python -m tests.bad_input"
    assert len(CASES) >= 500


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=f"{number:04d}", marks=[pytest.mark.long] * (zlib.crc32(case.encode()) % 2))
        for number, case in enumerate(CASES)
    ],
)
def test_bad_input_gets_its_line(
    case: str, template: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    with table.folder(template) as place, table.refusing_ray():
        words = CASES[case](place)
        answer = table.ask(words, place)
        assert not (place / "canary").exists()
        assert not (place.parent / "canary").exists()
    assert answer.line == LINES[case], "if the new line is better: python -m tests.bad_input"
    assert answer.code in (0, 1, 2)
    assert "Traceback" not in answer.err
    assert not CONTROL.search(answer.out + answer.err)
    assert len(answer.err) < LONGEST
