"""Bad records are put aside with the later ones of their keys; other keys go on; a retry goes through them in order."""

import itertools
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gokamsg.engine import ClientConfig
from gokamsg.engine.codec import Int64, String
from gokamsg.engine.context import Context
from gokamsg.engine.graph import GroupGraph, Input, Loop, Output, Persist, define_group
from gokamsg.engine.hashing import partition_of
from gokamsg.engine.quarantine.client import QuarantineClient
from gokamsg.engine.quarantine.record import ParkedRecord
from gokamsg.errors import CodecError, ProcessingError
from tests.engine.kafka_scene import PARTITIONS, Running, Scene
from tests.engine.test_processor import scene, topic  # noqa: F401 - fixtures
from tests.helpers import eventually

Fresh = Callable[[str], str]
WITHIN_S = 20.0


class Handler:
    """What the callback fails at; a test changes it as somebody would who mends the callback."""

    def __init__(self) -> None:
        self.broken: set[str] = set()


@pytest.fixture
def handler() -> Handler:
    return Handler()


@pytest.fixture
def graph(topic: Any, fresh_name: Fresh, handler: Handler) -> GroupGraph:  # noqa: F811
    source, sink = topic("in"), topic("out")

    def handle(context: Context, value: str) -> None:
        if value in handler.broken:
            context.emit(sink, context.key(), "lost with the error")
            raise ValueError(f"cannot handle {value}")
        context.set_value(f"{context.value() or ''}{value} ")
        context.emit(sink, context.key(), value)

    return define_group(fresh_name("group"), Input(source, String(), handle), Persist(String()), Output(sink, String()))


def _source(graph: GroupGraph) -> str:
    return graph.input_streams[0].topic


def _client(scene: Scene, graph: GroupGraph) -> QuarantineClient:  # noqa: F811
    return QuarantineClient(ClientConfig(scene.address), graph.group)


def _parked(running: Running, records: int) -> None:
    eventually(
        f"{records} records are in quarantine",
        lambda: running.processor.status().parked_records == records,
        timeout_s=WITHIN_S,
    )


def _committed(quarantine: QuarantineClient, records: int) -> list[ParkedRecord]:
    eventually(
        f"{records} parked records are committed", lambda: len(quarantine.records()) == records, timeout_s=WITHIN_S
    )
    return quarantine.records()


def _row(scene: Scene, graph: GroupGraph, key: str) -> str | None:  # noqa: F811
    value = scene.table(f"{graph.group}-table").get(key)
    return None if value is None else value.decode()


def _goes_on(scene: Scene, graph: GroupGraph, handled: str) -> None:  # noqa: F811
    eventually("the other key goes on", lambda: handled in (_row(scene, graph, "Bea") or ""), timeout_s=WITHIN_S)


@pytest.mark.parametrize("guarantee", ["exactly-once", "at-least-once"])
def test_a_bad_record_and_those_behind_it_are_put_aside_and_retried_in_order(
    scene: Scene,  # noqa: F811
    graph: GroupGraph,
    handler: Handler,
    guarantee: str,
) -> None:
    handler.broken = {"b"}
    scene.produce(_source(graph), [("Ann", v) for v in "abcd"] + [("Bea", v) for v in "xyz"])
    with scene.running(graph, guarantee=guarantee) as running:
        running.caught_up(7)
        _parked(running, 3)
        assert _row(scene, graph, "Bea") == "x y z "
        assert _row(scene, graph, "Ann") == "a "
        with _client(scene, graph) as quarantine:
            records = _committed(quarantine, 3)
            assert [(r.key_text, r.value, bool(r.error)) for r in records] == [
                ("Ann", b"b", True),
                ("Ann", b"c", False),
                ("Ann", b"d", False),
            ]
            bad = records[0]
            assert bad.error == "ValueError: cannot handle b"
            assert "in handle" in bad.traceback
            assert quarantine.record(bad.name) == bad
            assert len(scene.read(f"{graph.group}-quarantine")) == 3  # each was written once
            # Nothing has changed: it fails again, and those behind it stay where they are.
            assert quarantine.retry(bad, WITHIN_S)
            assert [(r.value, r.tries) for r in quarantine.records("Ann")] == [(b"b", 2), (b"c", 0), (b"d", 0)]
            # Mended, all go through; a message that came meanwhile stands behind them.
            scene.produce(_source(graph), [("Ann", "e")])
            _parked(running, 4)
            handler.broken = set()
            assert quarantine.retry(bad, WITHIN_S)
            assert quarantine.records() == []
        _parked(running, 0)
        scene.produce(_source(graph), [("Ann", "f")])
        eventually("the key is free", lambda: _row(scene, graph, "Ann") == "a b c d e f ", timeout_s=WITHIN_S)
    sent = [value for key, value in scene.read(graph.output_streams[0].topic) if key == "Ann"]
    assert sent == [b"a", b"b", b"c", b"d", b"e", b"f"]


def test_what_is_parked_stays_parked_over_restarts_and_moves(
    scene: Scene,  # noqa: F811
    graph: GroupGraph,
    handler: Handler,
    tmp_path: Path,
) -> None:
    handler.broken = {"b"}
    scene.produce(_source(graph), [("Ann", "a"), ("Ann", "b")])
    with scene.running(graph) as running:
        _parked(running, 1)
    handler.broken = set()  # were it handled again by itself, it would succeed now
    for number, state_dir in enumerate([None, tmp_path / "another", None]):
        scene.produce(_source(graph), [("Ann", f"later{number}"), ("Bea", f"{number}")])
        with scene.running(graph, state_dir=state_dir) as running:
            _parked(running, number + 2)
            _goes_on(scene, graph, f"{number} ")
            if number == 2:
                with _client(scene, graph) as quarantine:
                    assert quarantine.retry(_committed(quarantine, 4)[0], WITHIN_S)
                _parked(running, 0)
    assert _row(scene, graph, "Ann") == "a b later0 later1 later2 "


def test_a_record_is_edited_or_dropped_then_the_rest_is_retried(
    scene: Scene,  # noqa: F811
    graph: GroupGraph,
    handler: Handler,
) -> None:
    handler.broken = {"b", "d"}
    scene.produce(_source(graph), [("Ann", v) for v in "abcde"])
    with scene.running(graph) as running:
        _parked(running, 4)
        with _client(scene, graph) as quarantine:
            first = _committed(quarantine, 4)[0]
            assert quarantine.edit(first, b"B", WITHIN_S)
            edited = quarantine.record(first.name)
            assert edited is not None
            assert (edited.value, edited.is_edited, edited.error) == (b"B", True, first.error)
            assert quarantine.retry(first, WITHIN_S)
            assert [r.value for r in quarantine.records()] == [b"d", b"e"], (
                "the next bad one holds up what is behind it"
            )
            assert quarantine.drop(quarantine.records()[0], WITHIN_S)
            assert quarantine.retry(first, WITHIN_S)
            assert quarantine.records() == []
    assert _row(scene, graph, "Ann") == "a B c e "


def test_records_that_cannot_be_decoded_keep_their_bytes_and_headers(
    scene: Scene,  # noqa: F811
    topic: Any,  # noqa: F811
    fresh_name: Fresh,
) -> None:
    source, group = topic("in"), fresh_name("group")

    def count(context: Context, value: int) -> None:
        context.set_value((context.value() or 0) + value)

    graph = define_group(group, Input(source, Int64(), count), Persist(Int64()))
    scene.produce(source, [("Ann", "1"), ("Ann", b"\xff\x00 no number"), ("Ann", "2"), ("Bea", "7")])
    with scene.running(graph) as running:
        _parked(running, 2)
        with _client(scene, graph) as quarantine:
            bad, behind = _committed(quarantine, 2)
            assert bad.value == b"\xff\x00 no number"
            assert "CodecError" in bad.error
            assert quarantine.edit(bad, b"10", WITHIN_S)
            assert quarantine.retry(behind, WITHIN_S)
        eventually("all are counted", lambda: scene.table(f"{group}-table").get("Ann") == b"13", timeout_s=WITHIN_S)


def test_bad_records_of_many_keys_lie_between_good_ones(
    scene: Scene,  # noqa: F811
    topic: Any,  # noqa: F811
    fresh_name: Fresh,
    seed: int,
) -> None:
    """Some fail in the callback, some cannot be decoded; each key is handled up to its first bad one, no further."""
    source, group = topic("in"), fresh_name("group")

    def handle(context: Context, value: int) -> None:
        if value < 0:
            raise ValueError("below zero")
        context.set_value(f"{context.value() or ''}{value} ")

    graph = define_group(group, Input(source, Int64(), handle), Persist(String()))
    rng = random.Random(seed)
    sent = {f"key {number}": list[str]() for number in range(24)}
    for number in range(1, 1_501):  # from one: -0 is not below zero
        key = rng.choice([*sent])
        sent[key].append(rng.choice((f"-{number}", f"no {number}")) if rng.random() < 0.02 else str(number))
    turns = [key for key, values in sent.items() for _ in values]
    rng.shuffle(turns)
    following = {key: iter(values) for key, values in sent.items()}
    records = [(key, next(following[key])) for key in turns]
    good = {key: list(itertools.takewhile(str.isdigit, values)) for key, values in sent.items()}
    bad = sum(len(values) - len(good[key]) for key, values in sent.items())
    with scene.running(graph) as running:
        for begin in range(0, len(records), 500):  # the next batches come upon keys that are parked already
            scene.produce(source, records[begin : begin + 500])
        running.caught_up(len(records))
        _parked(running, bad)
    with _client(scene, graph) as quarantine:
        parked = _committed(quarantine, bad)
    for key, values in sent.items():
        assert (_row(scene, graph, key) or "").split() == good[key], key
        own = [record for record in parked if record.key_text == key]
        assert [record.value for record in own] == [value.encode() for value in values[len(good[key]) :]], key
        assert [bool(record.error) for record in own] == [number == 0 for number in range(len(own))], key


def test_a_transaction_is_cut_after_bad_records_too(
    scene: Scene,  # noqa: F811
    topic: Any,  # noqa: F811
    fresh_name: Fresh,
) -> None:
    """Many slow failures in a row would else outlast the transaction's timeout together."""
    source, go_on = topic("in"), threading.Event()

    def handle(context: Context, value: str) -> None:
        if value == "bad":
            raise ValueError(value)
        assert go_on.wait(WITHIN_S), "the bad record was not committed meanwhile"

    graph = define_group(fresh_name("group"), Input(source, String(), handle))
    names = [f"key {number}" for number in range(50)]
    one, other = [name for name in names if partition_of(name.encode(), PARTITIONS) == 0][:2]
    scene.produce(source, [(one, "bad"), (other, "good")])
    with scene.running(graph, commit_age_s=0.0), _client(scene, graph) as quarantine:
        try:
            _committed(quarantine, 1)
        finally:
            go_on.set()


def test_a_record_as_large_as_a_topic_takes_is_kept_whole(
    scene: Scene,  # noqa: F811
    graph: GroupGraph,
    handler: Handler,
    tmp_path: Path,
) -> None:
    large = "x" * 999_000
    handler.broken = {large}
    scene.produce(_source(graph), [("Ann", large), ("Ann", "b")])
    with scene.running(graph) as running:
        _parked(running, 2)
    with scene.running(graph, state_dir=tmp_path / "another") as running:
        _parked(running, 2)
        with _client(scene, graph) as quarantine:
            first = _committed(quarantine, 2)[0]
            assert first.value == large.encode()
            assert quarantine.edit(first, b"a", WITHIN_S)
            assert quarantine.retry(first, WITHIN_S)
    assert _row(scene, graph, "Ann") == "a b "


def test_loop_messages_of_a_parked_key_stand_behind_it(
    scene: Scene,  # noqa: F811
    topic: Any,  # noqa: F811
    fresh_name: Fresh,
) -> None:
    source, group = topic("in"), fresh_name("group")
    broken = {"bad"}

    def handle(context: Context, value: str) -> None:
        if value in broken:
            raise ValueError(value)
        if value.startswith("to "):
            context.loopback(value[3:], f"from {context.key()}")
        else:
            context.set_value(f"{context.value() or ''}{value} ")

    def looped(context: Context, value: str) -> None:
        context.set_value(f"{context.value() or ''}{value} ")

    graph = define_group(group, Input(source, String(), handle), Loop(String(), looped), Persist(String()))
    with scene.running(graph) as running:
        scene.produce(source, [("Ann", "bad")])
        _parked(running, 1)
        scene.produce(source, [("Bea", "to Ann"), ("Ann", "after")])
        _parked(running, 3)
        broken.clear()
        with _client(scene, graph) as quarantine:
            assert quarantine.retry(_committed(quarantine, 3)[0], WITHIN_S)
        row = (_row(scene, graph, "Ann") or "").split(" ")
    assert row[0] == "bad"
    assert sorted(row[1:]) == ["", "Bea", "after", "from"]


def test_a_quarantine_that_is_full_stops_the_processor_and_says_so(
    scene: Scene,  # noqa: F811
    graph: GroupGraph,
    handler: Handler,
) -> None:
    handler.broken = {"b"}
    scene.produce(_source(graph), [("Ann", "b")] * 4)
    with scene.running(graph, quarantine_records=3) as running:
        error = running.failed()
    assert isinstance(error, ProcessingError)
    assert "takes no more" in str(error)
    assert graph.group in str(error)


def test_with_skip_what_was_parked_before_stays_so(
    scene: Scene,  # noqa: F811
    graph: GroupGraph,
    handler: Handler,
) -> None:
    handler.broken = {"b"}
    scene.produce(_source(graph), [("Ann", "b"), ("Ann", "c")])
    with scene.running(graph) as running:
        _parked(running, 2)
    scene.produce(_source(graph), [("Ann", "d"), ("Bea", "b"), ("Bea", "c")])
    with scene.running(graph, on_error="skip") as running:
        _parked(running, 3)
        eventually("the other key goes on", lambda: _row(scene, graph, "Bea") == "c ", timeout_s=WITHIN_S)


def test_a_parked_record_comes_out_of_its_row_as_it_went_in() -> None:
    record = ParkedRecord(
        sequence=7,
        topic="in",
        partition=2,
        offset=30,
        key=b"\xff\x00",
        value=b"\x00\xfe",
        headers=(("name", b"\x80"), ("null", None)),
        timestamp_ms=5,
        parked_ms=6,
        error="ValueError: <ü>",
        traceback="Traceback",
        tries=3,
        is_edited=True,
    )
    assert ParkedRecord.decode(record.encode()) == record
    assert (record.name, record.row_key) == ("in/2/30", b"in/2/30")
    odd = msgspec.structs.replace(record, error="not UTF-8: \udcff", headers=(("\udc80", b"\x80"),), value=None)
    assert ParkedRecord.decode(odd.encode()) == odd
    with pytest.raises(CodecError):
        ParkedRecord.decode(b"\x00\x00\x00\x05abcde")
