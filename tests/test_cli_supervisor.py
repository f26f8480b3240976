"""Children are started in order, restarted when they fail, given up with their last error, and stopped in reverse."""

import os
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gokamsg.errors import GokamsgError
from gokamsg.supervisor import LOOK_S, ChildSpec, Supervisor, SupervisorOptions
from tests.helpers import eventually

QUICK = SupervisorOptions(quick_failures=3, quick_s=5, stall_s=30, grace_s=5, pauses_s=(0.01,))

# Says its name, and stops on SIGTERM or at the end of its input, which it notes in a file.
POLITE = """
import json, os, signal, sys
name, log = sys.argv[1:3]
greeting = sys.stdin.readline().strip()
def note(text):
    with open(log, "a") as file:
        file.write(f"{name} {text}\\n")
def stop(*_):
    note("stopped")
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
note("started")
print(json.dumps({"hello": greeting}), flush=True)
sys.stdin.read()
note("orphaned")
"""


class Running:
    """A supervisor in a thread of its own, and what it said."""

    def __init__(self, *specs: ChildSpec, options: SupervisorOptions = QUICK) -> None:
        self.messages: list[tuple[str, dict[str, Any]]] = []
        self.events: list[tuple[str, str]] = []
        self.logs: list[tuple[str, str]] = []
        self.failure: BaseException | None = None
        self.supervisor = Supervisor(
            specs,
            on_message=lambda name, message: self.messages.append((name, message)),
            on_event=lambda name, text: self.events.append((name, text)),
            on_log=lambda name, line: self.logs.append((name, line)),
            options=options,
        )
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.supervisor.run()
        except GokamsgError as error:
            self.failure = error

    def join(self, timeout_s: float = 20) -> None:
        self.thread.join(timeout_s)
        assert not self.thread.is_alive()


@pytest.fixture
def running() -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(*specs: ChildSpec, options: SupervisorOptions = QUICK) -> Running:
        started.append(Running(*specs, options=options))
        return started[-1]

    yield start
    for one in started:
        if one.thread.is_alive():
            one.supervisor.kill()
            one.join()


def child(name: str, script: str, *arguments: str, stage: int = 0, greeting: bytes = b"\n") -> ChildSpec:
    return ChildSpec(name, [sys.executable, "-c", textwrap.dedent(script), name, *arguments], greeting, stage)


def test_children_are_greeted_heard_and_stopped(running: Callable[..., Running], tmp_path: Path) -> None:
    log = tmp_path / "log"
    one = running(child("a", POLITE, str(log), greeting=b"hi\n"))
    eventually("the child is heard", lambda: one.messages == [("a", {"hello": "hi"})])
    one.supervisor.stop()
    one.join()
    assert log.read_text() == "a started\na stopped\n"
    assert (one.failure, one.events) == (None, [])


def test_stages_stop_in_reverse(running: Callable[..., Running], tmp_path: Path) -> None:
    log = tmp_path / "log"
    specs = [child(name, POLITE, str(log), stage=stage) for stage, name in enumerate("abc")]
    one = running(*reversed(specs))
    eventually("all are heard", lambda: len(one.messages) == 3)
    one.supervisor.stop()
    one.join()
    assert log.read_text().splitlines()[3:] == ["c stopped", "b stopped", "a stopped"]


def test_a_killed_child_starts_again(running: Callable[..., Running], tmp_path: Path) -> None:
    one = running(child("a", POLITE, str(tmp_path / "log")))
    eventually("the child is heard", lambda: len(one.messages) == 1)
    os.kill(one.supervisor.pids()["a"], signal.SIGKILL)
    eventually("the next one is heard", lambda: len(one.messages) == 2)
    assert one.events == [("a", "failed: it was ended by SIGKILL; it starts again in 0.01 s")]


def test_a_killed_child_is_not_found_by_the_next_look_alone(running: Callable[..., Running], tmp_path: Path) -> None:
    one = running(child("a", POLITE, str(tmp_path / "log")), options=replace(QUICK, quick_failures=100))

    def gap_s(kills: int) -> float:
        eventually("the child is heard", lambda: len(one.messages) == kills + 1)
        pid, killed = one.supervisor.pids()["a"], time.monotonic()
        os.kill(pid, signal.SIGKILL)
        eventually("another one", lambda: one.supervisor.pids().get("a", pid) != pid, interval_s=0.001)
        return time.monotonic() - killed

    assert min(map(gap_s, range(5))) < LOOK_S / 2


def test_a_child_that_keeps_failing_ends_everything_with_its_last_error(
    running: Callable[..., Running], tmp_path: Path
) -> None:
    failing = 'import json, sys; print("odd line"); print(json.dumps({"error": "no luck"})); sys.exit(1)'
    log = tmp_path / "log"
    one = running(child("a", POLITE, str(log)), child("b", failing))
    one.join()
    assert str(one.failure) == "b failed 3 times in a row: no luck"
    assert [text for _, text in one.events] == [
        "failed: no luck; it starts again in 0.01 s",
        "failed again; it starts again in 0.01 s",
    ]
    assert ("b", "odd line") in one.logs
    assert log.read_text() == "a started\na stopped\n"


def test_a_final_error_is_not_tried_again(running: Callable[..., Running]) -> None:
    final = 'import json, sys; print(json.dumps({"error": "another process uses this identity", "final": True}))'
    one = running(child("a", final))
    one.join()
    assert str(one.failure) == "a failed: another process uses this identity"
    assert one.events == []


def test_a_child_that_waits_for_others_is_started_again_without_end(running: Callable[..., Running]) -> None:
    """A worker that was killed while the brokers were away used to end its whole command with its fifth try."""
    waiting = 'import json, sys; print(json.dumps({"error": "no broker answers", "waits": True})); sys.exit(1)'
    one = running(child("a", waiting))
    eventually("it was tried more often than one that fails", lambda: len(one.events) > 2 * QUICK.quick_failures)
    assert one.failure is None
    one.supervisor.stop()
    one.join()
    assert set(one.events[1:]) == {("a", "failed again; it starts again in 0.01 s")}


def test_a_silent_child_is_replaced(running: Callable[..., Running]) -> None:
    silent = "import time\ntime.sleep(60)"
    options = SupervisorOptions(quick_failures=2, quick_s=30, stall_s=2, stacks_s=0.2, grace_s=5, pauses_s=(0.01,))
    one = running(child("a", silent), options=options)
    one.join()
    assert str(one.failure) == "a failed 2 times in a row: it did not move"
    assert one.events == [("a", "did not move for 2 s; its stacks are above; it is replaced")]


def test_what_a_hanging_child_logs_and_prints_is_no_sign_of_life(running: Callable[..., Running]) -> None:
    """A client's thread goes on logging while the loop hangs, and a callback may print."""
    chatty = """
        import sys, threading, time
        from gokamsg.supervisor import show_stacks_when_asked
        def chat():
            while True:
                print("reconnecting", file=sys.stderr, flush=True)
                time.sleep(0.05)
        def hang():
            while True:
                print(5, flush=True)
                time.sleep(0.05)
        show_stacks_when_asked()
        threading.Thread(target=chat, daemon=True).start()
        hang()
    """
    options = SupervisorOptions(quick_failures=2, quick_s=30, stall_s=2, stacks_s=0.5, grace_s=5, pauses_s=(0.01,))
    one = running(child("a", chatty), options=options)
    one.join()
    assert str(one.failure) == "a failed 2 times in a row: it did not move"
    lines = [line for _, line in one.logs]
    assert "5" in lines
    assert any("in hang" in line for line in lines)
    assert any("in chat" in line for line in lines)


def test_a_child_that_ignores_the_request_is_killed(running: Callable[..., Running]) -> None:
    stubborn = """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("{}", flush=True)
        time.sleep(60)
    """
    options = SupervisorOptions(quick_failures=3, quick_s=5, stall_s=30, grace_s=0.3, pauses_s=(0.01,))
    one = running(child("a", stubborn), options=options)
    eventually("the child is heard", lambda: one.messages)
    one.supervisor.stop()
    one.join(10)


def test_children_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = f"""
import sys
from gokamsg.supervisor import ChildSpec, Supervisor
spec = ChildSpec("a", [sys.executable, "-c", {POLITE!r}, "a", {str(log)!r}], b"\\n")
ignore = lambda *_: None
Supervisor([spec], on_message=ignore, on_event=ignore, on_log=ignore).run()
"""
    import subprocess

    with subprocess.Popen([sys.executable, "-c", script]) as process:
        eventually("the child is there", lambda: log.exists() and "started" in log.read_text())
        process.kill()
    eventually("the child ended", lambda: "orphaned" in log.read_text())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads a process's signals from /proc")
def test_ctrl_c_of_the_terminal_is_left_to_the_supervisor(running: Callable[..., Running], tmp_path: Path) -> None:
    """The terminal sends SIGINT to every process of its group; a child must not end by it on its own."""
    one = running(child("a", POLITE, str(tmp_path / "log")))
    eventually("the child is heard", lambda: one.messages)
    status = Path(f"/proc/{one.supervisor.pids()['a']}/status").read_text()
    blocked = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk:")), 16)
    assert blocked & 1 << (signal.SIGINT - 1)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
