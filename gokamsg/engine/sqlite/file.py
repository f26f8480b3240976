"""What a table's file says of itself, and whether that can be trusted.

The file is a cache. If it is damaged, of another topic or another format, or may have lost pages in a power failure
(nothing is synchronised to the disk while it is open), it is made anew and filled again from the changelog.

Beside the file, "<file>.clean" says that everything in it has reached the disk. It is made when the storage is closed
and removed before the next write; a file without it is trusted only under the boot id that it carries.
"""

import os
import sqlite3
from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from typing import Any, Final

from gokamsg.engine.private import private_directory
from gokamsg.engine.sqlite.failures import is_refusal, state_error

log = getLogger(__name__)

FORMAT: Final = 1
PAGE_BYTES: Final = 8192
LOCK_WAIT_S: Final = 1.0
_BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str | None:
    """What names this machine's current start; None where nothing does."""
    try:
        return _BOOT_ID_FILE.read_text(encoding="ascii").strip() or None
    except OSError:
        return None


def distrust(path: Path, *, topic_id: str, boot_id: str | None) -> str | None:
    """Why opening the file would empty it; None if it can be trusted. StateError if that cannot be told."""
    try:
        meta = _read_meta(path)
    except (OSError, sqlite3.Error) as error:
        raise state_error(path, "be read", error) from error
    return "it is damaged" if meta is None else _why_not_trusted(path, meta, topic_id, boot_id)


def prepare(path: Path, *, topic_id: str, boot_id: str | None) -> dict[str, Any]:
    """What the file says of itself; made anew if it is missing or cannot be trusted. OSError or sqlite3.Error if it is
    in use or not allowed."""
    private_directory(path.parent)
    if path.exists():
        # SQLite opens a read-only file without a word, and fails with the first write.
        os.close(os.open(path, os.O_RDWR))
    meta = _read_meta(path) if path.exists() else None
    why = "it is damaged" if meta is None else _why_not_trusted(path, meta, topic_id, boot_id)
    if meta is not None and why is None:
        return meta
    if path.exists():
        log.warning("local table %r is filled again from Kafka: %s", str(path), why)
    _remove(path)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    return _create(path, topic_id, boot_id)


def remove_file(path: Path) -> None:
    """Remove a storage's file and what lies beside it. StateError when that is not allowed."""
    try:
        _remove(path)
    except OSError as error:
        raise state_error(path, "be removed", error) from error


def is_clean(path: Path) -> bool:
    """Whether everything in the file has reached the disk."""
    return _clean_file(path).exists()


def make_unclean(path: Path) -> None:
    """Before the first write. OSError if it is not allowed."""
    # Must be on the disk before any row is: an old row under this mark would be trusted after a power failure.
    _clean_file(path).unlink(missing_ok=True)
    _synchronise(path.parent)


def _clean_file(path: Path) -> Path:
    return path.with_name(path.name + ".clean")


def make_clean(path: Path) -> None:
    """Everything that was written is on the disk from now on; the file is closed for writing. OSError if not."""
    # The emptied log first: after a power failure an old one would be read back over newer pages.
    for part in (path.with_name(path.name + "-wal"), path):
        if part.exists():
            _synchronise(part)
    clean = _clean_file(path)
    clean.touch(mode=0o600)
    _synchronise(clean)
    _synchronise(path.parent)


def _synchronise(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    # The mark first, so that a removal cut short leaves nothing that is trusted.
    for suffix in (".clean", "-wal", "-shm", ""):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _read_meta(path: Path) -> dict[str, Any] | None:
    """What an existing file says of itself; None if it is damaged or nothing of ours."""
    connection = sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None)
    try:
        connection.execute("PRAGMA synchronous=OFF")
        meta = dict(connection.execute("SELECT key, value FROM meta").fetchall())
        connection.execute("SELECT key, value FROM rows LIMIT 1").fetchall()
    except sqlite3.DatabaseError as error:
        if is_refusal(error):
            raise
        return None
    finally:
        connection.close()
    return meta


def _why_not_trusted(path: Path, meta: Mapping[str, Any], topic_id: str, boot: str | None) -> str | None:
    if meta.get("format") != FORMAT:
        return "it has another format than this version writes"
    if meta.get("topic") != topic_id:
        return "it belongs to an earlier topic of that name"
    position = meta.get("position")
    if position is not None and not (isinstance(position, int) and position >= 0):
        return "it holds no position"
    if is_clean(path) or (boot is not None and meta.get("boot") == boot):
        return None
    return "it was open when this machine went down, so pages of it may be lost"


def _create(path: Path, topic_id: str, boot: str | None) -> dict[str, Any]:
    meta: dict[str, Any] = {"format": FORMAT, "topic": topic_id, "boot": boot}
    connection = sqlite3.connect(path, timeout=LOCK_WAIT_S, isolation_level=None)
    try:
        connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA journal_mode=MEMORY")  # one cut short is damaged, and made anew
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value)")
        # sqlitedict's own shape; keys are bytes, which SQLite keeps as they are and orders bytewise.
        connection.execute("CREATE TABLE rows (key TEXT PRIMARY KEY, value BLOB)")
        connection.executemany("INSERT INTO meta VALUES (?,?)", meta.items())
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode=WAL")  # last: making tables through the log takes seven times as long
    finally:
        connection.close()
    return meta
