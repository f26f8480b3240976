"""Puts a worker together: topics, identity, clients, tables, outputs, assignment, loop.

Everything opened is registered with the caller's exit stack the moment it is open, so that a start that fails half-way
closes what it has opened, in reverse order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from gokamsg.engine.assignment import Assignment, Clients
from gokamsg.engine.clients import (
    ClientConfig,
    GroupConsumer,
    IdempotentProducer,
    TableConsumer,
    TransactionalProducer,
    check_broker,
)
from gokamsg.engine.context import Context, Deferral
from gokamsg.engine.graph import GroupGraph
from gokamsg.engine.guarantee import AtLeastOnce, Delivery, ExactlyOnce
from gokamsg.engine.hashing import Partitioner
from gokamsg.engine.identity import Identity, acquire
from gokamsg.engine.lookup import LookupTable
from gokamsg.engine.offsets import HandledMarks
from gokamsg.engine.options import ProcessorOptions
from gokamsg.engine.output import Outputs
from gokamsg.engine.partition_processor import Pace, PartitionProcessor, Source
from gokamsg.engine.partition_table import PartitionTable
from gokamsg.engine.stats import Counters
from gokamsg.engine.tables import Tables, sqlite_builder
from gokamsg.engine.topics import Topic, TopicManager
from gokamsg.engine.worker import Worker

PRODUCER_INIT_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Assembled:
    """What the processor needs to run and to report."""

    worker: Worker
    assignment: Assignment
    inputs: GroupConsumer
    outputs: Outputs


def assemble(
    config: ClientConfig,
    graph: GroupGraph,
    options: ProcessorOptions,
    *,
    counters: Counters,
    stopping: Callable[[], bool],
    stack: ExitStack,
) -> Assembled:
    """A worker ready for its first turn. Raises a GokamsgError when something it needs is not there."""
    cluster = check_broker(config)
    topics = _topics(config, graph)
    identity = acquire(options.state_dir, cluster.cluster_id, graph.group)
    stack.callback(identity.release)
    clients = _clients(config, graph, identity, stack)
    delivery = _delivery(config, options, identity, clients.inputs)
    stack.callback(delivery.close)
    delivery.recover()
    tables = Tables(
        sqlite_builder(identity.directory), cache_bytes=options.cache_bytes // _shares(graph, topics)
    )
    stack.callback(tables.close_all)
    outputs = Outputs(delivery.send)
    for edge in (*graph.output_streams, graph.loop_stream, graph.group_table):
        if edge is not None:
            known = topics.get(edge.topic)
            partitions = known.partitions if known else delivery.partition_count(edge.topic)
            outputs.add(edge.topic, Partitioner(partitions), partitions)

    pace, deferral = Pace(), Deferral()
    joins = _lookup_tables(graph.joint_tables, topics)
    lookups = _lookup_tables(graph.lookup_tables, topics)

    def build(partition: int, table: PartitionTable | None) -> PartitionProcessor:
        context = Context(
            graph,
            partition,
            table=table,
            joins=joins,
            lookups=lookups,
            outputs=outputs,
            deferral=deferral,
            max_message_bytes=options.max_message_bytes,
        )
        return PartitionProcessor(context, outputs, table=table, pace=pace, on_bad=worker.bad, cut=worker.cut)

    assignment = Assignment(
        graph,
        clients,
        tables,
        topic_ids={name: topic.topic_id for name, topic in topics.items()},
        joins=joins,
        lookups=lookups,
        marks=HandledMarks(identity.directory.parent / "handled"),
        start=options.start,
        build=build,
    )
    worker = Worker(
        clients.inputs,
        delivery,
        assignment,
        group=graph.group,
        sources=sources(graph),
        outputs=outputs,
        tables=tables,
        table_topic=graph.group_table.topic if graph.group_table else None,
        pace=pace,
        deferral=deferral,
        options=options,
        counters=counters,
        stopping=stopping,
    )
    return Assembled(worker, assignment, clients.inputs, outputs)


def sources(graph: GroupGraph) -> dict[str, Source]:
    """What the group consumes: its inputs and its loop, by topic."""
    edges = [*graph.input_streams, *([graph.loop_stream] if graph.loop_stream else [])]
    return {edge.topic: Source(edge.topic, edge.codec, edge.callback) for edge in edges}


def _topics(config: ClientConfig, graph: GroupGraph) -> Mapping[str, Topic]:
    """Create the group's own topics with the inputs' partition count, and check the others."""
    with TopicManager(config) as manager:
        return manager.prepare(graph)


def _clients(config: ClientConfig, graph: GroupGraph, identity: Identity, stack: ExitStack) -> Clients:
    inputs = GroupConsumer(config, group=graph.group, instance_id=identity.instance_id, topics=sorted(sources(graph)))
    stack.callback(inputs.close)
    tables = TableConsumer(config)
    stack.callback(tables.close)
    return Clients(inputs, tables)


def _delivery(config: ClientConfig, options: ProcessorOptions, identity: Identity, inputs: GroupConsumer) -> Delivery:
    if options.guarantee == "at-least-once":
        return AtLeastOnce(lambda: IdempotentProducer(config), inputs)

    def connect() -> TransactionalProducer:
        producer = TransactionalProducer(
            config,
            transactional_id=identity.transactional_id,
            transaction_timeout_ms=options.transaction_timeout_ms,
        )
        try:
            producer.init(PRODUCER_INIT_TIMEOUT_S)
        except BaseException:
            producer.close(0.0)
            raise
        return producer

    return ExactlyOnce(connect)


def _lookup_tables(edges: Iterable[Any], topics: Mapping[str, Topic]) -> dict[str, LookupTable]:
    return {
        edge.topic: LookupTable(edge.topic, edge.codec, Partitioner(topics[edge.topic].partitions)) for edge in edges
    }


def _shares(graph: GroupGraph, topics: Mapping[str, Topic]) -> int:
    """Among how many table partitions the cache is divided when the worker has all of them."""
    edges = [*graph.joint_tables, *graph.lookup_tables, *([graph.group_table] if graph.group_table else [])]
    return max(sum(topics[edge.topic].partitions for edge in edges), 1)
