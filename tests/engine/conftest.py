"""Fixtures of the tests on a broker that misbehaves (broken_broker.py)."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.broken_broker import Restarting, Story


@pytest.fixture(scope="module")
def restarting_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restarting]:
    restarting = Restarting(tmp_path_factory.mktemp("broker"))
    yield restarting
    restarting.broker.stop()


@pytest.fixture
def story(restarting_broker: Restarting, tmp_path: Path, fresh_name: Callable[[str], str]) -> Iterator[Story]:
    story = Story(restarting_broker, tmp_path / "state", fresh_name)
    yield story
    story.close()
