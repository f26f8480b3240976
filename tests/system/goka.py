"""Goka itself in tests: the Go program of tests/goka, built once and run beside gokamsg's commands.

1. The program is built when a test first asks for it, into the user's cache directory under a name that stands for its
   sources and the compiler, so that a change builds anew and nothing else does.
2. Without Go, or where its modules cannot be fetched, the tests are skipped with the reason (--require-kafka fails
   them). A program that does not compile fails them anywhere.
3. Its processors keep their tables (LevelDB) below the test's directory, and end with the test.

Here Goka commits its offsets and sends its batches sooner than by default, and its session times out as soon as
brokers allow; what it writes, and in which order, is not touched by that.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import platformdirs
import pytest

from tests.helpers import Process, unavailable
from tests.system.messaging import Messaging

SOURCES = Path(__file__).parent.parent / "goka"
BUILD_TIMEOUT_S = 900
# The shortest that brokers accept unless told otherwise.
SESSION_TIMEOUT_S = 6

Line = tuple[str, str, str | None]
"""Topic, key and value of a record; no value is a deletion."""


class GokaUnavailableError(Exception):
    """Goka cannot be had here; str() is the reason a skip shows."""


def build(config: pytest.Config) -> Path:
    """The program's path, built if need be; skips the test where it cannot be had."""
    try:
        return program()
    except GokaUnavailableError as error:
        unavailable(config, str(error))
        raise


def program() -> Path:
    """The program's path, built if need be. Raises GokaUnavailableError."""
    go = shutil.which("go")
    if go is None:
        raise GokaUnavailableError("Goka's own processors need Go on PATH")
    digest = hashlib.sha256(_go(go, "version").stdout.encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in {".go", ".mod", ".sum"}:
            digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    cache = Path(platformdirs.user_cache_dir("gokamsg-tests"))
    built = cache / f"gokatool-{digest.hexdigest()[:16]}"
    if built.exists():  # complete by construction: it is renamed into place
        return built
    cache.mkdir(parents=True, exist_ok=True)
    fetched = _go(go, "list", "-deps", ".")
    if fetched.returncode != 0:
        raise GokaUnavailableError(f"Goka's Go modules could not be fetched: {fetched.stderr[-500:]}")
    draft = cache / f"{built.name}.{os.getpid()}"
    done = _go(go, "build", "-trimpath", "-buildvcs=false", "-o", str(draft), ".")
    if done.returncode != 0:
        pytest.fail(f"tests/goka does not compile:\n{done.stderr}", pytrace=False)
    draft.rename(built)
    return built


def _go(go: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [go, *arguments],
        cwd=SOURCES,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )


class Goka:
    """The program's commands, on one cluster."""

    def __init__(self, program: Path) -> None:
        self.program = program

    def emit(self, address: str, lines: Iterable[Line]) -> None:
        """Sends the records through Goka's emitters, in order; returns when all are acknowledged."""
        text = "".join(
            json.dumps({"topic": topic, "key": key, "value": value}, ensure_ascii=False) + "\n"
            for topic, key, value in lines
        )
        done = self._done("emit", "-brokers", address, stdin=text)
        assert done == f"{text.count(chr(10))} emitted\n"

    def view(self, messaging: Messaging, table: str, *, state: str = "goka") -> Process:
        """A view of Goka's; it prints the rows and ends once it has recovered all partitions."""
        directory = messaging.directory / state / f"view-{table}"
        directory.mkdir(parents=True, exist_ok=True)
        flags = ["-brokers", messaging.cluster.address, "-table", table, "-state", str(directory)]
        argv = [str(self.program), "view", *flags]
        return messaging.started.add(Process(argv, messaging.started.log_dir, name=f"{state}-view-{table}"))

    def role(self, messaging: Messaging, role: str, *options: str, state: str = "goka", name: str = "") -> Process:
        """One of Goka's processors; `state` stands for the host that it runs on."""
        directory = messaging.directory / state / role
        directory.mkdir(parents=True, exist_ok=True)
        flags = ["-brokers", messaging.cluster.address, "-role", role, "-state", str(directory)]
        quick = ["-flush", "10ms", "-commit-interval", "100ms", "-session-timeout", f"{SESSION_TIMEOUT_S}s"]
        argv = [str(self.program), "process", *flags, *quick, *options]
        process = Process(argv, messaging.started.log_dir, name=name or f"goka-{role}")
        return messaging.started.add(process)

    def _done(self, *arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            [str(self.program), *arguments], input=stdin.encode(), capture_output=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{arguments}: {done.stderr.decode(errors='replace')[-2000:]}"
        return done.stdout.decode()


def rows(view: Process) -> dict[str, str]:
    """What a view that must end by itself printed."""
    assert view.wait(30) == 0, view.tail()
    return {row["key"]: row["value"] for row in map(json.loads, view.stdout().splitlines())}


def held(process: Process, role: str) -> set[int]:
    """The partitions that the role, of Goka or of ours, says it works on; empty while it has none."""
    states = re.compile(rf"{role}: (assigned|running|stopped)")
    # Goka's processors print this to standard output, our commands to standard error.
    lines = [line for line in (*process.stdout().splitlines(), *process.stderr().splitlines()) if states.match(line)]
    found = re.search(r"running, .*?\(([0-9, -]*)\)", lines[-1]) if lines else None
    numbers: set[int] = set()
    for part in found[1].replace(" ", "").split(",") if found else ():
        low, _, high = part.partition("-")
        if low:
            numbers |= set(range(int(low), int(high or low) + 1))
    return numbers
