"""Files with any bytes in them: each is read, or refused with an error that becomes one line.

`ANY_BYTES=10000 python -m pytest tests/test_any_bytes.py` asks so many of each kind, other ones each time.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.disk import checkpoint
from search.__main__ import guarded
from search.config import config_file
from search.config.study import StudyConfig
from search.record import reader
from search.record.study_folder import StudyFolder
from tests import written
from tests.small import STUDY

EXAMPLES = int(os.environ.get("ANY_BYTES", "40"))
PIECES = st.one_of(
    st.binary(max_size=8),
    st.sampled_from(
        [
            b"",
            b"\0",
            b"\xff\xfe",
            b"\x1b[2J",
            b"!!python/object:os.system",
            b"&a [*a]",
            b"1e999",
            b".nan",
            b"'",
            b'"',
        ]
    ),
)
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 40), PIECES), min_size=1, max_size=4)
"""Places in a file as shares of its length, with how many bytes go there and what comes instead."""
Edits = list[tuple[float, int, bytes]]


def edited(content: bytes, edits: Edits) -> bytes:
    for share, gone, piece in edits:
        at = int(share * len(content))
        content = content[:at] + piece + content[at + gone :]
    return content


def any_bytes(test: Callable[..., None]) -> Callable[..., None]:
    check = settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize="ANY_BYTES" not in os.environ,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
    return check(given(edits=EDITS)(test))


def ask(read: Callable[[], object], path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Read a file as the command line does; an error that is none of ours goes through."""
    before = sorted(one.name for one in path.parent.iterdir())
    code = guarded(lambda: read() and None)
    said = capsys.readouterr()
    assert code in (0, 1, 2)
    assert said.out == ""
    assert code == 0 or re.match(r"error: |\S+study\.yaml(:\d+:\d+)?: ", said.err), said.err
    assert "Traceback" not in said.err
    assert not [letter for letter in said.err if ord(letter) < 32 and letter != "\n"]
    assert sorted(one.name for one in path.parent.iterdir()) == before


@any_bytes
def test_a_config(edits: Edits, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(edited(StudyConfig.from_dict(STUDY).to_yaml().encode(), edits))
    ask(lambda: config_file.load(path), path, capsys)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyFolder, bytes]:
    folder = written.write(tmp_path_factory.mktemp("results"))
    return folder, folder.database.read_bytes()


@any_bytes
def test_a_record(edits: Edits, study: tuple[StudyFolder, bytes], capsys: pytest.CaptureFixture[str]) -> None:
    folder, content = study
    content = edited(content, edits)
    folder.database.write_bytes(content)
    ask(lambda: reader.read_study(folder), folder.database, capsys)
    assert folder.database.read_bytes() == content


@any_bytes
def test_a_checkpoint(edits: Edits, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "last.safetensors"
    tensors = {"w": torch.arange(40.0)}
    checkpoint.write(path, tensors, {"epoch": 3})
    path.write_bytes(edited(path.read_bytes(), edits))
    ask(lambda: same(path, tensors), path, capsys)


def same(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Read a checkpoint; one that is taken holds what was saved."""
    found, facts = checkpoint.read(path)
    assert torch.equal(found["w"], tensors["w"])
    assert facts == {"epoch": 3}
