"""The former place of SQLiteStorage; it is in storage.py, beside its contract."""

from gokamsg.engine.storage import SQLiteStorage, boot_id

__all__ = ["SQLiteStorage", "boot_id"]
