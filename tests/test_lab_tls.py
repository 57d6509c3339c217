"""A second cluster on the two hosts: TLS between them by the commands of docs/security.md, and a lost head.

The scenes follow each other; the cluster is one for all of them.
"""

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests import lab as labs
from tests.lab_study import record, resources, running, write
from tests.waiting import eventually

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.ray]
PAGE = (labs.ROOT / "docs" / "security.md").read_text(encoding="utf-8").partition("## TLS between nodes")[2]
CERTIFICATES, TLS = (block.strip() for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))
(MOUNTS,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
ADDRESSES = "10.0.0.1 10.0.0.2 10.0.0.3"
"""As the page writes them."""
CLIENT = """
import socket, ssl, sys
context = ssl.create_default_context(cafile="tls/ca.crt")
context.set_alpn_protocols(["h2"])
head, *own = sys.argv[1:]
if own:
    context.load_cert_chain(f"{own[0]}/node.crt", f"{own[0]}/node.key")
with context.wrap_socket(socket.create_connection((head, 6379), 10), server_hostname=head) as service:
    preface, no_settings = b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n", bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    service.sendall(preface + no_settings)
    print("let in" if service.recv(1) else "refused")
"""
"""As gRPC begins. In TLS 1.3 a client hears that it is refused when it reads: the server hangs up."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[labs.Lab]:
    """The laptop with its cluster up, as the page says."""
    if why := labs.lacking():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    lab = labs.Lab(tmp_path_factory.mktemp("lab"))
    with lab.running():
        make_certificates(lab, lab.home)
        cluster = lab.cluster()
        cluster["file_mounts"] |= yaml.safe_load(MOUNTS)["file_mounts"]
        for when in ("head_start_ray_commands", "worker_start_ray_commands"):
            cluster[when] = [line.replace("ray start", f"{TLS} ray start") for line in cluster[when]]
        lab.cluster_file.write_text(yaml.safe_dump(cluster))
        up(lab, hosts=2)
        yield lab


def make_certificates(lab: labs.Lab, folder: Path) -> None:
    assert ADDRESSES in CERTIFICATES
    commands = CERTIFICATES.replace(ADDRESSES, " ".join(labs.HOSTS.values()))
    lab.run("bash", "-euc", f"mkdir -p {folder}; cd {folder}\n{commands}")


def up(lab: labs.Lab, hosts: int) -> None:
    """Run `ray up` where the cluster file lies, and wait for so many hosts of one CPU.

    Beside a second lab a host's Ray once did not come up; then `ray up` is run again, as its user would.
    """

    def are_up() -> bool:
        return f"/{hosts}.0 CPU" in resources(lab, TLS)

    command = f"cd {lab.home}; ray up -y --no-config-cache {lab.cluster_file}"
    lab.run("bash", "-euc", command)
    try:
        # Each look costs a second of a core, which Ray on the hosts wants to start.
        eventually(are_up, f"the lab: {hosts} hosts", 300, every=3.0)
    except AssertionError:
        lab.run("bash", "-euc", command)
        lab.wait(f"{hosts} hosts", are_up)


def is_let_in(lab: labs.Lab, folder: str) -> bool:
    """Return whether the head's state service lets the worker host in, with the certificate in a folder."""
    words = f"python -c {shlex.quote(CLIENT)} {labs.HOSTS['head']} {folder}"
    return lab.on("worker", f"cd; {words}", check=False) == "let in\n"


def test_who_has_no_certificate_of_the_authority_is_refused(lab: labs.Lab) -> None:
    make_certificates(lab, lab.home / "stranger")
    (lab.home / "stranger" / "tls").rename(lab.folder / "worker" / "home" / "strange")
    assert [is_let_in(lab, folder) for folder in ("", "strange", "tls")] == [False, False, True]


def test_the_keys_are_private_on_every_host(lab: labs.Lab) -> None:
    for host in labs.HOSTS:
        assert lab.on(host, "stat -c %a ~/tls ~/tls/node.key").split() == ["700", "600"]


def test_a_study_goes_on_after_its_head_was_lost(lab: labs.Lab) -> None:
    """On both hosts, until what runs on the head is killed and `ray up` makes a new one."""
    config = write(lab, "long", study={"epochs": 60, "trials": 2}, resources={"slots": 2})
    with lab.tunnel():
        lab.search("submit", config)
        lab.wait("two running trials", lambda: running(lab, "long") == 2)
    begun = [trial["id"] for trial in record(lab, "long")["trials"]]
    lost = [pid for name in ("gcs_server", "raylet") for pid in lab.pids("head", name)]
    lab.on("head", f"kill -9 {' '.join(map(str, lost))}")
    up(lab, hosts=1)
    with lab.tunnel():
        listed = lab.search("status", "--results", "/mnt/results", "--address", labs.ADDRESS, "--json")
        assert [(row["study"], row["state"]) for row in json.loads(listed.stdout)] == [
            ("long", "interrupted")
        ]
        done = lab.search("submit", config, "--wait", check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    ended = record(lab, "long")
    complete = [trial for trial in ended["trials"] if trial["state"] == "COMPLETE"]
    assert [trial["epochs"] for trial in complete] == [60, 60]
    assert all(trial["interrupted"] for trial in ended["trials"] if trial["id"] in begun)
    assert sorted(trial["continues"] for trial in complete) == [0, 1]
