"""sqlitedict's thread for a file, given whole pieces of work.

sqlitedict runs one statement after the other in that thread, reports errors late, and never synchronises to the disk.
So here a piece of work is a whole write of thousands of rows, or a read; it carries its own outcome, and an error is
told to whoever asked for it. Work may go on while its owner does other things: SQLite works without the interpreter's
lock.
"""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from logging import Logger, NullHandler
from pathlib import Path
from typing import Any

from sqlitedict import SqliteDict, SqliteMultithread

Work = Callable[[sqlite3.Cursor], list[Any]]


class Database(SqliteDict):  # type: ignore[misc]  # sqlitedict ships no types
    """A SqliteDict whose thread does whole pieces of work."""

    conn: Any

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), tablename="rows", encode=_as_is, decode=_as_is, outer_stack=False)

    def _new_conn(self) -> "_Thread":
        return _Thread(self.filename, autocommit=False, journal_mode="WAL", outer_stack=False)

    def end(self) -> None:
        """Close the database and wait until its thread has ended."""
        thread, self.conn = self.conn, None
        thread.close(force=True)
        thread.join()


class _Thread(SqliteMultithread):  # type: ignore[misc]  # sqlitedict ships no types
    """sqlitedict's thread, with an error that ends it noted for the caller instead of printed."""

    def run(self) -> None:
        self.log = Logger("sqlitedict")
        self.log.addHandler(NullHandler())
        try:
            super().run()
        except Exception as error:
            # Without its traceback, which would keep the connection open.
            self.exception = (type(error), error.with_traceback(None), None)

    def _connect(self) -> tuple[Any, Any]:
        connection, cursor = super()._connect()
        return connection, _Cursor(cursor)


class _Cursor:
    """Stands where sqlitedict's thread expects a cursor: runs jobs, and passes sqlitedict's own statements on."""

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self._cursor = cursor

    def execute(self, statement: Any, parameters: Any) -> None:
        if isinstance(statement, Job):
            statement.run(self._cursor)
        else:
            self._cursor.execute(statement, parameters)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor)


class Job:
    """A piece of work for a file's thread, and its outcome."""

    __slots__ = ("_complete", "_thread", "_work", "done", "error", "found")

    def __init__(self, work: Work, thread: threading.Thread) -> None:
        self.found: list[Any] = []
        self.error: Exception | None = None
        self.done = False
        self._work: Work | None = work
        self._thread = thread
        self._complete = threading.Lock()
        self._complete.acquire()

    def run(self, cursor: sqlite3.Cursor) -> None:
        """For the thread."""
        work, self._work = self._work, None  # with it go the rows that it holds
        assert work is not None
        try:
            self.found = work(cursor)
        except Exception as error:
            self.error = error.with_traceback(None)
        finally:
            self.done = True
            self._complete.release()

    def wait(self) -> None:
        """For one caller: until it is done, or cannot be done any more because its thread has ended."""
        while not self.done and not self._complete.acquire(timeout=0.5):
            if not self._thread.is_alive() and not self.done:
                self.error = sqlite3.DatabaseError("the database's thread has ended")
                return


def _as_is(value: Any) -> Any:
    return value
