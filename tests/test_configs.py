"""Every config in `configs/` loads, tells how to run it, and fits the schema that editors use."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from search.config.config_file import load
from search.config.schema import PAGE_FILE, page, text
from search.config.study import SCHEMA_FILE, StudyConfig
from search.config.yaml_text import Text

CONFIGS = sorted(SCHEMA_FILE.parent.glob("*.yaml"))


def test_there_are_configs() -> None:
    assert {"quickstart.yaml", "flowers.yaml"} <= {path.name for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_loads_and_its_results_lie_in_the_checkout(path: Path) -> None:
    config = load(path)
    assert config.study.name == path.stem
    assert config.results == str(path.parents[1] / "results")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_begins_with_schema_command_hardware_and_result(path: Path) -> None:
    head = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    assert head[0] == "# yaml-language-server: $schema=schema.json"
    for word in (f"command:  python -m search run configs/{path.name}", "hardware:", "result:"):
        assert any(line.startswith(f"# {word}") for line in head)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_fits_the_schema(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(Text(path.read_text(encoding="utf-8"), str(path)).values)
    validator.validate(Text(load(path).to_yaml(), str(path)).values)
    wrong = {"study": {"name": "a", "trials": 0}, "data": {"path": "x"}, "space": {"learnig_rate": 1}}
    assert len(list(validator.iter_errors(wrong))) == 2


def test_the_schema_on_disk_is_current_and_documents_every_key() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == text(), "run: python -m search.config.schema"
    schema = StudyConfig.model_json_schema()
    for part in (schema, *schema["$defs"].values()):
        for name, key in part["properties"].items():
            assert key.get("description"), name


def test_the_page_of_all_keys_is_current() -> None:
    assert PAGE_FILE.read_text(encoding="utf-8") == page(), "run: make schema"


def test_reading_a_config_imports_no_torch() -> None:
    code = "import sys, search.config.config_file, search.suggest.space; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=SCHEMA_FILE.parents[1], check=True)
