"""Watch for the cloud's notice that it takes this spot machine back, and then drain the machine's Ray node.

The study then saves the running trial at the end of its epoch and continues it in another slot. Ray's own
node providers do not look for such notices. This script runs on every spot worker beside Ray, for as long as
the machine lives. It needs only Python and the `ray` command, so this one file can be copied there:

    file_mounts:
      /home/ubuntu/transfer/spot.py: search/cluster/spot.py
    worker_start_ray_commands:            # behind `ray start`
      - RAY_AUTH_MODE=token nohup python ~/transfer/spot.py < /dev/null > /tmp/spot.log 2>&1 &

AWS gives notice two minutes ahead (EC2 User Guide, "Spot Instance interruption notices"; IMDSv2), Google
Cloud 30 seconds (Compute Engine, "Preemptible VM instances").
"""

import argparse
import datetime
import functools
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable

AWS = "http://169.254.169.254"
GCP = "http://metadata.google.internal"
LOOK_SECONDS = 2.0
"""Seconds between two requests: AWS advises 5 at most, and of Google's 30 seconds none should be lost."""
ANSWER_SECONDS = 2.0
"""Seconds for the metadata server to answer; it is on the same machine."""
AWS_TOKEN_SECONDS = 300
"""Seconds for which a session token of AWS's metadata server is valid."""
AWS_NOTICE_SECONDS = 120
"""Seconds assumed to be left if AWS's notice has no readable time."""
GCP_NOTICE_SECONDS = 30
"""Seconds left after Google's notice, which has no time."""

Look = Callable[[], int | None]
"""Type of `aws` and `gcp`: return the seconds left to the machine, or None if no notice has come."""


def aws(server: str = AWS) -> int | None:
    """Return the seconds until EC2 takes this machine back, or None if no notice has come.

    Raises:
        OSError: no metadata server of AWS answers.
    """
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(AWS_TOKEN_SECONDS)}
    token = _ask(f"{server}/latest/api/token", ttl, method="PUT")
    try:
        notice = _ask(f"{server}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as answer:
        if answer.code == 404:  # documented: there is no notice
            return None
        raise
    try:
        then = datetime.datetime.fromisoformat(json.loads(notice)["time"].replace("Z", "+00:00"))
    except (ValueError, KeyError, TypeError):
        return AWS_NOTICE_SECONDS
    return max(0, round((then - datetime.datetime.now(datetime.timezone.utc)).total_seconds()))


def gcp(server: str = GCP) -> int | None:
    """Return the seconds until Compute Engine takes this machine back, or None if no notice has come.

    Raises:
        OSError: no metadata server of Google Cloud answers.
    """
    url = f"{server}/computeMetadata/v1/instance/preempted"
    answer = _ask(url, {"Metadata-Flavor": "Google"}).strip()
    return GCP_NOTICE_SECONDS if answer == "TRUE" else None


def watch(look: Look, drain: Callable[[int], None], every: float = LOOK_SECONDS) -> None:
    """Wait for a notice, drain the node and return; a metadata server that fails is asked again."""
    while True:
        try:
            left = look()
        except OSError as error:
            print(f"spot: the metadata server must answer, got {error}. Asking on.", file=sys.stderr)
            left = None
        if left is not None:
            drain(left)
            return
        time.sleep(every)


def drain(left: int, *, node_id: str | None = None, address: str | None = None) -> None:
    """Tell Ray that a node will be gone in `left` seconds; repeat this until Ray accepts it.

    Args:
        left: seconds that are left to the machine.
        node_id: id of the Ray node; None: the node on this machine.
        address: address of the Ray cluster; None: the one that runs here.

    Raises:
        subprocess.SubprocessError: Ray did not accept the drain in that time.
    """
    beside = shutil.which("ray", path=os.path.dirname(sys.executable))  # `ray` of this Python's environment
    words = [beside or "ray", "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    words += ["--reason-message", "spot notice", "--deadline-remaining-seconds", str(left)]
    words += ["--node-id", node_id] if node_id else []
    words += ["--address", address] if address else []
    deadline = time.monotonic() + max(left, 1)
    while True:
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode == 0:
            print(f"spot: the node is drained, the machine goes in {left} s", file=sys.stderr)
            return
        if time.monotonic() >= deadline:
            raise subprocess.SubprocessError(done.stderr or done.stdout)
        time.sleep(1)


def find_cloud() -> Look:
    """Return `aws` or `gcp`, whichever metadata server answers on this machine.

    Raises:
        OSError: neither answers.
    """
    for look in (aws, gcp):
        try:
            look()
        except OSError:
            continue
        return look
    raise OSError("no metadata server of AWS or Google Cloud answers")


def main(arguments: list[str] | None = None) -> int:
    """Watch this machine; return 0 after a notice has been passed on, 1 if no metadata server answers."""
    parser = argparse.ArgumentParser(description="Drain this Ray node when the cloud takes its machine back.")
    parser.add_argument("--cloud", choices=("aws", "gcp"), help="left out: the one that answers")
    parser.add_argument("--server", help="with --cloud: URL of its metadata server")
    parser.add_argument("--node-id", help="the Ray node to drain; left out: the one on this machine")
    parser.add_argument("--address", help="of the Ray cluster; left out: the one that runs here")
    given = parser.parse_args(arguments)
    try:
        look = _look(given.cloud, given.server) if given.cloud else find_cloud()
    except OSError as error:
        print(f"spot: {error}; nothing to watch", file=sys.stderr)
        return 1
    watch(look, lambda left: drain(left, node_id=given.node_id, address=given.address))
    return 0


def _look(cloud: str, server: str | None) -> Look:
    look, usual = {"aws": (aws, AWS), "gcp": (gcp, GCP)}[cloud]
    return functools.partial(look, server or usual)


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(url, headers=headers, method=method)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy would ask its own machine
    with direct.open(request, timeout=ANSWER_SECONDS) as answer:
        text: str = answer.read().decode()
        return text


if __name__ == "__main__":
    sys.exit(main())
