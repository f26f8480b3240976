"""What connections do otherwise than kafka-python's. Their ends and refusals are tested with the clients."""

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from kafka.cluster import MetadataRequest
from kafka.errors import KafkaConnectionError

from gokamsg.engine.clients import ClientConfig, TableConsumer
from gokamsg.engine.clients.connection import _much
from tests.helpers import eventually
from tests.kafka_server import KafkaCluster

ANSWER = bytes(range(256)) * 8_192  # 2 MB, as a fetch brings


def test_an_answer_is_received_in_large_pieces() -> None:
    """The thread that receives gets the interpreter rarely while records are handled; 4 KB at a time took 500 turns."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        receive = _much(ours)
        assert receive() == (b"", None)
        sender = threading.Thread(target=theirs.sendall, args=(ANSWER,))
        sender.start()
        pieces: list[bytes] = []

        def all_there() -> bool:
            data, error = receive()
            assert error is None
            pieces.extend([data] if data else [])
            return sum(map(len, pieces)) == len(ANSWER)

        eventually("the answer is received", all_there, interval_s=0.005)
        sender.join()
        assert b"".join(pieces) == ANSWER
        assert len(pieces) <= 60
        theirs.close()
        data, error = receive()
        assert data == b""
        assert isinstance(error, KafkaConnectionError)


def test_a_topic_is_added_while_the_question_for_others_is_written(
    kafka_cluster: KafkaCluster, fresh_name: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = fresh_name("first"), fresh_name("second")
    kafka_cluster.create_topics({name: {"num_partitions": 2} for name in (first, second)})
    consumer = TableConsumer(ClientConfig(kafka_cluster.address))
    writing, added = threading.Event(), threading.Event()
    topic_asked_for = MetadataRequest.MetadataRequestTopic

    def written_slowly(**values: Any) -> Any:
        writing.set()
        assert added.wait(5)
        return topic_asked_for(**values)

    monkeypatch.setattr(MetadataRequest, "MetadataRequestTopic", written_slowly)
    cluster = consumer._consumer._cluster
    try:
        cluster.add_topic(first)
        assert writing.wait(5)
        cluster.add_topic(second)
        added.set()
        assert [consumer.partitions(name, 5) for name in (first, second)] == [2, 2]
    finally:
        added.set()
        consumer.close()
