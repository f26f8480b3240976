"""Fixtures of the tests on a broker that misbehaves (broken_broker.py)."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.broken_broker import Proxied, Restarting, Story


@pytest.fixture(scope="module")
def restarting_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restarting]:
    restarting = Restarting(tmp_path_factory.mktemp("broker"))
    yield restarting
    restarting.broker.stop()


@pytest.fixture(scope="module")
def proxied_kafka(libs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    proxied = Proxied(tmp_path_factory.mktemp("kafka"), libs)
    try:
        proxied.start()
        yield proxied
    finally:
        proxied.close()


@pytest.fixture
def embedded_story(restarting_broker: Restarting, tmp_path: Path, fresh_name: Callable[[str], str]) -> Iterator[Story]:
    """On the embedded broker, whose control hook can also delay and answer."""
    story = Story(restarting_broker, tmp_path / "state", fresh_name)
    yield story
    story.close()


@pytest.fixture
def story(
    request: pytest.FixtureRequest, broker_kind: str, tmp_path: Path, fresh_name: Callable[[str], str]
) -> Iterator[Story]:
    """On the embedded broker, or on Apache Kafka behind a proxy."""
    broker = request.getfixturevalue("restarting_broker" if broker_kind == "embedded" else "proxied_kafka")
    story = Story(broker, tmp_path / "state", fresh_name)
    yield story
    story.close()
