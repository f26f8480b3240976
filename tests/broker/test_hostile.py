"""Clients that mean harm cost themselves their connection, and nobody else anything.

After each attack the broker still serves; what the attack sent is not stored; memory and connections come back.
"""

import random
import re
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka.protocol.metadata import ApiVersionsRequest, ApiVersionsResponse, MetadataRequest
from kafka.protocol.producer import ProduceRequest
from kafka.protocol.schemas.fields.codegen import CodegenContext

from gokamsg.broker import registry
from gokamsg.broker.decoding import MAX_ELEMENTS, DecodeError, Decoders
from gokamsg.broker.listener import Listener
from gokamsg.broker.runner import RunningBroker
from gokamsg.broker.state import Broker
from tests.broker.conftest import StartBroker
from tests.broker.raw_client import RawClient, make_batch, produce_request
from tests.broker.test_api_produce_fetch import create, fetch, fetch_request
from tests.helpers import eventually


def raw(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), 10)


def framed(body: bytes) -> bytes:
    return struct.pack(">i", len(body)) + body


def head(key: int, version: int, *, client_id: bytes | None = b"x") -> bytes:
    name = b"\xff\xff" if client_id is None else struct.pack(">h", len(client_id)) + client_id
    return struct.pack(">hhi", key, version, 1) + name


@pytest.fixture(autouse=True)
def still_serving(broker: RunningBroker) -> Iterator[None]:
    yield
    with RawClient(broker.address) as client:
        assert client.ask(ApiVersionsRequest(), ApiVersionsResponse, 0).error_code == 0
    eventually("the broker holds nothing", lambda: queued(broker) == 0)


def queued(broker: RunningBroker) -> int:
    """Bytes that the broker accounts to requests."""
    return broker.call(lambda _: listener(broker).queued_bytes)


def listener(broker: RunningBroker) -> Listener:
    assert broker.server is not None
    assert broker.server.listener is not None
    return broker.server.listener


@pytest.mark.parametrize(
    "sent",
    [
        struct.pack(">i", -1) + b"xxxx",
        struct.pack(">i", 0),
        struct.pack(">i", 2**31 - 1) + b"x",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        framed(b"\x00"),
        framed(head(3, 9)[:-1]),
        framed(struct.pack(">hhih", 3, 9, 1, 30_000) + b"short"),
        framed(head(999, 0)),
        framed(head(-1, 0)),
        framed(head(3, 99)),
        framed(head(3, -1)),
        framed(head(7, 0)),  # a key between brokers
        framed(head(3, 9) + b"\x00" + b"\xff" * 100_000),  # an endless varint
        framed(head(3, 9) + b"\x00" + b"\xff\xff\xff\xff\x07"),  # two thousand million topics
        framed(head(3, 8) + struct.pack(">i", 2**31 - 1)),
        framed(head(3, 8) + struct.pack(">ih", 1, 500) + b"short"),  # a name past the end
        framed(head(3, 9) + b"\xff\xff\xff\xff\x0f"),  # tagged fields of the header
        framed(head(0, 9) + b"\x00\x00\xff\xff\x00\x00\x00\x00\x02\x02t\x02\x00\x00\x00\x00\xff\xff\xff\xff\x07"),
        framed(head(3, 8) + struct.pack(">ih", 1, 2) + b"\xff\xfe\x01\x00\x00"),  # a name that is not UTF-8
    ],
)
def test_what_is_no_request_closes_the_connection(broker: RunningBroker, sent: bytes) -> None:
    with RawClient(broker.address) as other, RawClient(broker.address) as attacker:
        attacker.socket.sendall(sent)
        assert attacker.closed_by_peer()
        assert other.ask(ApiVersionsRequest(), ApiVersionsResponse, 0).error_code == 0


def test_leftover_bytes_are_allowed(broker: RunningBroker) -> None:
    """librdkafka sends three extra bytes in one of its Metadata requests."""
    with RawClient(broker.address) as client:
        client.socket.sendall(framed(head(18, 0) + b"\x00\x00\x00"))
        assert client.receive(ApiVersionsResponse, 0, 1).error_code == 0


def test_many_elements_are_refused_before_they_fill_the_memory() -> None:
    count = MAX_ELEMENTS + 1
    body = memoryview(struct.pack(">i", count) + b"\x00\x00" * count)
    with pytest.raises(DecodeError, match="more than"):
        Decoders().decode(MetadataRequest, 1, body, 0)
    few = memoryview(struct.pack(">i", 1000) + b"\x00\x00" * 1000)
    assert len(Decoders().decode(MetadataRequest, 1, few, 0).topics) == 1000


def test_bounds_are_in_every_decoder() -> None:
    """The bounds are put into generated source: a change of its form must not lose them silently."""
    for row in registry.load():
        for version in range(row.min_version, row.max_version + 1):
            context = CodegenContext()
            flexible = row.request.flexible_version_q(version)
            row.request._struct.emit_decode_from(
                context, "obj", "    ", version=version, compact=flexible, tagged=flexible
            )
            source = context.source()
            names = Decoders()._compile(row.request, version).__code__.co_consts
            assert source.count("while True:") == len(re.findall(r"_sh\d+ \+= 7", source))
            assert source.count("in range(") == len(re.findall(r"in range\(_n\d+\):", source))
            assert source.count("_BytesIO(") == source.count("_BytesIO(bytes(data[pos:]))")
            if "while True:" in source:
                assert "a varint too long" in names


def test_random_bytes_never_hurt(broker: RunningBroker, seed: int) -> None:
    chance = random.Random(seed)
    keys = list(registry.load())
    for _ in range(150):
        row = chance.choice(keys)
        version = chance.randint(row.min_version, row.max_version)
        body = head(row.key, version) + chance.randbytes(chance.choice([0, 1, 7, 40, 300]))
        with raw(broker.address) as attacker:
            attacker.sendall(framed(body))


def test_cut_and_twisted_requests_never_hurt(broker: RunningBroker, seed: int) -> None:
    chance = random.Random(seed)
    with RawClient(broker.address) as client:
        create(client, "t")
        requests = []
        for request, version in [
            (produce_request([("t", 0, make_batch([(b"k", b"v")] * 3))]), 9),
            (fetch_request("t", {0: 0}), 12),
            (MetadataRequest(topics=None), 12),
        ]:
            request.API_VERSION = version
            request.with_header(1, "x")
            requests.append(bytes(request.encode(version=version, header=True)))
        for _ in range(150):
            body = bytearray(chance.choice(requests))
            for _ in range(chance.randrange(1, 4)):
                body[chance.randrange(8, len(body))] = chance.randrange(256)
            cut = body[: chance.choice([len(body), chance.randrange(8, len(body))])]
            with raw(broker.address) as attacker:
                attacker.sendall(framed(bytes(cut)))
        high_watermark = fetch(client, "t", 0).high_watermark
        assert client.produce("t", 0, make_batch([(b"k", b"v")])).base_offset >= high_watermark


def test_connections_over_the_limit_are_refused_and_come_back(start: StartBroker, tmp_path: Path) -> None:
    broker = start(max_connections=3, data_dir=tmp_path / "few")
    held = [RawClient(broker.address) for _ in range(3)]
    for client in held:
        client.ask(ApiVersionsRequest(), ApiVersionsResponse, 0)
    with RawClient(broker.address) as refused:
        assert refused.closed_by_peer()
    held.pop().socket.close()

    def connects() -> bool:
        with RawClient(broker.address) as client:
            return bool(client.ask(ApiVersionsRequest(), ApiVersionsResponse, 0).error_code == 0)

    eventually("a place is free again", connects)
    for client in held:
        assert client.ask(ApiVersionsRequest(), ApiVersionsResponse, 0).error_code == 0
        client.socket.close()


def test_request_above_the_size_limit_closes_the_connection(start: StartBroker, tmp_path: Path) -> None:
    broker = start(max_request_bytes=10_000, data_dir=tmp_path / "small")
    with RawClient(broker.address) as client:
        create(client, "t")
        client.socket.sendall(struct.pack(">i", 10_001))
        assert client.closed_by_peer()
    with RawClient(broker.address) as client:
        assert client.produce("t", 0, make_batch([(b"k", b"x" * 9_000)])).error_code == 0


def test_announced_bytes_take_no_memory_until_they_come(broker: RunningBroker) -> None:
    attackers = [raw(broker.address) for _ in range(50)]
    for attacker in attackers:
        attacker.sendall(struct.pack(">i", 100 * 1024 * 1024) + b"x" * 200_000)
    assert eventually("frames arrive", lambda: queued(broker)) < 200 * 1024 * 1024
    for attacker in attackers:
        attacker.close()


def test_unfinished_requests_that_fill_the_memory_are_closed(start: StartBroker, tmp_path: Path) -> None:
    """The largest goes first: a client with a small request is not touched."""
    broker = start(max_queued_bytes=10_000_000, data_dir=tmp_path / "tight")
    with RawClient(broker.address) as bystander:
        create(bystander, "t")
        attackers = [raw(broker.address) for _ in range(4)]
        closed = 0
        for attacker in attackers:
            try:
                attacker.sendall(struct.pack(">i", 50_000_000) + bytes(2_500_000))
            except ConnectionError:
                closed += 1
        assert bystander.produce("t", 0, make_batch([(b"k", b"v")])).error_code == 0
        for attacker in attackers:
            attacker.settimeout(0.5)
            try:
                closed += attacker.recv(1) == b""
            except TimeoutError:
                pass
            except ConnectionError:
                closed += 1
            attacker.close()
        assert 1 <= closed <= 3


def test_client_that_does_not_read_its_answers_is_not_read_from(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t")
        for _ in range(8):
            client.produce("t", 0, make_batch([(b"k", b"x" * 900_000)]))
        lazy = raw(broker.address)
        request = fetch_request("t", {0: 0}, max_bytes=50_000_000, partition_max_bytes=50_000_000)
        request.API_VERSION = 12
        request.with_header(1, "lazy")
        body = framed(bytes(request.encode(version=12, header=True)))
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.sendall(body * 50)  # 360 MB of answers, if they were all made

        def unsent() -> int:
            return broker.call(lambda _: sum(it.unsent_bytes for it in listener(broker).connections))

        eventually("an answer waits", unsent)
        assert client.produce("t", 0, make_batch([(b"k", b"v")])).error_code == 0
        assert unsent() < 20_000_000
        lazy.close()


def test_idle_connections_are_closed(start: StartBroker, tmp_path: Path) -> None:
    broker = start(idle_connection_s=0.2, upkeep_interval_s=0.1, data_dir=tmp_path / "idle")
    with RawClient(broker.address) as client:
        client.ask(ApiVersionsRequest(), ApiVersionsResponse, 0)
        assert client.closed_by_peer()


def test_many_waiting_fetches_cost_one_task_each_and_leave_with_their_clients(broker: RunningBroker) -> None:
    import asyncio

    with RawClient(broker.address) as client:
        create(client, "t")
        waiting = [RawClient(broker.address) for _ in range(100)]
        for other in waiting:
            other.send(fetch_request("t", {0: 0}, max_wait_ms=2**31 - 1), 12)

        def polls() -> int:
            return broker.call(lambda _: sum("run" in repr(task.get_coro()) for task in asyncio.all_tasks()))

        eventually("all of them wait", lambda: polls() >= 100)
        for other in waiting:
            other.socket.close()
        eventually("none waits any more", lambda: polls() < 5)


def test_produce_of_a_hundred_partitions_at_once(broker: RunningBroker) -> None:
    from kafka.protocol.producer import ProduceResponse

    with RawClient(broker.address) as client:
        create(client, "t", partitions=100)
        request = produce_request([("t", index, make_batch([(b"k", b"v")])) for index in range(100)])
        parts = client.ask(request, ProduceResponse, 9).responses[0].partition_responses
    assert [(part.index, part.error_code, part.base_offset) for part in parts] == [
        (index, 0, 0) for index in range(100)
    ]


def test_pipelining_without_end_is_held_back(broker: RunningBroker) -> None:
    """A client that sends Produce after Produce and never reads: the broker stops reading before memory fills."""
    request = produce_request([("t", 0, make_batch([(b"k", b"x" * 100_000)]))])
    request.API_VERSION = 9
    request.with_header(1, "flood")
    body = framed(bytes(request.encode(version=9, header=True)))
    with RawClient(broker.address) as client, raw(broker.address) as flood:
        create(client, "t")
        flood.settimeout(2)
        for _ in range(300):
            try:
                flood.sendall(body)
            except TimeoutError:
                break
        assert queued(broker) < 40_000_000
        assert client.produce("t", 0, make_batch([(b"k", b"v")])).error_code == 0


def test_produce_decodes_what_it_is_sent() -> None:
    """The bounded decoders read what kafka.protocol writes."""
    request = produce_request([("t", 3, b"abc"), ("u", 4, None)])
    for version in range(3, 12):
        body = bytes(request.encode(version=version))
        decoded = Decoders().decode(ProduceRequest, version, memoryview(body), 0)
        assert [(topic.name, topic.partition_data[0].records) for topic in decoded.topic_data] == [
            ("t", b"abc"),
            ("u", None),
        ]


def test_compression_bombs_are_refused_where_keys_are_looked_at(broker: RunningBroker) -> None:
    """A megabyte of gzip that unpacks to a gigabyte would hold up everybody."""
    from gokamsg.broker.batch import HEADER_BYTES, read_header, seal
    from gokamsg.broker.compression import GZIP, MAX_OUTPUT, compress

    plain = make_batch([(b"k", b"v")])
    header = read_header(plain)._replace(attributes=GZIP, record_count=1 << 20, last_offset_delta=(1 << 20) - 1)
    bomb = seal(header, compress(GZIP, plain[HEADER_BYTES:] + bytes(MAX_OUTPUT)))
    assert len(bomb) < 1_000_000
    with RawClient(broker.address) as client:
        create(client, "t", cleanup_policy="compact")
        answer = client.produce("t", 0, bomb)
        assert answer.error_code == 2
        assert "larger than" in answer.error_message


def test_records_of_no_length_do_not_hold_up_the_broker(broker: RunningBroker) -> None:
    from gokamsg.broker.batch import read_header, seal

    plain = make_batch([(b"k", b"v")])
    header = read_header(plain)._replace(record_count=100_000, last_offset_delta=99_999)
    with RawClient(broker.address) as client:
        create(client, "t", cleanup_policy="compact")
        for body in (bytes(900_000), b"\x01" * 900_000, b"\xff" * 900_000):
            assert client.produce("t", 0, seal(header, body)).error_code == 2


def test_made_up_record_counts_do_not_use_up_the_offsets(broker: RunningBroker) -> None:
    """Offsets that ran over would be rows of the next partition."""
    from gokamsg.broker.batch import HEADER_BYTES, read_header, seal
    from gokamsg.broker.log import MAX_OFFSET

    plain = make_batch([(b"k", b"v")])
    header = read_header(plain)._replace(record_count=(1 << 31) - 1, last_offset_delta=(1 << 31) - 2)
    with RawClient(broker.address) as client:
        create(client, "t")
        assert client.produce("t", 0, seal(header, plain[HEADER_BYTES:])).error_code == 87
        assert client.produce("t", 0, seal(header._replace(attributes=1), plain[HEADER_BYTES:])).error_code == 87

        def near_the_end(it: Broker) -> None:
            log = it.log("t", 0)
            assert log is not None
            log.end_offset = MAX_OFFSET - 1

        broker.call(near_the_end)
        assert client.produce("t", 0, plain).base_offset == MAX_OFFSET - 1
        full = client.produce("t", 0, plain)
        assert (full.error_code, full.error_message) == (56, "partition t/0 has no offsets left")
        assert client.produce("t", 1, plain).base_offset == 0
