"""What a callback may do, and what each misuse is told. On the tester: no broker."""

import datetime as dt
import threading
from collections.abc import Callable
from typing import Any

import pytest

from gokamsg.engine import (
    Context,
    Input,
    Int64,
    Join,
    Lookup,
    Loop,
    Output,
    Persist,
    String,
    TestedProcessor,
    Tester,
    define_group,
)
from gokamsg.engine.context import Deferral
from gokamsg.engine.hashing import partition_of
from gokamsg.errors import CodecError, ProcessingError

PARTITIONS = 4
Callback = Callable[[Context, Any], Any]


def scene(callback: Callback, *edges: Any, codec: Any = None, **options: Any) -> tuple[Tester, TestedProcessor]:
    """A group that calls back for its input "in", with these other edges."""
    tester = Tester(partitions=PARTITIONS)
    graph = define_group("group", Input("in", codec or String(), callback), *edges)
    return tester, tester.processor(graph, **options)


def refused(misuse: Callback, *edges: Any, **options: Any) -> str:
    """What the processor says when the callback does this; it has stopped, and nothing of the callback is there."""
    tester, processor = scene(lambda context, value: misuse(context, value), *edges, **options)
    with pytest.raises(ProcessingError, match="failed in its callback") as caught:
        tester.consume("in", "k", "v")
    assert isinstance(processor.error, ProcessingError)
    for edge in processor.graph.all_edges():
        assert tester.new_queue_tracker(edge.topic).hwm() == (1 if edge.topic == "in" else 0)
    return str(caught.value)


@pytest.mark.goka("context.topic", "context.key", "context.partition", "context.offset", "context.group")
@pytest.mark.goka("context.headers", "context.timestamp")
def test_a_callback_sees_its_record() -> None:
    seen: list[Any] = []

    def look(context: Context, value: str) -> None:
        where = (context.topic(), context.key(), context.partition(), context.offset(), context.group())
        seen.append((*where, value, context.headers(), context.timestamp()))

    tester, _ = scene(look)
    tester.advance(dt.timedelta(days=1, milliseconds=123))
    tester.consume("in", "zü", "one", headers={"h": b"1", "n": None})
    tester.write("in", None, b"two", timestamp=dt.datetime(2020, 2, 2, tzinfo=dt.UTC))
    tester.catchup()
    at = dt.datetime(2000, 1, 2, 0, 0, 0, 123_000, tzinfo=dt.UTC)
    there = partition_of("zü".encode(), PARTITIONS)
    assert seen == [
        ("in", "zü", there, 0, "group", "one", {"h": b"1", "n": None}, at),
        ("in", "", partition_of(b"", PARTITIONS), 0, "group", "two", {}, dt.datetime(2020, 2, 2, tzinfo=dt.UTC)),
    ]


@pytest.mark.goka("context.headers: the last of one name counts")
def test_of_headers_with_one_name_the_last_counts() -> None:
    seen: list[dict[str, bytes | None]] = []
    tester, _ = scene(lambda context, value: seen.append(context.headers()))
    tester.write("in", b"k", b"v", headers=[("h", b"1"), ("h", b"2")])
    tester.catchup()
    assert seen == [{"h": b"2"}]


@pytest.mark.goka("context.value", "context.set_value", "context.delete")
def test_a_callback_sees_its_own_writes_and_those_before_it() -> None:
    seen: list[Any] = []

    def write(context: Context, value: str) -> None:
        seen.append(context.value())
        context.set_value(value)
        seen.append(context.value())
        if value == "gone":
            context.delete()
            seen.append(context.value())

    tester, processor = scene(write, Persist(String()))
    for value in ("a", "gone", "b"):
        tester.write("in", b"k", value.encode())
    tester.catchup()
    assert seen == [None, "a", "a", "gone", None, None, "b"]
    assert processor.get("k") == tester.table_value("group-table", "k") == "b"


@pytest.mark.goka("null values are tombstones", "context.delete")
def test_a_deleted_row_is_a_null_value_in_the_changelog() -> None:
    def write(context: Context, value: str) -> None:
        if value == "gone":
            context.delete()
        else:
            context.set_value(value)

    tester, processor = scene(write, Persist(String()))
    view = tester.view("group-table", String())
    tester.consume("in", "k", "a")
    changes = tester.new_queue_tracker("group-table")
    tester.consume("in", "k", "gone")
    assert changes.next_raw() == ("k", None)
    assert (processor.get("k"), view.get("k"), view.has("k")) == (None, None, False)
    processor.crash(lose_state=True)
    tester.catchup()
    assert processor.get("k") is None


@pytest.mark.goka("context.join", "context.lookup", "edge: join", "edge: lookup")
def test_join_reads_the_own_key_and_lookup_any_and_both_follow() -> None:
    seen: list[Any] = []

    def read(context: Context, value: str) -> None:
        seen.append((context.join("j"), context.lookup("l", "word"), context.lookup("l", "none")))

    tester, _ = scene(read, Join("j", String()), Lookup("l", String()))
    tester.set_table_value("j", "key", "joined")
    tester.set_table_value("l", "word", "mot")
    for key in ("key", "other", "key"):
        tester.consume("in", key, "x")
    tester.set_table_value("j", "key", None)
    tester.set_table_value("l", "word", "Wort")
    tester.catchup()
    tester.consume("in", "key", "x")
    assert seen == [("joined", "mot", None), (None, "mot", None), ("joined", "mot", None), (None, "Wort", None)]


@pytest.mark.goka("context.emit", "context.loopback", "edge: output", "edge: loop", "null values are tombstones")
def test_emits_go_out_in_order_and_none_is_a_null_value() -> None:
    looped: list[Any] = []

    def emit(context: Context, value: str) -> None:
        context.emit("out", "k", value)
        context.emit("out", "k", None)
        context.loopback("l", value)

    loop = Loop(String(), lambda context, value: looped.append((context.topic(), context.key(), value)))
    tester, _ = scene(emit, Output("out", String()), loop)
    out = tester.new_queue_tracker("out")
    tester.consume("in", "a", "1")
    tester.consume("in", "b", "2")
    assert out.rest() == [("k", "1"), ("k", None), ("k", "2"), ("k", None)]
    assert looped == [("group-loop", "l", "1"), ("group-loop", "l", "2")]


@pytest.mark.goka("context.fail")
def test_a_callback_that_fails_leaves_no_trace() -> None:
    def fail(context: Context, value: str) -> None:
        context.set_value(value)
        context.emit("out", "k", value)
        if value == "bad":
            context.fail("no good")

    tester, processor = scene(fail, Persist(String()), Output("out", String()), on_error="skip")
    out, changes = tester.new_queue_tracker("out"), tester.new_queue_tracker("group-table")
    for value in ("1", "bad"):
        tester.consume("in", "k", value)
    assert processor.status().bad_records == 1
    assert out.rest() == [("k", "1")]
    assert changes.rest() == [("k", "1")]


@pytest.mark.goka("context.fail", "processor.error")
def test_a_failed_record_stops_the_processor_and_comes_again_after_a_restart() -> None:
    fail_now = True
    seen: list[str] = []

    def fail(context: Context, value: str) -> None:
        if fail_now:
            context.fail(ValueError("why"))
        seen.append(value)

    tester, processor = scene(fail)
    with pytest.raises(ProcessingError, match=r"record in/\d@0 \(key 'k'\) failed in its callback: .*why"):
        tester.consume("in", "k", "v")
    assert processor.error is not None
    tester.catchup()  # it has stopped
    assert seen == []
    fail_now = False
    processor.start()
    tester.catchup()
    assert seen == ["v"]


def test_undecodable_and_null_records_go_their_way_and_the_others_go_on() -> None:
    seen: list[int] = []
    tester, processor = scene(lambda context, value: seen.append(value), codec=Int64(), on_error="skip")
    for value in (b"1", b"x", None, b"", b"2"):
        tester.write("in", b"k", value)
    tester.catchup()
    assert seen == [1, 2]
    assert processor.status().bad_records == 2


MISUSES: list[tuple[str, Callback, str]] = [
    ("context.value: no table", lambda c, v: c.value(), "no table; add Persist"),
    ("context.set_value: no table", lambda c, v: c.set_value("x"), "no table; add Persist"),
    ("context.delete: no table", lambda c, v: c.delete(), "no table; add Persist"),
    ("context.join: not joined", lambda c, v: c.join("j"), "'j' is not joined"),
    ("context.lookup: no lookup", lambda c, v: c.lookup("l", "k"), "'l' is not a lookup"),
    ("context.loopback: no loop", lambda c, v: c.loopback("k", "v"), "no loop; add Loop"),
    ("context.emit: no output", lambda c, v: c.emit("other", "k", "v"), "'other' is not an output"),
    ("context.emit: empty topic", lambda c, v: c.emit("", "k", "v"), "empty topic name"),
]
MISUSES_OF_EDGES: list[tuple[str, Callback, str]] = [
    ("context.set_value: None", lambda c, v: c.set_value(None), "delete() removes"),
    ("context.set_value: not encodable", lambda c, v: c.set_value(7), "cannot encode"),
    ("context.emit: the table", lambda c, v: c.emit("group-table", "k", "v"), "use set_value"),
    ("context.emit: the loop", lambda c, v: c.emit("group-loop", "k", "v"), "use loopback"),
    ("context.emit: not encodable", lambda c, v: c.emit("out", "k", 7), "cannot encode"),
    ("context.loopback: None goes to the codec", lambda c, v: c.loopback("k", None), "cannot encode None"),
    ("context.loopback: not encodable", lambda c, v: c.loopback("k", 7), "cannot encode"),
    ("context.emit: too large", lambda c, v: c.emit("out", "k", "x" * 1001), "too large for topic 'out'"),
    ("context.set_value: too large", lambda c, v: c.set_value("x" * 1001), "too large for the table"),
    ("context.emit: key", lambda c, v: c.emit("out", b"k", "v"), "a key must be a str"),
]


@pytest.mark.goka("context.value: no table", "context.set_value: no table", "context.delete: no table")
@pytest.mark.goka("context.join: not joined", "context.lookup: no lookup", "context.loopback: no loop")
@pytest.mark.goka("context.emit: no output", "context.emit: empty topic")
@pytest.mark.parametrize(("misuse", "words"), [case[1:] for case in MISUSES], ids=[case[0] for case in MISUSES])
def test_what_the_graph_does_not_allow_stops_the_processor(misuse: Callback, words: str) -> None:
    assert words in refused(misuse)


@pytest.mark.goka("context.set_value: None", "context.set_value: not encodable", "context.emit: the table")
@pytest.mark.goka("context.emit: the loop", "context.emit: not encodable", "context.loopback: not encodable")
@pytest.mark.goka("context.loopback: None goes to the codec")
@pytest.mark.parametrize(
    ("misuse", "words"), [case[1:] for case in MISUSES_OF_EDGES], ids=[case[0] for case in MISUSES_OF_EDGES]
)
def test_what_cannot_be_written_stops_the_processor(misuse: Callback, words: str) -> None:
    edges = (Persist(String()), Output("out", String()), Loop(String(), lambda context, value: None))
    assert words in refused(misuse, *edges, max_message_bytes=1000)


@pytest.mark.goka("context.value: not decodable", "context.join: not decodable", "context.lookup: not decodable")
@pytest.mark.parametrize("table", ["group-table", "j", "l"])
def test_a_row_that_cannot_be_decoded_stops_the_processor(table: str) -> None:
    reads: dict[str, Callback] = {
        "group-table": lambda context, value: context.value(),
        "j": lambda context, value: context.join("j"),
        "l": lambda context, value: context.lookup("l", "k"),
    }
    tester, processor = scene(reads[table], Persist(Int64()), Join("j", Int64()), Lookup("l", Int64()))
    tester.catchup()
    processor.restart()
    tester.write(table, b"k", b"no number")
    with pytest.raises(ProcessingError, match="cannot decode b'no number'"):
        tester.consume("in", "k", "v")


def test_a_context_kept_for_later_refuses_to_act() -> None:
    kept: list[Context] = []
    tester, _ = scene(lambda context, value: kept.append(context), Output("out", String()), Persist(String()))
    out = tester.new_queue_tracker("out")
    tester.consume("in", "k", "v")
    for act in (
        lambda: kept[0].emit("out", "k", "v"),
        lambda: kept[0].set_value("v"),
        lambda: kept[0].delete(),
        lambda: kept[0].defer_commit(),
    ):
        with pytest.raises(ProcessingError, match="only inside its callback"):
            act()
    tester.catchup()
    assert out.rest() == []


@pytest.mark.goka("headers of emit, loopback, set_value and delete", "option: default headers")
def test_headers_of_a_call_go_out_and_default_headers_with_emits_only() -> None:
    def emit(context: Context, value: str) -> None:
        context.emit("out", "k", value)
        context.emit("out", "k", value, headers={"trace": b"1", "app": b"other"})
        context.loopback("k", value, headers={"loop": None})
        if value == "gone":
            context.delete(headers={"why": b"3"})
        else:
            context.set_value(value, headers={"why": b"2"})

    looped: list[Any] = []
    loop = Loop(String(), lambda context, value: looped.append(context.headers()))
    edges = (Output("out", String()), Persist(String()), loop)
    tester, _ = scene(emit, *edges, default_headers={"app": b"x"})
    out, table = tester.new_queue_tracker("out"), tester.new_queue_tracker("group-table")
    tester.consume("in", "k", "v")
    assert out.next_with_headers() == ({"app": b"x"}, "k", "v")
    assert out.next_raw_with_headers() == ({"app": b"other", "trace": b"1"}, "k", b"v")
    assert looped == [{"app": b"x", "loop": None}]
    assert table.next_with_headers() == ({"why": b"2"}, "k", "v")
    tester.consume("in", "k", "gone")
    assert table.next_with_headers() == ({"why": b"3"}, "k", None)


@pytest.mark.goka("context.context")
def test_threads_of_a_callback_are_told_when_the_processor_stops() -> None:
    told: list[threading.Event] = []
    tester, processor = scene(lambda context, value: told.append(context.context()))
    tester.consume("in", "k", "v")
    assert not told[0].is_set()
    processor.stop()
    assert told[0].is_set()


@pytest.mark.goka("context.defer_commit", "context.defer_commit: an error stops", "context.defer_commit: once")
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


@pytest.mark.goka("context.defer_commit: an error stops")
def test_a_deferred_commit_that_fails_stops_the_processor_and_commits_nothing() -> None:
    def defer(context: Context, value: str) -> None:
        context.emit("out", "k", value)
        done = context.defer_commit()
        threading.Thread(target=done, args=(OSError("disk on fire") if value == "bad" else None,)).start()

    tester, _ = scene(defer, Output("out", String()))
    out = tester.new_queue_tracker("out")
    tester.consume("in", "k", "good")
    with pytest.raises(ProcessingError, match="disk on fire"):
        tester.consume("in", "k", "bad")
    assert out.rest() == [("k", "good")]


def test_codec_errors_of_the_test_itself_are_raised() -> None:
    tester, _ = scene(lambda context, value: None)
    with pytest.raises(CodecError):
        tester.consume("in", "k", 7)
