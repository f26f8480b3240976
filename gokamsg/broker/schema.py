"""The data file's format: its tables, its signature, and how connections to it are opened.

A file is ours when its application id is "gkmb" and its version is not newer than VERSION; anything else is refused
with a StateError before a byte is changed. Threads: any; each connection belongs to whoever opened it.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from gokamsg.errors import StateError

APPLICATION_ID = 0x676B6D62  # "gkmb"
VERSION = 1
BUSY_TIMEOUT_MS = 5_000  # for whoever looks into the file with a tool of SQLite's

_TABLES = (
    "CREATE TABLE batches (id INTEGER PRIMARY KEY, last_offset INTEGER NOT NULL, max_timestamp INTEGER NOT NULL,"
    " attributes INTEGER NOT NULL, producer_id INTEGER NOT NULL,"
    " producer_epoch INTEGER NOT NULL, base_sequence INTEGER NOT NULL, cleaned_ms INTEGER NOT NULL,"
    " data BLOB NOT NULL)",
    "CREATE TABLE records (space TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (space, key))"
    " WITHOUT ROWID",
)


def open_writer(path: Path, *, fsync: bool) -> sqlite3.Connection:
    """The writing connection of a new or existing file; raises StateError when the file cannot be used."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # messages: for their user's eyes only
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=64)
    except (sqlite3.Error, OSError) as error:
        raise StateError(
            f"cannot open the data file {str(path)!r}: {error}; check the path and its permissions"
        ) from error
    try:
        _prepare(connection, path, fsync=fsync)
    except sqlite3.Error as error:
        connection.close()
        raise StateError(
            f"the data file {str(path)!r} is damaged or not a broker's ({error}); "
            "restore it from a copy, or name another --data-dir"
        ) from error
    except StateError:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path, *, fsync: bool) -> None:
    execute = connection.execute
    wait_at_most(connection, BUSY_TIMEOUT_MS)
    signature = int(execute("PRAGMA application_id").fetchone()[0])
    version = int(execute("PRAGMA user_version").fetchone()[0])
    tables = int(execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    if signature != APPLICATION_ID and (tables or signature or version):
        raise StateError(f"the file {str(path)!r} belongs to another program; name another --data-dir")
    if version > VERSION:
        raise StateError(
            f"the data file {str(path)!r} has format {version}, written by a newer gokamsg; "
            f"this one reads up to {VERSION}: upgrade it, or name another --data-dir"
        )
    if not tables:
        execute("PRAGMA page_size = 4096")
        execute("PRAGMA auto_vacuum = INCREMENTAL")
    execute("PRAGMA journal_mode = WAL")
    execute(f"PRAGMA synchronous = {'FULL' if fsync else 'NORMAL'}")
    execute("PRAGMA wal_autocheckpoint = 0")  # the store decides when, after it has answered
    execute("PRAGMA journal_size_limit = 67108864")
    execute("PRAGMA secure_delete = OFF")  # some builds default to overwriting what is deleted
    execute("PRAGMA cache_size = -8192")
    if not tables:
        execute("BEGIN IMMEDIATE")
        for statement in _TABLES:
            execute(statement)
        execute(f"PRAGMA application_id = {APPLICATION_ID}")
        execute(f"PRAGMA user_version = {VERSION}")
        execute("COMMIT")


def wait_at_most(connection: sqlite3.Connection, ms: int) -> None:
    """For so long its statements wait for the locks of other connections."""
    connection.execute(f"PRAGMA busy_timeout = {ms:d}")


def open_reader(path: Path) -> sqlite3.Connection:
    """A read-only connection to an existing file."""
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
    )
    wait_at_most(connection, BUSY_TIMEOUT_MS)
    connection.execute("PRAGMA cache_size = -2048")
    return connection
