"""Kafka clients that move whole record batches: the only part of the engine that knows kafka-python.

kafka-python reports on the logger `kafka`, loudly, what is reported here as an exception; a command sets that logger
to CRITICAL unless it was asked for debugging. Internals of kafka-python 3.0 are used (fetching.py, sending.py,
producer.py, consumer.py); each is checked when a client is built.
"""

from gokamsg.engine.clients.admin import Admin, Group, Member, NewTopic, Topic
from gokamsg.engine.clients.config import ClientConfig, ClusterInfo, check_broker
from gokamsg.engine.clients.consumer import Assigned, Event, GroupConsumer, Lost, Membership, Revoked
from gokamsg.engine.clients.patience import SPARED_BY_COMMIT_S, Making, Patience
from gokamsg.engine.clients.producer import IdempotentProducer, TransactionalProducer
from gokamsg.engine.clients.reader import Batches, Place, TopicPart
from gokamsg.engine.clients.sending import BATCH_BYTES, BatchSender, SentBatch
from gokamsg.engine.clients.table_consumer import TableConsumer
from gokamsg.engine.clients.warming import warm_up

__all__ = [
    "BATCH_BYTES",
    "SPARED_BY_COMMIT_S",
    "Admin",
    "Assigned",
    "BatchSender",
    "Batches",
    "ClientConfig",
    "ClusterInfo",
    "Event",
    "Group",
    "GroupConsumer",
    "IdempotentProducer",
    "Lost",
    "Making",
    "Member",
    "Membership",
    "NewTopic",
    "Patience",
    "Place",
    "Revoked",
    "SentBatch",
    "TableConsumer",
    "Topic",
    "TopicPart",
    "TransactionalProducer",
    "check_broker",
    "warm_up",
]
