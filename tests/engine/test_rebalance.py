"""A member joins a group at work: few partitions move, the others keep their tables, and nobody waits long."""

import itertools
import re
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from gokamsg.engine.clients import ClientConfig, GroupConsumer
from gokamsg.engine.codec import Int64, String
from gokamsg.engine.context import Context
from gokamsg.engine.graph import GroupGraph, Input, Persist, define_group
from tests.engine.broken_broker import Meddling, Story
from tests.engine.kafka_scene import Running, Scene
from tests.helpers import eventually, say, slowness
from tests.kafka_server import KafkaCluster
from tests.plain_clients import plain_producer

PARTITIONS = 24
PAUSE_S = 4.0  # Goka pauses 5 s at each rebalance

Fresh = Callable[[str], str]


class Ticker:
    """Writes one record to every partition, round after round, until it is stopped."""

    def __init__(self, address: str, topic: str) -> None:
        self._producer = plain_producer(address)
        self._topic = topic
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ticker")

    def __enter__(self) -> "Ticker":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._producer.close()

    def _run(self) -> None:
        for number in itertools.count():
            for partition in range(PARTITIONS):
                self._producer.send(self._topic, key=b"%d" % partition, value=b"%d" % number, partition=partition)
            if self._stop.wait(0.05):
                return


def test_a_fourth_member_takes_six_of_24_partitions_and_the_others_work_on(
    kafka_cluster: KafkaCluster, fresh_name: Fresh, tmp_path: Path
) -> None:
    source, group = fresh_name("in"), fresh_name("group")
    kafka_cluster.create_topics({source: {"num_partitions": PARTITIONS}})
    handled: dict[int, list[float]] = defaultdict(list)

    def count(context: Context, _value: str) -> None:
        handled[context.partition()].append(time.monotonic())
        context.set_value((context.value() or 0) + 1)

    graph: GroupGraph = define_group(group, Input(source, String(), count), Persist(Int64()))
    scene = Scene(kafka_cluster.address, tmp_path)
    with ExitStack() as stack:

        def member(name: str) -> Running:
            return stack.enter_context(scene.running(graph, state_dir=tmp_path / name))

        def held(running: Running) -> set[int]:
            return set(running.processor.status().partitions)

        three = [member(name) for name in ("a", "b", "c")]
        eventually("three members have 8 each", lambda: [len(held(one)) for one in three] == [8, 8, 8], timeout_s=60)
        stack.enter_context(Ticker(kafka_cluster.address, source))
        eventually("every partition is at work", lambda: len(handled) == PARTITIONS, timeout_s=30)
        before = [held(one) for one in three]
        reads = [one.processor.status().table_reads for one in three]
        joined = time.monotonic()
        fourth = member("d")
        eventually(
            "four members have 6 each",
            lambda: [len(held(one)) for one in (*three, fourth)] == [6, 6, 6, 6],
            timeout_s=60,
        )
        now = time.monotonic()
        eventually(
            "every partition works again", lambda: all(times[-1] > now for times in handled.values()), timeout_s=30
        )
        after = [held(one) for one in three]
        again = [one.processor.status().table_reads for one in three]
    assert all(kept < had for kept, had in zip(after, before, strict=True)), "a partition moved between old members"
    assert again == reads, "a member restored a table that it had"
    pauses = [
        max((later - earlier for earlier, later in itertools.pairwise(times) if later > joined), default=0.0)
        for times in handled.values()
    ]
    slow = slowness()
    say(f"longest pause of a partition: {max(pauses):.2f} s; {slow:.1f} times slower than an idle machine")
    assert max(pauses) < PAUSE_S * slow


@pytest.mark.any_broker
def test_a_rebalance_that_another_member_holds_up_is_said(
    kafka_cluster: KafkaCluster, fresh_name: Fresh, tmp_path: Path
) -> None:
    source, group = fresh_name("in"), fresh_name("group")
    kafka_cluster.create_topics({source: {"num_partitions": 2}})
    graph = define_group(group, Input(source, String(), lambda context, value: context.set_value(1)), Persist(Int64()))
    scene = Scene(kafka_cluster.address, tmp_path)
    idle = GroupConsumer(ClientConfig(kafka_cluster.address), group=group, topics=[source])
    idle.join_as("idle")
    try:
        eventually("it is a member", lambda: idle.poll(0.05) == {} and idle.assignment(), timeout_s=20)
        with scene.running(graph) as running:  # the other one sends heartbeats, and polls no more
            notice = eventually("it is said", lambda: running.processor.status().notice, timeout_s=20)
            assert re.search("waits for a member that neither joins nor leaves", notice)
            idle.leave()
            running.wait_at_work()
            eventually("it is said no more", lambda: running.processor.status().notice is None)
    finally:
        idle.close()


def test_a_member_asks_several_times_a_second_whether_its_group_rebalances(story: Story) -> None:
    """What another member left when it stopped rests until the next heartbeat: for up to a second it did."""
    asked: list[float] = []
    with story.at_work():
        meddling = Meddling(story.broker.control, "Heartbeat", lambda *_: asked.append(time.monotonic()), float("inf"))
        try:
            eventually("seven heartbeats", lambda: len(asked) >= 7, timeout_s=20)
        finally:
            meddling.cancel()
    pauses = [after - before for before, after in itertools.pairwise(asked)]
    assert statistics.median(pauses) < 0.5
