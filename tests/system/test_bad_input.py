"""Wrong usage, and brokers, topics, state directories and records that are not as they should be.

Invariants: every refusal is one sentence that names the thing and the way out, with its exit code (2 wrong usage,
1 failed) and no traceback; nothing hangs; nothing that was refused leaves a mark in Kafka; what is bad in one record,
name or request does not stop the others.
"""

import json
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
from kafka import TopicPartition

from tests.helpers import (
    Completed,
    Process,
    Processes,
    eventually,
    free_port,
    gokamsg_argv,
    gokamsg_env,
    run_gokamsg,
    slowness,
)
from tests.kafka_server import KafkaCluster, KafkaServer
from tests.plain_clients import plain_producer
from tests.system import fold
from tests.system.messaging import ROLES, Ledger, Load, Message, Messaging, pause
from tests.system.traffic import chatter

COMPACT = {"cleanup.policy": "compact"}


def _refused(done: Completed, code: int, *said: str) -> None:
    assert done.returncode == code, str(done)
    assert "Traceback" not in done.stderr, str(done)
    assert done.stderr.startswith("Error: "), str(done)
    for part in said:
        assert part in done.stderr, f"{part!r} is not said:\n{done}"


def _in_time(done: Completed) -> None:
    """Within five seconds; what a busy machine adds to the command's own start is not counted."""
    assert done.seconds <= 5.0 or done.seconds <= 4.0 + slowness(), f"more than 5 s: {done}"


def _ends_refused(process: Process, code: int, *said: str, timeout_s: float = 60.0) -> None:
    assert process.wait(timeout_s) == code, process.tail()
    text = process.stderr()
    assert "Traceback" not in text, process.tail()
    for part in said:
        assert part in text, f"{part!r} is not said:\n{process.tail()}"


# Wrong usage


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("process", "--role", "filtr"),
            ("'filtr'", "blocker", "collector", "detector", "filter", "translator", "all"),
        ),
        (("process", "--guarantee", "maybe"), ("maybe", "exactly-once", "at-least-once")),
        (("process", "--on-error", "cry"), ("cry", "stop", "skip")),
        (("process", "--start", "middle"), ("middle", "earliest", "latest")),
        (("process", "--workers", "0"), ("--workers", "1")),
        (("process", "--workers", "many"), ("--workers", "'many'; it must be a whole number")),
        (("process", "--transaction-timeout", "soon"), ("--transaction-timeout", "soon")),
        (("process", "--detect-share", "2"), ("--detect-share", "1")),
        (("process", "--no-such-option"), ("--no-such-option",)),
        (("serve", "--port", "70000"), ("--port", "65,535")),
        (("broker", "--port", "70000"), ("Error: --port", "65,535")),
        (("loadgen", "--rate", "0"), ("--rate",)),
        (("loadgen", "--spam", "7"), ("--spam",)),
        (("loadgen", "--url", "no address"), ("--url",)),
        (("feed",), ("USER",)),
        (("send", "Bob"), ("TO",)),
        (("dance",), ("dance",)),
        (("process", "--kafka-config", "/no/such/file"), ("--kafka-config", "/no/such/file")),
    ],
    ids=lambda value: " ".join(value) if value and value[0] in ("process", "serve", "loadgen", "feed", "send") else "",
)
def test_wrong_usage_is_refused_with_what_is_allowed(arguments: tuple[str, ...], said: tuple[str, ...]) -> None:
    _refused(run_gokamsg(*arguments), 2, *said)


def test_a_wrong_setting_in_the_environment_is_refused_the_same_way() -> None:
    _refused(run_gokamsg("process", env={"GOKAMSG_ROLE": "filtr"}), 2, "'filtr'", "collector")
    _refused(run_gokamsg("serve", env={"GOKAMSG_PORT": "many"}), 2, "--port", "'many'; it must be a whole number")


# Brokers

COMMANDS = [
    ("process", "--role", "collector"),
    ("serve", "--port", "0"),
    ("send", "Bob", "Alice", "hi"),
    ("feed", "Alice"),
    ("block", "Bob"),
    ("translate", "a", "b"),
    ("topics", "describe"),
    ("status",),
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda value: value[0])
def test_no_broker_is_said_within_five_seconds(arguments: tuple[str, ...], tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    done = run_gokamsg(*arguments, "--brokers", address, "--state-dir", str(tmp_path))
    _refused(done, 1, address, "--brokers")
    _in_time(done)


def test_a_broker_that_says_nothing_is_given_up_within_five_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        done = run_gokamsg("feed", "Alice", "--brokers", address, "--state-dir", str(tmp_path))
    _refused(done, 1, address)
    _in_time(done)


@pytest.mark.parametrize(
    "properties",
    [
        "security.protocol=SSL\n",
        "security.protocol=SASL_PLAINTEXT\nsasl.mechanism=PLAIN\nsasl.jaas.config="
        'org.apache.kafka.common.security.plain.PlainLoginModule required username="u" password="p";\n',
    ],
    ids=["TLS", "SASL"],
)
def test_a_broker_that_refuses_us_is_said_within_five_seconds(
    kafka_cluster: KafkaCluster, tmp_path: Path, properties: str
) -> None:
    file = tmp_path / "client.properties"
    file.write_text(properties)
    common = ("--brokers", kafka_cluster.address, "--state-dir", str(tmp_path), "--kafka-config", str(file))
    commands = (("feed", "Alice"), ("process", "--role", "filter"))
    with ThreadPoolExecutor(len(commands)) as at_once:  # they wait most of the time
        for done in at_once.map(lambda arguments: run_gokamsg(*arguments, *common), commands):
            _refused(done, 1, kafka_cluster.address)
            _in_time(done)


@pytest.mark.any_broker("apache")
def test_a_broker_gone_during_a_run_is_said_once_and_survived(
    own_cluster: KafkaServer, run: Processes, tmp_path: Path, seed: int
) -> None:
    """It is stopped, then killed, under the same processes; what was acknowledged meanwhile is accounted for."""
    messaging = Messaging(own_cluster, run, tmp_path)
    worker = messaging.role("all")
    messaging.running(worker, "collector", "blocker", "filter", "translator", "detector", timeout_s=60)
    service = messaging.serve()
    ledger = Ledger()
    messages = chatter(seed)
    _speak(messaging, messages, ledger)
    messaging.drained()
    own_cluster.stop()
    body = json.dumps({"to": "Alice", "content": "while it is away"})
    status, text = messaging.request("POST", "/Bob/send", body)
    assert status == 503, text
    ledger.unknown["Bob", "Alice", "while it is away"] += 1
    _back(own_cluster, messaging, ledger)
    _said_once(worker, service, times=1)
    _speak(messaging, messages, ledger)
    own_cluster.kill()
    pause(seconds=3)
    _back(own_cluster, messaging, ledger)
    _speak(messaging, messages, ledger)
    messaging.account(ledger)
    assert worker.running, worker.tail()
    assert service.running, service.tail()
    _said_once(worker, service, times=2)


def _speak(messaging: Messaging, messages: Iterator[Message], ledger: Ledger) -> None:
    with Load(messaging, messages, rate=50) as load:
        pause(seconds=1)
        load.stop()
    ledger.acknowledged.update(load.ledger.acknowledged)


def _said_once(worker: Process, service: Process, *, times: int) -> None:
    """Each part has said of each time that the brokers were away at most once that they are."""
    for process, speakers in ((worker, ROLES), (service, ("",))):
        lines = [line for line in process.stderr().splitlines() if "no broker" in line or "not reach" in line]
        said = {speaker: sum(line.startswith(speaker) for line in lines) for speaker in speakers}
        assert all(count <= times for count in said.values()), f"said more than once: {said}\n{process.tail()}"


def _back(cluster: KafkaServer, messaging: Messaging, ledger: Ledger) -> None:
    cluster.start()
    eventually("the service accepts again", lambda: _accepts(messaging, ledger), timeout_s=60, interval_s=0.5)


def _accepts(messaging: Messaging, ledger: Ledger) -> bool:
    message = ("Bob", "Alice", f"back at {time.monotonic()}")
    status, _ = messaging.request("POST", "/Bob/send", json.dumps({"to": "Alice", "content": message[2]}))
    (ledger.acknowledged if status == 200 else ledger.unknown)[message] += 1
    return status == 200


# Topics


@pytest.mark.parametrize(
    ("topics", "said"),
    [
        (
            {"collector-table": {"num_partitions": 4, "configs": COMPACT}, "message_received": {"num_partitions": 8}},
            ("collector-table", "message_received", "4", "8"),
        ),
        ({"collector-table": {"num_partitions": 8, "configs": {"cleanup.policy": "delete"}}}, ("collector-table",)),
    ],
    ids=["partitions", "cleanup policy"],
)
def test_topics_of_another_shape_are_refused_with_the_mending_command(
    messaging: Messaging, topics: dict[str, dict[str, object]], said: tuple[str, ...]
) -> None:
    messaging.cluster.create_topics(topics)
    process = messaging.role("collector")
    _ends_refused(process, 1, "kafka-", *said)
    assert messaging.read("collector-table") == []


# State


@pytest.mark.any_broker
def test_a_state_directory_that_cannot_be_made_is_said(messaging: Messaging) -> None:
    """Its parent is a file: no permission could help, so this holds for root too."""
    blocked = messaging.directory / "a-file"
    blocked.write_text("")
    for arguments in (("process", "--role", "collector"), ("serve", "--port", "0")):
        done = messaging.run(*arguments, "--state-dir", str(blocked / "state"), timeout_s=60)
        assert done.returncode == 1, str(done)
        assert "Traceback" not in done.stderr, str(done)
        assert str(blocked) in done.stderr, str(done)


@pytest.mark.any_broker
def test_a_disk_that_takes_no_more_is_said_and_nothing_is_lost(messaging: Messaging) -> None:
    """The limit of a file's size stands for the full disk; without it, the same command goes on where it stopped."""
    argv = ["bash", "-c", 'ulimit -f 128; exec "$@"', "bash", *gokamsg_argv("process", "--role", "collector")]
    env = gokamsg_env(messaging.env)
    limited = messaging.started.add(Process(argv, messaging.started.log_dir, name="limited", env=env))
    messaging.running(limited, "collector")
    messaging.serve("--direct")
    for number in range(300):
        messaging.post("Bob", f"user {number}", f"{number} " + "x" * 5_000)
    _ends_refused(limited, 1, str(messaging.directory / "state"), timeout_s=120)
    again = messaging.role("collector")
    messaging.running(again, "collector")
    messaging.drained("collector")
    received = messaging.read("message_received")
    assert len(received) == 300
    assert messaging.table("collector-table") == fold.feeds(received)


@pytest.mark.any_broker
def test_a_copied_state_directory_is_noticed(messaging: Messaging) -> None:
    """The copy has the same identity: of the two processes one ends and says so, and no message is lost or doubled."""
    original = messaging.role("collector")
    messaging.running(original, "collector")
    messaging.serve("--direct")
    messaging.arrives("Bob", "Alice", "before")
    shutil.copytree(messaging.directory / "state", messaging.directory / "copy")
    copy = messaging.role("collector", state="copy")
    eventually("one of the two ended", lambda: not (original.running and copy.running), timeout_s=60)
    ended, other = (original, copy) if not original.running else (copy, original)
    _ends_refused(ended, 1, "another process uses this worker's identity")
    for number in range(20):
        messaging.arrives("Bob", "Alice", f"after {number}")
    assert other.running, other.tail()
    messaging.drained("collector")
    assert messaging.table("collector-table") == fold.feeds(messaging.read("message_received"))


# Offsets


def _with_some_history(messaging: Messaging) -> None:
    filters = messaging.role("filter", "collector")
    messaging.running(filters, "filter", "collector")
    messaging.serve()
    for number in range(40):
        messaging.post(f"user {number}", "Alice", f"{number}")
    messaging.drained("message_filter", "collector")
    assert filters.terminate() == 0, filters.tail()


@pytest.mark.any_broker("apache")
def test_a_lost_offset_is_not_guessed_at(messaging: Messaging) -> None:
    _with_some_history(messaging)
    with messaging.cluster.admin() as admin:
        admin.delete_group_offsets("message_filter", [TopicPartition("message_sent", 4)])
    before = len(messaging.read("message_received"))
    _ends_refused(messaging.role("filter"), 1, "message_sent", "4", "--start")
    assert len(messaging.read("message_received")) == before

    again = messaging.role("filter", options=("--start", "latest"))
    messaging.running(again, "filter")
    messaging.post("Bob", "Alice", "onwards")
    messaging.drained("message_filter")
    assert len(messaging.read("message_received")) == before + 1


@pytest.mark.any_broker
def test_an_offset_below_the_logs_start_is_not_guessed_at(messaging: Messaging) -> None:
    _with_some_history(messaging)
    producer = plain_producer(messaging.cluster.address)
    for number in range(5):
        value = json.dumps({"From": "Bob", "To": "Alice", "Content": str(number)}).encode()
        last = producer.send("message_sent", value, b"Bob", partition=4).get(timeout=10)
    producer.close()
    with messaging.cluster.admin() as admin:
        admin.delete_records({TopicPartition("message_sent", 4): last.offset})
    _ends_refused(messaging.role("filter"), 1, "message_sent", "4", "--start")

    again = messaging.role("filter", options=("--start", "earliest"))
    messaging.running(again, "filter")
    messaging.drained("message_filter")
    contents = [record.json["Content"] for record in messaging.read("message_received")]
    assert contents.count("4") == 2  # one of the history, and the only one of the five that is left


# HTTP


@pytest.mark.any_broker
def test_bad_requests_are_answered_with_a_sentence_and_leave_no_mark(messaging: Messaging) -> None:
    messaging.running(messaging.role("collector", "filter"), "collector", "filter")
    messaging.serve()
    cases: list[tuple[str, str, str | bytes | None, dict[str, str], int]] = [
        ("POST", "/Bob/send", "no json", {}, 400),
        ("POST", "/Bob/send", "", {}, 400),
        ("POST", "/Bob/send", '{"content": "to nobody"}', {}, 400),
        ("POST", "/Bob/send", '{"to": "", "content": "to nobody"}', {}, 400),
        ("POST", "/Bob/send", '{"to": 1, "content": "x"}', {}, 400),
        ("POST", "/Bob/send", '{"to": "Alice", "content": ["x"]}', {}, 400),
        ("POST", "/Bob/send", '["Alice"]', {}, 400),
        ("POST", "/Bob/send", json.dumps({"to": "x" * 20_000, "content": "x"}), {}, 400),
        ("POST", "/-bob/send", '{"to": "Alice", "content": "x"}', {}, 400),
        ("POST", "/%FF/send", '{"to": "Alice", "content": "x"}', {}, 400),
        ("POST", "/Bob/send", json.dumps({"to": "Alice", "content": "x" * 70_000}), {}, 413),
        ("POST", "/Bob/send", '{"to": "Alice", "content": "x"}', {"Origin": "http://evil.example"}, 403),
        ("POST", "/Bob/send", '{"to": "Alice", "content": "x"}', {"Sec-Fetch-Site": "cross-site"}, 403),
        ("GET", "/Bob/send", None, {}, 405),
        ("GET", "/nothing/here/at/all", None, {}, 404),
        ("GET", "/Nobody/feed", None, {}, 404),
    ]
    for method, path, body, headers, expected in cases:
        for accept in ("application/json", "*/*"):
            status, text = messaging.request(method, path, body, {"Accept": accept, **headers})
            assert status == expected, f"{method} {path} {str(body)[:60]}: {status} {text}"
            assert text.strip(), f"{method} {path}: an empty answer"
            if accept == "application/json":
                assert json.loads(text)["error"]
    messaging.arrives("Bob", "Alice", "a good one")
    assert len(messaging.read("message_sent")) == 1


# Names and words

NAMES = [
    "zü", "名前", "🙂🙂", "a/b", "/", "100%", "%2F", "new\nline", "tab\t", " ", "  two  ", "'", '"', "\\", "..", "?a=b",
    "#", "\u2028", "e\u0301", "\u202e", "A" * 1000, "__offset", "<script>", "\u00a0",
]  # fmt: skip


@pytest.mark.any_broker
def test_names_of_any_script_and_punctuation_work_or_are_refused_by_name(messaging: Messaging) -> None:
    """What was accepted is shown to its recipient; what was refused says why. Empty and 10 KB are among them."""
    everything = messaging.role("all")
    messaging.running(everything, "collector", "filter", "blocker", "translator", timeout_s=60)
    messaging.serve()
    accepted = []
    for name in [*NAMES, "", "B" * 10_000]:
        body = json.dumps({"to": name, "content": f"to {name[:20]!r}"})
        status, text = messaging.request("POST", f"/{quote(name, safe='')}/send", body)
        assert status in (200, 400), f"{name[:40]!r}: {status} {text}"
        if status == 200:
            accepted.append(name)
    assert set(NAMES) <= set(accepted)
    messaging.drained("message_filter", "collector")
    for name in accepted:
        _shows(messaging, name, f"to {name[:20]!r}")
    assert fold.misplaced(messaging.read("message_received")) == []


def _shows(messaging: Messaging, name: str, content: str) -> None:
    eventually(f"the feed of {name[:40]!r} shows its message", lambda: messaging.feed(name) == [content])


@pytest.mark.any_broker
def test_words_of_any_script_and_punctuation_work_or_are_refused_by_name(messaging: Messaging) -> None:
    translator = messaging.role("translator", "filter", "collector")
    messaging.running(translator, "translator", "filter", "collector")
    messaging.serve()
    words = {"lunch": "", "zü": "名前", "a/b": "c%d", "x\ny": "z\nz", "<&>": "\u2028", "\U0001f642": "smile", "%": "%%"}
    for word, text in words.items():
        messaging.done("translate", word, text)
    _refused(messaging.run("translate", "two words", "x"), 2, "two words")
    _refused(messaging.run("translate", "w" * 10_000, "x"), 2, "word")
    expected = {key: value.encode() for key, value in words.items()}

    def table() -> dict[str, bytes]:
        return {record.key: record.value or b"" for record in messaging.read("translator-table")}

    eventually("the table holds every word", lambda: table() == expected)
    sentence = " ".join(words)
    eventually("the filter knows them", lambda: _translated(messaging, sentence, words), timeout_s=20, interval_s=0.5)


def _translated(messaging: Messaging, sentence: str, words: dict[str, str]) -> bool:
    messaging.post("Bob", "Alice", sentence)
    messaging.drained("message_filter")
    last = messaging.read("message_received")[-1].json["Content"]
    expected = fold.translate(sentence, words)
    assert last == expected, f"{last!r}, expected {expected!r}"
    return True


# Records

BAD_VALUES = [None, b"", b"{", b"[1]", b'"text"', b'{"From":1}', b'{"To":["x"]}', b"NaN", b'{"From":"a"} trailing']
# Go's decoder takes these: unknown fields, other cases, null, invalid UTF-8 (which becomes U+FFFD).
ODD_VALUES = [b'{"to":"Alice","x":1}', b'{"TO":"Alice","from":null}', b'{"From":"\xff","To":"Alice","Content":"\xff"}']


def _produce(messaging: Messaging, topic: str, key: str, values: list[bytes | None]) -> None:
    producer = plain_producer(messaging.cluster.address)
    for value in values:
        producer.send(topic, value, key.encode(), partition=fold.partition_of(key, 8)).get(timeout=10)
    producer.close()


@pytest.mark.any_broker
def test_bad_records_are_skipped_by_policy(messaging: Messaging) -> None:
    worker = messaging.role("filter", "collector", options=("--on-error", "skip"))
    messaging.running(worker, "filter", "collector")
    messaging.serve()
    messaging.arrives("Bob", "Alice", "before")
    _produce(messaging, "message_sent", "Bob", [*BAD_VALUES, *ODD_VALUES])
    messaging.arrives("Bob", "Alice", "after")
    messaging.drained("message_filter", "collector")
    received = messaging.read("message_received")
    assert [record.json["Content"] for record in received] == ["before", "", "", "\ufffd", "after"]
    assert received[3].json["From"] == "\ufffd"
    assert worker.running, worker.tail()
    assert "skipped" in worker.stderr() + worker.stdout(), worker.tail()


@pytest.mark.any_broker
def test_a_bad_record_stops_the_worker_that_says_which(messaging: Messaging) -> None:
    """Restarted, it stops at the same record again; told to skip, it goes on behind it."""
    worker = messaging.role("filter", options=("--on-error", "stop"))
    messaging.running(worker, "filter")
    messaging.serve()
    messaging.post("Bob", "Alice", "before")
    _produce(messaging, "message_sent", "Bob", [b"{"])
    bad = messaging.read("message_sent")[-1]
    messaging.post("Bob", "Alice", "after")
    said = ("message_sent", str(bad.partition), str(bad.offset))
    _ends_refused(worker, 1, *said, timeout_s=90)
    assert [record.json["Content"] for record in messaging.read("message_received")] == ["before"]

    skipping = messaging.role("filter", options=("--on-error", "skip"))
    messaging.running(skipping, "filter")
    messaging.drained("message_filter")
    assert [record.json["Content"] for record in messaging.read("message_received")] == ["before", "after"]
