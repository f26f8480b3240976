"""What tests share: waiting on named conditions, the installed command as a process, free ports.

1. `eventually` is the only way to wait: it names what it waits for, and its failure shows the last value and the last
   exception. It raises AssertionError, so a test that waits in vain fails instead of hanging.
2. A `Process` runs in a session of its own, so `kill9` and `close` reach its children too; its output goes to files,
   which survive it and are shown when something expected does not appear.

Threads: everything here may be used from any thread; a `Process` belongs to one at a time.
"""

import contextlib
import functools
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

import gokamsg

T = TypeVar("T")

_TAIL_LINES = 40


def eventually(what: str, condition: Callable[[], T], *, timeout_s: float = 10.0, interval_s: float = 0.02) -> T:
    """Returns the first truthy value of `condition`; fails with `what`, the last value and the last exception."""
    started = time.monotonic()
    deadline = started + timeout_s
    pause = threading.Event()
    value: object = None
    error: Exception | None = None
    while True:
        try:
            result = condition()
            value, error = result, None
            if result:
                return result
        except Exception as caught:
            error = caught
        if time.monotonic() >= deadline:
            detail = f"last exception {type(error).__name__}: {error}" if error else f"last value {value!r}"
            message = f"waited {time.monotonic() - started:.1f} s in vain for: {what}; {detail}"
            raise AssertionError(message) from error
        pause.wait(interval_s)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on, and that is given to nobody who asks for any port (port 0)."""
    for port in _ports():
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is left")


@functools.cache
def _ports() -> Iterator[int]:
    """Ports below those that systems hand out themselves, each once, in an order of this process's own."""
    below = range(10_000, 32_768)
    return iter(random.SystemRandom().sample(below, len(below)))


def say(text: str) -> None:
    """Prints a line that pytest shows with a failure (seeds, figures)."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def unavailable(config: pytest.Config, reason: str) -> None:
    """Skips the running test with the reason; fails it where --require-kafka was given."""
    if config.getoption("--require-kafka", default=False):
        pytest.fail(f"{reason} (required by --require-kafka)", pytrace=False)
    pytest.skip(reason)


def gokamsg_argv(*arguments: str) -> list[str]:
    """The installed command, run by the interpreter that runs the tests."""
    return [sys.executable, "-m", "gokamsg", *arguments]


def gokamsg_env(settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """This environment without GOKAMSG_* settings, then `settings`; output unbuffered and plain.

    The command is found from any directory, also where the tests run on a source tree that is not installed.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("GOKAMSG_")}
    env |= {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", "NO_COLOR": "1", "COLUMNS": "200"}
    env["PYTHONPATH"] = str(Path(gokamsg.__file__).parent.parent)
    return env | dict(settings or {})


@dataclass(frozen=True)
class Completed:
    """What a command that ended printed and answered, and how long it took."""

    argv: Sequence[str]
    returncode: int
    stdout: str
    stderr: str
    seconds: float

    def __str__(self) -> str:
        command = " ".join(self.argv)
        head = f"{command!r} -> {self.returncode} in {self.seconds:.2f} s"
        return f"{head}\n-- stdout\n{self.stdout}-- stderr\n{self.stderr}"


def run_gokamsg(
    *arguments: str, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout_s: float = 30.0
) -> Completed:
    """Runs the command to its end with no terminal; the caller judges the exit code. Fails if it does not end."""
    argv = gokamsg_argv(*arguments)
    started = time.monotonic()
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=gokamsg_env(env),
        cwd=cwd,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as expired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            seen = f"-- stdout\n{out.decode(errors='replace')}-- stderr\n{err.decode(errors='replace')}"
            raise AssertionError(f"{argv} did not end within {timeout_s} s\n{seen}") from expired
    seconds = time.monotonic() - started
    return Completed(arguments, process.returncode, out.decode(errors="replace"), err.decode(errors="replace"), seconds)


def slowness() -> float:
    """How many times slower than on an idle machine the command starts just now; at least 1.

    Limits in seconds are multiplied by it, so that a busy machine does not fail a test of how quick something is.
    """
    return times_slower(run_gokamsg("--version").seconds for _ in range(3))


def times_slower(starts: Iterable[float]) -> float:
    """As slowness(), from the seconds that `gokamsg --version` took now and then."""
    return max(1.0, statistics.median(starts) / 0.25)


class Process:
    """A long-running command in a session of its own, its output in `<log_dir>/<name>.out` and `.err`."""

    def __init__(
        self,
        argv: Sequence[str],
        log_dir: Path,
        *,
        name: str,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        log_dir.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.argv = list(argv)
        self.out_path = log_dir / f"{name}.out"
        self.err_path = log_dir / f"{name}.err"
        self.started_at = time.monotonic()
        # Appended to, so that a process started again under its name keeps one story.
        self._from = {path: path.stat().st_size if path.exists() else 0 for path in (self.out_path, self.err_path)}
        with self.out_path.open("ab") as out, self.err_path.open("ab") as err:
            self._popen = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, cwd=cwd, start_new_session=True
            )

    @classmethod
    def gokamsg(
        cls, *arguments: str, log_dir: Path, name: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> "Process":
        return cls(gokamsg_argv(*arguments), log_dir, name=name, env=gokamsg_env(env), cwd=cwd)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._popen.poll()

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def stdout(self) -> str:
        return self._read(self.out_path)

    def stderr(self) -> str:
        return self._read(self.err_path)

    def _read(self, path: Path) -> str:
        with path.open("rb") as file:
            file.seek(self._from[path])
            return file.read().decode(errors="replace")

    def tail(self) -> str:
        """The last lines of both outputs, for a failure's message."""
        parts = [f"{self.name} ({' '.join(self.argv)}), exit code {self.returncode}"]
        for label, text in (("stdout", self.stdout()), ("stderr", self.stderr())):
            parts += [f"-- {label}", *text.splitlines()[-_TAIL_LINES:]]
        return "\n".join(parts)

    def children(self) -> list[int]:
        """The process ids of its children, as of now."""
        try:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except OSError:
            return []
        return sorted(int(pid) for pid in children.split())

    def wait_line(self, pattern: str, *, timeout_s: float = 30.0) -> re.Match[str]:
        """The first line of either output that `pattern` is found in; fails, with the output's tail, if none comes."""
        regex = re.compile(pattern)
        deadline = time.monotonic() + timeout_s
        pause = threading.Event()
        while True:
            ended = not self.running  # asked before reading: what it printed last is then in the file
            for line in (*self.stdout().splitlines(), *self.stderr().splitlines()):
                if found := regex.search(line):
                    return found
            if ended:
                raise AssertionError(f"ended without a line matching {pattern!r}\n{self.tail()}")
            if time.monotonic() >= deadline:
                raise AssertionError(f"no line matching {pattern!r} within {timeout_s} s\n{self.tail()}")
            pause.wait(0.02)

    def wait(self, timeout_s: float = 30.0) -> int:
        """The exit code; fails, with the output's tail, if it does not end in time."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end within {timeout_s} s\n{self.tail()}") from None

    def signal(self, number: signal.Signals) -> None:
        """Sends the signal to the command itself, as a terminal's user would with `kill`."""
        self._popen.send_signal(number)

    def terminate(self, timeout_s: float = 30.0) -> int:
        """SIGTERM, then the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill9(self) -> None:
        """SIGKILL for the command and everything it started; returns when the command is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()

    def kill_alone(self) -> None:
        """SIGKILL for the command only; what it started may go on."""
        self._popen.kill()
        self._popen.wait()

    def group_alive(self) -> bool:
        """Whether anything that the command started is left."""
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        """Whatever state it is in: nothing of it is left running afterwards."""
        self.kill9()


class Processes:
    """Starts processes and sees to it that none outlives the test."""

    def __init__(self, log_dir: Path) -> None:
        self.log_dir = log_dir
        self._started: list[Process] = []

    def gokamsg(
        self, *arguments: str, name: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Process:
        return self.add(Process.gokamsg(*arguments, log_dir=self.log_dir, name=name, env=env, cwd=cwd))

    def add(self, process: Process) -> Process:
        self._started.append(process)
        return process

    def close(self) -> None:
        for process in reversed(self._started):
            process.close()

    def tails(self) -> str:
        return "\n\n".join(process.tail() for process in self._started)


@contextlib.contextmanager
def processes(log_dir: Path) -> Iterator[Processes]:
    """A set of processes that all end with the block."""
    started = Processes(log_dir)
    try:
        yield started
    finally:
        started.close()
