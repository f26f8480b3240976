"""A stop while the brokers hold something back: whatever it is, the worker ends in time.

Invariants: run() returns within STOP_S of stop(), without an error; what could not be committed is aborted where the
brokers let it, so that nobody waits for it; the next worker handles every record, exactly-once once and in order.
"""

import statistics
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gokamsg.broker.codes import Code
from gokamsg.broker.control import Delay
from gokamsg.engine import ClientConfig, Int64, View
from gokamsg.engine.clients import Admin, Member
from tests.engine.broken_broker import AT_START, KEYS, OF_READERS, Meddling, Story, counting
from tests.engine.kafka_scene import PARTITIONS, Running, Scene
from tests.engine.test_refused_requests import refusal
from tests.helpers import eventually, say, slowness
from tests.kafka_server import KafkaServer

STOP_S = 2.5  # the command that runs the worker has three


def silence(*_: Any) -> Delay:
    return Delay(60)


UNANSWERED = {
    "exactly-once": ("Produce", "AddPartitionsToTxn", "TxnOffsetCommit", "EndTxn", "Heartbeat", "LeaveGroup"),
    "at-least-once": ("Produce", "OffsetCommit"),
}
UNTIL_MARKERS = ("AddPartitionsToTxn", "AddOffsetsToTxn", "EndTxn")
"""What a coordinator answers with CONCURRENT_TRANSACTIONS as long as a partition's leader has not heard of the last
transaction's end."""
ALWAYS = ("TxnOffsetCommit", "EndTxn", "OffsetCommit")
"""Tried without --slow too."""


def stall(how: str, kind: str, reaction: Callable[[Any, Any], Any], what: str) -> Any:
    marks = () if kind in ALWAYS else pytest.mark.slow
    return pytest.param(how, kind, reaction, id=f"{what}, {kind}", marks=marks)


STALLS = [
    *(stall(how, kind, silence, how) for how, kinds in UNANSWERED.items() for kind in kinds),
    *(
        stall("exactly-once", kind, refusal(kind, Code.CONCURRENT_TRANSACTIONS), "markers late")
        for kind in UNTIL_MARKERS
    ),
]


def stopped(running: Running) -> float:
    began = time.monotonic()
    running.processor.stop()
    running.join()
    assert running.error is None
    return time.monotonic() - began


@pytest.mark.parametrize(("guarantee", "kind", "reaction"), STALLS)
def test_a_worker_stops_in_time_whatever_is_held_back(
    embedded_story: Story, guarantee: str, kind: str, reaction: Callable[[Any, Any], Any]
) -> None:
    story = embedded_story
    with story.at_work(guarantee=guarantee) as running:
        meddling = Meddling(story.broker.control, kind, reaction, float("inf"))
        try:
            story.more()
            meddling.met.wait(1.0)  # one is sent by the stop itself
            took = stopped(running)
            assert meddling.met.is_set()
        finally:
            meddling.cancel()
    say(f"stopped in {took:.2f} s")
    assert took < STOP_S * slowness()
    with story.scene.running(story.graph, guarantee=guarantee) as running:
        if guarantee == "exactly-once":
            eventually("all is through", story.through, timeout_s=30)
            story.counted()
        else:
            running.wait_at_work().caught_up(len(KEYS))


@pytest.mark.any_broker
@pytest.mark.parametrize("guarantee", ["exactly-once", pytest.param("at-least-once", marks=pytest.mark.slow)])
def test_a_worker_stops_in_time_when_the_broker_stands_still(
    own_cluster: KafkaServer, tmp_path: Path, guarantee: str
) -> None:
    """Its connections stay, and nobody answers; the worker has a transaction open, and then tries to settle it."""
    own_cluster.create_topics({name: {"num_partitions": PARTITIONS} for name in ("source", "sink")})
    scene = Scene(own_cluster.address, tmp_path)
    graph = counting("group", "source", "sink")
    sent = 0
    for still_s in (0.1, 4.0):
        with scene.running(graph, guarantee=guarantee) as running:
            running.wait_at_work()
            more = threading.Thread(target=scene.produce, args=("source", [(key, "x") for key in KEYS] * 200))
            more.start()
            sent += 200 * len(KEYS)
            running.caught_up(1)
            own_cluster.pause()
            try:
                threading.Event().wait(still_s)
                took = stopped(running)
            finally:
                own_cluster.resume()
            more.join()
        say(f"{guarantee}, still for {still_s:g} s: stopped in {took:.2f} s")
        assert took < STOP_S * slowness()
    if guarantee == "exactly-once":
        with scene.running(graph):
            eventually("all is handled", lambda: len(scene.read("sink")) >= sent, timeout_s=40)
        assert {key: int(value) for key, value in scene.table("group-table").items()} == dict.fromkeys(KEYS, 400)


def test_a_worker_that_is_stopped_while_it_starts_leaves_its_group(embedded_story: Story) -> None:
    """It joins while its producer settles what was left open; left a member, it would hold up others for a session."""
    story = embedded_story
    meddling = Meddling(story.broker.control, "InitProducerId", silence, float("inf"))
    with closing(Admin(ClientConfig(story.broker.address))) as admin:

        def members() -> tuple[Member, ...]:
            return admin.describe_groups([story.graph.group])[story.graph.group].members

        with story.scene.running(story.graph) as running:
            eventually("it is a member", members, timeout_s=20)
            assert meddling.met.is_set()
            running.error_expected = True
            began = time.monotonic()
            running.processor.stop()
            running.join()
            took = time.monotonic() - began
        meddling.cancel()
        assert members() == ()
    assert took < STOP_S * slowness()


@pytest.mark.parametrize("kind", sorted({*AT_START, *OF_READERS}))
def test_a_worker_stops_in_time_whatever_of_its_start_is_not_answered(embedded_story: Story, kind: str) -> None:
    story = embedded_story
    meddling = Meddling(story.broker.control, kind, silence, float("inf"))
    try:
        with story.scene.running(story.graph) as running:
            assert meddling.met.wait(20)
            running.error_expected = True
            began = time.monotonic()
            running.processor.stop()
            running.join()
            took = time.monotonic() - began
    finally:
        meddling.cancel()
    say(f"stopped in {took:.2f} s")
    assert took < STOP_S * slowness()


def test_who_has_nothing_to_do_stops_at_once(embedded_story: Story) -> None:
    """A poll that waits for data is left; it would wait for half a second."""
    story = embedded_story
    took = []
    for _ in range(3):
        with story.at_work() as running:
            eventually("it is idle", lambda: running.processor.status().commits and story.through())
            took.append(stopped(running))
        view = View(ClientConfig(story.broker.address), story.table, Int64())
        view.start()
        assert view.wait_running(20)
        began = time.monotonic()
        view.stop()
        took.append(time.monotonic() - began)
    say(f"stopped in {', '.join(f'{each:.2f}' for each in took)} s")
    assert statistics.median(took) < 0.3 * slowness()
