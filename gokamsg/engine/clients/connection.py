"""Connections of kafka-python that end: what its own leave open or wait for without a limit.

- The socket of a refused connection is closed at once, not by the garbage collector.
- A TLS handshake that the other side does not answer ends with the connection's time limit; kafka-python's has none,
  and with it a client's constructor would never return.
- Certificates are loaded once, and what is wrong with them is said before anything is connected.
- What the other side says before it closes is read; kafka-python drops it when both arrive together, such as the reason
  of a refused password.
- Much is received at a time. kafka-python asks for 4 KB, and for each of them its thread waits until the thread that
  handles records lets it have the interpreter: a fetched answer of some MB took as long as handling it.
- Topics that a client has not asked about yet are asked for at once; kafka-python waits 100 ms after its last question.
- A topic may be added while the question for others is written. In kafka-python that ends the task that asks, for good:
  nothing that the client asks for is found any more.
- Whoever leads the topics of a client is connected to as soon as it is known. kafka-python connects when it has
  something to ask, which then waits for several round trips.
- While a client is built, a refusal that trying again cannot change (password, certificate) ends it at once;
  kafka-python tries until its time is over, and then says only that.
"""

import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from kafka import TopicPartition
from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket, create_connection
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from gokamsg.errors import UsageError

# A MB at a time costs five times as much: its memory comes from the system, and goes back, each time.
_RECEIVE_BYTES = 256 << 10


class ClosingSocket(KafkaNetSocket):  # type: ignore[misc]  # kafka-python has no types
    """kafka-python chooses a kind of socket by the scheme of `proxy_url`; this is a direct one."""

    SCHEMES = ("gokamsg-direct",)

    async def sock_connect(self, net: Any, sock: socket.socket, sockaddr: Any, timeout_at: float | None = None) -> Any:
        try:
            return await super().sock_connect(net, sock, sockaddr, timeout_at=timeout_at)
        except BaseException:
            sock.close()
            raise


class Attempts:
    """What became of a client's connections while it is built. Written by kafka-python's thread.

    `hung_up`: one was ended by the other side, or answered with what is no Kafka.
    """

    def __init__(self) -> None:
        self.connected = False
        self.hung_up = False
        self.refusal: Exception | None = None
        self.over = False

    def made(self, _: object) -> None:
        self.connected = True

    def failed(self, error: Exception) -> None:
        # What comes last may only be that time is over.
        self.hung_up = self.hung_up or isinstance(error, _NO_KAFKA)
        cause = error.__cause__
        untrusted = isinstance(cause, ssl.SSLCertVerificationError)
        no_tls = isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER"
        if untrusted or no_tls or isinstance(error, _FINAL) or _wants_certificate(error):
            self.refusal = error


_NO_KAFKA = (kafka_errors.KafkaConnectionError, kafka_errors.KafkaProtocolError)
_FINAL = (
    kafka_errors.SaslAuthenticationFailedError,
    kafka_errors.UnsupportedSaslMechanismError,
    kafka_errors.AuthorizationError,
    kafka_errors.KafkaConfigurationError,
)


def _wants_certificate(error: Exception) -> bool:
    """With TLS 1.3 the other side says so in its first answer, after the handshake."""
    said = str(error)
    return "_ALERT_" in said and ("CERTIFICATE" in said or "UNKNOWN_CA" in said)


def bound(client: KafkaNetClient, attempts: Attempts) -> KafkaNetClient:
    """The client, with handshakes that end and with its attempts noted."""
    manager = client._manager
    get_connection, bootstrap_brokers = manager.get_connection, manager.cluster.bootstrap_brokers

    def noted_connection(*args: Any, **kwargs: Any) -> Any:
        connection = get_connection(*args, **kwargs)
        if not attempts.over:
            connection._init_future.add_callback(attempts.made)
            connection._init_future.add_errback(attempts.failed)
        return connection

    def brokers_to_try() -> Any:
        if attempts.refusal is not None and not attempts.over:
            raise attempts.refusal
        return bootstrap_brokers()

    manager.get_connection, manager.cluster.bootstrap_brokers = noted_connection, brokers_to_try
    _ask_at_once(manager.cluster)

    async def build_transport(node: Any, timeout_at: float | None = None) -> Any:
        config, net = manager.config, manager._net
        sock = await create_connection(
            net, node.host, node.port, config["socket_options"], proxy_url=config["proxy_url"], timeout_at=timeout_at
        )
        kind = KafkaSSLTransport if manager.ssl_enabled else _PromptTransport
        settings = {key: value for key, value in config.items() if key.startswith("ssl_")}
        transport = kind(net, sock, host=node.host, **(settings if manager.ssl_enabled else {}))
        timer = None if timeout_at is None else net.call_at(timeout_at, lambda: _wake(transport._sock))
        try:
            await transport.handshake()
        except Exception as error:
            transport._sock.close()
            raise kafka_errors.KafkaConnectionError(f"Handshake failed: {error}") from error
        finally:
            if timer is not None:
                net.cancel(timer)
        transport._sock_recv = _last_words(transport) if manager.ssl_enabled else _much(transport._sock)
        return transport

    manager._build_transport = build_transport
    return client


def know(manager: Any, topics: Iterable[str]) -> None:
    """Asks for these topics, and connects to whoever leads them, as soon as that is known and when it changes. For any
    thread; waits for nothing."""
    wanted, told = tuple(topics), manager.cluster

    def connect(cluster: Any) -> None:
        for topic in wanted:
            for partition in cluster.partitions_for_topic(topic) or ():
                with suppress(kafka_errors.KafkaError):  # told to whoever needs the connection
                    manager.get_connection(cluster.leader_for_partition(TopicPartition(topic, partition)))

    def begin() -> None:
        told.add_listener(connect)
        connect(told)

    manager.call_soon(begin)  # only the client's own thread goes through its listeners
    for topic in wanted:
        told.add_topic(topic)


class _PromptTransport(KafkaTCPTransport):  # type: ignore[misc]  # kafka-python has no types
    """Sends what the socket takes at once; kafka-python waits a turn of its loop to be told that it takes any."""

    def write(self, data: Any) -> None:
        if self._writing or self._closed or not self._write or not data:
            super().write(data)
            return
        try:
            sent = self._sock.send(data)
        except OSError:
            sent = 0  # whatever it is, it is met again where it is handled
        self.last_write = time.monotonic()
        if sent < len(data):
            super().write(memoryview(data)[sent:])


class Selector(selectors.DefaultSelector):
    """Says that a socket is not registered without describing it, which takes four calls of the system: kafka-python
    asks before each wait."""

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        if fileobj.fileno() not in list(self.get_map() or ()):
            raise KeyError(fileobj)
        return super().get_key(fileobj)


def _ask_at_once(cluster: Any) -> None:
    """The pause is meant between two tries of one question, and its length is no setting that reaches it."""
    changing = threading.Lock()
    set_topics = cluster.set_topics

    def ask_for(topics: set[str]) -> Any:
        if not cluster._topics.issuperset(topics):
            cluster._last_refresh_ms = 0
        return set_topics(topics)

    def ask_for_all(topics: Iterable[str]) -> Any:
        with changing:
            return ask_for(set(topics))

    def ask_for_one_more(topic: str) -> Any:
        with changing:
            return ask_for({*cluster._topics, topic})  # a new set: another thread may be going through this one

    cluster.set_topics, cluster.add_topic = ask_for_all, ask_for_one_more


def _last_words(transport: KafkaTCPTransport) -> Callable[[], tuple[bytes, Exception | None]]:
    receive = transport._sock_recv

    def data_or_error() -> tuple[bytes, Exception | None]:
        data, error = receive()
        return data, None if data else error

    return data_or_error


def _much(sock: socket.socket) -> Callable[[], tuple[bytes, Exception | None]]:
    def data_or_error() -> tuple[bytes, Exception | None]:
        try:
            data = sock.recv(_RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return b"", None
        except OSError as error:
            return b"", kafka_errors.KafkaConnectionError(error)
        return data, None if data else kafka_errors.KafkaConnectionError("socket disconnected")

    return data_or_error


def tls_context(security: Mapping[str, Any]) -> ssl.SSLContext | None:
    """What the TLS settings mean, None for connections without; UsageError when a file is missing or no PEM file."""
    if security.get("security_protocol") not in ("SSL", "SASL_SSL"):
        return None
    # An empty password in place of none: OpenSSL would ask for it on the terminal.
    settings = {**KafkaSSLTransport.DEFAULT_CONFIG, **security, "ssl_password": security.get("ssl_password") or ""}
    try:
        context = KafkaSSLTransport._build_ssl_context(settings)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = dict.fromkeys(str(value) for name, value in security.items() if name.endswith("file"))
        reason: object = error
        if isinstance(error, OSError) and error.filename is None and settings["ssl_certfile"]:
            with suppress(OSError, ValueError):
                KafkaSSLTransport._build_ssl_context({**settings, "ssl_certfile": None})
                reason = "they hold no certificate with a private key that ssl.key.password opens"
        raise UsageError(f"the TLS files {', '.join(files)} cannot be used: {reason}") from error
    assert isinstance(context, ssl.SSLContext)
    return context


def _wake(sock: socket.socket) -> None:
    with suppress(OSError):  # it ended meanwhile
        sock.shutdown(socket.SHUT_RDWR)
