"""What a callback may do, and what each misuse is told."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from gokamsg.engine.codec import Int64, String
from gokamsg.engine.context import Context, Deferral
from gokamsg.engine.graph import GroupGraph, Input, Join, Lookup, Loop, Output, Persist, define_group
from gokamsg.engine.hashing import Partitioner
from gokamsg.engine.lookup import LookupTable
from gokamsg.engine.output import Outputs
from gokamsg.engine.partition_processor import BadRecord, Pace, PartitionProcessor, Source
from gokamsg.engine.partition_table import PartitionTable
from gokamsg.engine.records import BatchBuilder, RecordBatch, Records
from gokamsg.engine.storage import MemoryStorage
from gokamsg.errors import CodecError, ProcessingError

TIME_MS = 1_700_000_000_123


class Bench:
    """One partition with everything a graph can have; what is emitted is kept, what goes wrong too."""

    def __init__(self, graph: GroupGraph) -> None:
        self.sent: list[tuple[str, int, list[tuple[bytes | None, bytes | None]]]] = []
        self.bad: list[BadRecord] = []
        self.graph = graph
        self.outputs = Outputs(self._send)
        for edge in (*graph.output_streams, graph.loop_stream, graph.group_table):
            if edge is not None:
                self.outputs.add(edge.topic, Partitioner(4), 4)
        self.table = PartitionTable(MemoryStorage(), topic="t", partition=2) if graph.group_table else None
        self.joins = {edge.topic: self._held(edge.topic) for edge in graph.joint_tables}
        self.lookups = {edge.topic: self._held(edge.topic) for edge in graph.lookup_tables}
        self.context = Context(
            graph,
            2,
            table=self.table,
            joins=self.joins,
            lookups=self.lookups,
            outputs=self.outputs,
            deferral=Deferral(),
            max_message_bytes=1000,
        )
        self.processor = PartitionProcessor(
            self.context, self.outputs, table=self.table, pace=Pace(), on_bad=self.bad.append, cut=lambda *_: None
        )

    def handle(self, *records: tuple[str | None, bytes | None], headers: Any = ()) -> None:
        """Run the records through the graph's first input."""
        edge = self.graph.input_streams[0]
        builder = BatchBuilder()
        for key, value in records:
            builder.append(None if key is None else key.encode(), value, TIME_MS, headers)
        batch = RecordBatch.parse(bytes(builder.build()))
        assert batch is not None
        self.processor.process(Source(edge.topic, edge.codec, edge.callback), batch.split())

    def emitted(self, topic: str) -> list[tuple[bytes | None, bytes | None]]:
        """What was emitted to `topic` so far, in order."""
        self.outputs.flush()
        return [record for name, _, records in self.sent for record in records if name == topic]

    @staticmethod
    def _held(topic: str) -> LookupTable:
        lookup = LookupTable(topic, String(), Partitioner(4))
        for partition in range(4):
            table = PartitionTable(MemoryStorage(), topic=topic, partition=partition)
            table.apply({b"key": b"joined", b"word": b"mot"}, 1)
            lookup.hold(partition, table)
        return lookup

    def _send(self, batches: Sequence[tuple[str, int, BatchBuilder]]) -> None:
        for topic, partition, builder in batches:
            batch = RecordBatch.parse(bytes(builder.build()))
            assert batch is not None
            records: Records = batch.split()
            self.sent.append((topic, partition, list(zip(records.keys, records.values, strict=True))))


def bench(callback: Callable[[Context, Any], None], *edges: Any) -> Bench:
    return Bench(define_group("group", Input("in", String(), callback), *edges))


def test_a_callback_sees_its_record() -> None:
    seen: list[Any] = []

    def look(context: Context, value: str) -> None:
        seen.append(
            (
                context.topic(),
                context.key(),
                context.partition(),
                context.offset(),
                context.group(),
                value,
                context.headers(),
                context.timestamp().isoformat(),
            )
        )

    bench(look).handle(("zü", b"one"), (None, b"two"), headers=[("h", b"1"), ("h", b"2"), ("n", None)])
    headers = {"h": b"2", "n": None}
    time = "2023-11-14T22:13:20.123000+00:00"
    assert seen == [
        ("in", "zü", 2, 0, "group", "one", headers, time),
        ("in", "", 2, 1, "group", "two", headers, time),
    ]


def test_a_callback_sees_its_own_writes_and_those_before_it() -> None:
    seen: list[Any] = []

    def write(context: Context, value: str) -> None:
        seen.append(context.value())
        context.set_value(value)
        seen.append(context.value())
        if value == "gone":
            context.delete()
            seen.append(context.value())

    on = bench(write, Persist(String()))
    on.handle(("k", b"a"), ("k", b"gone"), ("k", b"b"))
    assert seen == [None, "a", "a", "gone", None, None, "b"]
    assert on.table is not None
    assert on.table.overlay == {b"k": b"b"}


def test_join_reads_the_own_key_and_lookup_any() -> None:
    seen: list[Any] = []

    def read(context: Context, value: str) -> None:
        seen.append((context.join("j"), context.lookup("l", "word"), context.lookup("l", "none")))

    on = bench(read, Join("j", String()), Lookup("l", String()))
    on.handle(("key", b"x"), ("other", b"x"), ("key", b"x"))
    assert seen == [("joined", "mot", None), (None, "mot", None), ("joined", "mot", None)]


def test_a_changed_row_is_seen_by_join_and_lookup() -> None:
    seen: list[Any] = []
    on = bench(
        lambda context, value: seen.append((context.join("j"), context.lookup("l", "word"))),
        Join("j", String()),
        Lookup("l", String()),
    )
    on.handle(("key", b"x"))
    for lookup in (on.joins["j"], on.lookups["l"]):
        for partition, table in lookup._partitions.items():
            changes = {b"key": None, b"word": b"Wort"}
            table.apply(changes, 2)
            lookup.changed(partition, changes)
    on.handle(("key", b"x"))
    assert seen == [("joined", "mot"), (None, "Wort")]


def test_emits_go_out_in_order_and_none_is_a_null_value() -> None:
    def emit(context: Context, value: str) -> None:
        context.emit("out", "k", value)
        context.emit("out", "k", None)
        context.loopback("k", value)

    on = bench(emit, Output("out", String()), Loop(String(), lambda context, value: None))
    on.handle(("a", b"1"), ("b", b"2"))
    assert on.emitted("out") == [(b"k", b"1"), (b"k", None), (b"k", b"2"), (b"k", None)]
    assert on.emitted("group-loop") == [(b"k", b"1"), (b"k", b"2")]


def test_a_callback_that_fails_leaves_no_trace() -> None:
    def fail(context: Context, value: str) -> None:
        context.set_value(value)
        context.emit("out", "k", value)
        if value == "bad":
            context.fail("no good")

    on = bench(fail, Persist(String()), Output("out", String()))
    on.handle(("k", b"1"), ("k", b"bad"), ("k", b"3"))
    assert on.emitted("out") == [(b"k", b"1"), (b"k", b"3")]
    assert on.table is not None
    assert on.table.overlay == {b"k": b"3"}
    (bad,) = on.bad
    assert str(bad) == "record in/2@1 (key 'k') failed in its callback: ProcessingError: no good"


def test_undecodable_and_null_records_go_their_way_and_the_others_go_on() -> None:
    seen: list[int] = []
    on = Bench(define_group("group", Input("in", Int64(), lambda context, value: seen.append(value))))
    on.handle(("k", b"1"), ("k", b"x"), ("k", None), ("k", b""), ("k", b"2"))
    assert seen == [1, 2]
    assert [bad.offset for bad in on.bad] == [1, 3]
    assert all("cannot be decoded" in str(bad) for bad in on.bad)


@pytest.mark.parametrize(
    ("misuse", "words"),
    [
        (lambda c: c.value(), r"no table; add Persist"),
        (lambda c: c.set_value("x"), r"no table; add Persist"),
        (lambda c: c.delete(), r"no table; add Persist"),
        (lambda c: c.join("j"), r"'j' is not joined.*add Join"),
        (lambda c: c.lookup("l", "k"), r"'l' is not a lookup.*add Lookup"),
        (lambda c: c.loopback("k", "v"), r"no loop; add Loop"),
        (lambda c: c.emit("other", "k", "v"), r"'other' is not an output.*add Output"),
        (lambda c: c.emit("", "k", "v"), r"empty topic name"),
        (lambda c: c.fail(ValueError("why")), r"why"),
    ],
)
def test_misuse_is_told_with_the_way_out(misuse: Callable[[Context], Any], words: str) -> None:
    on = bench(lambda context, value: misuse(context))
    on.handle(("k", b"v"))
    (bad,) = on.bad
    assert isinstance(bad.error, ProcessingError)
    with pytest.raises(ProcessingError, match=words):
        raise bad.error


@pytest.mark.parametrize(
    ("misuse", "words"),
    [
        (lambda c: c.set_value(None), r"delete\(\) removes"),
        (lambda c: c.emit("group-table", "k", "v"), r"use set_value"),
        (lambda c: c.emit("group-loop", "k", "v"), r"use loopback"),
        (lambda c: c.emit("out", "k", "x" * 1001), r"1,001 bytes is too large for topic 'out'"),
        (lambda c: c.set_value("x" * 1001), r"too large for the table"),
        (lambda c: c.emit("out", "k", 7), r"cannot encode"),
        (lambda c: c.emit("out", b"k", "v"), r"a key must be a str"),
    ],
)
def test_misuse_of_what_is_there_is_told_too(misuse: Callable[[Context], Any], words: str) -> None:
    on = bench(
        lambda context, value: misuse(context),
        Persist(String()),
        Output("out", String()),
        Loop(String(), lambda context, value: None),
    )
    on.handle(("k", b"v"))
    (bad,) = on.bad
    with pytest.raises((ProcessingError, CodecError, TypeError), match=words):
        raise bad.error


def test_a_context_kept_for_later_refuses_to_act() -> None:
    kept: list[Context] = []
    on = bench(lambda context, value: kept.append(context), Output("out", String()), Persist(String()))
    on.handle(("k", b"v"))
    for act in (
        lambda: kept[0].emit("out", "k", "v"),
        lambda: kept[0].set_value("v"),
        lambda: kept[0].delete(),
        lambda: kept[0].defer_commit(),
    ):
        with pytest.raises(ProcessingError, match="only inside its callback"):
            act()
    assert on.emitted("out") == []


def test_headers_of_emits_and_of_table_writes_are_written() -> None:
    def emit(context: Context, value: str) -> None:
        context.emit("out", "k", value, headers={"trace": b"1"})
        context.set_value(value, headers={"why": b"2"})

    on = bench(emit, Output("out", String()), Persist(String()))
    batches: list[Records] = []
    on.outputs.send = lambda open_batches: batches.extend(
        RecordBatch.parse(bytes(builder.build())).split()  # type: ignore[union-attr]
        for _, _, builder in open_batches
    )
    on.handle(("k", b"v"))
    on.processor.write_changelog(on.outputs.topic("group-table"))
    on.outputs.flush()
    assert [records.headers(0) for records in batches] == [[("trace", b"1")], [("why", b"2")]]


def test_deferred_commits_are_awaited_and_their_errors_told() -> None:
    deferral = Deferral()
    first, second = deferral.open(), deferral.open()
    assert not deferral.wait(0)
    first(None)
    first(None)
    assert not deferral.wait(0)
    second(None)
    assert deferral.wait(0)
    deferral.open()(ValueError("disk on fire"))
    with pytest.raises(ProcessingError, match="disk on fire"):
        deferral.wait(0)
