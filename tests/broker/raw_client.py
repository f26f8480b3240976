"""A client that speaks one request at a time over a plain socket, at any version: what the API tests use.

Requests and responses are kafka.protocol's own classes, so what a handler answers is decoded by what clients use.
"""

import socket
import struct
from types import TracebackType
from typing import Any

from kafka.protocol.producer import ProduceRequest, ProduceResponse

from gokamsg.broker.batch import BatchHeader, seal


class RawClient:
    """One connection to a broker; use it in a with block."""

    def __init__(self, address: str, *, timeout_s: float = 10.0) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout_s)
        self._correlation_id = 0

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, request: Any, version: int) -> int:
        """Send a request; its correlation id."""
        self._correlation_id += 1
        request.API_VERSION = version
        request.with_header(self._correlation_id, "raw-client")
        self.socket.sendall(bytes(request.encode(version=version, header=True, framed=True)))
        return self._correlation_id

    def receive_frame(self) -> bytes:
        """The next response without its length; ConnectionError when the broker closes the connection."""
        return self._read(struct.unpack(">i", self._read(4))[0])

    def receive(self, response: Any, version: int, correlation_id: int) -> Any:
        decoded = response.decode(self.receive_frame(), version=version, header=True)
        assert decoded.header.correlation_id == correlation_id
        return decoded

    def ask(self, request: Any, response: Any, version: int) -> Any:
        """Send a request and wait for its response."""
        return self.receive(response, version, self.send(request, version))

    def _read(self, size: int) -> bytes:
        parts = []
        while size > 0:
            part = self.socket.recv(size)
            if not part:
                raise ConnectionError("the broker closed the connection")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def closed_by_peer(self) -> bool:
        """Whether the broker closes this connection without sending anything more; waits for it."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    # ---- requests that many tests make

    def produce(
        self,
        topic: str,
        partition: int,
        batch: bytes | None,
        *,
        version: int = 9,
        acks: int = -1,
        transactional_id: str | None = None,
    ) -> Any:
        """Produce one batch; the partition's part of the response."""
        request = produce_request([(topic, partition, batch)], acks=acks, transactional_id=transactional_id)
        return self.ask(request, ProduceResponse, version).responses[0].partition_responses[0]


def produce_request(
    batches: list[tuple[str, int, bytes | None]], *, acks: int = -1, transactional_id: str | None = None
) -> Any:
    by_topic: dict[str, list[Any]] = {}
    for topic, partition, batch in batches:
        by_topic.setdefault(topic, []).append(
            ProduceRequest.TopicProduceData.PartitionProduceData(index=partition, records=batch)
        )
    return ProduceRequest(
        transactional_id=transactional_id,
        acks=acks,
        timeout_ms=5_000,
        topic_data=[
            ProduceRequest.TopicProduceData(name=name, partition_data=parts) for name, parts in by_topic.items()
        ],
    )


def varint(value: int) -> bytes:
    value = (value << 1) ^ (value >> 63)
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def record(offset_delta: int, key: bytes | None, value: bytes | None, *, timestamp_delta: int = 0) -> bytes:
    """One record of format v2, its length included."""
    inner = b"\x00" + varint(timestamp_delta) + varint(offset_delta)
    for field in (key, value):
        inner += varint(-1) if field is None else varint(len(field)) + field
    inner += varint(0)
    return varint(len(inner)) + inner


def make_batch(
    pairs: list[tuple[bytes | None, bytes | None]],
    *,
    timestamp: int = 1_700_000_000_000,
    timestamps: list[int] | None = None,
    producer_id: int = -1,
    epoch: int = -1,
    sequence: int = -1,
    transactional: bool = False,
    attributes: int = 0,
) -> bytes:
    """A batch as a producer sends it: base offset 0, not compressed."""
    times = timestamps or [timestamp] * len(pairs)
    body = b"".join(
        record(index, key, value, timestamp_delta=times[index] - times[0]) for index, (key, value) in enumerate(pairs)
    )
    header = BatchHeader(
        base_offset=0,
        length=0,
        leader_epoch=-1,
        magic=2,
        crc=0,
        attributes=attributes | (0x10 if transactional else 0),
        last_offset_delta=len(pairs) - 1,
        base_timestamp=times[0],
        max_timestamp=max(times),
        producer_id=producer_id,
        producer_epoch=epoch,
        base_sequence=sequence,
        record_count=len(pairs),
    )
    return seal(header, body)
