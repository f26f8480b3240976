"""Starting, stopping and refusing to start; in a thread and as a process of its own."""

import contextlib
import gc
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gokamsg.broker.runner import RunningBroker, running_broker
from gokamsg.broker.server import DATA_FILE
from gokamsg.broker.settings import BrokerSettings
from gokamsg.broker.state import Broker
from gokamsg.broker.store import StoreError
from gokamsg.errors import GokamsgError, StateError
from tests.broker.raw_client import RawClient, make_batch
from tests.broker.test_api_produce_fetch import create, fetch
from tests.helpers import Process, eventually

ROOT = Path(__file__).parents[2]
ENVIRONMENT = dict(os.environ) | {"PYTHONPATH": str(ROOT)}
SCRIPT = """
import sys
from pathlib import Path
from gokamsg.broker.server import run_broker
from gokamsg.broker.settings import BrokerSettings
run_broker(
    BrokerSettings(data_dir=Path(sys.argv[1]), port=0), on_ready=lambda address: print("ready", address, flush=True)
)
print("closed", flush=True)
"""

StartProcess = Callable[[Path], tuple[Process, str]]


@pytest.fixture
def process(tmp_path: Path) -> Iterator[StartProcess]:
    """Starts a broker process on a data directory; the process and its address."""
    started: list[Process] = []

    def begin(data_dir: Path) -> tuple[Process, str]:
        argv = [sys.executable, "-c", SCRIPT, str(data_dir)]
        name = f"broker-{len(started)}"
        running = Process(
            argv, tmp_path / "logs", name=name, env=dict(os.environ) | {"PYTHONPATH": str(ROOT)}, cwd=ROOT
        )
        started.append(running)
        return running, running.wait_line(r"^ready (\S+)$").group(1)

    yield begin
    for running in started:
        running.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_twenty_starts_leave_no_thread_and_no_descriptor(tmp_path: Path) -> None:
    def once() -> None:
        with running_broker(data_dir=tmp_path / "data") as broker, RawClient(broker.address) as client:
            if not broker.call(lambda it: it.topics.get("t")):
                create(client, "t")
            client.produce("t", 0, make_batch([(b"k", b"v")]))
            fetch(client, "t", 0)

    once()  # what is imported and opened once for all
    threads, files = threading.active_count(), descriptors()
    for _ in range(20):
        once()
    eventually("threads return to the baseline", lambda: threading.active_count() <= threads)
    eventually("descriptors return to the baseline", lambda: descriptors() <= files)


def test_second_broker_on_a_data_directory_is_refused(tmp_path: Path) -> None:
    refusal = rf"in use by another broker \(process {os.getpid()}\)"
    with running_broker(data_dir=tmp_path), pytest.raises(StateError, match=refusal):
        running_broker(data_dir=tmp_path).__enter__()
    with running_broker(data_dir=tmp_path) as broker:  # free again
        assert broker.address


def test_taken_port_is_refused_and_leaves_nothing_open(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        threads = threading.active_count()
        with pytest.raises(GokamsgError, match=rf"cannot listen on 127.0.0.1:{port}: .*in use.*--port"):
            running_broker(data_dir=tmp_path, port=port).__enter__()
        eventually("its threads are gone", lambda: threading.active_count() <= threads)
    with running_broker(data_dir=tmp_path, port=port) as broker:
        assert broker.address == f"127.0.0.1:{port}"


@pytest.mark.parametrize("content", [b"garbage " * 1000, b"SQLite format 3\x00" + b"\x01" * 5000])
def test_damaged_data_file_is_refused_with_a_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / DATA_FILE).write_bytes(content)
    with pytest.raises(StateError, match=r"damaged.*--data-dir"):
        running_broker(data_dir=tmp_path).__enter__()
    assert (tmp_path / DATA_FILE).read_bytes() == content


def test_data_file_with_unreadable_records_is_refused(tmp_path: Path) -> None:
    with running_broker(data_dir=tmp_path) as broker, RawClient(broker.address) as client:
        create(client, "t")
    connection = sqlite3.connect(tmp_path / DATA_FILE)
    connection.execute("UPDATE records SET value = x'c1' WHERE space = 'topic'")
    connection.commit()
    connection.close()
    threads = threading.active_count()
    with pytest.raises(StateError, match="damaged"):
        running_broker(data_dir=tmp_path).__enter__()
    eventually("its threads are gone", lambda: threading.active_count() <= threads)


def test_unusable_data_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(StateError, match="cannot use the data directory"):
        running_broker(data_dir=tmp_path / "file" / "data").__enter__()


def test_it_listens_on_loopback_alone(tmp_path: Path) -> None:
    with running_broker(data_dir=tmp_path) as broker:
        assert broker.settings.host == "127.0.0.1"
        assert broker.address.startswith("127.0.0.1:")
        port = int(broker.address.rpartition(":")[2])
        own = {
            line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"
        }
        assert f"0100007F:{port:04X}" in own
        assert f"00000000:{port:04X}" not in own


def test_advertised_address_is_what_clients_are_told(tmp_path: Path) -> None:
    from kafka.protocol.metadata import MetadataRequest, MetadataResponse

    with running_broker(data_dir=tmp_path, advertised_host="broker.example", advertised_port=1234) as broker:
        assert broker.address == "broker.example:1234"
        assert broker.server is not None
        assert broker.server.listener is not None
        port = broker.server.listener.port
        with RawClient(f"127.0.0.1:{port}") as client:
            (node,) = client.ask(MetadataRequest(topics=[]), MetadataResponse, 9).brokers
        assert (node.host, node.port) == ("broker.example", 1234)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_closes_cleanly(tmp_path: Path, process: StartProcess, number: signal.Signals) -> None:
    running, address = process(tmp_path / "data")
    with RawClient(address) as client:
        create(client, "t")
        client.produce("t", 0, make_batch([(b"k", b"v")]))
        running.signal(number)
        assert running.wait() == 0
    assert "closed" in running.stdout()
    assert running.stderr() == ""
    assert not (tmp_path / "data" / f"{DATA_FILE}-wal").exists()  # everything is in the file
    with running_broker(data_dir=tmp_path / "data") as broker, RawClient(broker.address) as client:
        assert fetch(client, "t", 0).high_watermark == 1


def test_second_signal_ends_the_process_at_once(tmp_path: Path, process: StartProcess) -> None:
    running, _ = process(tmp_path / "data")
    os.kill(running.pid, signal.SIGSTOP)  # both arrive before it can act on the first
    running.signal(signal.SIGTERM)
    running.signal(signal.SIGINT)
    os.kill(running.pid, signal.SIGCONT)
    assert running.wait() == 130


def test_acknowledged_records_survive_kill_9(tmp_path: Path, process: StartProcess) -> None:
    running, address = process(tmp_path / "data")
    with RawClient(address) as client:
        create(client, "t")
        for sequence in range(20):
            client.produce("t", 0, make_batch([(b"k", b"v")], producer_id=7, epoch=0, sequence=sequence))
    running.kill9()
    _, address = process(tmp_path / "data")
    with RawClient(address) as client:
        assert fetch(client, "t", 0).high_watermark == 20
        again = client.produce("t", 0, make_batch([(b"k", b"v")], producer_id=7, epoch=0, sequence=19))
        assert (again.error_code, again.base_offset) == (0, 19)


def test_a_killed_brokers_directory_is_not_locked(tmp_path: Path, process: StartProcess) -> None:
    running, _ = process(tmp_path / "data")
    refused = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "data")],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        timeout=60,
    )
    assert f"in use by another broker (process {running.pid})" in refused.stderr
    running.kill9()
    process(tmp_path / "data")


def test_memory_after_start(tmp_path: Path, process: StartProcess) -> None:
    running, _ = process(tmp_path / "data")
    status = Path(f"/proc/{running.pid}/status").read_text()
    resident_kb = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    assert resident_kb < 60 * 1024


def test_full_disk_stops_the_broker_and_loses_nothing_acknowledged(tmp_path: Path) -> None:
    async def allow_few_pages(it: Broker) -> None:
        unit = it.store.unit()
        unit.ops.append(("PRAGMA max_page_count = 200", ()))
        await it.store.commit(unit)

    broker = RunningBroker(BrokerSettings(data_dir=tmp_path, port=0))
    broker.start()
    acknowledged = 0
    with RawClient(broker.address) as client:
        create(client, "t")
        broker.run(allow_few_pages)
        with contextlib.suppress(ConnectionError):  # no answer, rather than one that is not true
            for _ in range(50):
                assert client.produce("t", 0, make_batch([(b"k", b"x" * 50_000)])).error_code == 0
                acknowledged += 1
    with pytest.raises(StoreError, match=r"cannot write .*full.*restart"):
        broker.stop()
    assert 0 < acknowledged < 50
    with running_broker(data_dir=tmp_path) as again, RawClient(again.address) as client:
        assert fetch(client, "t", 0).high_watermark == acknowledged
        assert client.produce("t", 0, make_batch([(b"k", b"v")])).base_offset == acknowledged


def test_a_stop_forgets_no_connection_that_is_just_accepted(tmp_path: Path) -> None:
    """Forgotten ones are unclosed transports, which fail a test when they are collected."""
    for number in range(3):
        broker = RunningBroker(BrokerSettings(data_dir=tmp_path / str(number), port=0))
        broker.start()
        host, _, port = broker.address.rpartition(":")
        knocking = Knocking(host, int(port))
        eventually("connections come and go", lambda knocking=knocking: knocking.count > 50)  # type: ignore[misc]
        broker.stop()
        knocking.stop()
        gc.collect()


class Knocking:
    """Connects again and again, on three threads, until it is told to stop."""

    def __init__(self, host: str, port: int) -> None:
        self.count = 0
        self._address = (host, port)
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._knock) for _ in range(3)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _knock(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(OSError), socket.create_connection(self._address, timeout=5):
                self.count += 1


def test_messages_are_their_users_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with running_broker(data_dir=tmp_path / "data"):
            modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "data").iterdir()}
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o600}, modes
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
