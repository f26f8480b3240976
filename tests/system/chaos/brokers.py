"""The three kinds of broker that chaos runs on, each node behind a proxy that the service knows as its address.

The proxies' addresses are the ones that brokers advertise to clients; brokers reach each other directly.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tests.compose import BROKERS, Local
from tests.embedded_server import EmbeddedServer
from tests.helpers import Process, free_port, gokamsg_env
from tests.kafka_server import AdvertisedKafka, ContainerNode, KafkaCluster, KafkaThreeNodes
from tests.proxy import Proxy

MARKER_SENDER = b"txn-marker-sender"
"""In the client id of a coordinator that tells a partition's leader that a transaction has ended."""


class Node(Protocol):
    """One broker's process."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def log(self) -> str: ...


class Brokers:
    """A running cluster: its nodes, a proxy before each, and how to wait until it is whole again.

    Where there are several nodes, `markers` are proxies for what they tell each other, and hold back what ends
    transactions.
    """

    def __init__(
        self,
        name: str,
        cluster: KafkaCluster,
        nodes: list[Node],
        proxies: list[Proxy],
        wait_until_whole: Callable[[], None],
        markers: Sequence[Proxy] = (),
    ) -> None:
        self.name = name
        self.cluster = cluster
        self.nodes = nodes
        self.proxies = proxies
        self.wait_until_whole = wait_until_whole
        self.markers = markers
        self.address = ",".join(proxy.address for proxy in proxies)


def _where(cluster: KafkaCluster) -> tuple[str, int]:
    host, _, port = cluster.address.partition(":")
    return host, int(port)


class _Embedded(EmbeddedServer):
    """Tells clients the proxy's port; the command has no setting for that."""

    advertised = 0

    def _launch(self) -> Process:
        settings = {
            "data_dir": str(self._directory / "data"),
            "port": self._port,
            "advertised_port": self.advertised,
        }
        argv = [sys.executable, "-m", "tests.system.chaos.embedded_broker", json.dumps(settings)]
        return Process(argv, self._directory, name="broker", env=gokamsg_env())


@contextlib.contextmanager
def embedded(directory: Path) -> Iterator[Brokers]:
    node = _Embedded(directory)
    with _closing(node, proxies := [Proxy(lambda: _where(node))]):
        node.advertised = proxies[0].port
        node.start()
        yield Brokers("embedded broker", node, [node], proxies, lambda: None)


@contextlib.contextmanager
def apache(directory: Path, libs: Path) -> Iterator[Brokers]:
    """One node, of a release before 4.3. To the transaction coordinator of 4.3.0 to 4.4.0 a partition without a leader
    is a deleted one, which need not be told how a transaction has ended; and all are without one while their only
    broker comes back from a crash. What was written there stays open for ever, whoever wrote it, with all behind it."""
    proxy = Proxy(lambda: _where(node))
    node = AdvertisedKafka(directory, libs, advertised=proxy.port)
    with _closing(node, [proxy]):
        node.start()
        yield Brokers("Apache Kafka", node, [node], [proxy], lambda: None)


@contextlib.contextmanager
def three(directory: Path, libs: Path) -> Iterator[Brokers]:
    """compose.yaml's brokers: every topic three times, two replicas acknowledge."""
    local = Local(directory)
    nodes: list[ContainerNode] = []
    proxies: list[Proxy] = []
    markers: list[Proxy] = []
    for name, service in BROKERS.items():
        port, internal = local.port(name, 9092), free_port()
        proxies.append(Proxy(lambda port=port: ("127.0.0.1", port)))  # type: ignore[misc]
        markers.append(Proxy(lambda port=internal: ("127.0.0.1", port), concerns=MARKER_SENDER))  # type: ignore[misc]
        given = {key: local.text(str(value), name) for key, value in service["environment"].items()}
        folder = directory / name
        for volume in service["volumes"]:
            given = {key: value.replace(volume.split(":")[1], str(folder / "data")) for key, value in given.items()}
        environment = given | _internal(given, f"127.0.0.1:{internal}", markers[-1].address, proxies[-1].address)
        nodes.append(ContainerNode(folder, libs, environment=environment, port=port))
    cluster = KafkaThreeNodes(nodes)
    with _closing(cluster, [*proxies, *markers]):
        cluster.start()
        yield Brokers("Apache Kafka, three nodes", cluster, list(nodes), proxies, cluster.wait_until_whole, markers)


def _internal(given: Mapping[str, str], listens: str, internal: str, proxied: str) -> dict[str, str]:
    """A listener of their own for what brokers tell each other."""
    return {
        "KAFKA_LISTENERS": f"{given['KAFKA_LISTENERS']},INTERNAL://{listens}",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://{proxied},INTERNAL://{internal}",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": f"{given['KAFKA_LISTENER_SECURITY_PROTOCOL_MAP']},INTERNAL:PLAINTEXT",
        "KAFKA_INTER_BROKER_LISTENER_NAME": "INTERNAL",
    }


class _Closes(Protocol):
    def close(self) -> None: ...


@contextlib.contextmanager
def _closing(cluster: _Closes, proxies: list[Proxy]) -> Iterator[None]:
    try:
        yield
    finally:
        cluster.close()
        for proxy in proxies:
            proxy.close()
