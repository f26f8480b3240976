"""The fixtures that system tests stand on."""

from pathlib import Path

import pytest

from tests.helpers import Processes
from tests.kafka_server import KafkaCluster
from tests.system.goka import Goka, build
from tests.system.messaging import Messaging


@pytest.fixture
def messaging(clean_cluster: KafkaCluster, run: Processes, tmp_path: Path) -> Messaging:
    """The service on the session's cluster, whose topics and groups were removed; nothing runs yet."""
    return Messaging(clean_cluster, run, tmp_path)


@pytest.fixture(scope="session")
def goka(request: pytest.FixtureRequest) -> Goka:
    """Goka's own emitter, view and processors; needs Go."""
    return Goka(build(request.config))
