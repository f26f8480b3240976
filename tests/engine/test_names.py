import pytest

from gokamsg.engine.names import is_legal, loop_of, table_of


@pytest.mark.goka("names: table and loop topics")
def test_a_group_owns_a_table_and_a_loop_topic() -> None:
    assert table_of("collector") == "collector-table"
    assert loop_of("detector") == "detector-loop"


def test_names_are_legal_as_kafka_has_it() -> None:
    assert all(is_legal(name) for name in ("message_sent", "translate-word", "a.b", "A9", "x" * 249))
    assert not any(is_legal(name) for name in ("", ".", "..", "a b", "a/b", "zü", "a\n", "x" * 250))
