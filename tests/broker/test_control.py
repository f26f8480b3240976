"""The control hook makes a broker that fails on demand."""

import time

import pytest
from kafka.protocol.metadata import ApiVersionsRequest, ApiVersionsResponse

from gokamsg.broker.control import Answer, Delay, Drop, DropAfter
from gokamsg.broker.runner import RunningBroker
from tests.broker.raw_client import RawClient, make_batch
from tests.broker.test_api_produce_fetch import create, fetch

BATCH = make_batch([(b"k", b"v")])


def test_observe(broker: RunningBroker) -> None:
    seen = []
    watching = broker.control.on(0, lambda request, context: seen.append((request.acks, context.client_id)), times=None)
    with RawClient(broker.address) as client:
        create(client, "t")
        for _ in range(3):
            assert client.produce("t", 0, BATCH).error_code == 0
        watching.cancel()
        client.produce("t", 0, BATCH)
    assert seen == [(-1, "raw-client")] * 3
    assert watching.seen == 3


def test_drop_leaves_nothing_behind(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client, RawClient(broker.address) as victim:
        create(client, "t")
        broker.control.on(0, lambda request, context: Drop())
        with pytest.raises(ConnectionError):
            victim.produce("t", 0, BATCH)
        assert client.produce("t", 0, BATCH).base_offset == 0


def test_drop_after_loses_the_answer_alone(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client, RawClient(broker.address) as victim:
        create(client, "t")
        broker.control.on(0, lambda request, context: DropAfter())
        with pytest.raises(ConnectionError):
            victim.produce("t", 0, BATCH)
        assert fetch(client, "t", 0).high_watermark == 1


def test_delay(broker: RunningBroker) -> None:
    with RawClient(broker.address) as client:
        create(client, "t")
        broker.control.on(0, lambda request, context: Delay(0.3))
        started = time.monotonic()
        assert client.produce("t", 0, BATCH).error_code == 0
        assert time.monotonic() - started >= 0.29
        started = time.monotonic()
        client.produce("t", 0, BATCH)
        assert time.monotonic() - started < 0.25


def test_a_delayed_produce_is_not_overtaken(broker: RunningBroker) -> None:
    from kafka.protocol.producer import ProduceResponse

    from tests.broker.raw_client import produce_request

    with RawClient(broker.address) as client:
        create(client, "t")
        broker.control.on(0, lambda request, context: None)
        broker.control.on(0, lambda request, context: Delay(0.2))
        ids = [
            client.send(
                produce_request([("t", 0, make_batch([(b"k", b"v")], producer_id=5, epoch=0, sequence=number))]), 9
            )
            for number in range(5)
        ]
        parts = [client.receive(ProduceResponse, 9, it).responses[0].partition_responses[0] for it in ids]
    assert [(part.error_code, part.base_offset) for part in parts] == [(0, number) for number in range(5)]


def test_answer_instead(broker: RunningBroker) -> None:
    broker.control.on(
        18, lambda request, context: Answer(ApiVersionsResponse(version=0, error_code=35, api_keys=[])), times=2
    )
    with RawClient(broker.address) as client:
        codes = [client.ask(ApiVersionsRequest(), ApiVersionsResponse, 0).error_code for _ in range(3)]
    assert codes == [35, 35, 0]


def test_interceptions_of_a_key_take_turns(broker: RunningBroker) -> None:
    order = []
    broker.control.on(18, lambda request, context: order.append("first"))
    broker.control.on(18, lambda request, context: order.append("second"))
    with RawClient(broker.address) as client:
        for _ in range(3):
            client.ask(ApiVersionsRequest(), ApiVersionsResponse, 0)
    assert order == ["first", "second"]
