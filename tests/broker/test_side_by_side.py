"""kcat, confluent-kafka, aiokafka and kafka-python at work on one broker at the same time, groups and transactions
included. What must hold, whoever wrote and whoever reads:

1. Every value of a committed transaction reaches every group once, no value of an aborted one does.
2. Members of one group share its partitions, though each is another library's.
3. Offsets sent in a transaction are where the group's next member goes on.

kcat takes part where it is installed.
"""

import re
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from kafka.structs import TopicPartition

from tests.broker.clients import CLIENTS
from tests.embedded_server import EmbeddedServer
from tests.helpers import Process, eventually
from tests.system import fold

PARTITIONS = 4
ROUNDS = 8
VALUES = 25  # in each round's transaction
ABORTED_ROUND = 3
COMMITTED = [number for number in range(ROUNDS) if number != ABORTED_ROUND]
WAIT_S = 60.0
KCAT = shutil.which("kcat") or shutil.which("kafkacat")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path / "broker")
    server.start()
    yield server
    server.close()


def values(client: str, number: int) -> list[bytes]:
    return [f"{client}-{number}-{index}".encode() for index in range(VALUES)]


def write(address: str, client: str) -> None:
    """Fills "in", one round after the other; one of them is aborted."""
    if client == "kcat":
        for number in COMMITTED:
            kcat_write(address, "in", values(client, number), "writer-kcat")
        return
    with closing(CLIENTS[client][1](address, f"writer-{client}")) as producer:
        for number in range(ROUNDS):
            producer.begin()
            for index, value in enumerate(values(client, number)):
                producer.send("in", index % PARTITIONS, value)
            if number == ABORTED_ROUND:
                producer.abort()
            else:
                producer.commit()


def copy(address: str, client: str, expected: set[bytes], ends: Callable[[], dict[int, int]]) -> list[bytes]:
    """Copies "in" to a topic of the client's own, in transactions, as a group of its own; what it read."""
    if client == "kcat":
        return kcat_copy(address, len(expected))
    consumer_type, producer_type = CLIENTS[client]
    group, seen = f"copy-{client}", []
    with (
        closing(consumer_type(address, group, "in")) as consumer,
        closing(producer_type(address, f"copier-{client}")) as producer,
    ):

        def step() -> bool:
            if records := consumer.poll():
                producer.begin()
                for partition, value in records:
                    producer.send(f"out-{client}", partition, value)
                producer.commit()
                seen.extend(value for _, value in records)
            return len(seen) >= len(expected)

        eventually(f"{client} has copied everything", step, timeout_s=WAIT_S)
        producer.begin()
        producer.send_offsets([("in", partition, end) for partition, end in ends().items()], consumer, group)
        producer.commit()
    return seen


def kcat(address: str, *arguments: str, text: bytes | None = None) -> bytes:
    assert KCAT is not None
    done = subprocess.run(
        [KCAT, "-b", address, *arguments], input=text, capture_output=True, timeout=WAIT_S, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def kcat_write(address: str, topic: str, written: list[bytes], transactional_id: str) -> None:
    kcat(address, "-P", "-t", topic, "-X", f"transactional.id={transactional_id}", text=b"\n".join(written))


READING = ("-q", "-u", "-X", "auto.offset.reset=earliest", "-X", "isolation.level=read_committed")


def kcat_copy(address: str, count: int) -> list[bytes]:
    seen = kcat(address, "-G", "copy-kcat", *READING, "-c", str(count), "in").split()
    kcat_write(address, "out-kcat", seen, "copier-kcat")
    return seen


def test_every_client_reads_what_all_of_them_write_at_the_same_time(server: EmbeddedServer) -> None:
    clients = [*CLIENTS, *(["kcat"] if KCAT else [])]
    server.create_topics({name: {"num_partitions": PARTITIONS} for name in ("in", *(f"out-{it}" for it in clients))})
    expected = {value for client in clients for number in COMMITTED for value in values(client, number)}
    writers: list[Future[None]] = []

    def ends() -> dict[int, int]:
        for writer in writers:
            writer.result(WAIT_S)
        with server.admin() as admin:
            partitions = {TopicPartition("in", number): -1 for number in range(PARTITIONS)}
            return {tp.partition: found.offset for tp, found in admin.list_partition_offsets(partitions).items()}

    with ThreadPoolExecutor(2 * len(clients)) as pool:
        copiers = {client: pool.submit(copy, server.address, client, expected, ends) for client in clients}
        writers += [pool.submit(write, server.address, client) for client in clients]
        seen = {client: copier.result(2 * WAIT_S) for client, copier in copiers.items()}
    once = dict.fromkeys(expected, 1)
    for client in clients:
        assert Counter(seen[client]) == once, client
        assert Counter(record.value for record in fold.read(server.address, f"out-{client}")) == once, client
    with server.admin() as admin:
        for client in CLIENTS:
            stored = admin.list_group_offsets({f"copy-{client}": None})[f"copy-{client}"]
            assert {tp.partition: found.offset for tp, found in stored.items()} == ends(), client


class KcatMember:
    """kcat in a group; says what it was assigned on stderr, and what it reads on stdout."""

    def __init__(self, address: str, group: str, directory: Path) -> None:
        assert KCAT is not None
        argv = [KCAT, "-b", address, "-G", group, *READING[1:], "-f", "%s\n", "in"]
        self._process = Process(argv, directory, name="kcat")

    def assigned(self) -> set[int]:
        found = re.findall(r"assigned: (.*)$", self._process.stderr(), re.MULTILINE)
        return {int(number) for number in re.findall(r"\[(\d+)\]", found[-1])} if found else set()

    def values(self) -> list[bytes]:
        return self._process.stdout().encode().split()

    def close(self) -> None:
        self._process.close()


class LibraryMember:
    """A consumer that one thread polls, as an application would; members wait for each other's joins together."""

    def __init__(self, address: str, group: str, client: str) -> None:
        self._consumer = CLIENTS[client][0](address, group, "in")
        self._values: list[bytes] = []
        self._assigned: set[int] = set()
        self._failure: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=client, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._values += [value for _, value in self._consumer.poll()]
                self._assigned = self._consumer.assigned()
            self._consumer.close()
        except BaseException as error:
            self._failure = error

    def _check(self) -> None:
        if self._failure is not None:
            raise AssertionError(f"{self._thread.name} failed") from self._failure

    def assigned(self) -> set[int]:
        self._check()
        return self._assigned

    def values(self) -> list[bytes]:
        self._check()
        return list(self._values)

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(WAIT_S)
        self._check()


def test_members_of_different_libraries_share_one_group(server: EmbeddedServer, tmp_path: Path) -> None:
    """Without kafka-python, which may lose the join of a group's leader (see clients.py) and then take its time."""
    server.create_topics({"in": {"num_partitions": PARTITIONS}})
    with ExitStack() as stack:
        members: list[LibraryMember | KcatMember] = [
            stack.enter_context(closing(LibraryMember(server.address, "mixed", client)))
            for client in ("confluent-kafka", "aiokafka")
        ]
        if KCAT:
            members.append(stack.enter_context(closing(KcatMember(server.address, "mixed", tmp_path))))

        def shared() -> bool:
            shares = [member.assigned() for member in members]
            return all(shares) and sorted(number for share in shares for number in share) == list(range(PARTITIONS))

        eventually("each has its share of the partitions", shared, timeout_s=WAIT_S, interval_s=0.1)
        write(server.address, "confluent-kafka")
        count = (ROUNDS - 1) * VALUES

        def read() -> list[bytes]:
            return [value for member in members for value in member.values()]

        eventually("everything is read", lambda: len(read()) >= count, timeout_s=WAIT_S)
        assert Counter(read()) == {value: 1 for number in COMMITTED for value in values("confluent-kafka", number)}


@pytest.mark.skipif(KCAT is None, reason="kcat is not installed (Debian: apt-get install kcat)")
def test_kcat_lists_writes_and_reads(server: EmbeddedServer) -> None:
    server.create_topics({"in": {"num_partitions": PARTITIONS}})
    assert b'topic "in" with 4 partitions' in kcat(server.address, "-L")
    kcat(server.address, "-P", "-t", "in", "-K", ":", "-z", "lz4", text=b"a:1\nb:2\n")
    kcat_write(server.address, "in", [b"3", b"4"], "writer-kcat")
    found = kcat(server.address, "-C", "-t", "in", "-e", "-q", "-f", "%k=%s ").split()
    assert sorted(found) == [b"=3", b"=4", b"a=1", b"b=2"]
