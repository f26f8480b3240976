"""Child processes that have done their imports before anybody needs them.

A Python process with the engine in it takes half a second of CPU to start; `gokamsg up` needs six of them. So it
loads once, forks blanks while it still has a single thread, and gives each its command when it is wanted. A blank
shares its parent's memory until it writes to it. Where no blank is left, one is forked if the process has a single
thread then; else, or where the platform does not fork well, an ordinary process is started: the caller cannot tell
the difference.

A blank waits on its standard input for one JSON line, the command line to run (always `python -m MODULE ARGUMENT…`);
what follows is the child's own standard input.

Threads: prepare() before the process has a second one; spawn() from any.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Protocol


class Process(Protocol):
    """What a supervisor needs of a child; subprocess.Popen is one."""

    pid: int

    @property
    def stdin(self) -> IO[bytes] | None: ...
    @property
    def stdout(self) -> IO[bytes] | None: ...
    @property
    def stderr(self) -> IO[bytes] | None: ...

    def poll(self) -> int | None: ...
    def wait(self) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class _Forked:
    """A child made by fork, with subprocess.Popen's ways."""

    def __init__(self, pid: int, stdin: int, stdout: int, stderr: int) -> None:
        self.pid = pid
        self.stdin: IO[bytes] | None = os.fdopen(stdin, "wb")
        self.stdout: IO[bytes] | None = os.fdopen(stdout, "rb")
        self.stderr: IO[bytes] | None = os.fdopen(stderr, "rb")
        self.returncode: int | None = None
        self._waiting = threading.Lock()

    def poll(self) -> int | None:
        with self._waiting:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(0.005)
        return code

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Nursery:
    """See the module."""

    def __init__(self) -> None:
        self._blanks: list[_Forked] = []
        self._prepared = False

    def prepare(self, load: Callable[[], None], *, blanks: int) -> None:
        """Fork so many blanks after `load`, which leaves in this process what a child needs before it has its command;
        does nothing where that is not safe."""
        if not _may_fork():
            return
        gc.disable()  # nothing of it is garbage, and looking for some would take a tenth of the time
        try:
            load()
        finally:
            gc.enable()
        gc.freeze()  # what was loaded stays shared: the collector does not touch it any more
        self._prepared = True
        for _ in range(blanks):
            self._blanks.append(self._fork())

    def spawn(self, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> Process:
        """A child that runs `argv`: a blank if one is left and it can, else a new process."""
        if environment is None and list(argv[:2]) == [sys.executable, "-m"] and self._has_blank():
            blank = self._blanks.pop(0)
            assert blank.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                blank.stdin.write(json.dumps(list(argv[2:])).encode() + b"\n")
                blank.stdin.flush()
            return blank
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if environment is None else {**os.environ, **environment},
        )

    def close(self) -> None:
        """End the blanks that nobody needed."""
        while self._blanks:
            blank = self._blanks.pop()
            for stream in (blank.stdin, blank.stdout, blank.stderr):
                if stream is not None:
                    stream.close()
            blank.wait()

    def _has_blank(self) -> bool:
        if not self._blanks and self._prepared and _may_fork():
            self._blanks.append(self._fork())
        return bool(self._blanks)

    def _fork(self) -> _Forked:
        pipes = [os.pipe() for _ in range(3)]
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = _live([pipes[0][0], pipes[1][1], pipes[2][1]])
            finally:
                os._exit(code)
        for end in (pipes[0][0], pipes[1][1], pipes[2][1]):
            os.close(end)
        return _Forked(pid, pipes[0][1], pipes[1][0], pipes[2][0])


def _may_fork() -> bool:
    # A lock that another thread holds would stay locked in the child for ever.
    return sys.platform == "linux" and threading.active_count() == 1


def _live(standard: Sequence[int]) -> int:
    """A blank's life: wait for a command, run it; returns the exit code."""
    # Ctrl-C reaches the whole terminal's group, but is for the parent, which then ends its children.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    for number, end in enumerate(standard):
        os.dup2(end, number)
    # What the parent has open is not ours: a sibling's input held open here would never end for the sibling.
    os.closerange(3, max(int(name) for name in os.listdir("/proc/self/fd")) + 1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0)))
    sys.stdin, sys.stdout, sys.stderr = stdin, os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    line = stdin.buffer.readline()
    if not line:
        return 0
    module, *arguments = json.loads(line)
    sys.argv = [module, *arguments]
    try:
        importlib.import_module(module).main()
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else 1
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
