"""A laptop and two hosts on one machine, for tests of what crosses a network: `ray up`, jobs, node loss.

Each has its own processes, network, mounts and, the hosts, their own name, home, temp folder and sshd; the
laptop is 10.99.0.1 on a bridge, the hosts are 10.99.0.2 and 10.99.0.3. Everything lives in namespaces below
one process, so nothing of the machine is touched, and all of it goes when that process goes. Both hosts see
the folder /mnt as shared storage; /srv is each host's own.

Needs Linux, root, and the programs in `PROGRAMS`.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PROGRAMS = ("sshd", "ssh", "ssh-keygen", "rsync", "ip", "unshare", "nsenter", "openssl")
UNSHARE = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOSTS = {"head": "10.99.0.2", "worker": "10.99.0.3"}
SHARED, OWN = Path("/mnt"), Path("/srv")
ADDRESS = "http://127.0.0.1:8265"
TOKEN = "lab-token-" + "0123456789abcdef" * 3
OLD_COPY = "an older copy of finetune, installed on the node"

WATCHER = (
    "RAY_AUTH_MODE=token nohup python ~/transfer/spot.py --cloud aws --server http://127.0.0.1:9"
    " < /dev/null > /tmp/ray/spot.log 2>&1 &"
)
"""As in the cluster files; nobody answers there, so it asks on."""

# Runs as the first process of the laptop's namespaces.
LAPTOP = r"""
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs /run
ip link set lo up
ip link add lab type bridge
ip addr add 10.99.0.1/24 dev lab
ip link set lab up
for pair in $HOSTS; do
  name=${pair%%=*} address=${pair##*=}
  ip netns add "$name"
  ip link add "v$name" type veth peer name eth0 netns "$name"
  ip link set "v$name" master lab up
  ip netns exec "$name" ip addr add "$address/24" dev eth0
  ip netns exec "$name" ip link set eth0 up
  ip netns exec "$name" ip link set lo up
  ip netns exec "$name" unshare --mount --pid --uts --fork --kill-child --mount-proc \
    bash -c "$HOST" "$name" >"$LAB/$name/sshd.log" 2>&1 &
done
exec sleep infinity
"""

# Runs as the first process of a host's namespaces; $0 is its name.
HOST = r"""
set -eu
mount --make-rprivate /
hostname "$0"
cd "$LAB/$0"
mount --bind "$PWD/ray" /tmp/ray
mount --bind "$PWD/run" /run
mount --bind "$PWD/passwd" /etc/passwd
mount --bind "$PWD/hosts" /etc/hosts
mount --bind "$PWD/installed" "$INSTALLED"
mount --bind "$LAB/shared" /mnt
mount --bind "$PWD/own" /srv
mount -t tmpfs tmpfs /dev/shm
mkdir -p /run/sshd
exec $(command -v sshd) -D -e -f "$PWD/sshd_config"
"""


def lacking() -> str:
    """Return why this machine cannot have the lab, or nothing if it can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "the lab needs root on Linux"
    missing = [name for name in PROGRAMS if shutil.which(name, path=SYSTEM_PATH) is None]
    if missing:
        return f"the lab needs {', '.join(missing)} (Debian: openssh-server rsync iproute2 openssl)"
    if installed_link() is None:
        return "the lab needs the editable install that `make dev` makes"
    tried = subprocess.run(
        [*UNSHARE, "--uts", "ip", "link", "add", "lab", "type", "bridge"],
        env={"PATH": SYSTEM_PATH},
        capture_output=True,
        text=True,
    )
    return f"the lab needs namespaces and a bridge: {tried.stderr.strip()}" if tried.returncode else ""


def installed_link() -> Path | None:
    """Return the file of the environment that says where the installed `finetune` is."""
    found = sorted(Path(sysconfig.get_path("purelib")).glob("__editable__.finetune-*.pth"))
    return found[0] if found else None


class Lab:
    """The laptop and its two hosts, from start to end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "laptop"
        self.cluster_file = self.home / "cluster.yaml"
        self.shared = folder / "shared"
        self._make_folders()
        for name in HOSTS:
            self._make_host(name)
        self.saved: dict[int, list[float]] = {}
        """What one scene leaves for another: the seconds of each saved epoch, by trial."""
        self._init: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator["Lab"]:
        """Start the namespaces; end every process in them afterwards."""
        hosts = " ".join(f"{name}={address}" for name, address in HOSTS.items())
        environment = {"LAB": str(self.folder), "HOSTS": hosts, "HOST": HOST, "PATH": SYSTEM_PATH}
        environment["INSTALLED"] = str(installed_link())
        self._init = subprocess.Popen([*UNSHARE, "bash", "-c", LAPTOP], env=environment)
        try:
            self._wait_for_sshd()
            yield self
        finally:
            self._init.kill()
            self._init.wait()

    def laptop(
        self, *words: str, check: bool = True, timeout: float = 120, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the laptop, in the checkout; stdout and stderr stay apart."""
        done = subprocess.run(
            self.words(*words), env=self.environment(**environment), cwd=ROOT, capture_output=True,
            text=True, timeout=timeout, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{shlex.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def search(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `python -m search` on the laptop."""
        return self.laptop(sys.executable, "-m", "search", *words, **options)

    def ray(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `ray` on the laptop."""
        return self.laptop(str(Path(sys.executable).with_name("ray")), *words, **options)

    @contextlib.contextmanager
    def background(self, *words: str) -> Iterator[None]:
        """Run `ray` on the laptop until the caller is done."""
        ray = str(Path(sys.executable).with_name("ray"))
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(self.words(ray, *words), env=self.environment(), cwd=ROOT, **quiet)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(child(process.pid), signal.SIGINT)
            process.wait(timeout=20)

    @contextlib.contextmanager
    def tunnel(self) -> Iterator[None]:
        """Keep `ray dashboard` open at `ADDRESS`, where the laptop's environment looks for the cluster."""
        with self.background("dashboard", str(self.cluster_file)):
            answers = ["curl", "--silent", "--output", "/dev/null", ADDRESS]
            self.wait("a tunnel", lambda: not self.laptop(*answers, check=False).returncode, seconds=30)
            yield

    def wait(self, what: str, is_so: Callable[[], bool], seconds: float) -> None:
        """Wait until something is so.

        Raises:
            AssertionError: it is not within so many seconds.
        """
        end = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > end:
                raise AssertionError(f"the lab: {what} within {seconds:.0f} s")
            time.sleep(0.5)

    def words(self, *words: str) -> list[str]:
        """Return the words that run a command in the laptop's namespaces."""
        assert self._init is not None
        target = str(child(self._init.pid))
        return ["nsenter", "--target", target, "--mount", "--net", "--pid", *words]

    def environment(self, **changes: str) -> dict[str, str]:
        """Return the laptop's environment: a home of its own, nothing of whoever runs the tests."""
        return {
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}",
            "RAY_TMPDIR": str(self.folder / "t"),
            "RAY_AUTH_MODE": "token",
            "RAY_ADDRESS": ADDRESS,
            "RAY_UP_enable_autoscaler_v2": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT}:{ROOT}/src",
            **changes,
        }

    def on(self, host: str, command: str, check: bool = True, timeout: float = 60) -> str:
        """Run a shell command on a host by ssh and return what it wrote."""
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        settings = [word for option in options for word in ("-o", option)]
        target = ["-i", str(self.home / "key"), *settings, f"root@{HOSTS[host]}"]
        return self.laptop("ssh", *target, command, check=check, timeout=timeout).stdout

    def pids(self, host: str, name: str) -> list[int]:
        """Return the processes of a host whose program is called `name`."""
        return [int(pid) for pid in self.on(host, f"pidof {name}", check=False).split()]

    def _make_folders(self) -> None:
        for name in ("laptop/.ray", "shared", "t", "old/finetune"):
            (self.folder / name).mkdir(parents=True)
        Path("/tmp/ray").mkdir(exist_ok=True)  # the hosts' own are bound over it
        old = f"raise ImportError({OLD_COPY!r})\n"
        (self.folder / "old" / "finetune" / "__init__.py").write_text(old)
        token = self.home / ".ray" / "auth_token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        key = self.home / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        self.cluster_file.write_text(yaml.safe_dump(self.cluster()))

    def _make_host(self, name: str) -> None:
        host = self.folder / name
        for folder in ("ray", "run", "own", "home/.ssh"):
            (host / folder).mkdir(parents=True)
        (host / "passwd").write_text(
            f"root:x:0:0:root:{host}/home:/bin/bash\nsshd:x:100:65534::/run/sshd:/\n"
        )
        (host / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for n, a in HOSTS.items()))
        (host / "installed").write_text(f"{self.folder}/old\n")
        path = f"export PATH={Path(sys.executable).parent}:{SYSTEM_PATH}\n"
        for file in (".bashrc", ".profile"):
            (host / "home" / file).write_text(path)
        authorized = host / "home" / ".ssh" / "authorized_keys"
        shutil.copy(self.home / "key.pub", authorized)
        authorized.chmod(0o600)
        key = host / "host_key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        settings = ["UsePAM no", "StrictModes no", "PermitRootLogin yes", "PasswordAuthentication no"]
        settings += [f"HostKey {key}", "PidFile none", "AllowTcpForwarding yes", "PrintMotd no"]
        settings += [f"SetEnv PATH={Path(sys.executable).parent}:{SYSTEM_PATH}"]
        (host / "sshd_config").write_text("\n".join(settings) + "\n")

    def cluster(self) -> dict[str, Any]:
        """Return the lab's cluster file: `configs/clusters/onprem.yaml` with these hosts and small limits."""
        return {
            "cluster_name": "lab",
            "provider": {"type": "local", "head_ip": HOSTS["head"], "worker_ips": [HOSTS["worker"]]},
            "auth": {"ssh_user": "root", "ssh_private_key": str(self.home / "key")},
            "min_workers": 1,
            "max_workers": 1,
            "idle_timeout_minutes": 60,
            "file_mounts": {
                "~/.ray/auth_token": str(self.home / ".ray" / "auth_token"),
                "~/transfer/spot.py": str(ROOT / "search" / "spot.py"),
            },
            "setup_commands": ["chmod 600 ~/.ray/auth_token"],
            "head_start_ray_commands": ["ray stop", start("--head --port=6379", "head")],
            "worker_start_ray_commands": [
                "ray stop",
                start("--address=$RAY_HEAD_IP:6379", "worker"),
                WATCHER,
            ],
        }

    def _wait_for_sshd(self) -> None:
        end = time.monotonic() + 20
        for name in HOSTS:
            while time.monotonic() < end:
                with contextlib.suppress(AssertionError, IndexError, FileNotFoundError):
                    self.on(name, "true")
                    break
                time.sleep(0.2)
            else:
                log = (self.folder / name / "sshd.log").read_text()
                raise AssertionError(f"{name}: sshd must answer within 20 s, got {log!r}")


def child(pid: int) -> int:
    """Return the only child of a process: `unshare` and `nsenter` run what they are given in one."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def start(how: str, host: str) -> str:
    """Return the command that starts Ray on a host: one core, a small object store, loopback dashboard."""
    environment = "PYTHONPATH=src RAY_AUTH_MODE=token OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0"
    scaling = " --autoscaling-config=~/ray_bootstrap_config.yaml --dashboard-host=127.0.0.1"
    limits = "--num-cpus=1 --object-store-memory=80000000 --disable-usage-stats"
    return f"{environment} ray start {how} {limits}{scaling if host == 'head' else ''}"
