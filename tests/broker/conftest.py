"""A broker in this process for every test that asks for one.

broker      a running broker on tmp_path; `broker.address`, `broker.control`, `broker.call(function)`
address     its host:port
start       starts further brokers, with settings of their own; all are stopped when the test ends
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gokamsg.broker.runner import RunningBroker
from gokamsg.broker.settings import BrokerSettings

StartBroker = Callable[..., RunningBroker]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartBroker]:
    """Call it with BrokerSettings fields; the data directory is the test's own unless another is named."""
    started: list[RunningBroker] = []

    def begin(**settings: Any) -> RunningBroker:
        settings.setdefault("data_dir", tmp_path / "broker")
        settings.setdefault("port", 0)
        broker = RunningBroker(BrokerSettings(**settings))
        broker.start()
        started.append(broker)
        return broker

    yield begin
    for broker in reversed(started):
        broker.stop()


@pytest.fixture
def broker(start: StartBroker) -> RunningBroker:
    return start()


@pytest.fixture
def address(broker: RunningBroker) -> str:
    return broker.address
