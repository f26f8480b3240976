"""The position that a fetched partition leaves behind."""

import struct

import pytest
from crc32c import crc32c
from kafka import TopicPartition
from kafka.protocol.consumer import IsolationLevel
from kafka.record import MemoryRecords

from gokamsg.engine.clients.fetching import PartitionBatches
from gokamsg.engine.records import BatchBuilder

CONTROL = 0x20
NOW = 1_790_000_000_000


def _stored(offset: int, epoch: int, *, marker: bool = False) -> bytes:
    """A batch of one record, or of a transaction's commit marker, as a leader of that epoch has it at that offset."""
    builder = BatchBuilder()
    if marker:
        builder.append(struct.pack(">hh", 0, 1), struct.pack(">hi", 0, 0), NOW, [])
    else:
        builder.append(b"k", b"v", NOW, [])
    buffer = builder.build(producer_id=7, producer_epoch=0, base_sequence=0, transactional=True)
    struct.pack_into(">q", buffer, 0, offset)
    struct.pack_into(">i", buffer, 12, epoch)
    if marker:
        struct.pack_into(">h", buffer, 21, struct.unpack_from(">h", buffer, 21)[0] | CONTROL)
        struct.pack_into(">I", buffer, 17, crc32c(bytes(buffer[21:])))
    return bytes(buffer)


@pytest.mark.parametrize("level", list(IsolationLevel))
def test_the_position_behind_a_marker_bears_the_markers_epoch(level: IsolationLevel) -> None:
    """With the epoch of the last data, brokers that had changed the leader in between took the position for one of a
    log that was cut: a table that was followed was emptied and filled again after each such change."""
    log = _stored(0, 3) + _stored(1, 5, marker=True)
    batches = PartitionBatches(0, TopicPartition("t", 0), MemoryRecords(log), isolation_level=level)
    assert [batch.base_offset for batch in batches.take()] == [0]
    assert (batches.next_fetch_offset, batches.leader_epoch) == (2, 5)
