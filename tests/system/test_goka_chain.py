"""Goka's five processors and gokamsg's, on the same input: equal topics and tables, byte for byte.

Invariants: every stream has equal keys and values in every partition, in the same order; every table has equal rows in
equal partitions; what Goka wrote is also what the folds of tests/system/fold.py make of its input.
"""

import pytest

from tests.helpers import processes
from tests.kafka_server import KafkaCluster
from tests.system import chain, fold
from tests.system.chain import Outcome
from tests.system.goka import Goka
from tests.system.messaging import ROLES, Messaging

SEED = 20260219


@pytest.fixture(scope="module")
def by_goka(goka: Goka, kafka_cluster: KafkaCluster, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What Goka alone makes of the input."""
    kafka_cluster.clean()
    directory = tmp_path_factory.mktemp("goka-alone")
    with processes(directory / "logs") as started:
        return chain.run(Messaging(kafka_cluster, started, directory), goka, SEED, of_goka=ROLES)


def test_goka_alone_does_what_the_folds_say(by_goka: Outcome) -> None:
    """So that two equal outcomes are not equally empty."""
    lengths = {topic: sum(map(len, parts.values())) for topic, parts in by_goka.streams.items()}
    assert lengths["message_sent"] > 350, lengths
    events = [pair for part in by_goka.streams["block_user"].values() for pair in part]
    from_detector = [key for key, value in events if value == b'{"Unblock":false}' and key.startswith("guest")]
    assert len(from_detector) == 3 * (chain.SPAM - chain.DETECT_MESSAGES + 1), from_detector
    rows = {topic: {key: value for _, key, value in table} for topic, table in by_goka.tables.items()}
    assert all(rows["blocker-table"][key] == b'{"Blocked":true}' for key in from_detector)
    assert rows["translator-table"]["please"] == b""
    assert len(rows["collector-table"]) > 40
    assert lengths["message_received"] == lengths["detector-loop"] - _dropped(by_goka, rows["blocker-table"])
    for topic, table in by_goka.tables.items():
        assert [row for row in table if row[0] != fold.partition_of(row[1], chain.PARTITIONS)] == [], topic


def _dropped(outcome: Outcome, blocked: dict[str, bytes]) -> int:
    """How many messages were sent by those who are blocked."""
    sent = [pair for part in outcome.streams["message_sent"].values() for pair in part]
    return sum(value is not None and blocked.get(key) == b'{"Blocked":true}' for key, value in sent)


def test_gokamsg_writes_what_goka_writes(messaging: Messaging, goka: Goka, by_goka: Outcome) -> None:
    ours = chain.run(messaging, goka, SEED, of_goka=())
    assert by_goka.differences(ours) == []


@pytest.mark.any_broker
@pytest.mark.parametrize("role", ROLES)
def test_one_process_of_goka_among_ours(messaging: Messaging, goka: Goka, by_goka: Outcome, role: str) -> None:
    mixed = chain.run(messaging, goka, SEED, of_goka=(role,))
    assert by_goka.differences(mixed) == []


@pytest.mark.any_broker
@pytest.mark.parametrize("role", ROLES)
def test_one_process_of_ours_among_gokas(messaging: Messaging, goka: Goka, by_goka: Outcome, role: str) -> None:
    mixed = chain.run(messaging, goka, SEED, of_goka=[other for other in ROLES if other != role])
    assert by_goka.differences(mixed) == []
