"""compose.yaml as it runs: its brokers, set up as their image does it, and every service's command as a process with
its environment, each role twice; under load one of the three brokers is killed.

Invariants:

1. Every health check succeeds once its container is up, and fails before that and after its end.
2. Messages that are sent are in the feeds, before, during and after a broker is lost.
3. Nothing acknowledged is lost, nothing arrives twice, and every fold is exact (Messaging.account).
4. The load goes on without the broker, and every partition has its replicas again once the broker is back.
"""

import random
import signal
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.compose import BROKERS, OURS, ROLES, Local
from tests.helpers import Process, Processes, eventually, gokamsg_env, run_gokamsg, say
from tests.kafka_server import KafkaThreeNodes
from tests.system.messaging import Load, Messaging, pause
from tests.system.traffic import chatter

REPLICAS = 2
CHECKS_AT_ONCE = 2


def _well(local: Local, service: str, container: str) -> bool:
    """What the service's health check says of the container."""
    argv = local.health_check(service, container)
    return subprocess.run(argv, capture_output=True, env=gokamsg_env(), timeout=20, check=False).returncode == 0


def _service(container: str) -> str:
    return container.rpartition("-")[0]


def _none_is_well(local: Local, containers: Iterable[str]) -> None:
    with ThreadPoolExecutor(CHECKS_AT_ONCE) as checks:
        found = zip(containers, checks.map(lambda each: _well(local, _service(each), each), containers), strict=True)
    well = [container for container, is_well in found if is_well]
    assert not well, f"well, and not running: {well}"


def _start(run: Processes, local: Local, messaging: Messaging) -> dict[str, Process]:
    """Every service of ours, as Compose would start it with each role scaled to REPLICAS."""
    started: dict[str, Process] = {}
    for name, service in OURS.items():
        for number in range(1, (REPLICAS if name in ROLES else 1) + 1):
            container = f"{name}-{number}"
            assert not _well(local, name, container), f"{container} is well and was not started"
            environment = local.environment(name, container)
            started[container] = run.gokamsg(*service["command"], name=container, env=environment)
    messaging.port = local.port("serve-1", 8080)
    return started


def _wait_until_well(local: Local, started: dict[str, Process]) -> None:
    def wait(container: str, process: Process) -> None:
        def well() -> bool:
            assert process.running, process.tail()
            return _well(local, _service(container), container)

        eventually(f"{container} is well", well, timeout_s=90, interval_s=0.5)

    with ThreadPoolExecutor(CHECKS_AT_ONCE) as checks:
        list(checks.map(wait, started.keys(), started.values()))  # raises what one of them does


def test_every_service_runs_and_one_of_three_brokers_is_lost_under_load(
    three_nodes: KafkaThreeNodes, local: Local, run: Processes, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    for broker in BROKERS:
        assert _well(local, broker, broker), broker
    messaging = Messaging(three_nodes, run, tmp_path)
    started = _start(run, local, messaging)
    _wait_until_well(local, started)
    messaging.arrives("Charlie", "Alice", "before", timeout_s=60)
    number = rng.randrange(len(BROKERS))
    lost, name = three_nodes.nodes[number], list(BROKERS)[number]
    with Load(messaging, chatter(seed), rate=50, unsure=True) as load:
        eventually("the load is under way", lambda: load.count >= 100, timeout_s=60)
        lost.kill()
        assert not _well(local, name, name)
        at_loss = load.count
        eventually("the load goes on", lambda: load.count >= at_loss + 250, timeout_s=90)
        messaging.arrives("Charlie", "Alice", "without a broker", timeout_s=60)
        lost.start()
        eventually(f"{name} is well again", lambda: _well(local, name, name), timeout_s=60)
        pause(seconds=1.0)
        load.stop()
    three_nodes.wait_until_whole()
    messaging.drained("message_filter", "collector")  # those of other senders would else arrive in any order with it
    messaging.arrives("Charlie", "Alice", "after", timeout_s=60)
    sent = load.ledger
    say(f"{name} was lost: {load.count} messages acknowledged, {sent.unknown.total()} without an answer in time")
    for content in ("before", "without a broker", "after"):
        sent.acknowledged["Charlie", "Alice", content] += 1
    messaging.account(sent)
    done = run_gokamsg("feed", "Alice", env=local.environment("serve", "serve-1"), timeout_s=60)
    assert (done.returncode, done.stdout.splitlines()[-1].split(maxsplit=1)[1]) == (0, "Charlie: after"), done
    for process in started.values():
        process.signal(signal.SIGTERM)
    for process in started.values():
        assert process.wait() == 0, process.tail()
    _none_is_well(local, started)
