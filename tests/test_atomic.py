"""A file that is replaced is whole at any time, whatever the writer does."""

import os
from pathlib import Path

import pytest

from finetune.disk.atomic import replacing


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with replacing(path) as new:
        new.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("begun", [True, False])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, begun: bool) -> None:
    path = tmp_path / "metrics.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as new:  # noqa: PT012 - two steps of a writer
        if begun:
            new.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "metrics.json"):
        pass


def test_a_pipe_or_a_device_is_never_replaced(tmp_path: Path) -> None:
    """Root may rename a file over one, and did: /dev/zero was a report until somebody looked."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/null")
    for name in ("pipe", "device"):
        with pytest.raises(OSError, match="not a file"), replacing(tmp_path / name) as new:
            new.write_text("x")
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "device").is_symlink()
    assert len(list(tmp_path.iterdir())) == 2
