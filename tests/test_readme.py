"""What README and docs say exists: files, commands, options, exit codes, make targets."""

import ast
import functools
import itertools
import os
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import search
from search.__main__ import Exit, app
from search.config.config_file import load
from search.config.study import StudyConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [README, *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))]
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
FILE_MAP = README.partition("\n## Map\n")[2].partition("```text\n")[2].partition("```")[0]
COMMANDS = [
    words
    for line in re.sub(r"\\\n\s*", "", "\n".join(PAGES)).splitlines()
    for words in re.findall(r"(?:python -m|transfer-) ?search ([a-z][^`#>\n]*)", line)
]
TABLE = README.partition("\n## Commands\n")[2].partition("\n## ")[0]


@functools.cache
def help_of(*command: str) -> str:
    """What `python -m search COMMAND --help` prints."""
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*command, "--help"], prog_name="python -m search")
    assert done.exit_code == 0
    return done.stdout


def mapped(folder: str) -> list[str]:
    """Return the files and packages that the map lists below a folder."""
    below = FILE_MAP.partition(f"{folder}/ ")[2].splitlines()[1:]
    return [line.split()[0] for line in itertools.takewhile(lambda line: line.startswith("  "), below)]


@pytest.mark.parametrize("folder", ["search", "src/finetune"])
def test_the_map_names_every_package_once_and_no_file_that_is_not_there(folder: str) -> None:
    packages = {f"{path.parent.name}/" for path in (ROOT / folder).glob("*/__init__.py")}
    named = mapped(folder)
    assert packages
    assert len(set(named)) == len(named)
    assert {name for name in named if name.endswith("/")} == packages
    assert all((ROOT / folder / name).exists() for name in named)


def test_each_line_of_the_file_map_says_what_the_file_is() -> None:
    assert FILE_MAP
    for line in FILE_MAP.splitlines():
        assert re.fullmatch(r"(  )?\S+(, \S+)? {2,}\S.*", line), line


def test_the_readme_shows_every_command_the_program_has() -> None:
    there = re.findall(r"^  ([a-z]+) {2,}", help_of().partition("Commands:")[2], flags=re.MULTILINE)
    first = re.findall(r"^\| (.*?) \|", TABLE, flags=re.MULTILINE)
    assert set(there) == {name for cell in first for name in re.findall(r"`([a-z]+)", cell)}


@pytest.mark.parametrize("text", sorted(set(COMMANDS)))
def test_every_option_of_every_command_line_exists(text: str) -> None:
    command, *rest = shlex.split(text)
    known = re.findall(r"--[a-z-]+", help_of(command))
    for word in rest:
        if word.startswith("-"):
            assert word in known, f"python -m search {command} has no {word}"


def test_options_named_beside_a_command_in_the_table_exist() -> None:
    rows = re.findall(r"^\| (`(\w+)[^`]*`) \| (.*) \|$", TABLE, flags=re.MULTILINE)
    assert len(rows) >= 7
    for call, command, description in rows:
        for option in re.findall(r"--[a-z-]+", call + description):
            assert option in help_of(command), f"python -m search {command} has no {option}"


def test_every_config_and_page_of_the_readme_exists() -> None:
    names = set(re.findall(r"(?:configs|docs|benchmarks)/[\w.-]+\.\w+", README))
    assert names
    for name in names:
        assert (ROOT / name).is_file(), name


def test_the_exit_codes_are_those_of_the_program() -> None:
    codes = re.findall(r"^\| (\d+) \|", RESULTS, flags=re.MULTILINE)
    assert [int(code) for code in codes] == sorted(Exit)


def test_the_lines_of_python_call_what_exists() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert sum(bool(line) for line in block.splitlines()) == 3
    (call,) = [
        node
        for node in ast.walk(ast.parse(block))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "search.run"
    ]
    (folder,) = (ast.literal_eval(value) for value in call.args)
    options = {key.arg: ast.literal_eval(key.value) for key in call.keywords if key.arg}
    assert callable(search.run)
    assert StudyConfig.from_folder(folder, **options).study.trials == options["trials"]


def test_the_yaml_of_the_readme_loads(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    path = tmp_path / "study.yaml"
    path.write_text(block, encoding="utf-8")
    assert load(path).study.trials == 24


def test_every_make_target_of_the_docs_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^    )make ([a-z-]+)", "\n".join(PAGES), flags=re.MULTILINE))
    assert {"quickstart", "test", "test-lab", "lint"} <= named <= targets


def test_every_link_between_pages_leads_somewhere() -> None:
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_ci_ends_with_the_command_of_make_test_and_runs_what_it_leaves_out_too() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^test: \$\(DEV\).*\n\t(.*)$", makefile, flags=re.MULTILINE)
    command = recipe.replace("$(BIN)", ".venv/bin").replace("$(ARGS)", "").strip()
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == f"exec {command} --thorough --lab"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
