"""Where a path or a URL leads: some promises of local disks do not hold on a network.

SQLite's write-ahead log needs memory that all its processes share, and locks that work: "WAL does not work
over a network filesystem" (sqlite.org/wal.html).
"""

import errno
import os
import re
import stat
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, TypeVar

MOUNTS = Path("/proc/self/mountinfo")
"""Linux: the mounts that this process sees (proc_pid_mountinfo(5))."""
_TYPES = """
    nfs nfs4 cifs smb3 smbfs 9p afs ceph lustre glusterfs gpfs beegfs wekafs virtiofs pvfs2
    fuse.sshfs fuse.s3fs fuse.gcsfuse fuse.goofys fuse.mount-s3 fuse.glusterfs fuse.ceph-fuse fuse.juicefs
    fuse.rclone fuse.blobfuse2
"""
NETWORK = frozenset(_TYPES.split())
"""Types whose files other machines may have open, too."""
PIPE, DEVICE = "a named pipe", "a device or socket"
NAME_BYTES = 255
"""Of a file's or folder's name: the limit of all common file systems."""

_ESCAPED = re.compile(r"\\(040|011|012|043|134)")
"""A blank, a tab, a line break, # and a backslash, as the kernel writes them in a mount point."""


def is_url(path: str) -> bool:
    """True for `memory://x`, `s3://bucket/x` and the like; False for a path of this machine."""
    return "://" in path


def is_far(location: str) -> bool:
    """True if reading a path or a URL goes through a network."""
    return is_url(location) or _is_far_folder(os.path.dirname(location))


@lru_cache(maxsize=4096)
def _is_far_folder(folder: str) -> bool:
    return is_network(folder)


def open_binary(location: str) -> BinaryIO:
    """Open a path or a URL for reading.

    Raises:
        OSError: it cannot be opened; some of fsspec's file systems raise errors of their own.
    """
    if not is_url(location):
        return open(no_pipe(location), "rb")
    import fsspec  # 0.1 s that local files need not wait for

    opened: BinaryIO = fsspec.open(location, "rb").open()
    return opened


def not_a_file(path: str | os.PathLike[str]) -> str | None:
    """Return what a path leads to in place of a regular file, such as `a folder`; None: it is one.

    Opening a named pipe or a device may wait for ever, and reading one may never end.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        return (error.strerror or type(error).__name__).lower()
    except ValueError:  # a null byte
        return "no valid path"
    if stat.S_ISREG(mode):
        return None
    if stat.S_ISDIR(mode):
        return "a folder"
    return PIPE if stat.S_ISFIFO(mode) else DEVICE


P = TypeVar("P", bound=str | os.PathLike[str])


def no_pipe(path: P) -> P:
    """Return the path of a file that is about to be opened.

    Raises:
        OSError: it is a named pipe, a device or a socket: see `not_a_file`.
    """
    if (got := not_a_file(path)) in (PIPE, DEVICE):
        raise OSError(errno.EINVAL, f"{got}, not a file", str(path))
    return path


def not_writable(folder: str | os.PathLike[str]) -> str | None:
    """Return why a folder cannot be made or written to; None: nothing speaks against it. Makes nothing."""
    path = os.path.abspath(folder)
    if any(len(os.fsencode(name)) > NAME_BYTES for name in path.split(os.sep)):
        return "a name that is too long"
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        return f"{path}, which is no folder"
    return None if os.access(path, os.W_OK | os.X_OK) else f"{path}, which may not be written to"


def is_network(path: str | os.PathLike[str], mounts: Path = MOUNTS) -> bool:
    """True if a path, or the folder that it will be made in, is on a network file system.

    Where the kernel does not say, such as on macOS: False.
    """
    return type_of(path, mounts) in NETWORK


def type_of(path: str | os.PathLike[str], mounts: Path = MOUNTS) -> str | None:
    """Return the type of the file system that a path is on, as the kernel calls it; None: unknown."""
    try:
        lines = os.fsdecode(mounts.read_bytes()).split("\n")
    except OSError:
        return None
    place = os.path.realpath(path)
    found, kind = "", None
    for line in filter(None, lines):
        fields, _, rest = line.partition(" - ")
        point = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), fields.split(" ")[4])
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(found):  # the innermost mount; of two at one place the later
            found, kind = point, rest.split()[0]
    return kind
