"""`gokamsg up`: everything with one command, on the embedded broker. Needs nothing but Python."""

import contextlib
import http.client
import json
import os
import pty
import random
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest

from gokamsg.commands.up import Display
from gokamsg.config import ROLE_NAMES, Settings
from tests.helpers import (
    Process,
    Processes,
    eventually,
    free_port,
    gokamsg_argv,
    gokamsg_env,
    run_gokamsg,
    say,
    slowness,
)
from tests.kafka_server import KafkaCluster, KafkaServer
from tests.system import fold
from tests.system.messaging import Ledger, Load, Messaging, pause
from tests.system.traffic import NO_DETECTION, chatter

PATIENCE_S = 120.0  # deadlines of waiting, not bounds
USERS = ("Alice", "Bob", "Charlie", "Dave", "Eve")


class UpScene:
    """One data directory, one pair of ports, any number of runs one after the other."""

    def __init__(self, run: Processes, directory: Path) -> None:
        self.run = run
        self.data = directory / "data"
        self.port = free_port()
        self.broker_port = free_port()
        self._runs = 0

    def up(self, *options: str, ready: bool = True) -> Process:
        self._runs += 1
        process = self.run.gokamsg("up", *self.flags, *options, name=f"up-{self._runs}")
        if ready:
            process.wait_line(r"ready in", timeout_s=PATIENCE_S)
        return process

    @property
    def flags(self) -> list[str]:
        ports = ["--port", str(self.port), "--broker-port", str(self.broker_port)]
        return ["--data-dir", str(self.data), *ports]

    def send(self, sender: str, recipient: str, content: str, timeout_s: float = 10.0) -> bool:
        """Whether the message was acknowledged."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request("POST", f"/{quote(sender)}/send", json.dumps({"to": recipient, "content": content}))
            answer = connection.getresponse()
            answer.read()
        except OSError:
            return False
        finally:
            connection.close()
        return answer.status == 200

    def feed(self, user: str) -> list[str]:
        """The contents of the user's feed, oldest first."""
        done = run_gokamsg("feed", user, "--json", "--brokers", f"127.0.0.1:{self.broker_port}")
        return [json.loads(line)["Content"] for line in done.stdout.splitlines()]


@pytest.fixture
def scene(run: Processes, tmp_path: Path) -> UpScene:
    return UpScene(run, tmp_path)


def children_of(process: Process | subprocess.Popen[bytes]) -> dict[str, int]:
    """The pids of the parts, by what they are."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(stat[1]) == process.pid:
                found[f"{b' '.join(command).decode()} {entry.name}"] = int(entry.name)
    return found


def test_one_command_starts_everything_and_what_it_tells_to_try_works(scene: UpScene) -> None:
    up = scene.up()
    text = up.stderr()
    assert "9 topics, 8 partitions" in text
    assert "blocker collector detector filter translator" in text
    assert f"http://127.0.0.1:{scene.port}" in text
    assert scene.send("Bob", "Alice", "Hey, how are you doing?")
    eventually("the message is in the feed", lambda: scene.feed("Alice") == ["Hey, how are you doing?"], timeout_s=20)
    done = run_gokamsg("block", "Bob", "--brokers", f"127.0.0.1:{scene.broker_port}")
    assert done.returncode == 0, done
    assert "Bob is blocked" in done.stdout


def test_ctrl_c_stops_everything_quickly_and_a_second_run_goes_on_with_the_data(scene: UpScene) -> None:
    first = scene.up()
    assert scene.send("Bob", "Alice", "one")
    eventually("the message is in the feed", lambda: scene.feed("Alice") == ["one"], timeout_s=20)
    first.signal(signal.SIGINT)
    began = time.monotonic()
    assert first.wait(PATIENCE_S) == 0
    seconds = time.monotonic() - began
    assert seconds < 5 or seconds < 5 * slowness(), f"{seconds:.1f} s"
    assert not first.group_alive()
    assert "stopped" in first.stderr()
    assert "Traceback" not in first.stderr()
    scene.up()
    assert scene.send("Bob", "Alice", "two")
    eventually("both messages are in the feed", lambda: scene.feed("Alice") == ["one", "two"], timeout_s=20)


def test_every_part_that_is_killed_comes_back(scene: UpScene, seed: int) -> None:
    up = scene.up()
    rng = random.Random(seed)
    expected = []
    for number in range(4):
        name, pid = rng.choice(sorted(children_of(up).items()))
        os.kill(pid, signal.SIGKILL)
        content = f"after {number}"
        eventually(
            f"a message is acknowledged after {name} was killed",
            lambda: scene.send("Bob", "Alice", content, timeout_s=3.0),  # noqa: B023
            timeout_s=PATIENCE_S,
            interval_s=0.2,
        )
        expected.append(content)
        eventually(
            f"it is in the feed after {name} was killed",
            lambda: content in scene.feed("Alice"),  # noqa: B023
            timeout_s=PATIENCE_S,
            interval_s=0.2,
        )
    assert up.running
    assert "starts again" in up.stderr()


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_pulling_the_plug_loses_and_doubles_nothing(
    scene: UpScene, run: Processes, tmp_path: Path, seed: int, rounds: int
) -> None:
    """Every process is killed at random moments under load: all of them at once, or one after the other.

    Invariants: an acknowledged message is there once, one without an answer at most once; what the filter passed on,
    feeds and counters are the folds of what was sent (Messaging.account); the HTTP service shows those feeds.
    """
    rng = random.Random(seed)
    messaging = Messaging(KafkaCluster(f"127.0.0.1:{scene.broker_port}"), run, tmp_path)
    messaging.port = scene.port
    messages = chatter(seed)
    ledger = Ledger()
    for _ in range(rounds):
        up = scene.up(*NO_DETECTION)
        load = Load(messaging, messages, rate=100, unsure=True)
        with contextlib.suppress(OSError, http.client.HTTPException), load:
            pause(seconds=rng.uniform(0.2, 2.0))
            pids = [up.pid, *children_of(up).values()]
            for pid in rng.sample(pids, len(pids)) if rng.random() < 0.5 else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                pause(seconds=rng.uniform(0.0, 0.2))
            up.kill9()
        ledger.acknowledged.update(load.ledger.acknowledged)
        ledger.unknown.update(load.ledger.unknown)
    say(f"{ledger.acknowledged.total()} messages acknowledged, {ledger.unknown.total()} without an answer")
    assert ledger.acknowledged.total() >= 10 * rounds
    scene.up(*NO_DETECTION)
    messaging.account(ledger)
    feeds = messaging.table("collector-table")
    assert feeds.keys() >= {recipient for _, recipient, _ in ledger.acknowledged}
    for user, feed in feeds.items():
        assert messaging.feed(user) == [message["Content"] for message in feed]


def test_ports_that_are_taken_are_named(scene: UpScene, run: Processes) -> None:
    scene.up()
    again = run_gokamsg("up", "--data-dir", str(scene.data.parent / "other"), "--port", str(scene.port))
    assert again.returncode == 1
    assert f"{scene.port}" in again.stderr
    assert again.stderr.count("Error:") == 1
    flags = ["--port", str(free_port()), "--broker-port", str(scene.broker_port)]
    again = run_gokamsg("up", "--data-dir", str(scene.data.parent / "other"), *flags)
    assert again.returncode == 1
    assert f"{scene.broker_port}" in again.stderr
    assert "Traceback" not in again.stderr


def test_data_that_is_in_use_is_named(scene: UpScene) -> None:
    scene.up()
    flags = ["--port", str(free_port()), "--broker-port", str(free_port())]
    again = run_gokamsg("up", "--data-dir", str(scene.data), *flags)
    assert again.returncode == 1
    assert "in use by another broker" in again.stderr
    reset = run_gokamsg("up", "--data-dir", str(scene.data), *flags, "--reset", "--yes")
    assert reset.returncode == 1
    assert "in use by a running broker" in reset.stderr


def test_reset_asks_and_deletes(scene: UpScene) -> None:
    first = scene.up()
    assert scene.send("Bob", "Alice", "one")
    eventually("the message is in the feed", lambda: scene.feed("Alice") == ["one"], timeout_s=20)
    first.signal(signal.SIGINT)
    first.wait(20)
    refused = run_gokamsg("up", *scene.flags, "--reset")
    assert refused.returncode == 2
    assert "--yes" in refused.stderr
    scene.up("--reset", "--yes")
    assert scene.feed("Alice") == []


def test_without_a_broker_of_its_own_it_needs_the_one_that_is_named(scene: UpScene) -> None:
    done = run_gokamsg("up", "--brokers", f"127.0.0.1:{free_port()}", "--port", str(scene.port))
    assert done.returncode == 1
    assert "no Kafka broker answers" in done.stderr
    assert "gokamsg broker" in done.stderr


def test_the_demo_sends_and_the_detector_blocks(scene: UpScene) -> None:
    up = scene.up("--demo", "--json", ready=False)
    up.wait_line(r'^\{"ready"', timeout_s=PATIENCE_S)
    eventually("someone has a feed", lambda: any(scene.feed(user) for user in USERS), timeout_s=30, interval_s=0.5)
    assert all(json.loads(line) for line in up.stdout().splitlines())


def test_free_ports_are_known_to_all_parts_and_kept_when_they_are_started_again(scene: UpScene) -> None:
    scene.port = scene.broker_port = 0
    up = scene.up("--demo", "--json", ready=False)
    broker, service = (up.wait_line(rf'"part": "{name}", "ready": "[^"]*:(\d+)"') for name in ("broker", "serve"))
    scene.broker_port, scene.port = int(broker.group(1)), int(service.group(1))
    eventually("the demo has sent", lambda: any(scene.feed(user) for user in USERS), timeout_s=60, interval_s=0.5)
    for pid in children_of(up).values():
        os.kill(pid, signal.SIGKILL)
    eventually("messages go through", lambda: scene.send("Alice", "Zoe", "again", timeout_s=3), timeout_s=60)
    eventually("they arrive", lambda: scene.feed("Zoe"), timeout_s=60, interval_s=0.5)


@pytest.mark.any_broker
def test_the_end_does_not_wait_for_a_look_at_a_broker_that_is_gone(own_cluster: KafkaServer) -> None:
    """One stop in five took two seconds more: what watches messages had asked a broker that had just ended."""
    own_cluster.create_topics({name: {"num_partitions": 1} for name in ("message_received", "block_user")})
    show = Display(Settings(brokers=own_cluster.address), time.monotonic())
    show.begin()
    show.brokers = Settings(brokers=own_cluster.address)
    show.message("serve", {"ready": "http://127.0.0.1:8080"})
    for role in ROLE_NAMES:
        show.message(role, {"state": "running", "partitions": [0], "guarantee": "exactly-once"})
    eventually("somebody watches", lambda: "_looks wait" in " ".join(_what_runs("panel")), timeout_s=20)
    own_cluster.pause()
    try:
        eventually("the broker is asked", lambda: "end_offsets" in _what_runs("panel"), timeout_s=20)
        started = time.monotonic()
        show.end("stopped")
        assert time.monotonic() - started < 1.0
    finally:
        own_cluster.resume()


def _what_runs(name: str) -> list[str]:
    """The functions that the thread of that name is in."""
    number = next(thread.ident for thread in threading.enumerate() if thread.name == name)
    assert number is not None
    return [frame.name for frame in traceback.extract_stack(sys._current_frames()[number])]


def test_on_a_terminal_the_parts_are_forked_as_in_a_pipe_and_q_stops_them(scene: UpScene) -> None:
    """A thread that reads keys before they are forked would leave each part to start by itself."""
    ours, theirs = pty.openpty()
    argv = gokamsg_argv("up", *scene.flags)
    with subprocess.Popen(
        argv, stdin=theirs, stdout=theirs, stderr=theirs, env=gokamsg_env({"TERM": "xterm"}), start_new_session=True
    ) as up:
        try:
            os.close(theirs)
            shown = _shown_until(ours, "commit  bad  parked")
            assert "ready in" in shown
            parts = [name for name in children_of(up) if " broker " not in name]
            assert len(parts) == 6
            assert all(name.startswith(" ".join(argv)) for name in parts), parts
            os.write(ours, b"q")
            assert "stopped" in _shown_until(ours, "stopped")
            assert up.wait(timeout=PATIENCE_S) == 0
        finally:
            os.close(ours)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(up.pid, signal.SIGKILL)


def _shown_until(terminal: int, wanted: str) -> str:
    """What a terminal shows, up to and with `wanted`."""
    shown = b""

    def there() -> bool:
        nonlocal shown
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 65_536)
        return wanted in shown.decode(errors="replace")

    eventually(f"{wanted!r} is shown", there, timeout_s=PATIENCE_S)
    return shown.decode(errors="replace")


def test_in_a_pipe_a_block_is_one_line(scene: UpScene) -> None:
    up = scene.up("--detect-messages", "5", "--detect-share", "0.9")
    for number in range(12):
        assert scene.send("Bob", "Alice", f"spam {number}")
    up.wait_line("^Bob is blocked$")
    broker = f"127.0.0.1:{scene.broker_port}"
    eventually("he was blocked eight times", lambda: len(fold.read(broker, "block_user")) == 8, timeout_s=20)
    assert run_gokamsg("unblock", "Bob", "--brokers", broker).returncode == 0
    up.wait_line("^Bob is no longer blocked$")
    assert up.stderr().splitlines().count("Bob is blocked") == 1


if sys.platform != "linux":
    pytest.skip("the tests of up look into /proc", allow_module_level=True)
