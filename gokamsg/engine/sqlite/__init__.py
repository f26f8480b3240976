"""Tables in SQLite files, through sqlitedict: the only part of the engine that knows either.

storage.py reads and writes rows, thread.py is sqlitedict's thread for a file, file.py decides whether a file can be
trusted, failures.py says in a sentence what went wrong with one.
"""

from gokamsg.engine.sqlite.file import boot_id, distrust, remove_file
from gokamsg.engine.sqlite.storage import SQLiteStorage

__all__ = ["SQLiteStorage", "boot_id", "distrust", "remove_file"]
