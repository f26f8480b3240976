"""Fixtures and options for the whole suite.

kafka_cluster   a cluster for the session: `.address`, `.admin()`, `.create_topics()`
kafka_address   its address
clean_cluster   the same cluster without the messaging service's topics and groups: for tests that use those names
own_cluster     a cluster of the test's own, to be stopped, killed and started again
start_kafka     starts Apache Kafkas with settings of their own
three_nodes     compose.yaml's three brokers on this machine, of the version that it names; `local` says where its
                services are
fresh_name      names that no other test uses, for topics and groups
run             starts `gokamsg` processes that end with the test
seed            the test's random seed: --seed, or a new one; it is printed

A test that uses one of the first four runs twice: on the embedded broker, which needs nothing but Python, and on an
Apache Kafka (or, once, on what --kafka or --broker name); with the marker `any_broker` on the first of them only, or on
the one that the marker names, unless --slow is given. What runs on Apache Kafka has the marker `kafka`; without Java or
Maven it is skipped with the reason, or fails where --require-kafka was given.
"""

import contextlib
import faulthandler
import random
import signal
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.compose import KAFKA_VERSION as COMPOSE_KAFKA_VERSION
from tests.compose import Local
from tests.embedded_server import EmbeddedServer
from tests.helpers import Processes, processes, say, unavailable
from tests.kafka_server import (
    KAFKA_VERSION,
    KafkaCluster,
    KafkaServer,
    KafkaThreeNodes,
    KafkaUnavailableError,
    kafka_libs,
)

StartKafka = Callable[..., KafkaServer]
OwnServer = EmbeddedServer | KafkaServer

BROKERS = ("embedded", "apache")
# Of a cluster that is there to be killed: it is not let in again before its last session is over.
SOON_BACK = {"broker.session.timeout.ms": "1500", "broker.heartbeat.interval.ms": "300"}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gokamsg")
    group.addoption("--kafka", metavar="HOST:PORT", help="use this Kafka; the service's own topics there are deleted")
    group.addoption("--broker", choices=BROKERS, help="run the tests of both brokers on this one only")
    group.addoption("--require-kafka", action="store_true", help="fail where Java, Maven or Go are missing")
    group.addoption("--slow", action="store_true", help="run the long tier too (tests marked slow)")
    group.addoption("--chaos", metavar="MINUTES", type=float, help="how long the chaos tests run, on three brokers too")
    group.addoption("--seed", type=int, help="the seed of the random tests, to repeat a failure")


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what runs in the background with Ctrl-C ignored, and every command of a test would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "broker_kind" in metafunc.fixturenames:
        if metafunc.config.getoption("--kafka"):
            kinds: tuple[str, ...] = ("apache",)
        else:
            chosen = metafunc.config.getoption("--broker")
            kinds = (chosen,) if chosen else BROKERS
        one = metafunc.definition.get_closest_marker("any_broker")
        if one and not metafunc.config.getoption("--slow"):
            kinds = one.args if set(one.args) & set(kinds) else kinds[:1]
        metafunc.parametrize("broker_kind", kinds, scope="session", indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        callspec = getattr(item, "callspec", None)
        kind = callspec.params.get("broker_kind") if callspec is not None else None
        if kind == "apache" or {"start_kafka", "apache_cluster", "libs", "compose_libs", "three_nodes"} & set(
            getattr(item, "fixturenames", ())
        ):
            item.add_marker(pytest.mark.kafka)
        if item.get_closest_marker("slow") and not config.getoption("--slow") and not _long_chaos(item):
            item.add_marker(pytest.mark.skip(reason="a long tier: needs --slow"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    # A long one may last longer than faulthandler_timeout. The stacks are then taken from threads at work, which now
    # and then crashes the interpreter: right for a test that hangs, not for one that goes on.
    if item.get_closest_marker("slow") or _long_chaos(item):
        faulthandler.cancel_dump_traceback_later()


def _long_chaos(item: pytest.Item) -> bool:
    return "test_chaos" in item.nodeid and item.config.getoption("--chaos") is not None


@pytest.fixture(scope="session")
def libs(request: pytest.FixtureRequest) -> Path:
    return _libs(request, KAFKA_VERSION)


@pytest.fixture(scope="session")
def compose_libs(request: pytest.FixtureRequest) -> Path:
    """Of the release in compose.yaml."""
    return _libs(request, COMPOSE_KAFKA_VERSION)


def _libs(request: pytest.FixtureRequest, version: str) -> Path:
    try:
        return kafka_libs(version)
    except KafkaUnavailableError as error:
        unavailable(request.config, str(error))
        raise


@pytest.fixture(scope="session")
def broker_kind(request: pytest.FixtureRequest) -> str:
    """Which of BROKERS the test runs on."""
    return str(request.param)


def _server(
    request: pytest.FixtureRequest,
    kind: str,
    directory: Path,
    settings: Mapping[str, str] | None = None,
    *,
    release: str = "libs",
) -> OwnServer:
    if kind == "embedded":
        return EmbeddedServer(directory)
    return KafkaServer(directory, request.getfixturevalue(release), settings=settings)


@contextlib.contextmanager
def _started(server: OwnServer) -> Iterator[OwnServer]:
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def apache_cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """An Apache Kafka, or what --kafka names."""
    if given := request.config.getoption("--kafka"):
        yield KafkaCluster(given)
        return
    with _started(_server(request, "apache", tmp_path_factory.mktemp("apache"))) as server:
        yield server


@pytest.fixture(scope="session")
def embedded_cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KafkaCluster]:
    """The embedded broker in a process of its own."""
    with _started(_server(request, "embedded", tmp_path_factory.mktemp("embedded"))) as server:
        yield server


@pytest.fixture(scope="session")
def kafka_cluster(request: pytest.FixtureRequest, broker_kind: str) -> KafkaCluster:
    cluster: KafkaCluster = request.getfixturevalue(f"{broker_kind}_cluster")
    return cluster


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
def local(tmp_path_factory: pytest.TempPathFactory) -> Local:
    """Ports and directories of this machine for what compose.yaml runs."""
    return Local(tmp_path_factory.mktemp("compose"))


@pytest.fixture
def three_nodes(compose_libs: Path, local: Local) -> Iterator[KafkaThreeNodes]:
    cluster = local.brokers(compose_libs)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def own_cluster(
    request: pytest.FixtureRequest, broker_kind: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OwnServer]:
    """Apache Kafka is of a release that does not lose the ends of transactions when it is killed, which newer ones do
    (tests/system/chaos/brokers.py)."""
    directory = tmp_path_factory.mktemp(f"own-{broker_kind}")
    with _started(_server(request, broker_kind, directory, SOON_BACK, release="compose_libs")) as server:
        yield server


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
