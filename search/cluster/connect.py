"""Connect a laptop to a cluster: find its address, open a tunnel, read the token, make Ray's job client.

Jobs are submitted to Ray's dashboard, which listens on the head's loopback only. `--cluster FILE` opens an
SSH tunnel to it for the duration of a command (with `ray dashboard`); `--address URL` uses a tunnel that is
already open.
"""

import contextlib
import logging
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from finetune.disk.filesystems import not_a_file, text_of
from search.errors import ClusterError
from search.views.terminal import clean

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Variables that name a cluster, in the order in which Ray's own job client reads them."""
DASHBOARD_PORT = 8265
TUNNEL_SECONDS = 60.0
"""Seconds for `ray dashboard` to connect; ssh itself has as long."""
CLUSTER_FILE = Path("cluster.yaml")
_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers of Ray that report every upload and connection."""


def is_given(address: str | None, cluster: Path | None) -> bool:
    """True if the options or the environment name a cluster."""
    return bool(address or cluster or any(map(os.environ.get, ADDRESS_VARIABLES)))


@contextlib.contextmanager
def client(address: str | None, cluster: Path | None, say: Callable[[str], None]) -> Iterator[Any]:
    """Connect to the jobs API of the cluster that an option, the environment or ./cluster.yaml names.

    The first of these that names one counts.

    Args:
        address: URL of Ray's dashboard, or another address that Ray's job client understands.
        cluster: Cluster file that `ray up` used; not together with `address`.
        say: Called with each message for the user.

    Yields:
        Ray's `JobSubmissionClient`.

    Raises:
        ClusterError: no cluster is named, it does not answer, or the token is missing or refused.
    """
    if address and cluster:
        raise ClusterError(
            f"cluster: must be named once, got --address {address} and --cluster {cluster}. Leave one out."
        )
    if not address and not cluster:
        address = next(filter(None, map(os.environ.get, ADDRESS_VARIABLES)), None)
    if address:
        if _travels_in_plain_text(address):
            say(
                f"caution: {address} carries the cluster's token in plain text; a tunnel (--cluster) does not"
            )
        with _refusals(address):
            yield _connect(address)
        return
    file = cluster or _default_file()
    with tunnel(file) as local, _refusals(str(file)):
        yield _connect(local)


def token() -> str | None:
    """Return the cluster's token, from where Ray itself looks for it; None with RAY_AUTH_MODE=disabled.

    A token file that other users could read is made private.

    Raises:
        ClusterError: there is no token.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() == "disabled":
        return None
    if given := os.environ.get("RAY_AUTH_TOKEN"):
        return given.strip()
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            path.chmod(0o600)
        if text := text_of(path).strip():
            return text
        got = "an empty file"
    except OSError as error:
        got = (error.strerror or "an error").lower()
    raise ClusterError(
        f"{path}: the cluster's token must be readable, got {got}. Make one before `ray up` with "
        "`(umask 077; ray get-auth-token --generate)`, or copy the one that the cluster was started with."
    )


@contextlib.contextmanager
def tunnel(cluster: Path) -> Iterator[str]:
    """Open an SSH tunnel to the dashboard of a cluster that `ray up` started, and close it at the end.

    Yields:
        The URL of the tunnel's end on this machine.

    Raises:
        ClusterError: the tunnel could not be opened.
    """
    if (got := not_a_file(cluster)) is not None:
        raise ClusterError(
            f"{cluster}: --cluster must name a cluster file of Ray, got {got}. Check the path."
        )
    port = _free_port()
    words = [str(Path(sys.executable).with_name("ray")), "dashboard", str(cluster)]
    words += ["--port", str(port), "--remote-port", str(DASHBOARD_PORT)]
    with tempfile.TemporaryFile("w+") as log:
        ray = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
        try:
            if not _opened(ray, port):
                log.seek(0)
                lines = [line for line in log.read().splitlines() if line.strip()]
                raise ClusterError(
                    f"{cluster}: a tunnel to the cluster's head must open within {TUNNEL_SECONDS:.0f} s, got "
                    f"'{clean(lines[-1]) if lines else 'no answer'}'. Is it up (`ray up {cluster}`)?"
                )
            yield f"http://127.0.0.1:{port}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(ray.pid, 15)  # SIGTERM to `ray dashboard` and its child ssh, which share a session
            ray.wait()


def _default_file() -> Path:
    if CLUSTER_FILE.is_file():
        return CLUSTER_FILE
    raise ClusterError(
        "cluster: must be named, got no --cluster, no --address, no RAY_ADDRESS and no cluster.yaml in the "
        "current folder. Add --cluster FILE."
    )


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def _opened(ray: subprocess.Popen[Any], port: int) -> bool:
    end = time.monotonic() + TUNNEL_SECONDS
    while time.monotonic() < end and ray.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        time.sleep(0.1)
    return False


def _connect(address: str) -> Any:
    secret = token()
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    # Ray's client prefers this variable to its argument.
    os.environ[ADDRESS_VARIABLES[0]] = address
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    try:
        return JobSubmissionClient(address, headers=headers)
    except (ValueError, RuntimeError) as error:  # Ray's client cannot read the address
        if isinstance(error, RayError):
            raise
        rule = "an address must be that of a Ray dashboard"
        raise ClusterError(
            f"{address}: {rule}, got '{clean(error)}'. Write http://HOST:8265, or use --cluster FILE."
        ) from None


def _travels_in_plain_text(address: str) -> bool:
    parts = urlsplit(address)
    return parts.scheme == "http" and parts.hostname not in ("127.0.0.1", "localhost", "::1")


@contextlib.contextmanager
def _refusals(where: str) -> Iterator[None]:
    """Turn a refused token or connection into a ClusterError of one line."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        got = "a wrong one" if "invalid" in str(error).lower() else "none"
        raise ClusterError(
            f"{where}: the cluster asks for its token, got {got}. Copy the file ~/.ray/auth_token of the "
            "machine that ran `ray up`, and unset RAY_AUTH_TOKEN if it holds another."
        ) from None
    except ConnectionError as error:
        raise ClusterError(
            f"{where}: a Ray dashboard must answer, got '{clean(error)}'. Is the cluster up, and the "
            "tunnel open (`ray dashboard cluster.yaml`)?"
        ) from None
