"""A real Apache Kafka for tests: one KRaft node, or three, started from Maven Central's jars in a few seconds.

1. The jars are fetched once, into the user's cache directory, and used again when that copy is complete;
   GOKAMSG_KAFKA_LIBS names a directory that has those of KAFKA_VERSION already.
2. A node keeps its address and its data over stop, kill and start; `close` leaves no process behind.
3. Three nodes are set up by what sets them up in Apache Kafka's container image, from the same KAFKA_* variables.
4. `clean` removes the messaging service's own topics and groups, and nothing else.
5. Java finds a node's classes loaded and linked in an archive, made once for each machine: without it a start takes
   twice the processor's time, and a test run starts some thirty nodes.

Not here: fixtures and command line options (conftest).
"""

import base64
import contextlib
import functools
import hashlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import platformdirs
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, MemberToRemove, TransactionState
from kafka.errors import KafkaError

from tests.helpers import eventually, free_port

KAFKA_VERSION = "4.4.0"
LIBS_VARIABLE = "GOKAMSG_KAFKA_LIBS"

MESSAGING_GROUPS = ("collector", "blocker", "message_filter", "translator", "detector")
MESSAGING_TOPICS = (
    "message_sent",
    "message_received",
    "block_user",
    "translate-word",
    "blocker-table",
    "translator-table",
    "collector-table",
    "detector-table",
    "detector-loop",
)
QUARANTINE_TOPICS = tuple(f"{group}-quarantine{suffix}" for group in MESSAGING_GROUPS for suffix in ("", "-commands"))

# Optimizing what it runs only slows a node that lives for seconds.
JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_ARCHIVING = "-XX:ArchiveClassesAtExit"

_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>local</groupId><artifactId>kafka-libs</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies><dependency>
    <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>{version}</version>
  </dependency></dependencies>
</project>
"""

_DEFAULTS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "8",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "8",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "1000",
    "auto.create.topics.enable": "false",
    # A killed broker that is started again is not let in before its predecessor's session ends: 9 s by default.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
}


class KafkaUnavailableError(Exception):
    """Apache Kafka cannot be had here; str() is the reason a skip shows."""


def kafka_libs(version: str = KAFKA_VERSION) -> Path:
    """The directory of Apache Kafka's jars, fetched with Maven when there is no complete copy yet."""
    if shutil.which("java") is None:
        raise KafkaUnavailableError("Apache Kafka needs Java 17 on PATH")
    if version == KAFKA_VERSION and (given := os.environ.get(LIBS_VARIABLE)):
        if not list(Path(given).glob(f"kafka_2.13-{KAFKA_VERSION}.jar")):
            raise KafkaUnavailableError(f"{LIBS_VARIABLE}={given!r} does not hold Apache Kafka {KAFKA_VERSION}")
        return Path(given)
    cache = _cache()
    libs = cache / f"kafka-{version}"
    if libs.is_dir():  # complete by construction: it is renamed into place
        return libs
    if shutil.which("mvn") is None:
        raise KafkaUnavailableError(f"Apache Kafka's jars need Maven on PATH, or {LIBS_VARIABLE} naming a copy of them")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        Path(scratch, "pom.xml").write_text(_POM.format(version=version))
        fetched = Path(scratch, "libs")
        command = ["mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={fetched}"]
        done = subprocess.run(
            command, cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode != 0:
            raise KafkaUnavailableError(f"Maven could not fetch Apache Kafka {version}: {done.stdout[-500:]}")
        with contextlib.suppress(OSError):  # another test run was faster; its copy is as good
            fetched.rename(libs)
    return libs


def _cache() -> Path:
    return Path(platformdirs.user_cache_dir("gokamsg-tests"))


@functools.cache
def _prepared(libs: Path) -> tuple[str, ...]:
    """Java's options for classes that lie ready; none where they cannot be made so.

    The archive is made by a node that runs for a moment. Java goes without one that does not fit its jars.
    """
    java = Path(shutil.which("java") or "").resolve()
    of = hashlib.sha256(f"{libs.resolve()} {java} {java.stat().st_mtime_ns}".encode()).hexdigest()
    archive = _cache() / f"classes-{of[:16]}.jsa"
    options = (f"-XX:SharedArchiveFile={archive}", "-Xlog:disable")
    if archive.exists():
        return options
    try:
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
            made = Path(scratch, "classes.jsa")
            with contextlib.closing(
                KafkaServer(Path(scratch, "node"), libs, jvm=(*JVM, f"{_ARCHIVING}={made}"))
            ) as node:
                node.start()
                node.create_topics({"t": {"num_partitions": 1}})
                node.stop()
            made.rename(archive)
    except (AssertionError, OSError, subprocess.SubprocessError):
        return ()
    return options


class KafkaCluster:
    """What tests see of a cluster: its address; whether it can be stopped depends on who started it."""

    def __init__(self, address: str) -> None:
        self.address = address

    def admin(self) -> KafkaAdminClient:
        """A client of its own for each use; the caller closes it (a `with` block does)."""
        return KafkaAdminClient(
            bootstrap_servers=self.address, bootstrap_timeout_ms=10_000, reconnect_backoff_max_ms=200
        )

    def create_topics(self, topics: Mapping[str, Mapping[str, Any]]) -> None:
        """Creates topics from name -> {"num_partitions": …, "configs": {…}}; returns when they have leaders."""
        with self.admin() as admin:
            admin.create_topics(
                {name: {"replication_factor": 1, **options} for name, options in topics.items()}, wait_for_metadata=True
            )

    def clean(self) -> None:
        """Removes the messaging service's topics and groups; members that were killed are removed first, and their
        transactions ended: Apache Kafka would write the markers into the next test's topics of the same names."""
        with self.admin() as admin:
            eventually("the service's groups are gone", lambda: self._drop_groups(admin), timeout_s=20)
            self._end_transactions(admin)
            ours = {*MESSAGING_TOPICS, *QUARANTINE_TOPICS}
            if there := [topic for topic in admin.list_topics() if topic in ours]:
                admin.delete_topics(there)
            eventually("the service's topics are gone", lambda: not {*admin.list_topics()} & ours)

    def _end_transactions(self, admin: KafkaAdminClient) -> None:
        for found in itertools.chain.from_iterable(admin.list_transactions().values()):
            if found.state is TransactionState.ONGOING and found.transactional_id.startswith(MESSAGING_GROUPS):
                successor = KafkaProducer(bootstrap_servers=self.address, transactional_id=found.transactional_id)
                with contextlib.closing(successor):
                    successor.init_transactions()  # which aborts what was open

    @staticmethod
    def _drop_groups(admin: KafkaAdminClient) -> bool:
        present = [group["group_id"] for group in admin.list_groups() if group["group_id"] in MESSAGING_GROUPS]
        if not present:
            return True
        for group, described in admin.describe_groups(present).items():
            # By instance id for static members: a member id alone does not remove those.
            if members := [
                MemberToRemove(group_instance_id=instance)
                if (instance := member.get("group_instance_id"))
                else MemberToRemove(member_id=member["member_id"])
                for member in described["members"]
            ]:
                with contextlib.suppress(KafkaError):
                    admin.remove_group_members(group, members)
        admin.delete_groups(present)
        return False


class KafkaServer(KafkaCluster):
    """One Apache Kafka node of our own, its data and logs in `directory`.

    `settings` override server.properties; `listeners` (name -> security protocol) are there beside the plain one, each
    at `address_of(name)`; `users` are StorageTool's --add-scram values. start, stop, kill, pause and resume keep
    addresses and data.
    """

    def __init__(
        self,
        directory: Path,
        libs: Path,
        *,
        settings: Mapping[str, str] | None = None,
        listeners: Mapping[str, str] | None = None,
        users: Sequence[str] = (),
        jvm: Sequence[str] | None = None,
    ) -> None:
        self._directory = directory
        self._libs = libs
        self._jvm = [*JVM, *_prepared(libs)] if jvm is None else list(jvm)
        self._settings = dict(settings or {})
        self._listeners = dict(listeners or {})
        self._users = list(users)
        self._process: subprocess.Popen[bytes] | None = None
        self._choose_ports()

    def _choose_ports(self) -> None:
        self._port, self._controller_port = free_port(), free_port()
        self._more_ports = {name: free_port() for name in self._listeners}
        super().__init__(f"127.0.0.1:{self._port}")

    def address_of(self, listener: str) -> str:
        """Where one of the further listeners is."""
        return f"localhost:{self._more_ports[listener]}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns when the broker answers; formats the data directory the first time."""
        first = self.launch()
        try:
            eventually("Apache Kafka listens", self._listens, timeout_s=60, interval_s=0.05)
        except AssertionError:
            if not first or self._alive():
                self.kill()
                raise
            # Somebody took a port between choosing and listening: once more, with others.
            self.kill()
            shutil.rmtree(self._directory / "data", ignore_errors=True)
            self._choose_ports()
            self._format()
            self._spawn()
            eventually("Apache Kafka listens", self._listens, timeout_s=60, interval_s=0.05)
        eventually("Apache Kafka answers", self._answers, timeout_s=30, interval_s=0.1)

    def launch(self) -> bool:
        """Starts the node and does not wait for it; whether that was its first start."""
        assert self._process is None, "this node runs already"
        first = not self._properties.exists()
        if first:
            self._format()
        self._spawn()
        return first

    def stop(self) -> None:
        """A controlled shutdown."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9: connections break at once, nothing is flushed."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """The process stands still: connections stay open and nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        if self._process is not None:
            self.kill()

    def log(self) -> str:
        path = self._directory / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def _properties(self) -> Path:
        return self._directory / "server.properties"

    def _format(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        more = "".join(f",{name}://localhost:{port}" for name, port in self._more_ports.items())
        protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT", **self._listeners}
        properties = _DEFAULTS | {
            "listeners": f"PLAINTEXT://127.0.0.1:{self._port},CONTROLLER://127.0.0.1:{self._controller_port}{more}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self._port}{more}",
            "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{self._controller_port}",
            "log.dirs": str(self._directory / "data"),
        }
        lines = (f"{name}={value}\n" for name, value in (properties | self._settings).items())
        self._properties.write_text("".join(lines))
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "A")
        tool = ["kafka.tools.StorageTool", "format", "--standalone", "-t", cluster_id, "-c", str(self._properties)]
        self._run_tool(*tool, *(word for user in self._users for word in ("--add-scram", user)))

    def _run_tool(self, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        """Runs a class of Apache Kafka's to its end."""
        done = subprocess.run(
            [*self._java(), *arguments],
            env=env and {**os.environ, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if done.returncode != 0:
            raise AssertionError(f"{arguments[0]} failed: {done.stdout}{done.stderr}")

    def _java(self) -> list[str]:
        options = [option for option in self._jvm if not option.startswith(_ARCHIVING)]
        return ["java", *options, "-cp", f"{self._libs}/*"]

    def _spawn(self) -> None:
        command = ["java", *self._jvm, "-cp", f"{self._libs}/*", "kafka.Kafka", str(self._properties)]
        with (self._directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _listens(self) -> bool:
        assert self._alive(), f"Apache Kafka ended at its start:\n{self.log()[-2000:]}"
        with socket.create_connection(("127.0.0.1", self._port), timeout=1):
            return True

    def _answers(self) -> bool:
        with self.admin() as admin:
            return bool(admin.describe_cluster()["brokers"])

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
        self._process.wait(timeout=60)
        self._process = None


class AdvertisedKafka(KafkaServer):
    """A node whose clients are told another port of this machine, of a proxy; its own requests go to it directly."""

    def __init__(self, directory: Path, libs: Path, *, advertised: int) -> None:
        super().__init__(
            directory,
            libs,
            listeners={"INTERNAL": "PLAINTEXT"},
            settings={"inter.broker.listener.name": "INTERNAL"},
        )
        self._advertised = advertised

    def _format(self) -> None:
        internal = f"INTERNAL://{self.address_of('INTERNAL')}"
        self._settings["advertised.listeners"] = f"PLAINTEXT://127.0.0.1:{self._advertised},{internal}"
        super()._format()


class ContainerNode(KafkaServer):
    """A node as Apache Kafka's container image sets it up: from an environment of KAFKA_* variables.

    `port` is where its broker listens; the addresses and paths of the environment are ones of this machine.
    """

    def __init__(self, directory: Path, libs: Path, *, environment: Mapping[str, str], port: int) -> None:
        self._environment = dict(environment)
        self._given_port = port
        super().__init__(directory, libs, jvm=(*JVM, "-Xmx256m", *_prepared(libs)))

    def _choose_ports(self) -> None:
        self._port = self._given_port
        KafkaCluster.__init__(self, f"127.0.0.1:{self._port}")

    @property
    def _properties(self) -> Path:
        return self._directory / "final" / "server.properties"

    def _format(self) -> None:
        folders = {name: self._directory / name for name in ("default", "mounted", "final")}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        for name in ("server.properties", "log4j2.yaml", "tools-log4j2.yaml"):
            (folders["default"] / name).touch()
        flags = [word for name, folder in folders.items() for word in (f"--{name}-configs-dir", str(folder))]
        self._run_tool("kafka.docker.KafkaDockerWrapper", "setup", *flags, env=self._environment)

    def answers(self) -> bool:
        """Whether it answers; a node that has ended is an error."""
        return self._listens() and self._answers()


class KafkaThreeNodes(KafkaCluster):
    """A cluster of several nodes, each broker and controller, about 350 MB each. Starts and ends them together."""

    def __init__(self, nodes: Sequence[ContainerNode]) -> None:
        self.nodes = list(nodes)
        super().__init__(",".join(node.address for node in nodes))

    def admin(self) -> KafkaAdminClient:
        return KafkaAdminClient(
            bootstrap_servers=self.address.split(","), bootstrap_timeout_ms=10_000, reconnect_backoff_max_ms=200
        )

    def start(self) -> None:
        """Returns when every node answers and the cluster has all of them."""
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(ContainerNode.launch, self.nodes))
        for number, node in enumerate(self.nodes, start=1):
            eventually(f"node {number} of the cluster answers", node.answers, timeout_s=120, interval_s=0.2)
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Returns when every node is in the cluster, and every replica in sync."""

        def whole() -> bool:
            with self.admin() as admin:
                brokers = admin.describe_cluster()["brokers"]
                topics = admin.describe_topics()
            behind = [
                (topic["name"], part["partition_index"])
                for topic in topics
                for part in topic["partitions"]
                if len(part["isr_nodes"]) < len(part["replica_nodes"])
            ]
            assert len(brokers) == len(self.nodes), f"{len(brokers)} brokers"
            assert not behind, f"replicas that are behind: {behind}"
            return True

        eventually("the cluster is whole", whole, timeout_s=60, interval_s=0.3)

    def close(self) -> None:
        for node in self.nodes:
            node.close()
