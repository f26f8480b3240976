"""Visits: every row of a table, within transactions, and broken off rather than left half-told."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gokamsg.engine import (
    Context,
    GroupGraph,
    Input,
    Int64,
    Output,
    Persist,
    String,
    Tester,
    Visitor,
    define_group,
)
from gokamsg.engine.visits import ROWS
from gokamsg.errors import GraphError, ProcessingError, VisitAbortedError
from tests.engine.kafka_scene import PARTITIONS, Scene
from tests.kafka_server import KafkaCluster


def accounts(group: str = "g", source: str = "in", sink: str = "out") -> GroupGraph:
    """A number for each key; a visit adds to each and says so."""

    def add(context: Context, amount: int | None) -> None:
        if amount is None:
            context.delete()
            return
        context.set_value(context.value() + amount)
        context.emit(sink, context.key(), f"{context.topic()}/{context.offset()}/{context.value()}")

    return define_group(
        group,
        Input(source, Int64(), lambda context, value: context.set_value(value)),
        Output(sink, String()),
        Persist(Int64()),
        Visitor("add", add),
    )


@pytest.mark.goka("edge: visitor", "processor.visit_all", "processor.visit_all: stats")
@pytest.mark.goka("a callback sees a visitor's name, offset 0 and its meta")
def test_a_visit_reaches_every_row_and_what_it_does_is_committed() -> None:
    rows = ROWS * 2 + 7
    with Tester(partitions=3) as tester:
        processor = tester.processor(accounts())
        view = tester.view("g-table", Int64())
        for number in range(rows):
            tester.write("in", b"%06d" % number, b"%d" % number)
        tester.write("in", b"", b"5")  # the empty key is a key
        tester.catchup()
        out = tester.new_queue_tracker("out")
        assert processor.visit_all("add", 1000) == rows + 1
        assert sorted(value for _, value in view.iterator()) == sorted([1005, *range(1000, 1000 + rows)])
        emitted = dict(out.rest())
        assert len(emitted) == rows + 1
        assert emitted["000007"] == "add/0/1007"
        processor.crash(lose_state=True)
        tester.catchup()
        assert processor.get("000007") == 1007
        assert processor.visit_all("add", None) == rows + 1
        assert tester.get_table_keys("g-table") == []
        assert processor.visit_all("add", 1) == 0


@pytest.mark.goka("processor.visit_all: no such visitor", "validate: visitor without a table")
def test_a_visit_that_cannot_be_is_refused() -> None:
    with pytest.raises(GraphError, match="no table to visit"):
        define_group("g", Input("in", String(), print), Visitor("v", print))
    with Tester() as tester:
        processor = tester.processor(accounts())
        with pytest.raises(ProcessingError, match="has no visitor 'other'; add Visitor"):
            processor.visit_all("other")


@pytest.mark.goka("processor.visit_all: broken off")
def test_a_visit_that_is_broken_off_says_so_and_leaves_what_was_committed() -> None:
    with Tester(partitions=2) as tester:
        processor = tester.processor(accounts())
        tester.consume("in", "k", 1)
        waiting = processor.processor.request_visit("add", 1)
        processor.stop()
        with pytest.raises(VisitAbortedError, match="the processor ended"):
            waiting.result(0)
        with pytest.raises(VisitAbortedError):
            waiting.result(0)
        assert tester.table_value("g-table", "k") == 1


@pytest.mark.parametrize("options", [{}, {"commit_age_s": 0.0}], ids=["together", "each by itself"])
def test_a_crash_at_any_step_of_a_visit_leaves_each_row_visited_once_or_not(options: dict[str, Any]) -> None:
    """Invariant: a row is what it was or what the visit made of it, and every row has its emit or neither."""

    def run(crash_at: list[int]) -> tuple[Tester, list[Any]]:
        tester = Tester(partitions=2, crash_at=crash_at)
        processor = tester.processor(accounts(), **options)
        for key in ("a", "b", "c"):
            tester.consume("in", key, 1)
        out = tester.new_queue_tracker("out")
        outcome = []
        try:
            outcome.append(processor.visit_all("add", 10))
        except VisitAbortedError as error:
            outcome.append(error)
        tester.catchup()
        emitted = {key for key, _ in out.rest()}
        for key in ("a", "b", "c"):
            assert tester.table_value("g-table", key) == (11 if key in emitted else 1)
        return tester, outcome

    untroubled, outcome = run([])
    assert outcome == [3]
    for step in range(1, untroubled.steps + 1):
        tester, outcome = run([step])
        assert tester.crashes <= 1
        if outcome == [3]:
            assert [tester.table_value("g-table", key) for key in ("a", "b", "c")] == [11, 11, 11]


def test_a_visitor_that_fails_stops_the_processor() -> None:
    graph = define_group(
        "g",
        Input("in", Int64(), lambda context, value: context.set_value(value)),
        Persist(Int64()),
        Visitor("fail", lambda context, meta: context.fail("no")),
    )
    with Tester() as tester:
        processor = tester.processor(graph)
        tester.consume("in", "k", 1)
        with pytest.raises(ProcessingError, match=r"record fail/\d@0 \(key 'k'\) failed in its callback"):
            processor.visit_all("fail")


@pytest.mark.goka("processor.visit_all")
@pytest.mark.parametrize("guarantee", ["exactly-once", "at-least-once"])
def test_visits_on_a_cluster(
    kafka_cluster: KafkaCluster,
    fresh_name: Callable[[str], str],
    tmp_path: Path,
    guarantee: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gokamsg.engine.worker.IDLE_WAIT_S", 60.0)  # a visit is not what an idle worker comes upon
    scene = Scene(kafka_cluster.address, tmp_path / "state")
    group, source, sink = fresh_name("group"), fresh_name("in"), fresh_name("out")
    kafka_cluster.create_topics({name: {"num_partitions": PARTITIONS} for name in (source, sink)})
    scene.produce(source, [(f"k{number}", str(number)) for number in range(50)])
    graph = accounts(group, source, sink)
    with scene.running(graph, guarantee=guarantee) as running:
        running.caught_up(50)
        assert running.processor.visit_all("add", 100, timeout_s=20) == 50
        assert running.processor.get("k7") == 107
        assert len(scene.read(sink)) == 50
        assert running.processor.visit_all("add", None, timeout_s=20) == 50  # nothing but tombstones
        assert running.processor.visit_all("add", 1, timeout_s=20) == 0  # an empty transaction
        scene.produce(source, [("k7", "7")])
        running.caught_up(51)
    assert scene.table(f"{group}-table") == {"k7": b"7"}


def test_a_callback_may_not_wait_for_a_visit(
    kafka_cluster: KafkaCluster, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    scene = Scene(kafka_cluster.address, tmp_path / "state")
    group, source = fresh_name("group"), fresh_name("in")
    kafka_cluster.create_topics({source: {"num_partitions": PARTITIONS}})
    told: list[Exception] = []
    called = threading.Event()

    def handle(context: Context, value: str) -> None:
        try:
            running.processor.visit_all("v")
        except ProcessingError as error:
            told.append(error)
        called.set()

    graph = define_group(group, Input(source, String(), handle), Persist(String()), Visitor("v", print))
    scene.produce(source, [("k", "v")])
    with scene.running(graph) as running:
        assert called.wait(30)
    assert "waits for this very thread" in str(told[0])
