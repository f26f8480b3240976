"""What a processor can be told in Goka's terms: each option, on the tester."""

import zlib
from typing import Any

import pytest

from gokamsg.engine import (
    Context,
    Input,
    Int64,
    Join,
    Lookup,
    Loop,
    MemoryStorage,
    Output,
    Persist,
    ProcessorState,
    Rows,
    String,
    Tester,
    UpdateContext,
    Visitor,
    default_update,
    define_group,
)
from gokamsg.engine.hashing import partition_of
from gokamsg.errors import CodecError, ProcessingError


class Length:
    """A codec that decodes bytes to their number, none for the empty ones."""

    name = "Length"

    def encode(self, value: int) -> bytes:
        return b"x" * value

    def decode(self, data: bytes) -> int:
        if data == b"bad":
            raise CodecError("bad")
        return len(data)


@pytest.mark.goka("nil handling: ignore", "nil handling: process", "nil handling: decode")
@pytest.mark.parametrize(
    ("mode", "expected"), [("ignore", [1, 2]), ("process", [1, None, 2, None]), ("decode", [1, 0, 2, 0])]
)
def test_null_values_of_inputs_are_ignored_processed_or_decoded(mode: str, expected: list[Any]) -> None:
    seen: list[Any] = []
    graph = define_group("g", Input("in", Length(), lambda context, value: seen.append(value)))
    with Tester() as tester:
        processor = tester.processor(graph, nil_handling=mode, on_error="skip")
        for value in (b"1", None, b"22", b"bad", None):
            tester.write("in", b"k", value)
        tester.catchup()
        assert seen == expected
        assert processor.status().bad_records == 1
        assert processor.status().records == 5


@pytest.mark.goka("option: context wrapper")
def test_a_context_wrapper_makes_what_callbacks_and_visitors_get() -> None:
    class Shouting:
        def __init__(self, inner: Context) -> None:
            self._inner = inner

        def key(self) -> str:
            return self._inner.key().upper()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

    seen: list[str] = []

    def handle(context: Context, value: str) -> None:
        context.set_value(value)
        seen.append(context.key())

    graph = define_group(
        "g",
        Input("in", String(), handle),
        Persist(String()),
        Visitor("look", lambda context, meta: seen.append(f"{context.key()} visited")),
    )
    with Tester() as tester:
        processor = tester.processor(graph, context_wrapper=Shouting)
        tester.consume("in", "k", "v")
        processor.visit_all("look")
        assert seen == ["K", "K visited"]


@pytest.mark.goka("option: rebalance callback")
def test_a_rebalance_callback_is_told_the_partitions() -> None:
    told: list[tuple[int, ...]] = []
    graph = define_group("g", Input("in", String(), lambda context, value: None))
    with Tester(partitions=4) as tester:
        tester.processor(graph, rebalance_callback=told.append)
        tester.catchup()
        assert told == [(0, 1, 2, 3)]
        other = tester.processor(graph)
        tester.catchup()
        assert len(told[-1]) == 2
        other.stop()
        tester.catchup()
        assert told[-1] == (0, 1, 2, 3)


@pytest.mark.goka("option: update callback", "view: update callback")
def test_an_update_callback_makes_rows_of_changelog_records() -> None:
    contexts: list[UpdateContext] = []

    def keep_longest(context: UpdateContext, rows: Rows, key: str, value: bytes | None) -> None:
        contexts.append(context)
        before = rows.get(key)
        if value is None or before is None or len(value) > len(before):
            default_update(context, rows, key, value)

    seen: list[Any] = []
    graph = define_group(
        "g",
        Input("in", String(), lambda context, value: seen.append(context.join("j"))),
        Join("j", String()),
        Persist(String()),
    )
    with Tester(partitions=1) as tester:
        tester.processor(graph, update_callback=keep_longest)
        plain, longest = tester.view("j", String()), tester.view("j", String(), update_callback=keep_longest)
        tester.write("j", b"k", b"long", headers={"h": b"1"})
        tester.write("j", b"k", b"s")
        tester.write("j", b"gone", b"x")
        tester.write("j", b"gone", None)
        tester.consume("in", "k", "v")
        assert seen == ["long"]
        assert dict(longest.iterator()) == {"k": "long"}
        assert dict(plain.iterator()) == {"k": "s"}
        first = contexts[0]
        assert (first.topic, first.partition, first.offset, first.headers) == ("j", 0, 0, {"h": b"1"})
        assert first.timestamp == tester.now


@pytest.mark.goka("option: hasher", "emitter: hasher", "view: hasher")
def test_with_another_hasher_emitters_processors_and_views_still_find_every_key() -> None:
    """CRC-32 instead of FNV-1a: loop, output, lookup, get() and view agree, and differ from the default."""
    seen: list[Any] = []

    def handle(context: Context, value: str) -> None:
        context.loopback(context.key(), value)
        context.emit("out", context.key(), value)
        seen.append(context.lookup("l", context.key()))

    graph = define_group(
        "g",
        Input("in", String(), handle),
        Loop(String(), lambda context, value: context.set_value(value)),
        Lookup("l", String()),
        Output("out", String()),
        Persist(String()),
    )
    keys = [f"user-{number}" for number in range(40)]
    with Tester(partitions=8) as tester:
        processor = tester.processor(graph, hasher=zlib.crc32)
        view = tester.view("g-table", String(), hasher=zlib.crc32)
        wrong = tester.view("g-table", String())
        out = tester.new_queue_tracker("out")
        rows = tester.emitter("l", String(), hasher=zlib.crc32)
        emitter = tester.emitter("in", String(), hasher=zlib.crc32)
        for key in keys:
            rows.emit(key, "row of " + key)
            emitter.emit(key, key)
        tester.catchup()
        assert sorted(seen) == sorted("row of " + key for key in keys)
        assert [processor.get(key) for key in keys] == keys
        assert [view.get(key) for key in keys] == keys
        assert [wrong.get(key) for key in keys] != keys
        placed = {record.key: record.partition for record in iter(out.next_record, None)}
        assert placed == {key.encode(): _place(zlib.crc32(key.encode()), 8) for key in keys}


def _place(hashed: int, partitions: int) -> int:
    signed = hashed - 0x1_0000_0000 if hashed >= 0x8000_0000 else hashed
    return abs(signed) % partitions


@pytest.mark.goka("option: storage builder")
def test_a_storage_builder_keeps_the_tables() -> None:
    built: dict[tuple[str, int], MemoryStorage] = {}

    def build(topic: str, partition: int, topic_id: str) -> MemoryStorage:
        return built.setdefault((topic, partition), MemoryStorage())

    graph = define_group("g", Input("in", String(), lambda context, value: context.set_value(value)), Persist(String()))
    with Tester(partitions=2) as tester:
        processor = tester.processor(graph, storage_builder=build)
        tester.consume("in", "k", "v")
        processor.stop()
        assert set(built) == {("g-table", 0), ("g-table", 1)}
        assert [storage.get(b"k") for storage in built.values() if storage.has(b"k")] == [b"v"]


@pytest.mark.goka("processor.get", "processor.get: no table", "processor.get: of another instance")
@pytest.mark.goka("processor.stop", "processor.recovered", "processor.states", "processor.wait_for_ready")
def test_get_answers_for_the_own_partitions_only() -> None:
    graph = define_group("g", Input("in", Int64(), lambda context, value: context.set_value(value)), Persist(Int64()))
    keys = [f"k{number}" for number in range(20)]
    with Tester(partitions=4) as tester:
        first = tester.processor(graph)
        for number, key in enumerate(keys):
            tester.consume("in", key, number)
        assert [first.get(key) for key in keys] == list(range(20))
        assert first.get("never") is None
        second = tester.processor(graph)
        tester.catchup()
        for number, key in enumerate(keys):
            place = partition_of(key.encode(), 4)
            here, elsewhere = (first, second) if place in first.status().partitions else (second, first)
            assert here.get(key) == number
            with pytest.raises(ProcessingError, match=r"this processor does not have \(now\)"):
                elsewhere.get(key)
        inner = first.processor
        states: list[ProcessorState] = []
        inner.state.observe(states.append)
        assert inner.recovered
        assert inner.wait_for_ready(0)
        first.stop()
        assert states == [ProcessorState.RUNNING, ProcessorState.STOPPING, ProcessorState.STOPPED]
        assert inner.done(0)
        assert not inner.recovered
        assert inner.error is None
        with pytest.raises(ProcessingError, match="does not run"):
            inner.get("k0")
    with Tester() as tester:
        stateless = tester.processor(define_group("g", Input("in", String(), lambda context, value: None)))
        with pytest.raises(ProcessingError, match="has no table; add Persist"):
            stateless.get("k")


@pytest.mark.goka("processor.run: once")
def test_a_processor_runs_once() -> None:
    graph = define_group("g", Input("in", String(), lambda context, value: None))
    with Tester() as tester:
        inner = tester.processor(graph).processor
    with pytest.raises(ProcessingError, match="was run before"):
        inner.run()


@pytest.mark.goka("processor.stats", "view.stats")
def test_stats_tell_what_went_through_each_partition() -> None:
    def handle(context: Context, value: str) -> None:
        context.set_value(value)
        context.emit("out", context.key(), value)
        context.join("j")

    graph = define_group(
        "g",
        Input("in", String(), handle),
        Join("j", String()),
        Lookup("l", String()),
        Output("out", String()),
        Persist(String()),
    )
    with Tester(partitions=1) as tester:
        processor = tester.processor(graph)
        view = tester.view("g-table", String())
        tester.set_table_value("l", "w", "W")
        tester.write("in", b"k", b"12345")
        tester.advance(3)
        tester.write("in", b"k", b"678")
        tester.advance(2)
        tester.catchup()
        tester.set_table_value("j", "k", "J")
        tester.catchup()
        stats = processor.processor.stats()
        (partition,) = stats.group.values()
        read = partition.input["in"]
        assert (read.count, read.bytes, read.last_offset, read.delay_s) == (2, 8, 1, 2.0)
        assert partition.table is not None
        assert (partition.table.status, partition.table.stalled) == ("running", False)
        assert partition.table.writes.count >= 1
        assert partition.joined["j"].input.count == 1
        assert stats.lookup["l"][0].input.count == 1
        assert stats.output["out"].count == 2
        assert stats.output["g-table"].count == partition.table.writes.count
        assert view.stats()[0].input.bytes >= 3
