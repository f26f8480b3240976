"""Puts a worker together: topics, identity, clients, tables, outputs, assignment, loop.

Everything opened is registered with the caller's exit stack the moment it is open, so that a start that fails half-way
closes what it has opened, in reverse order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
from gokamsg.engine.transaction import Transaction
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
    config: ClientConfig, graph: GroupGraph, options: ProcessorOptions, *, counters: Counters, stack: ExitStack
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
    tables = Tables(sqlite_builder(identity.directory), cache_bytes=options.cache_bytes // _shares(graph, topics))
    stack.callback(tables.close_all)
    parts = _Parts(
        graph=graph,
        options=options,
        counters=counters,
        clients=clients,
        delivery=delivery,
        tables=tables,
        outputs=_outputs(graph, topics, delivery),
        joins=_lookup_tables(graph.joint_tables, topics),
        lookups=_lookup_tables(graph.lookup_tables, topics),
    )
    marks = HandledMarks(identity.directory.parent / "handled")
    return _put_together(parts, {name: topic.topic_id for name, topic in topics.items()}, marks)


@dataclass(frozen=True, slots=True)
class _Parts:
    graph: GroupGraph
    options: ProcessorOptions
    counters: Counters
    clients: Clients
    delivery: Delivery
    tables: Tables
    outputs: Outputs
    joins: Mapping[str, LookupTable]
    lookups: Mapping[str, LookupTable]


def _put_together(parts: _Parts, topic_ids: Mapping[str, str], marks: HandledMarks) -> Assembled:
    graph, options, outputs = parts.graph, parts.options, parts.outputs
    pace, deferral = Pace(), Deferral()

    def build(partition: int, table: PartitionTable | None) -> PartitionProcessor:
        context = Context(
            graph,
            partition,
            table=table,
            joins=parts.joins,
            lookups=parts.lookups,
            outputs=outputs,
            deferral=deferral,
            max_message_bytes=options.max_message_bytes,
        )
        return PartitionProcessor(context, outputs, table=table, pace=pace, on_bad=worker.bad, cut=worker.cut)

    assignment = Assignment(
        graph,
        parts.clients,
        parts.tables,
        topic_ids=topic_ids,
        joins=parts.joins,
        lookups=parts.lookups,
        marks=marks,
        start=options.start,
        hot_standby=options.hot_standby,
        recover_ahead=options.recover_ahead,
        build=build,
    )
    transaction = Transaction(
        parts.delivery,
        outputs,
        changelog=outputs.topic(graph.group_table.topic) if graph.group_table else None,
        pace=pace,
        deferral=deferral,
        options=options,
        counters=parts.counters,
    )
    worker = Worker(
        parts.clients.inputs,
        assignment,
        transaction,
        delivery=parts.delivery,
        sources=sources(graph),
        outputs=outputs,
        tables=parts.tables,
        on_error=options.on_error,
        counters=parts.counters,
    )
    return Assembled(worker, assignment, parts.clients.inputs, outputs)


def sources(graph: GroupGraph) -> dict[str, Source]:
    """What the group consumes: its inputs and its loop, by topic."""
    return {edge.topic: Source(edge.topic, edge.codec, edge.callback) for edge in graph.consumed_streams}


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


def _outputs(graph: GroupGraph, topics: Mapping[str, Topic], delivery: Delivery) -> Outputs:
    outputs = Outputs(delivery.send)
    for edge in (*graph.output_streams, *graph.loops, *graph.tables):
        known = topics.get(edge.topic)
        partitions = known.partitions if known else delivery.partition_count(edge.topic)
        outputs.add(edge.topic, Partitioner(partitions), partitions)
    return outputs


def _lookup_tables(edges: Iterable[Any], topics: Mapping[str, Topic]) -> dict[str, LookupTable]:
    return {
        edge.topic: LookupTable(edge.topic, edge.codec, Partitioner(topics[edge.topic].partitions)) for edge in edges
    }


def _shares(graph: GroupGraph, topics: Mapping[str, Topic]) -> int:
    """Among how many table partitions the cache is divided when the worker has all of them."""
    edges = [*graph.joint_tables, *graph.lookup_tables, *([graph.group_table] if graph.group_table else [])]
    return max(sum(topics[edge.topic].partitions for edge in edges), 1)
