"""Who a worker is: an installation id and one locked slot of a group's state.

1. A slot is locked while its worker lives; the operating system frees it when the process dies, however it dies.
2. A worker started again on the same host takes the lowest free slot, so it gets back the ids of the one that died: it
   fences that worker's pending transaction at once and its partitions need no rebalance.
3. The lock is per directory. A copied directory carries the same ids; the brokers then fence the two workers in turn,
   until the one that was first stops with IdentityError.
4. The file with the installation id begins with its format. One of an older format is written anew; one of a newer
   format is refused, since ids made otherwise would fence nobody.

Not here: what is stored in the slot (storage.py).
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from gokamsg.engine.private import open_private, private_directory
from gokamsg.errors import StateError

FORMAT = 1
MAX_SLOTS = 1024
_INSTALLATION = "installation"


class Identity:
    """A locked slot. Owner: the worker; release() when it ends."""

    def __init__(self, group: str, directory: Path, *, installation: str, slot: int, lock: IO[str]) -> None:
        self.group = group
        self.directory = directory
        self.slot = slot
        self._lock = lock
        # Kafka allows only letters, digits, '.', '_' and '-' in a group instance id.
        name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in group)[:180]
        self.instance_id = f"{name}-{installation}-{slot}"
        self.transactional_id = f"{group}-{installation}-{slot}"

    def release(self) -> None:
        """Unlock the slot; the directory stays for the next worker. Safe to call twice."""
        self._lock.close()


def acquire(state_dir: Path, cluster_id: str, group: str) -> Identity:
    """Lock the group's lowest free slot for this cluster. Raises StateError when that cannot be done."""
    try:
        private_directory(state_dir)
        installation = _installation_id(state_dir)
        base = state_dir / cluster_id / group
        for slot in range(MAX_SLOTS):
            directory = base / str(slot)
            private_directory(directory)
            lock = _try_lock(directory / "lock")
            if lock is not None:
                return Identity(group, directory, installation=installation, slot=slot, lock=lock)
    except OSError as error:
        raise StateError(
            f"cannot use the state directory {str(state_dir)!r} ({error.strerror or error});"
            " make it writable or name another with --state-dir"
        ) from error
    raise StateError(f"all {MAX_SLOTS} slots of group {group!r} under {str(state_dir)!r} are taken by running workers")


def lock_existing(state_dir: Path, cluster_id: str, group: str) -> Iterator[tuple[int, Path, IO[str] | None]]:
    """The group's slots on this disk: number, directory, and the lock, None where a running process has it."""
    for directory in sorted((state_dir / cluster_id / group).glob("*/"), key=lambda path: (len(path.name), path.name)):
        if directory.name.isdigit():
            try:
                lock = _try_lock(directory / "lock")
            except OSError as error:
                raise StateError(
                    f"cannot lock {str(directory)!r} ({error.strerror or error}); make it writable"
                ) from error
            yield int(directory.name), directory, lock


def _installation_id(state_dir: Path) -> str:
    path = state_dir / _INSTALLATION
    if not path.exists():
        _write_installation(path, uuid.uuid4().hex[:12], once=True)
    words = path.read_text(encoding="ascii", errors="replace").split()
    if len(words) == 1 and words[0].isalnum():  # before the files had formats, the id stood alone
        _write_installation(path, words[0], once=False)
        return words[0]
    if len(words) > 1 and words[0] == "format" and words[1].isdigit() and int(words[1]) > FORMAT:
        raise StateError(
            f"{str(path)!r} was written by a newer gokamsg (format {words[1]}, and this one knows {FORMAT});"
            " use that version, or another --state-dir"
        )
    if words[:2] != ["format", str(FORMAT)] or len(words) != 3 or not words[2].isalnum():
        raise StateError(f"{str(path)!r} does not hold an installation id; delete the file to make a new one")
    return words[2]


def _write_installation(path: Path, installation: str, *, once: bool) -> None:
    """Written aside first. `once`: of two first workers, one id wins and both read it."""
    draft = path.with_name(f"{_INSTALLATION}.{uuid.uuid4().hex}")
    try:
        with open_private(draft) as file:
            file.write(f"format {FORMAT}\n{installation}\n")
            file.flush()
            os.fsync(file.fileno())
        if once:
            with suppress(FileExistsError):
                os.link(draft, path)
        else:
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _try_lock(path: Path) -> IO[str] | None:
    file = open_private(path)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        file.close()
        raise
    return file
