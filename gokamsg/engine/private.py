"""Directories and files that only their user can read, whatever the umask is. Leaf."""

import os
from pathlib import Path
from typing import IO


def private_directory(path: Path) -> None:
    """The directory, with what is missing above it; one that exists keeps its permissions. Raises OSError."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)


def open_private(path: Path) -> IO[str]:
    """The file, made if there is none, for appending. Raises OSError."""
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "a")
