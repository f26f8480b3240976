"""Where a worker begins to read a partition: never guessed when something may be lost or doubled.

- A committed offset that the log still has: there.
- None, and nothing shows that the group has handled this partition before: at the earliest record, so that nothing sent
  before the first start is lost.
- None although it has, or one that the log no longer has (or does not have yet): OffsetsLostError names the range, and
  the option `start` decides.

That a group has handled a partition before is shown by a committed record in its table's changelog, or by a mark in
the state directory, which is made once the group's first offset of the partition is committed.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from gokamsg.engine.options import Start
from gokamsg.engine.private import private_directory
from gokamsg.errors import OffsetsLostError, StateError


def starting_position(
    topic: str,
    partition: int,
    *,
    group: str,
    committed: int | None,
    log_start: int,
    log_end: int,
    handled_before: bool,
    start: Start | None,
) -> int:
    """The offset to read `topic`/`partition` from; raises OffsetsLostError when only a person can decide."""
    if committed is not None and log_start <= committed <= log_end:
        return committed
    if committed is None and (log_end == 0 or not handled_before):
        return log_start
    if start == "earliest":
        return log_start
    if start == "latest":
        return log_end
    where = f"{topic}/{partition}"
    if committed is None:
        what = f"group {group!r} has handled {where} before, but its committed offset is gone (expired or deleted)"
        gone = f"it is not known which of the records {log_start} to {log_end} it has handled"
    elif committed < log_start:
        what = f"the committed offset {committed} of group {group!r} on {where} is below the log's start {log_start}"
        gone = f"records {committed} to {log_start - 1} were deleted before they were handled"
    else:
        what = f"the committed offset {committed} of group {group!r} on {where} is beyond the log's end {log_end}"
        gone = "the topic was truncated or created again"
    raise OffsetsLostError(
        f"{what}: {gone}; start once with --start earliest (handle everything from {log_start} on)"
        f" or --start latest (only what comes after {log_end})"
    )


class HandledMarks:
    """Which partitions a group of this installation has begun to handle: an empty file each, named by the topic's id,
    so that a topic made anew counts as another one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def has(self, topic: str, topic_id: str, partition: int) -> bool:
        """True if the group's first offset of this partition was committed from this state directory."""
        return self._path(topic, topic_id, partition).exists()

    def add(self, topic: str, topic_id: str, partition: int) -> None:
        """Remember it; raises StateError when the directory cannot be written."""
        try:
            private_directory(self._directory)
            with contextlib.suppress(FileExistsError):
                self._path(topic, topic_id, partition).touch(mode=0o600, exist_ok=False)
        except OSError as error:
            raise StateError(
                f"cannot write to the state directory {str(self._directory)!r} ({error.strerror or error});"
                " make it writable or name another with --state-dir"
            ) from error

    def _path(self, topic: str, topic_id: str, partition: int) -> Path:
        return self._directory / f"{topic}.{partition}.{topic_id}"
