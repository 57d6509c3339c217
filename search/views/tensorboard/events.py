"""TensorBoard's event files: opened by name, appended to, and readable after every write."""

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

FILE_VERSION = "brain.Event:2"
"""With this version TensorBoard discards later steps at a session start only, not whenever a step is lower
than the last one."""
FILES = "events.out.tfevents.*"
"""Pattern of the names of event files."""


class EventFile:
    """An open event file in a run's folder.

    TensorBoard reads a run's files in the order of their names, which begin with the time.

    Args:
        folder: the run's folder; it is made if it is missing.
        suffix: end of the file's name, for a file that may be replaced later.
    """

    def __init__(self, folder: Path, suffix: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}{suffix}"
        self._writer = RecordWriter(self._path.open("xb"))
        self.write(0, file_version=FILE_VERSION)

    @contextlib.contextmanager
    def reopened(self) -> Iterator[None]:
        """Open the closed file again, for a few writes within the context."""
        self._writer = RecordWriter(self._path.open("ab"))
        try:
            yield
        finally:
            self.close()

    def write(self, step: int, **content: Any) -> None:
        """Append one event and flush it."""
        self._writer.write(event_pb2.Event(wall_time=time.time(), step=step, **content).SerializeToString())
        self._writer.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Append the scalars of one step as one event."""
        value = summary_pb2.Summary.Value
        summary = summary_pb2.Summary(value=[value(tag=t, simple_value=v) for t, v in values.items()])
        self.write(step, summary=summary)

    def hparams(self, tag: str, data: plugin_data_pb2.HParamsPluginData) -> None:
        """Append a message of the HParams plugin."""
        value = summary_pb2.Summary.Value(
            tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR
        )
        self.write(0, summary=summary_pb2.Summary(value=[value]))

    def summary(self, step: int, summary: Any) -> None:
        """Append a summary that one of TensorBoard's plugins has made."""
        self.write(step, summary=summary)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def steps(folder: Path) -> dict[str, set[int]]:
    """Return the steps of each tag in a run's files; of a file that is damaged, those before the damage."""
    found: dict[str, set[int]] = {}
    for path in sorted(folder.glob(FILES)):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, set()).add(event.step)
    return found


def remove(folder: Path, suffix: str) -> None:
    """Remove a run's event files whose names end with `suffix`."""
    for path in folder.glob(f"{FILES}{suffix}"):
        path.unlink(missing_ok=True)


def fill(slot: Any, value: Any) -> None:
    """Fill a protobuf Value; `bool` is tested first because Python's bool is an int."""
    if isinstance(value, bool):
        slot.bool_value = value
    elif isinstance(value, (int, float)) and math.isfinite(value):
        slot.number_value = value
    else:
        slot.string_value = str(value)
