"""What connections do otherwise than kafka-python's. Their ends and refusals are tested with the clients."""

import socket
import threading
import uuid
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import pytest
from kafka.cluster import MetadataRequest
from kafka.errors import KafkaConnectionError
from kafka.protocol.metadata import MetadataResponse

from gokamsg.broker.control import Answer
from gokamsg.engine.clients import ClientConfig, GroupConsumer, TableConsumer, TransactionalProducer
from gokamsg.engine.clients.connection import _much
from tests.engine.broken_broker import Restarting
from tests.helpers import eventually
from tests.kafka_server import KafkaCluster
from tests.proxy import Proxy

ANSWER = bytes(range(256)) * 8_192  # 2 MB, as a fetch brings

WITH_TOPIC: dict[str, tuple[Callable[[ClientConfig, str], Any], Callable[[Any], Any]]] = {
    "group": (
        lambda config, topic: GroupConsumer(config, group="group", topics=[topic]),
        lambda it: it._consumer._manager,
    ),
    "table": (lambda config, topic: TableConsumer(config, topics=[topic]), lambda it: it._consumer._manager),
    "producer": (
        lambda config, topic: TransactionalProducer(config, transactional_id="id", topics=[topic]),
        lambda it: it._sender._producer._sender._client._manager,
    ),
}
"""A client for a topic, and what has its connections."""


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


@pytest.mark.parametrize("kind", WITH_TOPIC)
def test_who_leads_a_topic_is_connected_to_before_there_is_anything_to_ask(
    restarting_broker: Restarting, kind: str
) -> None:
    """Three brokers lead a partition each: one broker by three addresses more."""
    host, _, port = restarting_broker.address.partition(":")
    with ExitStack() as stack:
        leaders = [stack.enter_context(closing(Proxy(lambda: (host, int(port))))) for _ in range(3)]
        addresses = [restarting_broker.address, *(leader.address for leader in leaders)]
        control = restarting_broker.control
        told = control.on(3, lambda request, context: _led_by_others(request, context, addresses), times=None)
        stack.callback(told.cancel)
        build, manager_of = WITH_TOPIC[kind]
        client = build(ClientConfig(restarting_broker.address), "t")
        stack.callback(client.close, *([0.0] if kind == "producer" else []))
        connections = manager_of(client)._conns
        eventually(
            "all three are connected to",
            lambda: {1, 2, 3} <= {node for node, connection in list(connections.items()) if connection.connected},
        )


def _led_by_others(request: Any, context: Any, addresses: list[str]) -> Answer:
    """The metadata of a cluster with these brokers, of which all but the first lead one partition of each topic."""
    told, topic = MetadataResponse, MetadataResponse.MetadataResponseTopic
    partition = topic.MetadataResponsePartition
    version = context.api_version
    where = [address.split(":") for address in addresses]
    return Answer(
        told(
            version=version,
            brokers=[
                told.MetadataResponseBroker(version=version, node_id=node, host=host, port=int(port))
                for node, (host, port) in enumerate(where)
            ],
            cluster_id="several",
            controller_id=0,
            topics=[
                topic(
                    version=version,
                    error_code=0,
                    name=asked.name,
                    topic_id=uuid.uuid5(uuid.NAMESPACE_OID, asked.name),
                    partitions=[
                        partition(
                            version=version,
                            error_code=0,
                            partition_index=node - 1,
                            leader_id=node,
                            leader_epoch=0,
                            replica_nodes=[node],
                            isr_nodes=[node],
                            offline_replicas=[],
                        )
                        for node in range(1, len(addresses))
                    ],
                )
                for asked in request.topics or ()
            ],
        )
    )
