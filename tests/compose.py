"""compose.yaml, read as Compose reads it, with ports and paths of this machine in place of the containers' own.

`Local.port` stands for a service's port, `Local.text` rewrites the addresses in a text that is used inside a service.
No Docker is needed.
"""

import re
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.helpers import free_port
from tests.kafka_server import ContainerNode, KafkaThreeNodes

FILE = Path(__file__).parent.parent / "compose.yaml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "gokamsg"}
BROKERS = {name: service for name, service in SERVICES.items() if name not in OURS}
KAFKA_VERSION = next(iter(BROKERS.values()))["image"].rpartition(":")[2]
ROLES = {name: service for name, service in OURS.items() if service["command"][0] == "process"}

_SERVICE_ADDRESS = re.compile(rf"\b({'|'.join(map(re.escape, SERVICES))}):(\d+)")
_OWN_ADDRESS = re.compile(r"\b(localhost|127\.0\.0\.1)([:/])(\d+)\b")
_ANY_ADDRESS = re.compile(r"//:(\d+)")


class Local:
    """The file's services on this machine: each container's ports are ports of 127.0.0.1."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ports: dict[tuple[str, int], int] = {}

    def port(self, container: str, port: int) -> int:
        return self._ports.setdefault((container, port), free_port())

    def text(self, text: str, container: str) -> str:
        """What `text` means inside the container, in terms of this machine."""
        text = _SERVICE_ADDRESS.sub(lambda found: f"127.0.0.1:{self.port(found[1], int(found[2]))}", text)
        return _ANY_ADDRESS.sub(lambda found: f"//127.0.0.1:{self.port(container, int(found[1]))}", text)

    def own(self, text: str, container: str) -> str:
        """The same for the container's addresses of itself (localhost)."""
        return _OWN_ADDRESS.sub(lambda found: f"{found[1]}{found[2]}{self.port(container, int(found[3]))}", text)

    def brokers(self, libs: Path) -> KafkaThreeNodes:
        """The file's Apache Kafka brokers, not started."""
        nodes = []
        for name, service in BROKERS.items():
            environment = {key: self.text(str(value), name) for key, value in service["environment"].items()}
            folder = self._directory / name
            paths = {volume.split(":")[1]: folder / "data" for volume in service["volumes"]}
            for inside, outside in paths.items():
                environment = {key: value.replace(inside, str(outside)) for key, value in environment.items()}
            nodes.append(ContainerNode(folder, libs, environment=environment, port=self.port(name, 9092)))
        return KafkaThreeNodes(nodes)

    def environment(self, name: str, container: str) -> dict[str, str]:
        """The settings that a container of one of our services has."""
        environment = {key: self.text(str(value), container) for key, value in OURS[name]["environment"].items()}
        for volume in OURS[name]["volumes"]:
            folder, inside = volume.split(":")[:2]
            environment = {
                key: value.replace(inside, str(self._directory / folder)) for key, value in environment.items()
            }
        if name in ROLES:
            inside_port = int(environment["GOKAMSG_METRICS_PORT"])
            return environment | {"GOKAMSG_METRICS_PORT": str(self.port(container, inside_port))}
        return environment | {"GOKAMSG_PORT": str(self.port(container, 8080))}

    def health_check(self, name: str, container: str) -> list[str]:
        """The command that tells whether the container is well."""
        kind, *words = SERVICES[name]["healthcheck"]["test"]
        words = [self.own(word, container) for word in words]
        if kind == "CMD-SHELL":
            return ["sh", "-c", words[0]]
        assert kind == "CMD", kind
        return [sys.executable if word == "python" else word for word in words]
