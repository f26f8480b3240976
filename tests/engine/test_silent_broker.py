"""A broker that takes connections and does not answer, as a frozen one or a dead network does."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gokamsg.broker.control import Delay
from gokamsg.broker.runner import RunningBroker
from gokamsg.broker.settings import BrokerSettings
from gokamsg.engine.clients import ClientConfig
from gokamsg.engine.topics import TopicManager
from gokamsg.errors import BrokerUnavailableError

DESCRIBE_CONFIGS = 32


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    running = RunningBroker(BrokerSettings(data_dir=tmp_path, port=0, fsync=False))
    running.start()
    yield running
    running.stop()


def test_a_request_that_is_not_answered_is_told_as_such(broker: RunningBroker) -> None:
    told = r"no Kafka broker answers at .* was not answered in time\)"
    with TopicManager(ClientConfig(broker.address, request_timeout_ms=300)) as manager:
        manager.ensure_stream("t", 1)
        broker.control.on(DESCRIBE_CONFIGS, lambda *_: Delay(60), times=None)
        with pytest.raises(BrokerUnavailableError, match=told):
            manager.config("t")
