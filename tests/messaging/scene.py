"""A role's graph on the engine's own partition processor, without a broker: one partition, tables in memory."""

from collections.abc import Sequence
from typing import Any

from gokamsg.engine.codec import Codec
from gokamsg.engine.context import Context, Deferral
from gokamsg.engine.graph import GroupGraph
from gokamsg.engine.hashing import Partitioner
from gokamsg.engine.lookup import LookupTable
from gokamsg.engine.output import OpenBatch, Outputs
from gokamsg.engine.partition_processor import BadRecord, Pace, PartitionProcessor, Source
from gokamsg.engine.partition_table import PartitionTable
from gokamsg.engine.records import BatchBuilder, parse_batches
from gokamsg.engine.storage import MemoryStorage


class Scene:
    """Feeds records to a graph and shows what it emitted and stored; loop messages are processed at once."""

    def __init__(self, graph: GroupGraph) -> None:
        self._graph = graph
        self._sent: list[tuple[str, bytes]] = []
        self._offset = 0
        self.table = PartitionTable(MemoryStorage(), topic="own-table", partition=0)
        self._joins = {edge.topic: self._other(edge.topic, edge.codec) for edge in graph.joint_tables}
        self._lookups = {edge.topic: self._other(edge.topic, edge.codec) for edge in graph.lookup_tables}
        outputs = Outputs(self._send)
        written = [*graph.output_streams, graph.loop_stream, graph.group_table]
        for edge in filter(None, written):
            outputs.add(edge.topic, Partitioner(1), 1)
        self._outputs = outputs
        context = Context(
            graph,
            0,
            table=self.table,
            joins={name: table for name, (table, _) in self._joins.items()},
            lookups={name: table for name, (table, _) in self._lookups.items()},
            outputs=outputs,
            deferral=Deferral(),
            max_message_bytes=1_000_000,
        )
        self._processor = PartitionProcessor(
            context, outputs, table=self.table, pace=Pace(), on_bad=self._bad, cut=lambda *where: None
        )

    def _other(self, topic: str, codec: Codec[Any]) -> tuple[LookupTable, PartitionTable]:
        table = PartitionTable(MemoryStorage(), topic=topic, partition=0)
        reader = LookupTable(topic, codec, Partitioner(1))
        reader.hold(0, table)
        return reader, table

    def set_row(self, table: str, key: str, value: Any) -> None:
        """Puts a row into a joined or looked-up table."""
        reader, rows = (self._joins | self._lookups)[table]
        codec = self._graph.codec(table)
        assert codec is not None
        rows.apply({key.encode(): codec.encode(value)}, rows.position + 1)
        reader.changed(0, [key.encode()])

    def feed(self, topic: str, key: str, value: Any) -> list[tuple[str, str, Any]]:
        """Processes one record and everything it loops back; returns what was emitted to other topics."""
        codec = self._graph.codec(topic)
        assert codec is not None
        waiting = [(topic, key.encode(), codec.encode(value))]
        emitted: list[tuple[str, str, Any]] = []
        loop = self._graph.loop_stream
        while waiting:
            name, raw_key, raw_value = waiting.pop(0)
            for out_topic, out_key, out_value in self._process(name, raw_key, raw_value):
                if loop is not None and out_topic == loop.topic:
                    waiting.append((out_topic, out_key, out_value))
                else:
                    out_codec = self._graph.codec(out_topic)
                    assert out_codec is not None
                    emitted.append((out_topic, out_key.decode(), out_codec.decode(out_value)))
        return emitted

    def row(self, key: str) -> bytes | None:
        """The table's bytes of a key."""
        return self.table.get(key.encode())

    def _process(self, topic: str, key: bytes, value: bytes) -> list[tuple[str, bytes, bytes]]:
        builder = BatchBuilder()
        builder.append(key, value, 0)
        (batch,) = parse_batches(builder.build())
        edges = [*self._graph.input_streams, *([self._graph.loop_stream] if self._graph.loop_stream else [])]
        source = next(Source(edge.topic, edge.codec, edge.callback) for edge in edges if edge.topic == topic)
        self._processor.process(source, batch.split())
        self._outputs.flush()
        self._processor.committed(None)
        sent, self._sent = self._sent, []
        found = []
        for name, data in sent:
            for written in parse_batches(data):
                records = written.split()
                found += [
                    (name, key or b"", value or b"") for key, value in zip(records.keys, records.values, strict=True)
                ]
        return found

    def _send(self, batches: Sequence[OpenBatch]) -> None:
        self._sent += [(topic, bytes(builder.build())) for topic, _, builder in batches]

    def _bad(self, record: BadRecord) -> None:
        raise AssertionError(str(record)) from record.error
