"""Requests of the transaction protocol that the broker answers with an error: coordinators that have moved, epochs and
producer ids that it does not know any more, generations that are over.

Invariants: what passes by itself is waited out, and what does not ends in a new producer; the worker is back at work
within 15 s, and every record is counted and passed on once, in order.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kafka.protocol.producer import (
    AddOffsetsToTxnResponse,
    AddPartitionsToTxnResponse,
    EndTxnResponse,
    InitProducerIdResponse,
    TxnOffsetCommitResponse,
)

from gokamsg.broker.codes import Code
from gokamsg.broker.control import Answer
from gokamsg.broker.fastpath import Produced, encode_produce
from gokamsg.engine.clock import Clock
from tests.engine.broken_broker import AT_START, BACK_WITHIN_S, Restarting, Story
from tests.helpers import eventually, say

MOVED = (Code.NOT_COORDINATOR, Code.COORDINATOR_NOT_AVAILABLE, Code.COORDINATOR_LOAD_IN_PROGRESS)
FENCED = (Code.INVALID_PRODUCER_EPOCH, Code.PRODUCER_FENCED)
REFUSALS = {
    "InitProducerId": (*MOVED, Code.CONCURRENT_TRANSACTIONS),
    "AddPartitionsToTxn": (*MOVED, *FENCED, Code.CONCURRENT_TRANSACTIONS, Code.INVALID_PRODUCER_ID_MAPPING),
    "AddOffsetsToTxn": (*MOVED, *FENCED, Code.CONCURRENT_TRANSACTIONS, Code.INVALID_PRODUCER_ID_MAPPING),
    "TxnOffsetCommit": (*MOVED, *FENCED, Code.ILLEGAL_GENERATION, Code.UNKNOWN_MEMBER_ID, Code.REBALANCE_IN_PROGRESS),
    "EndTxn": (*MOVED, *FENCED, Code.INVALID_PRODUCER_ID_MAPPING, Code.INVALID_TXN_STATE),
    "Produce": (
        Code.NOT_LEADER_OR_FOLLOWER,
        Code.INVALID_PRODUCER_EPOCH,
        Code.UNKNOWN_PRODUCER_ID,
        Code.OUT_OF_ORDER_SEQUENCE_NUMBER,
        Code.INVALID_TXN_STATE,
    ),
}


def refusal(kind: str, code: Code) -> Callable[[Any, Any], Answer]:
    """What the broker would answer to a request of the kind, with this error for everything in it."""

    def answer(request: Any, context: Any) -> Answer:
        common = {"version": context.api_version, "throttle_time_ms": 0}
        match kind:
            case "InitProducerId":
                made: Any = InitProducerIdResponse(error_code=code, producer_id=-1, producer_epoch=-1, **common)
            case "AddPartitionsToTxn":
                topic = AddPartitionsToTxnResponse.AddPartitionsToTxnTopicResult
                partition = topic.AddPartitionsToTxnPartitionResult
                topics = [
                    topic(
                        name=each.name,
                        results_by_partition=[
                            partition(partition_index=number, partition_error_code=code) for number in each.partitions
                        ],
                    )
                    for each in request.v3_and_below_topics
                ]
                made = AddPartitionsToTxnResponse(results_by_topic_v3_and_below=topics, **common)
            case "AddOffsetsToTxn":
                made = AddOffsetsToTxnResponse(error_code=code, **common)
            case "EndTxn":
                made = EndTxnResponse(error_code=code, **common)
            case "TxnOffsetCommit":
                committed = TxnOffsetCommitResponse.TxnOffsetCommitResponseTopic
                part = committed.TxnOffsetCommitResponsePartition
                made = TxnOffsetCommitResponse(
                    topics=[
                        committed(
                            name=each.name,
                            partitions=[
                                part(partition_index=entry.partition_index, error_code=code)
                                for entry in each.partitions
                            ],
                        )
                        for each in request.topics
                    ],
                    **common,
                )
            case _:
                made = encode_produce(
                    context.api_version,
                    [
                        (data.name, [Produced(it.index, code) for it in data.partition_data])
                        for data in request.topic_data
                    ],
                )
        return Answer(made)

    return answer


BUSY_S = 0.6


@pytest.fixture
def story(tmp_path: Path, fresh_name: Callable[[str], str]) -> Iterator[Story]:
    broker = Restarting(tmp_path / "broker")
    story = Story(broker, tmp_path / "state", fresh_name)
    yield story
    story.close()
    broker.broker.stop()


@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_worker_goes_on_after_any_refusal(story: Story, times: int) -> None:
    slowest = (0.0, "")
    with story.at_work():
        for kind, codes in REFUSALS.items():
            for code in codes:
                if kind not in AT_START:
                    took = story.after(kind, refusal(kind, code), begin=story.more, times=times)
                    slowest = max(slowest, (took, f"{kind} {code.name}"))
    for code in REFUSALS["InitProducerId"]:
        story.more()
        with ExitStack() as stack:
            begin = partial(stack.enter_context, story.scene.running(story.graph))
            took = story.after("InitProducerId", refusal("InitProducerId", code), begin=begin, times=times)
            slowest = max(slowest, (took, f"InitProducerId {code.name}"))
    story.counted()
    say(f"slowest: {slowest[1]}, {slowest[0]:.2f} s")


def test_a_coordinator_that_is_still_busy_is_asked_less_and_less_often(story: Story) -> None:
    """As three brokers are that share too little CPU: at a steady pace, the questions take what the answer needs."""
    asked: list[float] = []

    def busy(request: Any, context: Any) -> Any:
        asked.append(time.monotonic())
        is_busy = asked[-1] - asked[0] < BUSY_S
        return refusal("AddPartitionsToTxn", Code.CONCURRENT_TRANSACTIONS)(request, context) if is_busy else None

    with story.at_work():
        took = story.after("AddPartitionsToTxn", busy, begin=story.more, times=float("inf"))
    story.counted()
    assert took < BUSY_S + 1
    tries = sum(at - asked[0] < BUSY_S for at in asked)
    assert 5 <= tries <= 30, f"asked {tries} times in {BUSY_S} s"


def test_a_clock_that_jumps_is_lived_through_and_no_loop_at_full_speed(
    story: Story, caplog: pytest.LogCaptureFixture
) -> None:
    """A day ahead, the topic takes no timestamps of ours: that is said, and tried without haste until they fit."""
    ahead_s = 0.0
    produced: list[float] = []
    watching = story.broker.control.on(0, lambda *_: produced.append(time.monotonic()), times=None)
    with story.at_work(clock=Clock(time=lambda: time.time() + ahead_s)) as running:
        for ahead_s in (-86_400.0, 600.0, -600.0):  # noqa: B007  # the clock reads it
            story.more()
            eventually("a jump changes nothing", story.through, timeout_s=BACK_WITHIN_S)
        ahead_s = 86_400.0
        story.more()
        notice = eventually("the worker says why", lambda: running.processor.status().notice, timeout_s=10)
        before = len(produced)
        began = time.monotonic()
        eventually("time passes", lambda: time.monotonic() > began + 2, timeout_s=5)
        assert 1 <= len(produced) - before <= 16, "it gave up, or tries at full speed"
        ahead_s = 0.0
        eventually("work goes on", story.through, timeout_s=BACK_WITHIN_S)
        eventually("the notice is gone", lambda: running.processor.status().notice is None)
    watching.cancel()
    assert notice is not None
    assert "timestamp" in notice.lower()
    assert [message for message in caplog.messages if message.startswith(notice) and message.endswith("; trying again")]
    story.counted()
