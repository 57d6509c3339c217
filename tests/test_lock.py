"""The lock file pins what `pyproject.toml` asks for, with hashes."""

import re
from collections import defaultdict
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / ".ci" / "requirements.txt").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = {name: asked for name, asked in PROJECT["optional-dependencies"].items() if name != "dev"}

# One entry is a line such as `ray==2.60.0 ; marker \`, followed by indented lines of hashes.
ENTRIES = re.findall(r"^(\S.*?)(?: \\)?\n((?: +\S.*\n?)*)", LOCK, re.MULTILINE)


def pinned() -> dict[str, set[str]]:
    """Return the pinned versions by the name of the package; each Python version may have its own."""
    versions: dict[str, set[str]] = defaultdict(set)
    for line, _ in ENTRIES:
        requirement = Requirement(line)
        (pin,) = requirement.specifier
        assert pin.operator == "==", line
        versions[canonicalize_name(requirement.name)].add(pin.version)
    return versions


@pytest.mark.parametrize(
    "text", [*PROJECT["dependencies"], *(one for asked in EXTRAS.values() for one in asked)]
)
def test_every_package_that_is_asked_for_is_pinned_within_its_bounds(text: str) -> None:
    asked = Requirement(text)
    versions = pinned()[canonicalize_name(asked.name)]
    assert versions, f"{asked.name} is not pinned: run `make lock`"
    assert all(asked.specifier.contains(version) for version in versions), f"{versions}: run `make lock`"


def test_every_pin_has_hashes_and_no_address() -> None:
    assert len(ENTRIES) > len(PROJECT["dependencies"])
    for line, hashes in ENTRIES:
        assert re.fullmatch(r"(?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+", hashes), line
    assert "://" not in LOCK


def test_the_makefile_locks_every_extra_of_the_product() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (extras,) = re.findall(r"^EXTRAS := (.*)$", makefile, re.MULTILINE)
    assert set(extras.split()) == set(EXTRAS)
