"""Run the application of `finetune.serving` as a deployment of Ray Serve, or alone in this process."""

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finetune import extras
from finetune.serving.limits import Limits
from search.errors import StudyError

NAME = "transfer-search"
"""Name of the application in Ray Serve."""
MODULES = ("fastapi", "uvicorn", "python_multipart")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def check() -> None:
    """Check that a server can run here.

    Raises:
        MissingPackage: the extra `serve` is not installed.
    """
    extras.require("serve", "serve", MODULES)


def application(folder: str, limits: Limits, signed: Path | None = None) -> Any:
    """Return the application that answers with the model in a folder; it loads torch.

    Args:
        folder: the model folder.
        limits: limits of requests.
        signed: public key by which the folder must be signed; None: it need not be.

    Raises:
        CheckpointError: the folder holds no whole model, or is not as it was signed.
    """
    import torch

    from finetune import model_folder
    from finetune.handing_on import signature
    from finetune.serving.app import build

    if signed is not None:
        signature.verify(Path(folder), signed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return build(model_folder.load(Path(folder), device=device, parts=True), limits)


def alone(
    folder: Path,
    host: str,
    port: int,
    limits: Limits,
    ready: Callable[[str], object],
    signed: Path | None = None,
) -> None:
    """Serve from this process until it is interrupted.

    Raises:
        CheckpointError: the folder holds no whole model.
        StudyError: nothing can listen there.
    """
    import uvicorn

    app = application(str(folder), limits, signed)
    with _listening(host, port) as listener:
        ready(_url(host, listener.getsockname()[1]))
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_keep_alive=75, timeout_graceful_shutdown=5
        )
        uvicorn.Server(config).run(sockets=[listener])


def with_ray(
    folder: Path,
    host: str,
    port: int,
    limits: Limits,
    replicas: int,
    ready: Callable[[str], object],
    signed: Path | None = None,
) -> None:
    """Serve by Ray Serve, with processes that each hold the model, until this process is interrupted.

    Raises:
        CheckpointError: the folder holds no whole model.
        StudyError: nothing can listen there.
    """
    from finetune import model_folder

    model_folder.load(
        folder, parts=True
    )  # a folder that is not whole is one line here, and many from a replica
    with _listening(host, port) as listener:
        port = listener.getsockname()[1]
    from ray import serve

    from search.driver.runner import connected

    out = sys.stdout  # what Ray prints goes to stderr meanwhile; the address is a result
    with connected():
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": host, "port": port},
            logging_config={"log_level": "ERROR", "enable_access_log": False},
        )
        try:
            serve.run(
                _deployment(str(folder.absolute()), limits, replicas, signed and signed.absolute()),
                name=NAME,
                route_prefix="/",
            )
            with contextlib.redirect_stdout(out):
                ready(_url(host, port))
            threading.Event().wait()
        finally:
            serve.delete(NAME) if os.environ.get("RAY_ADDRESS") else serve.shutdown()


def _deployment(folder: str, limits: Limits, replicas: int, signed: Path | None) -> Any:
    """Return the application for Ray Serve; each replica loads the model once."""
    import ray
    from ray import serve

    there = ray.cluster_resources()
    # Ray gives a process as many threads as it has CPUs.
    needs = {"num_cpus": max(1, int(there.get("CPU", 1)) // replicas)}
    if there.get("GPU"):
        needs["num_gpus"] = 1

    def built() -> Any:
        from search.handing_on.serving import application

        return application(folder, limits, signed)

    served = serve.deployment(serve.ingress(built)())
    return served.options(
        num_replicas=replicas,
        ray_actor_options=needs,
        # A request too many comes to the application, which says so; the rest waits before it.
        max_ongoing_requests=limits.queue + 1,
        max_queued_requests=limits.queue,
    ).bind()


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket that listens at an address; port 0 takes a free one.

    Raises:
        StudyError: nothing can listen there.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise StudyError(
            f"serve: --host and --port must be an address that is free, got {_url(host, port)}: "
            f"{error.strerror}. Choose another."
        ) from error
    with listener:
        yield listener


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
