"""Find out whether a path or a URL is local, and what kind of file it is.

Some promises of local disks do not hold on a network. SQLite's write-ahead log needs memory that all its
processes share, and locks that work: "WAL does not work over a network filesystem" (sqlite.org/wal.html).
"""

import errno
import os
import stat
from functools import lru_cache
from typing import BinaryIO, TypeVar

import psutil

_TYPES = """
    nfs nfs4 cifs smb3 smbfs 9p afs ceph lustre glusterfs gpfs beegfs wekafs virtiofs pvfs2
    fuse.sshfs fuse.s3fs fuse.gcsfuse fuse.goofys fuse.mount-s3 fuse.glusterfs fuse.ceph-fuse fuse.juicefs
    fuse.rclone fuse.blobfuse2
"""
NETWORK = frozenset(_TYPES.split())
"""Types of file systems whose files other machines may have open as well."""
PIPE, DEVICE = "a named pipe", "a device or socket"
MOST_TEXT_BYTES = 2**28
"""Largest size of a text file, in bytes."""
NAME_BYTES = 255
"""Longest name of a file or folder, in bytes, on all common file systems."""


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
        OSError: the file cannot be opened; some of fsspec's file systems raise errors of their own.
    """
    if not is_url(location):
        return open(no_pipe(location), "rb")
    import fsspec  # 0.1 s that local files need not wait for

    opened: BinaryIO = fsspec.open(location, "rb").open()
    return opened


def text_of(
    path: str | os.PathLike[str],
    *,
    encoding: str = "utf-8",
    errors: str = "strict",
    most: int = MOST_TEXT_BYTES,
) -> str:
    """Return the text of a regular file of bounded size. All text files from outside are read by this.

    Raises:
        OSError: the file cannot be read, is no regular file, or holds more than `most` bytes.
        UnicodeDecodeError: with `errors="strict"`, the file is not text in this encoding.
    """
    with open(no_pipe(path), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most // 2**20} MiB", str(path))
    return content.decode(encoding, errors)


def not_a_file(path: str | os.PathLike[str]) -> str | None:
    """Return what a path names if it is no regular file, such as `a folder`; None if it is one.

    Opening a named pipe or a device may block for ever, and reading one may never end.
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
        OSError: the path is a named pipe, a device or a socket; see `not_a_file`.
    """
    if (got := not_a_file(path)) in (PIPE, DEVICE):
        raise OSError(errno.EINVAL, f"{got}, not a file", str(path))
    return path


def not_writable(folder: str | os.PathLike[str]) -> str | None:
    """Return the reason why a folder cannot be created or written to, or None. Creates nothing."""
    path = os.path.abspath(folder)
    if any(len(os.fsencode(name)) > NAME_BYTES for name in path.split(os.sep)):
        return "a name that is too long"
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    if not os.path.isdir(path):
        return f"{path}, which is no folder"
    return None if os.access(path, os.W_OK | os.X_OK) else f"{path}, which may not be written to"


def not_replaceable(path: str | os.PathLike[str], *, parents: bool = False) -> str | None:
    """Return the reason why a file cannot be written, or None. Creates nothing.

    Args:
        path: the file.
        parents: whether its folder may be missing, since the writer makes it.
    """
    try:
        there = os.path.lexists(path)
        got = not_a_file(path) if there else None
        if got is not None and not os.path.islink(path):
            return got
        folder = os.path.dirname(os.path.abspath(path))
        if not parents and not os.path.isdir(folder):
            return f"{folder}, which is no folder"
        return not_writable(folder) or _bad_name(path)
    except ValueError:
        return "no valid path"


def _bad_name(path: str | os.PathLike[str]) -> str | None:
    """Return the reason why no file can have a name, or None."""
    name = os.path.basename(path)
    if not name:
        return "a path without a name"
    # A file is first written under a name with a few letters more.
    return "a name that is too long" if len(os.fsencode(name)) > NAME_BYTES - 20 else None


def is_network(path: str | os.PathLike[str]) -> bool:
    """True if a path, or the folder in which it will be created, is on a network file system.

    False if the system does not tell.
    """
    return type_of(path) in NETWORK


def type_of(path: str | os.PathLike[str]) -> str | None:
    """Return the system's name for the type of the file system of a path; None if unknown."""
    try:
        mounts = psutil.disk_partitions(all=True)
    except (OSError, NotImplementedError):
        return None
    place = os.path.realpath(path)
    around = [m for m in mounts if place == m.mountpoint or place.startswith(m.mountpoint.rstrip("/") + "/")]
    # The innermost mount counts; of two at one place, the later one.
    return max(reversed(around), key=lambda mount: len(mount.mountpoint)).fstype if around else None
