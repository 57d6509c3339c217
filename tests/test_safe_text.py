"""Names from elsewhere are text wherever they are shown: no terminal, page or spreadsheet obeys them."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from finetune import safe_text
from search.__main__ import app, guarded
from search.commands import print_json
from search.views import terminal

ESCAPES = ["\x1b[31mred", "\x1b]0;title\x07", "\x9b2J", "a\rb", "a\nb", "\x7f", "\u202egnp.exe", "\x08\x08"]


@pytest.mark.parametrize("text", ESCAPES)
def test_control_characters_are_written_out_on_a_terminal(text: str) -> None:
    safe = safe_text.terminal(text)
    assert safe.isprintable()
    assert len(safe) > len(text)


@given(st.text(st.characters(codec=None, exclude_categories=[])))
def test_any_text_is_one_printable_line_that_can_be_encoded(text: str) -> None:
    for safe in (safe_text.terminal(text), safe_text.markdown(text)):
        safe.encode()
        assert len(safe.splitlines()) <= 1
        assert "\x1b" not in safe


def test_names_that_are_no_utf8_are_shown_by_their_bytes() -> None:
    assert safe_text.terminal(b"caf\xe9".decode("utf-8", "surrogateescape")) == r"caf\xe9"
    assert safe_text.terminal("café 日本") == "café 日本"


@given(st.text(st.characters(codec=None, exclude_categories=[])))
def test_json_is_the_same_value_without_control_characters(text: str) -> None:
    written = safe_text.json_text(json.dumps(text, ensure_ascii=False))
    assert json.loads(written) == text
    written.encode()
    assert "\x9b" not in written


@pytest.mark.parametrize("name", ["`", "``a`", " ", "", "<b>", "[x](y)", "a\n\n# b", "http://x", "*a*"])
def test_a_code_span_holds_any_name(name: str) -> None:
    span = safe_text.markdown(name)
    fence = span[: len(span) - len(span.lstrip("`"))]
    assert span.endswith(fence)
    inside = span.removeprefix(fence).removesuffix(fence)
    assert fence not in inside
    assert inside.strip(" ") == safe_text.terminal(name).strip(" ")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_lines_and_tables_obey_no_name(is_terminal: bool) -> None:
    out = Console(file=io.StringIO(), force_terminal=is_terminal, color_system=None, width=100)
    for text in ESCAPES:
        terminal.print_line(out, text)
        terminal.print_table(out, ("class",), [(text,)], frozenset())
    written = out.file.getvalue()  # type: ignore[attr-defined]
    assert not {"\x1b", "\x9b", "\r", "\x07", "\x7f", "\u202e", "\x08"} & set(written)


def test_json_on_stdout_obeys_no_name(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({name: name for name in [*ESCAPES, "\udce9"]})
    out = capsys.readouterr().out
    assert json.loads(out) == {name: name for name in [*ESCAPES, "\udce9"]}
    assert not {"\x1b", "\x9b", "\r", "\x07", "\x7f"} & set(out)


NAME = "cat\x1b[2J\x9b1m"


def in_class_folder(root: Path) -> dict[str, object]:
    for name in (NAME, "dog"):
        (root / name).mkdir()
        for index in range(5):
            Image.new("RGB", (40, 40), (index, 0, 0)).save(root / name / f"{NAME}{index}.png")
    (root / NAME / f"broken{NAME}.png").write_bytes(b"broken")
    return {"path": str(root)}


def in_manifest(root: Path) -> dict[str, object]:
    (root / "a.csv").write_text(f"image,label,split\n{NAME}.png,{NAME},{NAME}\n")
    return {"kind": "manifest", "path": str(root / "a.csv")}


def in_key(root: Path) -> dict[str, object]:
    return {"path": str(root), NAME: 1}


@pytest.mark.parametrize("put", [in_class_folder, in_manifest, in_key], ids=lambda put: put.__name__)
@pytest.mark.parametrize("way", [[], ["--json"]], ids=str)
def test_check_prints_no_control_character_from_images_or_config(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    put: Callable[[Path], dict[str, object]],
    way: list[str],
) -> None:
    (tmp_path / "images").mkdir()
    config = {
        "study": {"name": "s", "trials": 3},
        "data": put(tmp_path / "images"),
        "model": {"backbone": "squeezenet1_1", "weights": "none"},
        "space": {"strategy": "replace"},
        "results": str(tmp_path / "results"),
    }
    (tmp_path / "study.yaml").write_text(json.dumps(config))
    words = ["check", str(tmp_path / "study.yaml"), *way]
    assert guarded(lambda: app(words, standalone_mode=False)) == 2
    out, err = capsys.readouterr()
    assert "cat" in out + err
    assert not {"\x1b", "\x9b"} & set(out + err)


def test_surrogates_in_an_error_do_not_end_in_another_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["check", str(tmp_path / "\udce9.yaml")]
    assert guarded(lambda: app(words, standalone_mode=False)) == 2
    assert r"\xe9.yaml" in capsys.readouterr().err
    assert sys.getfilesystemencoding() == "utf-8"
