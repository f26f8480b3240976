"""Fills the logs from the data file at start-up: the newest snapshot of each, and the batches stored since.

Afterwards every log stands where its last durable batch left it: offsets, sequence windows of idempotent producers,
open transactions and the aborted index. Threads: called once, on the loop, before the broker listens.
"""

from __future__ import annotations

import contextlib
import sqlite3

import msgspec

from gokamsg.broker.batch import BatchHeader
from gokamsg.broker.log import ABORTED_SPACE, LOG_SPACE, Aborted, LogSnapshot, PartitionLog
from gokamsg.broker.store import OFFSET_BITS, Store
from gokamsg.broker.topics import Topics

_OFFSET_MASK = (1 << OFFSET_BITS) - 1
_SINCE = (
    "SELECT id, last_offset, max_timestamp, attributes, producer_id, producer_epoch, base_sequence, length(data)"
    " FROM batches WHERE id >= ? AND id < ? ORDER BY id"
)


def recover_logs(topics: Topics, store: Store) -> None:
    """Bring every log up to its last durable batch."""
    snapshots = dict(store.scan(LOG_SPACE))
    logs = {log.number: log for _, log in topics.logs()}
    with contextlib.closing(store.reader()) as connection:
        for number, log in logs.items():
            stored = snapshots.get(str(number))
            if stored is not None:
                log.restore(msgspec.msgpack.decode(stored, type=LogSnapshot))
            _replay(log, connection)
    for key, value in store.scan(ABORTED_SPACE):
        owner = logs.get(int(key.partition("/")[0]))
        if owner is not None:
            owner.aborted.append(Aborted(*msgspec.msgpack.decode(value, type=tuple[int, int, int])))


def _replay(log: PartitionLog, connection: sqlite3.Connection) -> None:
    for row in connection.execute(_SINCE, (log.row_id(log.snapshot_offset), log.row_id(_OFFSET_MASK))):
        row_id, last_offset, max_timestamp, attributes, producer_id, producer_epoch, base_sequence, size = row
        base_offset = row_id & _OFFSET_MASK
        delta = last_offset - base_offset
        header = BatchHeader(
            base_offset, 0, 0, 2, 0, attributes, delta, 0, max_timestamp, producer_id, producer_epoch, base_sequence, 0
        )
        log.replay(header, size)
    log.tail.clear(log.end_offset)
