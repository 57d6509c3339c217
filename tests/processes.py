"""Commands that tests start: each with a watchdog, in a process group that is gone afterwards."""

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WATCHDOG_SECONDS = 240.0
"""Less than a test has, so that the command that hangs is named."""


def finish(
    *words: object, given: str = "", seconds: float = WATCHDOG_SECONDS, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end with `given` as its input; its output is text.

    Raises:
        AssertionError: it did not end in time; the message has its output so far.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        ended = True
        with started(*words, stdin=subprocess.PIPE, stdout=output, stderr=errors, **options) as process:
            try:
                process.communicate(given, timeout=seconds)
            except subprocess.TimeoutExpired:
                ended = False
        output.seek(0)
        errors.seek(0)
        done = subprocess.CompletedProcess(process.args, process.returncode, output.read(), errors.read())
    line = shlex.join(map(str, words))
    assert ended, f"{line}: must end within {seconds:g} s, got:\n{done.stdout}\n{done.stderr}"
    return done


@contextlib.contextmanager
def started(
    *words: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Run a command with `env` beside this process's own; kill it and its children when the block ends."""
    environment = {**os.environ, **(env or {})}
    with subprocess.Popen(
        [*map(str, words)], cwd=cwd, env=environment, text=True, start_new_session=True, **options
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
