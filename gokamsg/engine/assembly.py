"""Puts a worker together: topics, identity, clients, tables, outputs, assignment, loop.

Everything opened is registered with the caller's exit stack the moment it is open, so that a start that fails half-way
closes what it has opened, in reverse order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import ExitStack
from threading import Event
from typing import Any, Protocol, TypeVar

from msgspec import Struct

from gokamsg.engine.assignment import Assignment, Clients
from gokamsg.engine.clients import Making, Patience
from gokamsg.engine.clock import Clock
from gokamsg.engine.cluster import Cluster, GroupClient, Home, Marks, TableClient
from gokamsg.engine.context import Context, Deferral
from gokamsg.engine.graph import GroupGraph
from gokamsg.engine.guarantee import AtLeastOnce, Delivery, ExactlyOnce, P
from gokamsg.engine.hashing import Partitioner
from gokamsg.engine.lookup import LookupTable
from gokamsg.engine.names import quarantine_of
from gokamsg.engine.opening import Opening
from gokamsg.engine.options import ProcessorOptions
from gokamsg.engine.output import Outputs
from gokamsg.engine.partition_processor import Pace, PartitionProcessor, Source
from gokamsg.engine.partition_table import PartitionTable
from gokamsg.engine.partitioning import KeyPlacement
from gokamsg.engine.quarantine.partition import Quarantine
from gokamsg.engine.stats import Counters
from gokamsg.engine.tables import Tables
from gokamsg.engine.topics import Topic, TopicManager
from gokamsg.engine.transaction import Transaction
from gokamsg.engine.visits import Visits
from gokamsg.engine.worker import Worker
from gokamsg.errors import BrokerUnavailableError, TopicError


class _Client(Protocol):
    def close(self) -> None: ...


C = TypeVar("C", bound=_Client)
T = TypeVar("T")


class Assembled(Struct, frozen=True):
    """What the processor needs to run and to report."""

    worker: Worker
    assignment: Assignment
    inputs: GroupClient
    outputs: Outputs


def assemble(
    cluster: Cluster,
    graph: GroupGraph,
    options: ProcessorOptions,
    *,
    counters: Counters,
    visits: Visits,
    stopping: Event,
    patience: Patience,
    stack: ExitStack,
) -> Assembled:
    """A worker ready for its first turn. Raises a GokamsgError when something it needs is not there."""
    opening = Opening(patience)
    home, topics, clients, delivery = _connect(cluster, graph, options, patience, opening, stack)
    _recover(delivery, clients.inputs, patience, stack, joins=not options.recover_ahead)
    opening.over()
    storage = options.storage_builder or home.storage
    tables = Tables(storage, cache_bytes=options.cache_bytes, shares=_shares(graph, topics))
    stack.callback(tables.close_all)
    parts = _Parts(
        graph=graph,
        options=options,
        counters=counters,
        visits=visits,
        stopping=stopping,
        patience=patience,
        clients=clients,
        delivery=delivery,
        tables=tables,
        outputs=_outputs(graph, topics, delivery, options, cluster.clock),
        joins=_lookup_tables(graph.joint_tables, topics, options),
        lookups=_lookup_tables(graph.lookup_tables, topics, options),
        clock=cluster.clock,
        placement=_placement(graph, topics, options),
    )
    return _put_together(parts, {name: topic.topic_id for name, topic in topics.items()}, home.marks)


class _Parts(Struct, frozen=True):
    graph: GroupGraph
    options: ProcessorOptions
    counters: Counters
    visits: Visits
    stopping: Event
    patience: Patience
    clients: Clients
    delivery: Delivery
    tables: Tables
    outputs: Outputs
    joins: Mapping[str, LookupTable]
    lookups: Mapping[str, LookupTable]
    clock: Clock
    placement: KeyPlacement


def _put_together(parts: _Parts, topic_ids: Mapping[str, str], marks: Marks) -> Assembled:
    graph, options, outputs = parts.graph, parts.options, parts.outputs
    pace, deferral = Pace(parts.clock.monotonic), Deferral()

    assignment = Assignment(
        graph,
        parts.clients,
        parts.tables,
        topic_ids=topic_ids,
        joins=parts.joins,
        lookups=parts.lookups,
        marks=marks,
        options=options,
        build=_partition_builder(parts, pace, deferral, lambda: worker),
    )
    transaction = Transaction(
        parts.delivery,
        outputs,
        changelog=outputs.topic(graph.group_table.topic) if graph.group_table else None,
        quarantine=outputs.get(quarantine_of(graph.group)),
        pace=pace,
        deferral=deferral,
        options=options,
        counters=parts.counters,
        patience=parts.patience,
    )
    worker = Worker(
        parts.clients.inputs,
        assignment,
        transaction,
        delivery=parts.delivery,
        sources=sources(graph),
        outputs=outputs,
        tables=parts.tables,
        placement=parts.placement,
        on_error=options.on_error,
        counters=parts.counters,
        clock=parts.clock,
        visits=parts.visits,
        patience=parts.patience,
    )
    return Assembled(worker, assignment, parts.clients.inputs, outputs)


def _partition_builder(
    parts: _Parts, pace: Pace, deferral: Deferral, worker: Callable[[], Worker]
) -> Callable[[int, PartitionTable | None, Quarantine | None], PartitionProcessor]:
    options = parts.options

    def build(partition: int, table: PartitionTable | None, quarantine: Quarantine | None) -> PartitionProcessor:
        context = Context(
            parts.graph,
            partition,
            table=table,
            joins=parts.joins,
            lookups=parts.lookups,
            outputs=parts.outputs,
            deferral=deferral,
            max_message_bytes=options.max_message_bytes,
            default_headers=options.default_headers,
            stopping=parts.stopping,
        )
        return PartitionProcessor(
            context,
            parts.outputs,
            table=table,
            pace=pace,
            on_bad=worker().bad,
            nil_handling=options.nil_handling,
            wrapper=options.context_wrapper,
            quarantine=quarantine,
        )

    return build


def sources(graph: GroupGraph) -> dict[str, Source]:
    """What the group consumes: its inputs and its loop, by topic."""
    return {edge.topic: Source(edge.topic, edge.codec, edge.callback) for edge in graph.consumed_streams}


def _connect(
    cluster: Cluster,
    graph: GroupGraph,
    options: ProcessorOptions,
    patience: Patience,
    opening: Opening,
    stack: ExitStack,
) -> tuple[Home, Mapping[str, Topic], Clients, Delivery]:
    """The worker's place, the topics and the clients.

    A client takes several round trips to connect. So none waits for another one, nor for what it need not know: the
    consumers for nothing, the producer for the worker's identity. A stop ends each wait.
    """
    streams, quarantine = sorted(sources(graph)), options.on_error == "quarantine"
    followed = [*streams, *_followed(graph, quarantine=quarantine)]

    def group_consumer() -> GroupClient:
        return cluster.group_consumer(group=graph.group, topics=streams, patience=patience)

    def table_consumer() -> TableClient:
        # A change of a table ends the wait for input: the next message finds it.
        return cluster.table_consumer(topics=followed, patience=patience, fetched=lambda: inputs.wake())

    take_inputs = _begin(group_consumer, patience, opening, stack)
    take_tables = _begin(table_consumer, patience, opening, stack)
    with Making(patience, lambda: TopicManager(cluster), lambda late: late.close()).result() as manager:
        opening.seen()
        cluster_id = _answer(manager.cluster_id, patience, opening)
        home = cluster.home(options.state_dir, cluster_id, graph.group)
        stack.callback(home.release)
        written = _written(graph, quarantine=quarantine)
        deliver_from = _begun_delivery(cluster, options, home, written, patience, opening, stack)
        topics = _answer(lambda: manager.prepare(graph, quarantine=quarantine), patience, opening)
    inputs = take_inputs()
    inputs.join_as(home.instance_id)
    clients = Clients(inputs, take_tables())
    delivery = deliver_from(inputs)
    stack.callback(delivery.close)
    return home, topics, clients, delivery


def _answer(ask: Callable[[], T], patience: Patience, opening: Opening) -> T:
    """What `ask` returns. It waits for brokers and cannot be told to hurry: a stop leaves it behind."""
    return Making(patience, lambda: opening.outlast(ask), lambda _: None).result()


def _begin(make: Callable[[], C], patience: Patience, opening: Opening, stack: ExitStack) -> Callable[[], C]:
    """Begins to make a client; what is returned waits for it. One that was begun before the brokers, or a topic, were
    there is made again."""
    coming = Making(patience, make, lambda late: late.close())
    stack.callback(coming.leave)

    def take() -> C:
        try:
            client = coming.result()
        except (BrokerUnavailableError, TopicError):
            if patience.hurried:
                raise
            client = Making(patience, lambda: opening.outlast(make), lambda late: late.close()).result()
        stack.callback(client.close)
        return client

    return take


def _recover(delivery: Delivery, inputs: GroupClient, patience: Patience, stack: ExitStack, *, joins: bool) -> None:
    """Settles what was left open under this worker's identity, and joins the group meanwhile: no position is decided
    before both are done."""

    def recover() -> None:
        try:
            delivery.recover()
        finally:
            inputs.wake()

    settling = Making(patience, recover, lambda _: delivery.close())
    stack.callback(settling.leave)
    if joins:
        inputs.join_until(lambda timeout_s: settling.wait(timeout_s) or patience.hurried)
    try:
        settling.result()
    except BrokerUnavailableError:
        inputs.leave()  # nobody waits for a member that will not work
        raise


def _followed(graph: GroupGraph, *, quarantine: bool) -> list[str]:
    """The topics that the group reads as tables."""
    edges = (*graph.tables, *graph.joint_tables, *graph.lookup_tables)
    return [*(edge.topic for edge in edges), *([quarantine_of(graph.group)] if quarantine else [])]


def _written(graph: GroupGraph, *, quarantine: bool) -> list[str]:
    """The topics that the group writes to."""
    edges = (*graph.output_streams, *graph.loops, *graph.tables)
    return [*(edge.topic for edge in edges), *([quarantine_of(graph.group)] if quarantine else [])]


def _begun_delivery(
    cluster: Cluster,
    options: ProcessorOptions,
    home: Home,
    topics: Collection[str],
    patience: Patience,
    opening: Opening,
    stack: ExitStack,
) -> Callable[[GroupClient], Delivery]:
    """What makes the delivery, once there are inputs. Its producer connects meanwhile."""
    if options.guarantee == "at-least-once":
        idempotent = _ahead(
            lambda: cluster.idempotent_producer(topics=topics, patience=patience), patience, opening, stack
        )
        return lambda inputs: AtLeastOnce(*idempotent, inputs)
    transactional = _ahead(
        lambda: cluster.transactional_producer(
            transactional_id=home.transactional_id,
            transaction_timeout_ms=options.transaction_timeout_ms,
            topics=topics,
            patience=patience,
        ),
        patience,
        opening,
        stack,
    )
    return lambda _: ExactlyOnce(*transactional)


def _ahead(
    make: Callable[[], P], patience: Patience, opening: Opening, stack: ExitStack
) -> tuple[Callable[[], Making[P]], Making[P]]:
    """What begins to make a producer, and the first one, which is begun."""

    def start(make: Callable[[], P] = make) -> Making[P]:
        return Making(patience, make, lambda late: late.close(0.0))

    # Only the start waits in one go: a worker that is at work stays a member of its group between two tries.
    first = start(lambda: opening.outlast(make))
    stack.callback(first.leave)
    return start, first


def _outputs(
    graph: GroupGraph, topics: Mapping[str, Topic], delivery: Delivery, options: ProcessorOptions, clock: Clock
) -> Outputs:
    outputs = Outputs(delivery.send, clock)
    for topic in _written(graph, quarantine=quarantine_of(graph.group) in topics):
        known = topics.get(topic)
        partitions = known.partitions if known else delivery.partition_count(topic)
        outputs.add(topic, Partitioner(partitions, options.hasher), partitions)
    return outputs


def _placement(graph: GroupGraph, topics: Mapping[str, Topic], options: ProcessorOptions) -> KeyPlacement:
    return KeyPlacement({edge.topic: topics[edge.topic].partitions for edge in graph.input_streams}, options.hasher)


def _lookup_tables(
    edges: Iterable[Any], topics: Mapping[str, Topic], options: ProcessorOptions
) -> dict[str, LookupTable]:
    return {
        edge.topic: LookupTable(edge.topic, edge.codec, Partitioner(topics[edge.topic].partitions, options.hasher))
        for edge in edges
    }


def _shares(graph: GroupGraph, topics: Mapping[str, Topic]) -> int:
    """How many table partitions a worker has that has all of them."""
    edges = [*graph.joint_tables, *graph.lookup_tables, *([graph.group_table] if graph.group_table else [])]
    return max(sum(topics[edge.topic].partitions for edge in edges), 1)
