"""A machine on this one: namespaces with processes, a network and mounts that nobody else has or sees.

All of it goes when its first process goes. Needs Linux, root, and the programs in `PROGRAMS`.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.waiting import eventually

ROOT = Path(__file__).parents[1]
WATCHDOG_SECONDS = 800.0
"""For any command and any wait, of which some are for a study to end on slow hosts."""
PROGRAMS = ("ip", "unshare", "nsenter")
UNSHARE = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
RAY = str(Path(sys.executable).with_name("ray"))

# Runs as the first process of the namespaces; SCRIPT makes what a machine has besides.
FIRST = r"""
set -eu
mount --make-rprivate /
mount --bind "$FOLDER/ray" /tmp/ray
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
ip link set lo up
eval "$SCRIPT"
touch "$FOLDER/up"
exec sleep infinity
"""
SHARED_AT_MNT = 'mount --bind "$FOLDER/shared" /mnt'
"""A script: the machine sees what is shared where the lab's hosts do."""


def lacking(programs: Sequence[str] = PROGRAMS) -> str:
    """Return why this machine cannot have another one on it, or nothing if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "the lab needs root on Linux"
    missing = [name for name in programs if shutil.which(name, path=SYSTEM_PATH) is None]
    if missing:
        return f"the lab needs {', '.join(missing)} (Debian: openssh-server rsync iproute2 openssl)"
    tried = subprocess.run(
        [*UNSHARE, "--uts", "ip", "link", "add", "lab", "type", "bridge"],
        env={"PATH": SYSTEM_PATH},
        capture_output=True,
        text=True,
    )
    return f"the lab needs namespaces and a bridge: {tried.stderr.strip()}" if tried.returncode else ""


class Machine:
    """One machine, from start to end.

    Args:
        folder: for all that it keeps.
        script: what its first process does beside what every machine's does; reads `settings`.
        environment: of every command, beside a home of its own and the checkout on the path.
    """

    def __init__(self, folder: Path, script: str, environment: dict[str, str], **settings: str) -> None:
        self.folder, self.home, self.shared = folder, folder / "home", folder / "shared"
        for path in (self.home, self.shared, folder / "ray"):
            path.mkdir(parents=True)
        Path("/tmp/ray").mkdir(exist_ok=True)  # the machine's own is bound over it
        self._first_environment = {"PATH": SYSTEM_PATH, "FOLDER": str(folder), "SCRIPT": script, **settings}
        self._environment = environment
        self._first: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start the namespaces; end every process in them afterwards."""
        self._first = subprocess.Popen([*UNSHARE, "bash", "-c", FIRST], env=self._first_environment)
        try:
            self.wait("namespaces", (self.folder / "up").exists)
            yield
        finally:
            self._first.kill()
            self._first.wait()

    def run(self, *words: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the checkout; stdout and stderr stay apart."""
        done = subprocess.run(
            self.words(*words), env=self.environment(**environment), cwd=ROOT, capture_output=True,
            text=True, timeout=WATCHDOG_SECONDS, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{shlex.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def search(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `python -m search`."""
        return self.run(sys.executable, "-m", "search", *words, **options)

    def ray(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `ray`."""
        return self.run(RAY, *words, **options)

    @contextlib.contextmanager
    def background(self, *words: str, log: Path = Path(os.devnull)) -> Iterator[subprocess.Popen[bytes]]:
        """Run a command until the caller is done; what it writes goes to `log`."""
        with log.open("wb") as file:
            process = subprocess.Popen(
                self.words(*words), env=self.environment(), cwd=ROOT, stdin=subprocess.DEVNULL,
                stdout=file, stderr=file,
            )  # fmt: skip
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError, IndexError, FileNotFoundError):
                os.kill(child(process.pid), signal.SIGINT)
            process.wait(timeout=WATCHDOG_SECONDS)

    def wait(self, what: str, is_so: Callable[[], bool]) -> None:
        """Wait until something is so; each look may be a command on a host."""
        eventually(is_so, f"the lab: {what}", WATCHDOG_SECONDS, every=0.5)

    def words(self, *words: str) -> list[str]:
        """Return the words that run a command in the machine's namespaces."""
        assert self._first is not None
        target = str(child(self._first.pid))
        return ["nsenter", "--target", target, "--mount", "--net", "--pid", *words]

    def environment(self, **changes: str) -> dict[str, str]:
        """Return the environment of commands: nothing of whoever runs the tests."""
        return {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0",  # see tests/conftest.py
            "PYTHONPATH": f"{ROOT}:{ROOT}/src",
            **self._environment,
            **changes,
        }


def child(pid: int) -> int:
    """Return the only child of a process: `unshare` and `nsenter` run what they are given in one."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
