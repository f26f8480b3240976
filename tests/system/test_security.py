"""TLS and SASL by --kafka-config, against an Apache Kafka with a listener for each way in.

Invariants: every way in works for every kind of client that the commands have; every refusal is one sentence, within
five seconds, with the thing to check; no secret of the properties file is ever printed, also not with --debug.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers import Completed, Processes, eventually, run_gokamsg, slowness
from tests.secure_kafka import KEY_PASSWORD, PASSWORD, USER, SecureKafka

WRONG = "not-the-pass-word"
SECRETS = (PASSWORD, PASSWORD.replace('"', '\\"'), KEY_PASSWORD, WRONG)

Client = Callable[[SecureKafka], dict[str, str]]


@pytest.fixture(scope="module")
def secure(libs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    kafka = SecureKafka(tmp_path_factory.mktemp("secure"), libs)
    try:
        kafka.node.start()
        yield kafka
    finally:
        kafka.node.close()


def _login(listener: str, mechanism: str, password: str = PASSWORD, user: str = USER) -> Client:
    names = {"sasl.mechanism": mechanism, "sasl.username": user, "sasl.password": password}
    return lambda kafka: kafka.client(listener, names)


def _jaas(listener: str, mechanism: str) -> Client:
    quoted = PASSWORD.replace('"', '\\"')
    module = "scram.ScramLoginModule" if "SCRAM" in mechanism else "plain.PlainLoginModule"
    text = f'org.apache.kafka.common.security.{module} required username="{USER}" password="{quoted}";'
    return lambda kafka: kafka.client(listener, {"sasl.mechanism": mechanism, "sasl.jaas.config": text})


def _certificate(password: str) -> Client:
    return lambda kafka: kafka.client(
        "MUTUAL", {"ssl.keystore.location": str(kafka.client_file), "ssl.key.password": password}
    )


WAYS_IN: dict[str, Client] = {
    "TLS": lambda kafka: kafka.client("TLS"),
    "TLS with a certificate of ours": _certificate(KEY_PASSWORD),
    "PLAIN": _login("PLAIN", "PLAIN"),
    "PLAIN by JAAS": _jaas("PLAIN", "PLAIN"),
    "SCRAM-SHA-256": _login("SCRAM", "SCRAM-SHA-256"),
    "SCRAM-SHA-512 by JAAS": _jaas("SCRAM", "SCRAM-SHA-512"),
    "SCRAM without TLS": _login("BARE", "SCRAM-SHA-256"),
}

REFUSALS: dict[str, tuple[Client, int, str]] = {
    "wrong CA": (
        lambda kafka: kafka.client("TLS", {"ssl.ca.location": str(kafka.other_ca_file)}),
        1,
        "is not to be trusted: its certificate does not verify",
    ),
    "no CA": (lambda kafka: kafka.client("TLS", {"ssl.ca.location": None}), 1, "check ssl.ca.location"),
    "no certificate of ours": (lambda kafka: kafka.client("MUTUAL"), 1, "wants a certificate of ours"),
    "wrong password of the key": (_certificate(WRONG), 2, "with a private key that ssl.key.password opens"),
    "no password of the key": (_certificate(""), 2, "with a private key that ssl.key.password opens"),
    "wrong password, PLAIN": (_login("PLAIN", "PLAIN", WRONG), 1, "refuses us: Authentication failed"),
    "wrong password, SCRAM": (_login("SCRAM", "SCRAM-SHA-512", WRONG), 1, "refuses us: Authentication failed"),
    "unknown user": (_login("SCRAM", "SCRAM-SHA-256", user="mallory"), 1, "check sasl.mechanism, user name and"),
    "a mechanism that the listener has not": (_login("PLAIN", "SCRAM-SHA-256"), 1, "does not know sasl.mechanism"),
    "a plain client at a TLS port": (
        lambda kafka: kafka.client("TLS", {"security.protocol": "PLAINTEXT"}),
        1,
        "speaks TLS, and not PLAINTEXT; set security.protocol to SSL or SASL_SSL",
    ),
    "a TLS client at a plain port": (
        lambda kafka: kafka.client("BARE", {"security.protocol": "SSL"}),
        1,
        "check security.protocol, certificates and the port",
    ),
    "no login where one is wanted": (lambda kafka: kafka.client("SCRAM", {"security.protocol": "SSL"}), 1, "a login"),
    "no password": (
        lambda kafka: kafka.client("SCRAM", {"sasl.mechanism": "SCRAM-SHA-256", "sasl.username": USER}),
        2,
        "needs sasl.username and sasl.password",
    ),
    "a mechanism that is none": (_login("SCRAM", "SCRAM-SHA-1"), 2, "it can be PLAIN, SCRAM-SHA-256"),
    "a protocol that is none": (lambda kafka: kafka.client("TLS", {"security.protocol": "TLS"}), 2, "PLAINTEXT, SSL"),
}


def _keeps_secrets(text: str) -> None:
    assert [secret for secret in SECRETS if secret in text or repr(secret.encode())[2:-1] in text] == []


def _done(env: dict[str, str], *arguments: str) -> Completed:
    done = run_gokamsg(*arguments, env=env, timeout_s=60)
    assert done.returncode == 0, done
    return done


def _shows(read: Callable[[], Completed], shown: str) -> bool:
    return read().stdout == shown


def test_every_way_in_works_for_every_kind_of_client(secure: SecureKafka, run: Processes, tmp_path: Path) -> None:
    def client(way: str) -> dict[str, str]:
        return WAYS_IN[way](secure) | {"GOKAMSG_STATE_DIR": str(tmp_path)}

    collector = run.gokamsg("process", "--role", "collector", "--debug", name="collector", env=client("SCRAM-SHA-256"))
    service = run.gokamsg("serve", "--port", "0", "--debug", name="serve", env=client("PLAIN"))
    service.wait_line("feeds are ready", timeout_s=90)
    for number, way in enumerate(WAYS_IN):
        _done(client(way), "send", "--direct", "Bob", f"user {number}", way)
    for number, way in enumerate(WAYS_IN):
        shown = f"Latest messages for user {number}\n0        Bob: {way}\n"
        read = functools.partial(run_gokamsg, "feed", f"user {number}", env=client(way))
        eventually(f"{way} shows the message", functools.partial(_shows, read, shown), timeout_s=60)
    assert collector.terminate() == 0, collector.tail()
    assert service.terminate() == 0, service.tail()
    assert "DEBUG" in collector.stderr()
    _keeps_secrets(collector.stdout() + collector.stderr() + service.stdout() + service.stderr())


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_is_one_sentence_within_five_seconds(secure: SecureKafka, name: str) -> None:
    client, code, said = REFUSALS[name]
    done = run_gokamsg("feed", "Alice", env=client(secure), timeout_s=30)
    assert (done.returncode, done.stdout) == (code, ""), done
    assert len(done.stderr.splitlines()) == 1, done
    assert done.stderr.startswith("Error: "), done
    assert said in done.stderr, done
    assert done.seconds <= 5.0 or done.seconds <= 5.0 * slowness(), f"more than 5 s: {done}"
    _keeps_secrets(done.stderr)


@pytest.mark.parametrize("name", ["PLAIN", "SCRAM-SHA-512 by JAAS", "TLS with a certificate of ours"])
def test_no_secret_is_printed_with_debug(secure: SecureKafka, name: str) -> None:
    done = _done(WAYS_IN[name](secure), "topics", "describe", "--debug")
    assert "DEBUG kafka" in done.stderr
    _keeps_secrets(done.stdout + done.stderr)


def test_no_secret_is_printed_with_the_traceback_of_a_refusal(secure: SecureKafka) -> None:
    done = run_gokamsg("feed", "Alice", "--debug", env=_login("PLAIN", "PLAIN", WRONG)(secure), timeout_s=30)
    assert done.returncode == 1, done
    assert "Traceback" in done.stderr
    _keeps_secrets(done.stderr)
