"""What a group consumes, keeps and emits: Goka's edges and their rules. Pure.

    define_group("collector", Input("message_received", Json(Message), collect), Persist(Json(list[Message])))

define_group() checks every rule at once and raises GraphError with a sentence that says what to change. Beyond Goka's
rules: names are legal for Kafka, and edges of one topic share one codec (Goka lets the last one win in silence).
Graphs are frozen and may be shared between threads.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from gokamsg.engine.codec import Codec
from gokamsg.engine.names import Group, Stream, Table, is_legal, loop_of, table_of
from gokamsg.errors import GraphError

if TYPE_CHECKING:
    from gokamsg.engine.context import Context

Callback: TypeAlias = Callable[["Context", Any], None]


@dataclass(frozen=True)
class Edge:
    """One relation between a group and a topic."""

    kind: ClassVar[str] = "Edge"
    topic: str
    codec: Codec[Any]

    def __str__(self) -> str:
        return f"{self.topic}/{getattr(self.codec, 'name', self.codec)}"


@dataclass(frozen=True)
class Input(Edge):
    """A stream whose records call the callback; co-partitioned with the other inputs, the joins and the table."""

    kind = "Input"
    topic: Stream
    callback: Callback


@dataclass(frozen=True)
class Inputs:
    """Several streams that share a codec and a callback; an empty list is no edge at all."""

    topics: Sequence[Stream]
    codec: Codec[Any]
    callback: Callback


@dataclass(frozen=True)
class Output(Edge):
    """A stream that callbacks may emit to."""

    kind = "Output"
    topic: Stream


@dataclass(frozen=True)
class Join(Edge):
    """A co-partitioned table: callbacks read the value of their own key."""

    kind = "Join"
    topic: Table


@dataclass(frozen=True)
class Lookup(Edge):
    """A whole table in every instance: callbacks read the value of any key."""

    kind = "Lookup"
    topic: Table


@dataclass(frozen=True)
class Loop(Edge):
    """The stream by which the group's callbacks reach other keys of the group."""

    kind = "Loop"
    topic: Stream = field(default="", init=False)
    codec: Codec[Any]
    callback: Callback


@dataclass(frozen=True)
class Persist(Edge):
    """The group's table."""

    kind = "Persist"
    topic: Table = field(default="", init=False)
    codec: Codec[Any]


@dataclass(frozen=True)
class Visitor:
    """A named callback that is called for every row of the table on request."""

    name: str
    callback: Callback


_NO_CALLBACK = object()

AnyEdge: TypeAlias = Input | Inputs | Output | Join | Lookup | Loop | Persist | Visitor


@dataclass(frozen=True)
class GroupGraph:
    """The edges of one group, by kind. Made by define_group()."""

    group: Group
    input_streams: tuple[Input, ...]
    output_streams: tuple[Output, ...]
    joint_tables: tuple[Join, ...]
    lookup_tables: tuple[Lookup, ...]
    loops: tuple[Loop, ...]
    tables: tuple[Persist, ...]
    visitors: tuple[Visitor, ...]

    @property
    def loop_stream(self) -> Loop | None:
        """The group's loop, if it has one."""
        return self.loops[0] if self.loops else None

    @property
    def group_table(self) -> Persist | None:
        """The group's table, if it has one."""
        return self.tables[0] if self.tables else None

    def all_edges(self) -> tuple[Edge, ...]:
        """Every edge that has a topic."""
        return (
            *self.input_streams,
            *self.loops,
            *self.tables,
            *self.joint_tables,
            *self.lookup_tables,
            *self.output_streams,
        )

    @property
    def consumed_streams(self) -> tuple[Input | Loop, ...]:
        """What has a callback for its records: the inputs and the loop."""
        return (*self.input_streams, *self.loops)

    def consumed_topics(self) -> tuple[str, ...]:
        """What the consumer group subscribes to (tables are read outside of it)."""
        return tuple(edge.topic for edge in self.consumed_streams)

    def copartitioned_topics(self) -> tuple[str, ...]:
        """Inputs and joins: they must have one partition count, which loop and table are then made with."""
        return tuple(dict.fromkeys(edge.topic for edge in (*self.input_streams, *self.joint_tables)))

    def codec(self, topic: str) -> Codec[Any] | None:
        """The codec of a topic; None if no edge has it."""
        return next((edge.codec for edge in self.all_edges() if edge.topic == topic), None)

    def callback(self, topic: str) -> Callback | None:
        """The callback for records of an input or of the loop; None if the topic is neither."""
        return next((edge.callback for edge in self.consumed_streams if edge.topic == topic), None)

    def visitor(self, name: str) -> Callback | None:
        """The callback of a visitor; None if there is none of that name."""
        return next((visitor.callback for visitor in self.visitors if visitor.name == name), None)

    def validate(self) -> None:
        """Raises GraphError for the first broken rule."""
        for broken in _broken_rules(self):
            raise GraphError(f"group {self.group!r}: {broken}")


def define_group(group: Group, *edges: AnyEdge | None) -> GroupGraph:
    """The graph of a group; GraphError if its edges break a rule. None among the edges is ignored."""
    if not is_legal(group):
        raise GraphError(
            f"group name {group!r} must be 1-249 of the characters a-z A-Z 0-9 . _ - (topics are named by it)"
        )
    flat: list[Edge | Visitor] = []
    for edge in edges:
        if isinstance(edge, Inputs):
            flat.extend(Input(topic, edge.codec, edge.callback) for topic in edge.topics)
        elif isinstance(edge, Persist):
            flat.append(_at(edge, table_of(group)))
        elif isinstance(edge, Loop):
            flat.append(_at(edge, loop_of(group)))
        elif isinstance(edge, (Edge, Visitor)):
            flat.append(edge)
        elif edge is not None:
            raise GraphError(
                f"group {group!r}: {edge!r} is not an edge; use Input, Output, Loop, Persist, Join, Lookup …"
            )
    graph = GroupGraph(
        group=group,
        input_streams=tuple(edge for edge in flat if isinstance(edge, Input)),
        output_streams=tuple(edge for edge in flat if isinstance(edge, Output)),
        joint_tables=tuple(edge for edge in flat if isinstance(edge, Join)),
        lookup_tables=tuple(edge for edge in flat if isinstance(edge, Lookup)),
        loops=tuple(edge for edge in flat if isinstance(edge, Loop)),
        tables=tuple(edge for edge in flat if isinstance(edge, Persist)),
        visitors=tuple(edge for edge in flat if isinstance(edge, Visitor)),
    )
    graph.validate()
    return graph


def _at(edge: Edge, topic: str) -> Edge:
    placed = replace(edge)
    object.__setattr__(placed, "topic", topic)
    return placed


def _broken_rules(graph: GroupGraph) -> Iterator[str]:
    if len(graph.loops) > 1:
        yield f"it has {len(graph.loops)} Loop edges; a group has one loop at most"
    if len(graph.tables) > 1:
        yield f"it has {len(graph.tables)} Persist edges; a group has one table at most"
    if not graph.input_streams:
        yield "it has no Input; add one (a loop alone never gets its first record)"
    if graph.visitors and not graph.tables:
        yield f"visitor {graph.visitors[0].name!r} has no table to visit; add Persist(codec)"
    for edge in graph.all_edges():
        yield from _broken_edge_rules(edge)
    yield from _repeated("Input", [edge.topic for edge in graph.input_streams])
    yield from _repeated("Join", [edge.topic for edge in graph.joint_tables])
    yield from _repeated("Lookup", [edge.topic for edge in graph.lookup_tables])
    yield from _repeated("Output", [edge.topic for edge in graph.output_streams])
    yield from _repeated("Visitor", [visitor.name for visitor in graph.visitors])
    own = {loop_of(graph.group): "Loop and ctx.loopback()", table_of(graph.group): "Persist and ctx.set_value()"}
    codecs: dict[str, Edge] = {}
    for edge in graph.all_edges():
        if edge.topic in own and not isinstance(edge, (Loop, Persist)):
            yield f"{edge.kind} uses the group's own topic {edge.topic!r}; only {own[edge.topic]} may use it"
        other = codecs.setdefault(edge.topic, edge)
        if other.codec.name != edge.codec.name:
            yield (
                f"topic {edge.topic!r} has codec {other.codec.name} in {other.kind} and {edge.codec.name} in "
                f"{edge.kind}; use one codec for one topic"
            )


def _broken_edge_rules(edge: Edge) -> Iterator[str]:
    if not edge.topic:
        yield f"{edge.kind} has an empty topic name; give it the topic's name"
    elif not is_legal(edge.topic):
        yield f"{edge.kind} topic {edge.topic!r} is no legal topic name; use 1-249 of the characters a-z A-Z 0-9 . _ -"
    codec: object = edge.codec
    if isinstance(codec, type) or not all(hasattr(codec, name) for name in ("name", "encode", "decode")):
        yield f"{edge.kind} {edge.topic!r} has {edge.codec!r} for a codec; use an object like String() or Json(Message)"
    callback: object = getattr(edge, "callback", _NO_CALLBACK)
    if callback is not _NO_CALLBACK and not callable(callback):
        yield f"{edge.kind} {edge.topic!r} has {callback!r} for a callback; use a function of (context, value)"


def _repeated(kind: str, names: Sequence[str]) -> Iterator[str]:
    for name in dict.fromkeys(names):
        if names.count(name) > 1:
            yield f"{kind} {name!r} is there {names.count(name)} times; keep one"
