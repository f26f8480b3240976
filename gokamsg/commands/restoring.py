"""Notes that workers leave in the state directory while they restore tables, for `gokamsg status` on the same machine.

One small file for each worker, replaced as a whole, removed when the restore is done. A note that is older than
STALE_S belongs to a worker that is gone. Losing a note loses nothing else.
"""

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

STALE_S = 10.0


@dataclass(frozen=True, slots=True)
class Restoring:
    """How far a group's workers on this machine are with their restore."""

    rows_done: int = 0
    rows: int = 0

    def __add__(self, other: "Restoring") -> "Restoring":
        return Restoring(self.rows_done + other.rows_done, self.rows + other.rows)


class Note:
    """One worker's note. Owner: the worker's thread."""

    def __init__(self, state_dir: Path, group: str) -> None:
        self._path = state_dir / "restoring" / f"{group}.{os.getpid()}.json"
        self._written = False

    def update(self, progress: Restoring | None) -> None:
        """Writes the note, or removes it when there is nothing to restore (any more)."""
        # A worker goes on without its note: a full disk is for its tables to report.
        with contextlib.suppress(OSError):
            if progress is not None:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                fresh = self._path.with_suffix(".new")
                fresh.write_text(json.dumps({"rows_done": progress.rows_done, "rows": progress.rows}))
                fresh.replace(self._path)
                self._written = True
            elif self._written:
                self._path.unlink(missing_ok=True)
                self._written = False


def read_notes(state_dir: Path, *, now_s: float | None = None) -> dict[str, Restoring]:
    """What is being restored on this machine, by group."""
    now_s = time.time() if now_s is None else now_s
    found: dict[str, Restoring] = {}
    for path in state_dir.glob("restoring/*.json"):
        try:
            if now_s - path.stat().st_mtime > STALE_S:
                continue
            note = json.loads(path.read_text())
            progress = Restoring(int(note["rows_done"]), int(note["rows"]))
        except (OSError, ValueError, KeyError):
            continue  # just replaced or removed
        group = path.name.rsplit(".", 2)[0]
        found[group] = found.get(group, Restoring()) + progress
    return found
