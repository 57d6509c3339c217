"""Which file system a path is on, by the kernel's own list of mounts."""

import sqlite3
from pathlib import Path

import pytest

from finetune.filesystems import is_network, type_of
from search import ledger

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


def test_this_machine_s_own_mounts_are_understood() -> None:
    assert type_of("/proc/self") == "proc"


@pytest.mark.parametrize(("network", "mode"), [(False, "wal"), (True, "delete")])
def test_the_record_keeps_a_write_ahead_log_on_local_disks_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: bool, mode: str
) -> None:
    """SQLite's write-ahead log does not work over a network file system."""
    monkeypatch.setattr(ledger, "is_network", lambda path: network)
    with ledger.open_storage(tmp_path / "optuna.db").engine.connect() as connection:
        assert connection.exec_driver_sql("pragma journal_mode").scalar() == mode
    with sqlite3.connect(tmp_path / "optuna.db") as again:
        assert again.execute("pragma integrity_check").fetchone() == ("ok",)
    again.close()
