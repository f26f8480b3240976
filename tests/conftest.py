"""Fixtures and options for the whole suite.

kafka_cluster   one Apache Kafka for the session (or the one at --kafka): `.address`, `.admin()`, `.create_topics()`
kafka_address   its address
clean_cluster   the same cluster without the messaging service's topics and groups: for tests that use those names
own_cluster     an Apache Kafka of the test's own, to be stopped, killed and started again
start_kafka     starts further ones, with settings of their own
fresh_name      names that no other test uses, for topics and groups
run             starts `gokamsg` processes that end with the test
seed            the test's random seed: --seed, or a new one; it is printed

A test that uses one of the clusters gets the marker `kafka`. Without Java or Maven such tests skip with the reason, or
fail where --require-kafka was given.
"""

import random
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.helpers import Processes, processes, say, unavailable
from tests.kafka_server import KafkaCluster, KafkaServer, KafkaUnavailableError, kafka_libs

StartKafka = Callable[..., KafkaServer]

_CLUSTER_FIXTURES = {"kafka_cluster", "kafka_address", "clean_cluster", "own_cluster", "start_kafka"}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gokamsg")
    group.addoption("--kafka", metavar="HOST:PORT", help="use this Kafka; the service's own topics there are deleted")
    group.addoption("--require-kafka", action="store_true", help="fail where Java, Maven or Go are missing")
    group.addoption("--slow", action="store_true", help="run the long tier too (tests marked slow)")
    group.addoption("--seed", type=int, help="the seed of the random tests, to repeat a failure")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if _CLUSTER_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.kafka)
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="a long tier: needs --slow"))


@pytest.fixture(scope="session")
def libs(request: pytest.FixtureRequest) -> Path:
    try:
        return kafka_libs()
    except KafkaUnavailableError as error:
        unavailable(request.config, str(error))
        raise


@pytest.fixture(scope="session")
def kafka_cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    if given := request.config.getoption("--kafka"):
        yield KafkaCluster(given)
        return
    server = KafkaServer(tmp_path_factory.mktemp("kafka"), request.getfixturevalue("libs"))
    server.start()
    try:
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def kafka_address(kafka_cluster: KafkaCluster) -> str:
    return kafka_cluster.address


@pytest.fixture
def clean_cluster(kafka_cluster: KafkaCluster) -> KafkaCluster:
    kafka_cluster.clean()
    return kafka_cluster


@pytest.fixture
def start_kafka(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartKafka]:
    """Call it with server.properties entries; each call is another cluster."""
    started: list[KafkaServer] = []

    def start(settings: Mapping[str, str] | None = None) -> KafkaServer:
        server = KafkaServer(tmp_path_factory.mktemp("own-kafka"), request.getfixturevalue("libs"), settings=settings)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.close()


@pytest.fixture
def own_cluster(start_kafka: StartKafka) -> KafkaServer:
    return start_kafka()


@pytest.fixture
def fresh_name() -> Callable[[str], str]:
    def fresh(prefix: str) -> str:
        return f"{prefix}-{uuid.uuid4().hex[:10]}"

    return fresh


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Processes]:
    with processes(tmp_path / "logs") as started:
        yield started


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    given = request.config.getoption("--seed")
    chosen = given if given is not None else random.SystemRandom().randrange(2**32)
    say(f"seed {chosen} (repeat with --seed {chosen})")
    return int(chosen)
