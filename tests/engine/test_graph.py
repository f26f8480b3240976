from typing import Any

import msgspec
import pytest

from gokamsg.engine.codec import Int64, Json, String
from gokamsg.engine.graph import Input, Inputs, Join, Lookup, Loop, Output, Persist, Visitor, define_group
from gokamsg.errors import GraphError


class Message(msgspec.Struct, forbid_unknown_fields=True):
    To: str


def handle(_context: Any, _value: Any) -> None:
    """A callback that does nothing."""


def other(_context: Any, _value: Any) -> None:
    """Another one."""


@pytest.mark.goka("edge: input", "edge: inputs", "edge: persist", "graph: edges by kind, codec and callback of a topic")
def test_a_graph_knows_its_edges_by_kind() -> None:
    graph = define_group(
        "filter",
        Input("sent", Json(Message), handle),
        Inputs(["second", "third"], String(), handle),
        Output("received", Json(Message)),
        Join("blocker-table", String()),
        Lookup("translator-table", String()),
        Loop(Int64(), other),
        Persist(Int64()),
        Visitor("tidy", other),
        Inputs([], String(), handle),
        None,
    )
    assert graph.group == "filter"
    assert [edge.topic for edge in graph.input_streams] == ["sent", "second", "third"]
    assert graph.loop_stream is not None
    assert graph.loop_stream.topic == "filter-loop"
    assert graph.group_table is not None
    assert graph.group_table.topic == "filter-table"
    assert [edge.topic for edge in graph.joint_tables] == ["blocker-table"]
    assert [edge.topic for edge in graph.lookup_tables] == ["translator-table"]
    assert [edge.topic for edge in graph.output_streams] == ["received"]
    assert graph.consumed_topics() == ("sent", "second", "third", "filter-loop")
    assert graph.copartitioned_topics() == ("sent", "second", "third", "blocker-table")
    assert len(graph.all_edges()) == 8
    assert str(graph.group_table) == "filter-table/Int64"
    assert str(graph.input_streams[0]) == "sent/Json[Message]"


@pytest.mark.goka("graph: edges by kind, codec and callback of a topic")
def test_a_graph_finds_codec_and_callback_of_a_topic() -> None:
    graph = define_group(
        "g", Input("in", String(), handle), Loop(Int64(), other), Persist(Int64()), Visitor("v", other)
    )
    assert graph.callback("in") is handle
    assert graph.callback("g-loop") is other
    assert graph.callback("g-table") is None
    assert graph.visitor("v") is other
    assert graph.visitor("w") is None
    codec = graph.codec("g-table")
    assert codec is not None
    assert codec.name == "Int64"
    assert graph.codec("elsewhere") is None


def test_a_group_without_loop_and_table_has_neither() -> None:
    graph = define_group("g", Input("in", String(), handle))
    assert graph.loop_stream is None
    assert graph.group_table is None


IN = Input("in", String(), handle)
BROKEN: list[tuple[str, tuple[Any, ...], str]] = [
    ("two loops", (IN, Loop(String(), handle), Loop(String(), handle)), "2 Loop edges; a group has one loop at most"),
    ("two tables", (IN, Persist(String()), Persist(String())), "2 Persist edges; a group has one table at most"),
    ("nothing", (), "no Input"),
    ("loop alone", (Loop(String(), handle), Persist(String())), "no Input; add one"),
    ("loop topic as output", (IN, Output("g-loop", String())), r"own topic 'g-loop'; only Loop and ctx.loopback\(\)"),
    ("loop topic as input", (IN, Input("g-loop", String(), handle)), "own topic 'g-loop'"),
    ("table topic as output", (IN, Output("g-table", String())), "own topic 'g-table'; only Persist"),
    ("table topic joined", (IN, Join("g-table", String())), "own topic 'g-table'"),
    ("table topic looked up", (IN, Lookup("g-table", String())), "own topic 'g-table'"),
    ("visitor without table", (IN, Visitor("v", handle)), r"visitor 'v' has no table to visit; add Persist"),
    ("same input twice", (IN, Inputs(["x", "in"], String(), handle)), "Input 'in' is there 2 times"),
    ("same join twice", (IN, Join("t", String()), Join("t", String())), "Join 't' is there 2 times"),
    (
        "same visitor twice",
        (IN, Persist(String()), Visitor("v", handle), Visitor("v", other)),
        "Visitor 'v' is there 2",
    ),
    ("empty topic", (Input("", String(), handle),), "Input has an empty topic name"),
    ("empty output", (IN, Output("", String())), "Output has an empty topic name"),
    ("illegal topic", (IN, Output("a b", String())), "'a b' is no legal topic name"),
    ("two codecs", (IN, Output("in", Int64())), "topic 'in' has codec String in Input and Int64 in Output"),
    ("codec class", (Input("in", String, handle),), "for a codec; use an object like"),  # type: ignore[arg-type]
    ("no callback", (Input("in", String(), None),), "for a callback"),  # type: ignore[arg-type]
    ("not an edge", (IN, "out"), "'out' is not an edge"),
]


@pytest.mark.parametrize(("edges", "why"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
@pytest.mark.goka(
    "validate: one loop",
    "validate: one table",
    "validate: an input",
    "validate: own topics elsewhere",
    "validate: visitor without a table",
    "validate: empty topic",
    "validate: the same input twice",
)
def test_a_broken_rule_is_told_with_what_to_change(edges: tuple[Any, ...], why: str) -> None:
    with pytest.raises(GraphError, match=f"group 'g': .*{why}"):
        define_group("g", *edges)


@pytest.mark.parametrize("name", ["", "a b", "../x", ".", "x" * 250])
def test_a_group_name_is_a_legal_topic_name(name: str) -> None:
    with pytest.raises(GraphError, match="group name"):
        define_group(name, IN)


def test_one_topic_may_be_joined_and_looked_up_and_read_and_written() -> None:
    graph = define_group("g", IN, Output("in", String()), Join("t", Int64()), Lookup("t", Int64()))
    assert graph.copartitioned_topics() == ("in", "t")
