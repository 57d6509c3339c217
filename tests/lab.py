"""A laptop and two hosts on one machine, for tests of what crosses a network: `ray up`, jobs, node loss.

Each has its own processes, network, mounts and, the hosts, their own name, home, temp folder and sshd; the
laptop is 10.99.0.1 on a bridge, the hosts are 10.99.0.2 and 10.99.0.3. Everything lives in namespaces below
one process, so nothing of the machine is touched, and all of it goes when that process goes. Both hosts see
the folder /mnt as shared storage; /srv is each host's own.

Needs Linux, root, and the programs in `PROGRAMS`.
"""

import contextlib
import hashlib
import secrets
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests import machine
from tests.machine import RAY, ROOT, SYSTEM_PATH, Machine
from tests.waiting import eventually

PROGRAMS = (*machine.PROGRAMS, "sshd", "ssh", "ssh-keygen", "rsync", "openssl")
HOSTS = {"head": "10.99.0.2", "worker": "10.99.0.3"}
SHARED, OWN = Path("/mnt"), Path("/srv")
ADDRESS = "http://127.0.0.1:8265"
TOKEN = "lab-token-" + "0123456789abcdef" * 3
ENVIRONMENT = {"RAY_AUTH_MODE": "token", "RAY_ADDRESS": ADDRESS, "RAY_UP_enable_autoscaler_v2": "0"}
"""The laptop's. Ray 2.60's newer autoscaler starts no worker on given hosts."""
OLD_COPY = "an older copy of finetune, installed on the node"

WATCHER = (
    "RAY_AUTH_MODE=token nohup python ~/transfer/spot.py --cloud aws --server http://127.0.0.1:9"
    " < /dev/null > /tmp/ray/spot.log 2>&1 &"
)
"""As in the cluster files; nobody answers there, so it asks on."""

# What the laptop has beside other machines: a bridge, and hosts on it.
LAPTOP = r"""
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
    bash -c "$HOST" "$name" >"$FOLDER/$name/sshd.log" 2>&1 &
done
"""

# Runs as the first process of a host's namespaces; $0 is its name.
HOST = r"""
set -eu
mount --make-rprivate /
hostname "$0"
cd "$FOLDER/$0"
mount --bind "$PWD/ray" /tmp/ray
mount --bind "$PWD/run" /run
mount --bind "$PWD/passwd" /etc/passwd
mount --bind "$PWD/hosts" /etc/hosts
mount --bind "$PWD/installed" "$INSTALLED"
mount --bind "$FOLDER/shared" /mnt
mount --bind "$PWD/own" /srv
mount -t tmpfs tmpfs /dev/shm
mkdir -p /run/sshd
exec $(command -v sshd) -D -e -f "$PWD/sshd_config"
"""


def lacking() -> str:
    """Return why this machine cannot have the lab, or nothing if it can."""
    if installed_link() is None:
        return "the lab needs the editable install that `make dev` makes"
    return machine.lacking(PROGRAMS)


def installed_link() -> Path | None:
    """Return the file of the environment that says where the installed packages are."""
    found = sorted(Path(sysconfig.get_path("purelib")).glob("__editable__.transfer_search-*.pth"))
    return found[0] if found else None


class Lab(Machine):
    """The laptop and its two hosts, from start to end; commands run on the laptop."""

    def __init__(self, folder: Path) -> None:
        hosts = " ".join(f"{name}={address}" for name, address in HOSTS.items())
        super().__init__(folder, LAPTOP, ENVIRONMENT, HOSTS=hosts, HOST=HOST, INSTALLED=str(installed_link()))
        self.cluster_file = self.home / "cluster.yaml"
        # Ray keeps its ssh connections at /tmp/ray_ssh_USER/CLUSTER, one folder for all namespaces:
        # a lab of the same name would get its commands run on the hosts of another one.
        self.name = f"lab-{secrets.token_hex(4)}"
        self._make_folders()
        for name in HOSTS:
            self._make_host(name)
        self.saved: dict[int, list[float]] = {}
        """What one scene leaves for another: the seconds of each saved epoch, by trial."""

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Start laptop and hosts; end every process on them afterwards."""
        with super().running():
            self._wait_for_sshd()
            yield
        connections = hashlib.sha256(self.name.encode()).hexdigest()[:10]  # as Ray names the folder
        for folder in Path("/tmp").glob(f"ray_ssh_*/{connections}"):
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def tunnel(self) -> Iterator[None]:
        """Keep `ray dashboard` open at `ADDRESS`, where the laptop's environment looks for the cluster."""
        with self.background(RAY, "dashboard", str(self.cluster_file)):
            answers = ["curl", "--silent", "--output", "/dev/null", ADDRESS]
            self.wait("a tunnel", lambda: not self.run(*answers, check=False).returncode)
            yield

    def on(self, host: str, command: str, check: bool = True) -> str:
        """Run a shell command on a host by ssh and return what it wrote."""
        options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        settings = [word for option in options for word in ("-o", option)]
        target = ["-i", str(self.home / "key"), *settings, f"root@{HOSTS[host]}"]
        return self.run("ssh", *target, command, check=check).stdout

    def pids(self, host: str, name: str) -> list[int]:
        """Return the processes of a host whose program is called `name`."""
        return [int(pid) for pid in self.on(host, f"pidof {name}", check=False).split()]

    def _make_folders(self) -> None:
        for path in (self.home / ".ray", self.folder / "old" / "finetune"):
            path.mkdir(parents=True)
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
            "cluster_name": self.name,
            "provider": {"type": "local", "head_ip": HOSTS["head"], "worker_ips": [HOSTS["worker"]]},
            "auth": {"ssh_user": "root", "ssh_private_key": str(self.home / "key")},
            "min_workers": 1,
            "max_workers": 1,
            "idle_timeout_minutes": 60,
            "file_mounts": {
                "~/.ray/auth_token": str(self.home / ".ray" / "auth_token"),
                "~/transfer/spot.py": str(ROOT / "search" / "cluster" / "spot.py"),
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
        def answers(name: str) -> bool:
            with contextlib.suppress(AssertionError, IndexError, FileNotFoundError):
                self.on(name, "true")
                return True
            return False

        def all_answer() -> bool:
            return all(answers(name) for name in HOSTS)

        logs = [self.folder / name / "sshd.log" for name in HOSTS]
        eventually(all_answer, lambda: f"sshd answers, got {[log.read_text() for log in logs]}")


def start(how: str, host: str) -> str:
    """Return the command that starts Ray on a host: one core, a small object store, loopback dashboard.

    `ray start` gives a raylet 30 s, and the autoscaler does not set up again a host on which it has failed.
    On a busy machine that is too little, so the command tries three times.
    """
    environment = "PYTHONPATH=src RAY_AUTH_MODE=token OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0"
    environment += " RAY_worker_niceness=0"  # see tests/conftest.py
    scaling = " --autoscaling-config=~/ray_bootstrap_config.yaml --dashboard-host=127.0.0.1"
    limits = "--num-cpus=1 --object-store-memory=80000000 --disable-usage-stats"
    command = f"{environment} ray start {how} {limits}{scaling if host == 'head' else ''}"
    return f"{command} || (ray stop --force; {command}) || (ray stop --force; {command})"
