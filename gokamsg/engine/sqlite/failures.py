"""What SQLite and the system say of a file, as an error that tells what to do."""

import sqlite3
from pathlib import Path

from gokamsg.errors import StateError

_REFUSALS = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOMEM,
    }
)


def is_refusal(error: Exception) -> bool:
    """Whether the file could not be used, which says nothing against what it holds."""
    return error_code(error) in _REFUSALS


def error_code(error: Exception) -> int:
    """SQLite's primary result code (https://www.sqlite.org/rescode.html); 255 for what is none of its errors."""
    return getattr(error, "sqlite_errorcode", -1) & 0xFF


def state_error(path: Path, doing: str, error: Exception) -> StateError:
    """`doing` goes on from "cannot": be read, be written, be opened."""
    code = error_code(error) if isinstance(error, sqlite3.Error) else -1
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        why = "another process uses it; stop that process, or use another --state-dir"
    elif code == sqlite3.SQLITE_FULL:
        why = "the disk is full; make room, or use another --state-dir"
    elif code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        why = f"it is damaged ({error}); it is filled again from Kafka at the next start"
    else:
        why = f"{error}; check permissions and free space, or use another --state-dir"
    return StateError(f"local table {str(path)!r} cannot {doing}: {why}")
