"""A client without opinions: sends one request at the version asked for, and returns what came back."""

import itertools
import socket
from collections.abc import Iterable
from typing import Any

from kafka.protocol.metadata import FindCoordinatorRequest
from kafka.protocol.producer import ProduceRequest
from kafka.record import MemoryRecordsBuilder

from tests.helpers import eventually

COORDINATOR_BUSY = {14, 15, 16}  # what Apache Kafka answers until it has loaded or found a coordinator
CONCURRENT_TRANSACTIONS = 51


class WireClient:
    """One connection; requests are answered in their order, one at a time."""

    def __init__(self, address: str, *, client_id: str = "wire", timeout_s: float = 30.0) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._client_id = client_id
        self._ids = itertools.count(1)
        self._waiting: list[Any] = []

    def __enter__(self) -> "WireClient":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self, request: Any) -> None:
        """Send without waiting; receive() reads the answers in order."""
        request.with_header(correlation_id=next(self._ids), client_id=self._client_id)
        self._socket.sendall(request.encode(header=True, framed=True))
        self._waiting.append(request)

    def receive(self) -> Any:
        """The next answer; raises ConnectionError if the broker closes the connection instead."""
        request = self._waiting.pop(0)
        response_type = _response_of(request)
        frame = self._read(int.from_bytes(self._read(4), "big"))
        return response_type.decode(frame, version=request.API_VERSION, header=True)

    def ask(self, request: Any) -> Any:
        self.send(request)
        return self.receive()

    def settled(self, request: Any) -> Any:
        """ask(), again and again while the coordinator is busy; what Kafka's own clients do too."""

        def answered() -> Any:
            answer = self.ask(request)
            return None if set(codes(answer)) & (COORDINATOR_BUSY | {CONCURRENT_TRANSACTIONS}) else answer

        return eventually(f"an answer to {request.name} of a coordinator that is ready", answered, timeout_s=30)

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._socket.recv(size)
            if not part:
                raise ConnectionError("the broker closed the connection")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


def _response_of(request: Any) -> Any:
    module = __import__(type(request).__module__, fromlist=["_"])
    return getattr(module, request.name.replace("Request", "Response"))


def codes(answer: Any) -> Iterable[int]:
    """Every error code in an answer, wherever it stands."""
    for name, value in answer.to_dict(json=False).items():
        yield from _codes(name, value)


def _codes(name: str, value: Any) -> Iterable[int]:
    if name in ("error_code", "partition_error_code"):
        yield value
    elif isinstance(value, dict):
        for inner_name, inner in value.items():
            yield from _codes(inner_name, inner)
    elif isinstance(value, list):
        for entry in value:
            yield from _codes(name, entry)


def coordinator(address: str, key: str, *, transaction: bool = False) -> WireClient:
    """A connection to the coordinator of a group or transactional id."""
    with WireClient(address) as client:
        found = client.settled(FindCoordinatorRequest(version=3, key=key, key_type=1 if transaction else 0))
    assert found.error_code == 0
    return WireClient(f"{found.host}:{found.port}")


def batch(
    values: Iterable[bytes], *, producer: tuple[int, int] = (-1, -1), sequence: int = -1, transactional: bool = False
) -> bytes:
    """A v2 record batch."""
    builder = MemoryRecordsBuilder(
        2,
        0,
        1 << 20,
        transactional=transactional,
        producer_id=producer[0],
        producer_epoch=producer[1],
        base_sequence=sequence,
    )
    for value in values:
        builder.append(1_700_000_000_000, None, value)
    builder.close()
    return bytes(builder.buffer())


def produce_request(topic: str, partition: int, records: bytes, *, transactional_id: str | None = None) -> Any:
    """A Produce of one batch."""
    topic_data = ProduceRequest.TopicProduceData
    data = topic_data.PartitionProduceData(index=partition, records=records)
    return ProduceRequest(
        version=9,
        transactional_id=transactional_id,
        acks=-1,
        timeout_ms=10_000,
        topic_data=[topic_data(name=topic, partition_data=[data])],
    )


def produce(
    client: WireClient, topic: str, partition: int, records: bytes, *, transactional_id: str | None = None
) -> Any:
    """Produce one batch; the partition's part of the answer."""
    answer = client.ask(produce_request(topic, partition, records, transactional_id=transactional_id))
    return answer.responses[0].partition_responses[0]
