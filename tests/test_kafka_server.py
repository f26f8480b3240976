"""The Apache Kafka fixture itself: it keeps address and data over stop and kill, and `clean` removes what it says."""

from collections.abc import Callable

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient

from tests.helpers import eventually
from tests.kafka_server import KafkaCluster, KafkaServer


def _count(address: str, topic: str) -> int:
    consumer = KafkaConsumer(bootstrap_servers=address)
    try:
        partition = TopicPartition(topic, 0)
        return int(consumer.end_offsets([partition])[partition])
    finally:
        consumer.close()


def _send(address: str, topic: str, value: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=address)
    try:
        producer.send(topic, key=b"k", value=value).get(timeout=10)
    finally:
        producer.close()


def test_a_node_keeps_address_and_data_over_stop_and_kill(own_cluster: KafkaServer) -> None:
    own_cluster.create_topics({"kept": {"num_partitions": 1}})
    address = own_cluster.address
    for count, end in enumerate((own_cluster.stop, own_cluster.kill), start=1):
        _send(address, "kept", b"v")
        end()
        own_cluster.start()
        assert own_cluster.address == address
        assert eventually("the records are there again", lambda: _count(address, "kept")) == count


def test_clean_removes_the_services_topics_and_groups_and_nothing_else(
    clean_cluster: KafkaCluster, fresh_name: Callable[[str], str]
) -> None:
    other = fresh_name("other")
    clean_cluster.create_topics({"block_user": {"num_partitions": 8}, other: {"num_partitions": 1}})
    _send(clean_cluster.address, "block_user", b"v")
    consumer = KafkaConsumer(
        "block_user",
        bootstrap_servers=clean_cluster.address,
        group_id="blocker",
        group_instance_id="killed",
        auto_offset_reset="earliest",
    )
    eventually("the member has its record", lambda: consumer.poll(timeout_ms=200))
    consumer.commit()
    consumer.close()  # a static member stays in the group

    clean_cluster.clean()

    with clean_cluster.admin() as admin:
        topics = admin.list_topics()
        assert "block_user" not in topics
        assert other in topics
        assert "blocker" not in _groups(admin)
    clean_cluster.create_topics({"block_user": {"num_partitions": 8}})
    assert _count(clean_cluster.address, "block_user") == 0


def _groups(admin: KafkaAdminClient) -> set[str]:
    return {str(group["group_id"]) for group in admin.list_groups()}
