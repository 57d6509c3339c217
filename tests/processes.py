"""Commands that tests start: each with a watchdog, in a process group that is gone afterwards."""

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
WATCHDOG_SECONDS = 600.0
"""For a whole study on a busy machine; a test that has less time ends its commands with itself."""


def finish(
    *words: object, given: str = "", seconds: float = WATCHDOG_SECONDS, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end with `given` as its input; its output is text.

    If the command or the test does not end in time, the output so far is printed, for pytest to show.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        try:
            with started(*words, stdin=subprocess.PIPE, stdout=output, stderr=errors, **options) as process:
                process.communicate(given, timeout=seconds)
        except BaseException as error:  # also the test's own limit, and Ctrl-C
            print(shlex.join(map(str, words)), _read(output), _read(errors), sep="\n")
            if isinstance(error, subprocess.TimeoutExpired):
                raise AssertionError(f"{words[0]} must end within {seconds:g} s; see its output") from None
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, _read(output), _read(errors))


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


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
