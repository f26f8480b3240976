"""How the clients are told where the brokers are, and what a person reads when nobody answers. No Kafka needed."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import trustme

from gokamsg.engine.clients import (
    Admin,
    ClientConfig,
    GroupConsumer,
    IdempotentProducer,
    TableConsumer,
    TransactionalProducer,
    check_broker,
)
from gokamsg.errors import BrokerUnavailableError, UsageError
from tests.helpers import free_port

HANDSHAKE = b"\x16"


@contextmanager
def listener(answer: bytes | None) -> Iterator[str]:
    """Something on a port that is no Kafka broker: it answers every request with these bytes, or never."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        open_sockets: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    accepted, _ = server.accept()
                except OSError:
                    return
                open_sockets.append(accepted)
                if answer is not None:
                    threading.Thread(target=talk, args=(accepted,), daemon=True).start()

        def talk(accepted: socket.socket) -> None:
            with accepted, suppress(OSError):
                while accepted.recv(1000):
                    accepted.sendall(answer or b"")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for accepted in open_sockets:
            accepted.close()


def test_addresses() -> None:
    assert ClientConfig("a:1, b:2,").addresses == ("a:1", "b:2")
    assert ClientConfig(("a:1", "[::1]:9092", "c")).addresses == ("a:1", "[::1]:9092", "c")
    for wrong in ("", "a:b", "a:0", "a:99999", ":9092", "a:1,b:x"):
        with pytest.raises(UsageError, match="address"):
            ClientConfig(wrong)


@pytest.mark.parametrize(
    ("properties", "settings"),
    [
        ({}, {}),
        ({"acks": "all", "auto.offset.reset": "latest"}, {}),
        (
            {
                "security.protocol": "sasl_ssl",
                "sasl.mechanism": "SCRAM-SHA-256",
                "sasl.jaas.config": (
                    "org.apache.kafka.common.security.scram.ScramLoginModule required "
                    'username="alice" password="a \'b;";'
                ),
                "ssl.truststore.location": "/ca.pem",
                "ssl.truststore.type": "PEM",
            },
            {
                "security_protocol": "SASL_SSL",
                "sasl_mechanism": "SCRAM-SHA-256",
                "sasl_plain_username": "alice",
                "sasl_plain_password": "a 'b;",
                "ssl_cafile": "/ca.pem",
            },
        ),
        (
            {"sasl.username": "u", "sasl.password": "p", "ssl.ca.location": "/ca", "ssl.key.location": "/key"},
            {"sasl_plain_username": "u", "sasl_plain_password": "p", "ssl_cafile": "/ca", "ssl_keyfile": "/key"},
        ),
        ({"ssl.endpoint.identification.algorithm": ""}, {"ssl_check_hostname": False}),
    ],
)
def test_client_properties(properties: dict[str, str], settings: dict[str, object]) -> None:
    assert ClientConfig("a:1", properties=properties).security == settings


def test_a_configuration_does_not_show_its_secrets() -> None:
    config = ClientConfig("a:1", properties={"sasl.username": "u", "sasl.password": "sesame"})
    assert "sesame" not in f"{config} {config!r}"


@pytest.mark.parametrize(
    ("properties", "sentence"),
    [
        ({"ssl.truststore.location": "/x.jks"}, "must be a PEM file"),
        ({"ssl.keystore.location": "/x", "ssl.keystore.type": "PKCS12"}, "must be a PEM file"),
        ({"sasl.login.class": "x"}, "'sasl.login.class' is not supported"),
        ({"sasl.jaas.config": "Module required;"}, "holds no username and password"),
        ({"security.protocol": "TLS"}, "security.protocol is 'TLS'; it can be PLAINTEXT, SSL"),
        ({"security.protocol": "SASL_SSL"}, "sasl.mechanism is missing; with SASL_SSL it can be PLAIN"),
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER"}, "sasl.mechanism is 'OAUTHBEARER'"),
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN"}, "needs sasl.username and sasl.password"),
    ],
)
def test_client_properties_that_cannot_be_followed_are_refused(properties: dict[str, str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        ClientConfig("a:1", properties=properties)


CLIENTS: dict[str, Callable[[ClientConfig], object]] = {
    "check": check_broker,
    "admin": Admin,
    "group": lambda config: GroupConsumer(config, group="g", topics=["t"]),
    "table": TableConsumer,
    "transactional": lambda config: TransactionalProducer(config, transactional_id="t"),
    "idempotent": IdempotentProducer,
}


def refusal(build: Callable[[ClientConfig], object], config: ClientConfig) -> str:
    started = time.monotonic()
    with pytest.raises(BrokerUnavailableError) as caught:
        build(config)
    assert time.monotonic() - started < 5.5
    assert not [thread for thread in threading.enumerate() if "kafka" in thread.name]  # nothing goes on trying
    return str(caught.value)


@pytest.mark.parametrize("build", CLIENTS.values(), ids=CLIENTS)
def test_nobody_listens(build: Callable[[ClientConfig], object]) -> None:
    port = free_port()
    message = refusal(build, ClientConfig(f"127.0.0.1:{port}"))
    assert message == f"no Kafka broker answers at 127.0.0.1:{port} (connection refused)"


def test_that_nobody_listens_is_told_at_once() -> None:
    started = time.monotonic()
    refusal(check_broker, ClientConfig(f"127.0.0.1:{free_port()},127.0.0.1:{free_port()}"))
    refusal(TableConsumer, ClientConfig(f"127.0.0.1:{free_port()}"))
    assert time.monotonic() - started < 1


def test_certificates_are_looked_at_first(tmp_path: Path) -> None:
    for content in (None, "no certificate"):
        path = tmp_path / "ca.pem"
        if content:
            path.write_text(content)
        properties = {"security.protocol": "SSL", "ssl.ca.location": str(path)}
        with pytest.raises(UsageError, match=r"the TLS files .*ca\.pem cannot be used"):
            TableConsumer(ClientConfig("127.0.0.1:9092", properties=properties))


def test_an_unknown_host_is_named() -> None:
    assert "host name 'nowhere.invalid' is not known" in refusal(check_broker, ClientConfig("nowhere.invalid:9092"))


@pytest.mark.parametrize("answer", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00\x00\x00\x04\x00\x00\x00\x09"])
@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL"])
def test_something_else_listens(answer: bytes | None, protocol: str) -> None:
    with listener(answer) as address:
        soon = partial(check_broker, timeout_s=1.5)
        message = refusal(soon, ClientConfig(address, properties={"security.protocol": protocol}))
        if protocol == "SSL" and answer is not None:
            assert message == f"{address} does not speak TLS; check security.protocol and the port"
        else:
            assert "something listens, but does not answer as a Kafka broker" in message
            assert protocol in message


@contextmanager
def slow_tls() -> Iterator[str]:
    """A TLS port: it hangs up on the first who does not speak TLS, and leaves later ones without an answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as pool:
        hung_up = threading.Event()

        def talk(accepted: socket.socket) -> None:
            with accepted, suppress(OSError):
                first = accepted.recv(1, socket.MSG_PEEK)
                if first == HANDSHAKE:
                    with context.wrap_socket(accepted, server_side=True) as wrapped:
                        wrapped.recv(1)
                elif first and hung_up.is_set():
                    while accepted.recv(1000):
                        pass
                elif first:
                    hung_up.set()

        def serve() -> None:
            with suppress(OSError):
                while True:
                    pool.submit(talk, server.accept()[0])

        pool.submit(serve)
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_tls_is_told_though_the_last_attempt_was_not_answered() -> None:
    with slow_tls() as address:
        message = refusal(partial(check_broker, timeout_s=1.5), ClientConfig(address))
    assert "something listens that speaks TLS, and not PLAINTEXT" in message
