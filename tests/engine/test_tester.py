"""The tester: what it offers, and that a processor on it does the same through any crash."""

import datetime as dt
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from gokamsg.engine import (
    Context,
    GroupGraph,
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
from gokamsg.errors import ProcessingError, TopicError, UsageError

TEXT = ["to be or not to be", "that is the question", "whether tis nobler", "in the mind to suffer", "to be"]


def word_count(takes: Callable[[], None] = lambda: None) -> GroupGraph:
    """Counts words by way of its loop, and emits each new count. `takes` is called for each line and word."""

    def split(context: Context, line: str) -> None:
        takes()
        for word in line.split():
            context.loopback(word, 1)

    def count(context: Context, one: int) -> None:
        takes()
        context.set_value((context.value() or 0) + one)
        context.emit("counts", context.key(), f"{context.value()}")

    return define_group(
        "words",
        Input("lines", String(), split),
        Loop(Int64(), count),
        Persist(Int64()),
        Output("counts", String()),
    )


def counted(tester: Tester) -> dict[str, int]:
    return {word: tester.table_value("words-table", word) for word in tester.get_table_keys("words-table")}


EXPECTED = dict(Counter(word for line in TEXT for word in line.split()))


def feed(tester: Tester) -> None:
    emitter = tester.emitter("lines", String())
    for number, line in enumerate(TEXT):
        emitter.emit(f"line-{number}", line)
    tester.catchup()


def check(tester: Tester, graph: GroupGraph, instances: int = 1, **options: Any) -> list[TestedProcessor]:
    """Tables, outputs and a view hold every word once and in order, whatever happens on the way."""
    tester.emitter("counts", String())
    counts = tester.new_queue_tracker("counts")
    view = tester.view("words-table", Int64())
    processors = [tester.processor(graph, **options) for _ in range(instances)]
    feed(tester)
    assert counted(tester) == EXPECTED
    assert dict(view.iterator()) == EXPECTED
    emitted: dict[str, list[str]] = {}
    for word, count in counts.rest():
        emitted.setdefault(word, []).append(count)
    assert emitted == {word: [str(n + 1) for n in range(total)] for word, total in EXPECTED.items()}
    return processors


@pytest.mark.goka("tester: consume", "tester: table_value", "tester: get_table_keys", "tester: several partitions")
@pytest.mark.parametrize("partitions", [1, 3, 8])
def test_a_record_and_all_it_causes_has_settled_when_consume_returns(partitions: int) -> None:
    with Tester(partitions=partitions) as tester:
        tester.processor(word_count())
        tester.consume("lines", "a", "to be or not to be")
        assert counted(tester) == {"be": 2, "not": 1, "or": 1, "to": 2}
        assert tester.table_value("words-table", "never") is None
        assert tester.get_table_keys("words-table") == ["be", "not", "or", "to"]


@pytest.mark.goka("tester: next, next_raw, with headers", "tester: seek, hwm, next_offset")
def test_a_queue_tracker_reads_what_comes_and_goes_where_it_is_told() -> None:
    with Tester() as tester:
        tester.emitter("t", Int64()).emit("k", 1, {"h": b"x"})
        queue = tester.new_queue_tracker("t")
        assert (queue.hwm(), queue.next_offset(), queue.next()) == (1, 1, None)
        queue.seek(0)
        assert queue.next_with_headers() == ({"h": b"x"}, "k", 1)
        tester.consume("t", "zü", 2, headers={"n": None})
        assert queue.next_raw_with_headers() == ({"n": None}, "zü", b"2")
        tester.consume("t", "k", None)
        assert queue.next_raw() == ("k", None)
        queue.seek(1)
        assert (queue.next(), queue.next_offset(), queue.hwm()) == (("zü", 2), 2, 3)
        with pytest.raises(IndexError, match=r"not within 0\.\.3"):
            queue.seek(4)


@pytest.mark.goka("tester: set_table_value", "tester: clear_values")
def test_rows_that_the_test_sets_are_read_by_everybody() -> None:
    seen: list[Any] = []

    def look(context: Context, value: str) -> None:
        seen.append((context.value(), context.join("j"), context.lookup("l", "any")))

    graph = define_group(
        "g", Input("in", String(), look), Persist(String()), Join("j", String()), Lookup("l", String())
    )
    with Tester() as tester:
        processor = tester.processor(graph)
        view = tester.view("g-table", String())
        for table, key in (("g-table", "k"), ("j", "k"), ("l", "any")):
            tester.set_table_value(table, key, table)
        tester.consume("in", "k", "x")
        assert seen == [("g-table", "j", "l")]
        tester.set_table_value("g-table", "k", "new")
        tester.catchup()
        assert (processor.get("k"), view.get("k")) == ("new", "new")
        tester.clear_values()
        tester.consume("in", "k", "x")
        assert seen[1:] == [(None, None, None)]
        assert [tester.get_table_keys(table) for table in ("g-table", "j", "l")] == [[], [], []]


@pytest.mark.goka("tester: processors, views and emitters together", "tester: catchup")
def test_records_cascade_over_groups_and_into_views() -> None:
    first = define_group("first", Input("a", String(), lambda c, v: c.emit("b", v, c.key())), Output("b", String()))
    second = define_group("second", Input("b", String(), lambda c, v: c.set_value(v)), Persist(String()))
    with Tester(seed=5) as tester:
        tester.processor(first)
        tester.processor(second)
        view = tester.view("second-table", String())
        emitter = tester.emitter("a", String())
        promise = emitter.emit("key", "value")
        assert promise.done
        assert tester.table_value("second-table", "value") is None
        tester.catchup()
        assert view.get("value") == "key"
        emitter.emit_sync("key", "other")
        tester.catchup()
        assert dict(view.iterator()) == {"other": "key", "value": "key"}


@pytest.mark.goka("tester: a clock", "tester: with time, with headers")
def test_the_clock_stands_until_it_is_moved() -> None:
    stamps: list[dt.datetime] = []

    def stamp(context: Context, value: str) -> None:
        stamps.append(context.timestamp())
        context.emit("out", "k", value)

    start = dt.datetime(2030, 5, 6, 7, 8, tzinfo=dt.UTC)
    with Tester(now=start) as tester:
        tester.processor(define_group("g", Input("in", String(), stamp), Output("out", String())))
        out = tester.new_queue_tracker("out")
        tester.consume("in", "k", "1")
        tester.advance(dt.timedelta(hours=1))
        tester.consume("in", "k", "2", timestamp=start - dt.timedelta(days=1))
        tester.advance(0.5)
        assert tester.now == start + dt.timedelta(hours=1, seconds=0.5)
        assert stamps == [start, start - dt.timedelta(days=1)]
        found = [out.next_record(), out.next_record()]
        assert [r.timestamp_ms / 1000 for r in found if r] == [
            start.timestamp(),
            (start + dt.timedelta(hours=1)).timestamp(),
        ]
        with pytest.raises(UsageError, match="cannot go back"):
            tester.advance(-1)


def test_a_crash_at_any_step_changes_nothing() -> None:
    """Invariant: every word is counted once, in the table, in the view and in what was emitted."""
    with Tester(partitions=2) as untroubled:
        check(untroubled, word_count())
        steps = untroubled.steps
    assert steps > 50
    for step in range(1, steps + 1):
        with Tester(partitions=2, crash_at=[step]) as tester:
            check(tester, word_count())
            assert tester.crashes == 1, f"no crash at step {step}"


@pytest.mark.parametrize("options", [{}, {"hot_standby": True, "recover_ahead": True}], ids=["plain", "standby"])
def test_many_crashes_of_several_instances_change_nothing(seed: int, options: dict[str, Any]) -> None:
    """As above, with the steps drawn from the seed; one or two instances of the group."""
    crashes = 0
    for number in range(12):
        with Tester(partitions=3, seed=seed + number, crash_rate=0.02) as tester:
            check(tester, word_count(), instances=1 + number % 2, **options)
            crashes += tester.crashes
    assert crashes > 10


@pytest.mark.parametrize(
    "options", [{}, {"hot_standby": True}, {"commit_age_s": 0.0}], ids=["plain", "standby", "each by itself"]
)
def test_instances_that_come_and_go_while_they_work_change_nothing(seed: int, options: dict[str, Any]) -> None:
    """Invariant as above, over rebalances that find transactions open."""
    for number in range(10):
        with Tester(partitions=4, seed=seed + number) as tester:
            tester.emitter("counts", String())
            counts, view = tester.new_queue_tracker("counts"), tester.view("words-table", Int64())
            instances = [tester.processor(word_count(), **options) for _ in range(3)]
            emitter = tester.emitter("lines", String())
            for turn in range(30):
                emitter.emit(f"line-{turn}", TEXT[turn % len(TEXT)])
                tester.run(2)
                (instances[turn % 3].stop if turn % 2 else instances[turn % 3].start)()
            tester.catchup()
            expected = {word: 6 * total for word, total in EXPECTED.items()}
            assert counted(tester) == dict(view.iterator()) == expected
            assert Counter(word for word, _ in counts.rest()) == expected


KINDS: list[dict[str, Any]] = [{}, {"commit_bytes": 1}, {"hot_standby": True}, {"commit_age_s": 0.0}]


@pytest.mark.parametrize("options", KINDS, ids=["drained", "small", "standby", "each by itself"])
def test_commits_that_are_refused_or_not_answered_change_nothing(seed: int, options: dict[str, Any]) -> None:
    """Invariant as above: a worker takes back what was refused, and finds out what became of what was not answered.

    With small commits they come between the batches of one poll. The rest of that poll was lost once: the inputs went
    back to where they stood only where something had been handled since the last commit.
    """
    aborts = number = 0
    while number < 8 or not aborts:  # few commits are enough, and sometimes none of those of eight runs is refused
        assert number < 40, "no commit is refused"
        with Tester(partitions=3, seed=seed + number, trouble_rate=0.15, crash_rate=0.005 * (number % 2)) as tester:
            processors = check(tester, word_count(), instances=1 + number % 2, **options)
            aborts += sum(processor.status().aborts for processor in processors)
        number += 1


def test_slow_callbacks_are_cut_into_transactions_and_nothing_changes(seed: int) -> None:
    """Invariant as above, where a transaction reaches its age between two records of a batch."""
    for number in range(6):
        with Tester(partitions=3, seed=seed + number, trouble_rate=0.05, crash_rate=0.005 * (number % 2)) as tester:
            check(tester, word_count(partial(tester.advance, 0.6 * (number % 3))), instances=1 + number % 2)
    with Tester(partitions=1) as tester:
        processor = tester.processor(word_count(lambda: tester.advance(0.2)))
        feed(tester)
        words = sum(EXPECTED.values())
        assert processor.status().commits >= (len(TEXT) + words) // 3


def test_a_callback_that_outlasts_the_transaction_is_named() -> None:
    with Tester() as tester:
        tester.processor(word_count(lambda: tester.advance(9)))
        with pytest.raises(
            ProcessingError, match=r"record lines/\d@0 took 9\.0 s, longer than the transaction timeout"
        ):
            tester.consume("lines", "a", "to be")


def test_at_least_once_loses_nothing_and_a_crash_may_double() -> None:
    """Invariant: each word is counted at least as often as it was said, whatever the step of the crash."""
    doubled = 0
    step, steps = 0, 1
    while step < steps:
        step += 1
        with Tester(partitions=2, crash_at=[step]) as tester:
            tester.processor(word_count(), guarantee="at-least-once")
            feed(tester)
            counts = counted(tester)
            assert counts.keys() == EXPECTED.keys()
            assert all(counts[word] >= total for word, total in EXPECTED.items())
            doubled += counts != EXPECTED
            steps = max(steps, tester.steps if tester.crashes else 0)
    assert doubled > 0, "no crash doubled anything: does at-least-once commit everything together?"


def test_the_same_seed_takes_the_same_steps(seed: int) -> None:
    def run() -> tuple[int, int]:
        with Tester(seed=seed, crash_rate=0.03) as tester:
            check(tester, word_count(), instances=2)
            return tester.steps, tester.crashes

    assert run() == run()


def test_instances_of_a_group_share_its_partitions() -> None:
    with Tester(partitions=5) as tester:
        first = tester.processor(word_count())
        tester.consume("lines", "a", "to be")
        assert first.status().partitions == (0, 1, 2, 3, 4)
        second = tester.processor(word_count())
        feed(tester)
        shares = [first.status().partitions, second.status().partitions]
        assert sorted(map(len, shares)) == [2, 3]
        assert sorted(shares[0] + shares[1]) == [0, 1, 2, 3, 4]
        second.stop()
        tester.catchup()
        assert first.status().partitions == (0, 1, 2, 3, 4)
        assert first.get("to") == EXPECTED["to"] + 1


def test_what_does_not_settle_is_told() -> None:
    graph = define_group(
        "g",
        Input("in", String(), lambda c, v: c.loopback(c.key(), v)),
        Loop(String(), lambda c, v: c.loopback(c.key(), v)),
    )
    with Tester() as tester:
        tester.processor(graph)
        tester.write("in", b"k", b"v")
        with pytest.raises(ProcessingError, match="does not settle within 50 turns"):
            tester.catchup(most_turns=50)


def test_misuse_of_the_tester_is_told() -> None:
    with Tester() as tester:
        tester.processor(word_count())
        with pytest.raises(UsageError, match=r"uses topic 'nowhere' \(known: counts, lines, words-loop, words-table\)"):
            tester.consume("nowhere", "k", "v")
        with pytest.raises(UsageError, match="codec String already, not Int64"):
            tester.view("lines", Int64())
        with pytest.raises(UsageError, match="exists already"):
            tester.create_topic("lines", 3)
        tester.create_topic("wide", 7)
        tester.processor(
            define_group("g", Input("lines", String(), lambda c, v: None), Input("wide", String(), lambda c, v: None))
        )
        with pytest.raises(TopicError, match="equally many partitions"):
            tester.catchup()
