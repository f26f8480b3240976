"""Every command that goes on until it is told to stop: it stops in time, and nothing of it is left.

Invariants, for SIGTERM and SIGINT alike: it ends by itself, without an error, within STOP_S; afterwards there is no
process of it, no lock, no temporary file and no file that its next start would not know; it starts again.
"""

import fcntl
import http.client
import re
import signal
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import OwnServer
from tests.helpers import Process, Processes, free_port, run_gokamsg, say, slowness
from tests.system.messaging import pause

STOP_S = 3.0
ROLES = ("filter", "collector")
STATE_FILES = re.compile(
    r"installation|"
    r"[\w-]{22}/(?:\w+/\d/(?:lock|[a-z_-]+\.\d(?:\.clean)?)|\w+/handled/[a-z_-]+\.\d\.[\w-]+)"
)
DATA_FILES = {"broker/broker.db", "broker/broker.lock"}


@dataclass(frozen=True)
class Left:
    """Where a command could leave something; the mark is in its environment, and in those of all it starts."""

    directory: Path
    mark: str

    @property
    def env(self) -> dict[str, str]:
        return {
            "TMPDIR": str(self.directory / "temporary"),
            "GOKAMSG_STATE_DIR": str(self.directory / "state"),
            "GOKAMSG_TEST_MARK": self.mark,
        }

    def processes(self) -> list[int]:
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (entry / "environ").read_bytes() and (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:  # it has ended, or is somebody else's
                continue
        return found

    def files(self, folder: str) -> set[str]:
        root = self.directory / folder
        return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}

    def locked(self) -> list[Path]:
        found = []
        for path in self.directory.rglob("*lock"):
            with path.open("a") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(path)
        return found


@pytest.fixture
def left(tmp_path: Path) -> Left:
    (tmp_path / "temporary").mkdir()
    return Left(tmp_path, uuid.uuid4().hex)


@pytest.fixture
def limit_s() -> float:
    return STOP_S * slowness()


def stopped(process: Process, number: signal.Signals, limit_s: float) -> None:
    """Ends the command; the time that it took has to be below the limit, and the exit code that of no error."""
    began = time.monotonic()
    process.signal(number)
    code = process.wait(limit_s)
    say(f"{process.name}: {number.name}, {time.monotonic() - began:.2f} s")
    # `feed` and `status` have nothing to clean up, and end by SIGTERM itself.
    assert code in (0, 128 + number, -number), process.tail()
    assert not process.group_alive(), f"something of {process.name} is left"
    assert "Traceback" not in process.stderr(), process.tail()


NUMBERS = [signal.SIGTERM, signal.SIGINT]


def test_nothing_is_left_of_any_command_on_kafka(run: Processes, left: Left, limit_s: float) -> None:
    broker_port, port = free_port(), free_port()
    env = left.env | {"GOKAMSG_BROKERS": f"127.0.0.1:{broker_port}"}
    data = ("--port", str(broker_port), "--data-dir", str(left.directory / "data"))

    def start(*arguments: str, ready: str) -> Process:
        process = run.gokamsg(*arguments, name=arguments[0], env=env, cwd=left.directory)
        process.wait_line(ready, timeout_s=30)
        return process

    for number in NUMBERS:
        broker = start("broker", *data, ready="ready|listening|127.0.0.1")
        workers = start("process", *(flag for role in ROLES for flag in ("--role", role)), ready="collector: running")
        workers.wait_line("filter: running")
        service = start("serve", "--port", str(port), ready="feeds are ready")
        url = f"http://127.0.0.1:{port}"
        load = run.gokamsg("loadgen", "--url", url, "--rate", "50", name="loadgen", env=env, cwd=left.directory)
        run_gokamsg("send", "Bob", "Alice", "hello", env=env)
        feed = start("feed", "Alice", "--follow", ready="Bob|Alice")
        watch = start("status", "--watch", ready="collector")
        for process in (load, feed, watch, service, workers, broker):
            stopped(process, number, limit_s)
        assert left.processes() == []
        assert left.locked() == []
        assert left.files("temporary") == set()
        assert left.files("data") == DATA_FILES
        unknown = [name for name in left.files("state") if not STATE_FILES.fullmatch(name)]
        assert unknown == []


def test_nothing_is_left_of_up(run: Processes, left: Left, limit_s: float) -> None:
    flags = ("--port", str(free_port()), "--broker-port", str(free_port()), "--data-dir", str(left.directory / "up"))
    for number in NUMBERS:
        up = run.gokamsg("up", *flags, "--demo", name="up", env=left.env, cwd=left.directory)
        up.wait_line("ready in", timeout_s=40)
        stopped(up, number, limit_s)
        assert left.processes() == []
        assert left.locked() == []
        assert left.files("temporary") == set()
        assert not [name for name in left.files("up") if name.endswith((".new", ".json", "-wal", "-shm", ".tmp"))]


@pytest.mark.any_broker
@pytest.mark.parametrize("still_s", [pytest.param(0.1, marks=pytest.mark.slow), 5.0])
def test_a_stop_does_not_wait_for_a_broker_that_stands_still(
    own_cluster: OwnServer, run: Processes, left: Left, limit_s: float, still_s: float
) -> None:
    """Nobody answers any more, for a moment or longer; whoever has just sent a message is told so."""
    port = free_port()
    env = left.env | {"GOKAMSG_BROKERS": own_cluster.address}
    workers = run.gokamsg("process", *(flag for role in ROLES for flag in ("--role", role)), name="process", env=env)
    service = run.gokamsg("serve", "--port", str(port), name="serve", env=env)
    for process, lines in ((workers, ("collector: running", "filter: running")), (service, ("feeds are ready",))):
        for line in lines:
            process.wait_line(line, timeout_s=30)

    def send() -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("POST", "/Bob/send", b'{"to": "Alice", "content": "hello"}')
            return connection.getresponse().status
        finally:
            connection.close()

    assert send() == 200
    with ThreadPoolExecutor(1) as pool:
        own_cluster.pause()
        try:
            waits = pool.submit(send)
            pause(seconds=still_s)
            for process in (service, workers):
                stopped(process, signal.SIGTERM, limit_s)
            assert waits.result() == 503
        finally:
            own_cluster.resume()
    assert left.processes() == []
    assert left.locked() == []
