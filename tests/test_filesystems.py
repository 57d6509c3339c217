"""Which file system a path is on, by the kernel's own list of mounts."""

import os
import sqlite3
from pathlib import Path

import pytest

from finetune.disk import checkpoint
from finetune.disk.filesystems import is_network, open_binary, type_of
from finetune.errors import CheckpointError, DataError
from finetune.images.decode import decode
from finetune.images.sources import Files
from search.record import ledger, storage

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:5 / /proc rw - proc proc rw
40 22 0:40 / /shared rw,relatime shared:9 - nfs4 fs-0.efs.us-west-2.amazonaws.com:/ rw,vers=4.1
41 40 8:2 / /shared/scratch rw - xfs /dev/nvme1n1 rw
42 22 0:41 / /mnt/my\\040bucket rw - fuse.gcsfuse bucket rw
"""


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(MOUNTS)
    return path


def test_the_innermost_mount_decides(mounts: Path) -> None:
    assert type_of("/shared/results/flowers", mounts) == "nfs4"
    assert type_of("/shared/scratch/results", mounts) == "xfs"
    assert type_of("/sharedness", mounts) == "ext4"
    assert type_of("/mnt/my bucket/data", mounts) == "fuse.gcsfuse"


def test_network_file_systems_are_told_from_local_ones(mounts: Path) -> None:
    assert is_network("/shared/results", mounts)
    assert is_network("/mnt/my bucket", mounts)
    assert not is_network("/shared/scratch", mounts)
    assert not is_network("/home", mounts)
    assert not is_network("/home", mounts.with_name("none"))  # no such list, as on macOS


@pytest.mark.parametrize(
    ("point", "written"),
    [
        ("größe", "größe"),
        ("日本\u00a0語\x85", "日本\u00a0語\x85"),
        ("a b\tc\nd\\e#f", r"a\040b\011c\012d\134e\043f"),
        (r"\x41\n", r"\134x41\134n"),
        (os.fsdecode(b"caf\xe9"), os.fsdecode(b"caf\xe9")),
    ],
)
def test_a_mount_point_may_have_any_name(mounts: Path, point: str, written: str) -> None:
    line = f"50 22 0:50 / /mnt/{written} rw - nfs4 server:/ rw\n"
    mounts.write_bytes(mounts.read_bytes() + os.fsencode(line))
    assert type_of(f"/mnt/{point}/data", mounts) == "nfs4"
    assert type_of("/shared/results", mounts) == "nfs4"
    assert type_of("/mnt", mounts) == "ext4"


def test_a_pipe_is_no_image_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "image.png")
    with pytest.raises(DataError, match=r"OSError: .* a named pipe, not a file"):
        decode(tmp_path / "image.png")
    with pytest.raises(DataError, match="a named pipe, not a file"):
        Files(str(tmp_path)).sample("image.png")
    with pytest.raises(CheckpointError, match="a named pipe, not a file"):
        checkpoint.read(tmp_path / "image.png")
    with pytest.raises(OSError, match="not a file"):
        open_binary("/dev/zero")


def test_this_machine_s_own_mounts_are_understood() -> None:
    assert type_of("/proc/self") == "proc"


@pytest.mark.parametrize(("network", "mode"), [(False, "wal"), (True, "delete")])
def test_the_record_keeps_a_write_ahead_log_on_local_disks_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: bool, mode: str
) -> None:
    """SQLite's write-ahead log does not work over a network file system."""
    monkeypatch.setattr(storage, "is_network", lambda path: network)
    with ledger.open_storage(tmp_path / "optuna.db").engine.connect() as connection:
        assert connection.exec_driver_sql("pragma journal_mode").scalar() == mode
    with sqlite3.connect(tmp_path / "optuna.db") as again:
        assert again.execute("pragma integrity_check").fetchone() == ("ok",)
    again.close()
