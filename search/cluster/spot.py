"""Turns a cloud's notice that this spot machine is about to be taken back into Ray's drain of its node.

The study then saves the running trial at the end of its epoch and goes on with it in another slot.
Ray's own node providers do not look for such notices. Runs on every spot worker beside Ray, for as long as
the machine lives; it needs nothing but Python and the `ray` command, so the one file can be copied there:

    file_mounts:
      /home/ubuntu/transfer/spot.py: search/cluster/spot.py
    worker_start_ray_commands:            # behind `ray start`
      - RAY_AUTH_MODE=token nohup python ~/transfer/spot.py < /dev/null > /tmp/spot.log 2>&1 &

AWS tells two minutes ahead (EC2 User Guide, "Spot Instance interruption notices"; IMDSv2), Google Cloud
30 seconds (Compute Engine, "Preemptible VM instances").
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
"""Between two looks: AWS advises 5 at most, and 30 seconds of Google's are few."""
ANSWER_SECONDS = 2.0
"""For a metadata server; it is on the same machine."""
AWS_TOKEN_SECONDS = 300
AWS_NOTICE_SECONDS = 120
GCP_NOTICE_SECONDS = 30

Look = Callable[[], int | None]
"""Returns the seconds that are left to the machine; None: no notice has come."""


def aws(server: str = AWS) -> int | None:
    """Return the seconds until EC2 takes this machine back; None: no notice has come.

    Raises:
        OSError: no such server answers.
    """
    ttl = {"X-aws-ec2-metadata-token-ttl-seconds": str(AWS_TOKEN_SECONDS)}
    token = _ask(f"{server}/latest/api/token", ttl, method="PUT")
    try:
        notice = _ask(f"{server}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token})
    except urllib.error.HTTPError as answer:
        if answer.code == 404:  # documented: there is nothing to tell
            return None
        raise
    try:
        then = datetime.datetime.fromisoformat(json.loads(notice)["time"].replace("Z", "+00:00"))
    except (ValueError, KeyError, TypeError):
        return AWS_NOTICE_SECONDS
    return max(0, round((then - datetime.datetime.now(datetime.timezone.utc)).total_seconds()))


def gcp(server: str = GCP) -> int | None:
    """Return the seconds until Compute Engine takes this machine back; None: no notice has come.

    Raises:
        OSError: no such server answers.
    """
    url = f"{server}/computeMetadata/v1/instance/preempted"
    answer = _ask(url, {"Metadata-Flavor": "Google"}).strip()
    return GCP_NOTICE_SECONDS if answer == "TRUE" else None


def watch(look: Look, drain: Callable[[int], None], every: float = LOOK_SECONDS) -> None:
    """Look until a notice comes, drain the node, and return. A server that fails for a while is asked on."""
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
    """Tell Ray that its node here, or `node_id`, is gone in `left` seconds; tries until Ray accepts it.

    Raises:
        subprocess.SubprocessError: Ray did not accept it in that time.
    """
    beside = shutil.which("ray", path=os.path.dirname(sys.executable))  # of the same environment
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
    """Return how to look for a notice on this machine.

    Raises:
        OSError: it has no metadata server of a cloud that is known here.
    """
    for look in (aws, gcp):
        try:
            look()
        except OSError:
            continue
        return look
    raise OSError("no metadata server of AWS or Google Cloud answers")


def main(arguments: list[str] | None = None) -> int:
    """Watch this machine; return 0 once a notice has been passed on, 1 where there is no cloud to ask."""
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
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy is another machine
    with direct.open(request, timeout=ANSWER_SECONDS) as answer:
        text: str = answer.read().decode()
        return text


if __name__ == "__main__":
    sys.exit(main())
