"""Which file system a path is on, by the kernel's own list of mounts."""

import os
import sqlite3
from pathlib import Path

import psutil
import pytest

from finetune.datasets.decode import decode
from finetune.datasets.sources import Files
from finetune.disk import checkpoint
from finetune.disk.filesystems import is_network, open_binary, type_of
from finetune.errors import CheckpointError, DataError
from search.record import ledger, storage

MOUNTS = """\
/dev/sda1 / ext4 rw,relatime 0 0
proc /proc proc rw 0 0
fs-0.efs.us-west-2.amazonaws.com:/ /shared nfs4 rw,vers=4.1 0 0
/dev/nvme1n1 /shared/scratch xfs rw 0 0
bucket /mnt/my\\040bucket fuse.gcsfuse rw 0 0
tmpfs /mnt/twice tmpfs rw 0 0
server:/ /mnt/twice nfs rw 0 0
"""


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    path = tmp_path / "self" / "mounts"
    path.parent.mkdir()
    path.write_text(MOUNTS)
    return path


@pytest.mark.usefixtures("mounts")
def test_the_innermost_mount_decides_and_of_two_at_one_place_the_later() -> None:
    assert type_of("/shared/results/flowers") == "nfs4"
    assert type_of("/shared/scratch/results") == "xfs"
    assert type_of("/sharedness") == "ext4"
    assert type_of("/mnt/my bucket/data") == "fuse.gcsfuse"
    assert type_of("/mnt/twice") == "nfs"
    assert type_of("/") == "ext4"


def test_network_file_systems_are_told_from_local_ones(mounts: Path) -> None:
    assert is_network("/shared/results")
    assert is_network("/mnt/my bucket")
    assert not is_network("/shared/scratch")
    assert not is_network("/home")
    mounts.unlink()
    assert not is_network("/shared/results")  # the system does not tell


@pytest.mark.parametrize(
    ("point", "written"),
    [
        ("größe", "größe"),
        ("日本\u00a0語\x85", "日本\u00a0語\x85"),
        ("a b\tc\nd\\e#f", r"a\040b\011c\012d\134e#f"),
        (r"\x41\n", r"\134x41\134n"),
        (os.fsdecode(b"caf\xe9"), os.fsdecode(b"caf\xe9")),
    ],
)
def test_a_mount_point_may_have_any_name(mounts: Path, point: str, written: str) -> None:
    line = f"server:/ /mnt/{written} nfs4 rw 0 0\n"
    mounts.write_bytes(mounts.read_bytes() + os.fsencode(line))
    assert type_of(f"/mnt/{point}/data") == "nfs4"
    assert type_of("/shared/results") == "nfs4"
    assert type_of("/mnt") == "ext4"


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
