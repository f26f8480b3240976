"""How the clients reach the brokers: addresses, security, timeouts; and the question "does anybody answer?".

ClientConfig is validated when it is built and does no I/O. `properties` are the entries of a standard Kafka client
properties file; the ones about security are understood in Java's and librdkafka's names, the others that this package
decides itself (acks, auto.offset.reset, …) are ignored. check_broker() and every client of this package raise
BrokerUnavailableError, one sentence, within five seconds when nobody answers.
"""

import logging
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kafka import errors as kafka_errors
from kafka.admin import KafkaAdminClient
from kafka.net.compat import KafkaNetClient
from msgspec import Struct

from gokamsg.engine.clients.connection import Attempts, ClosingSocket, Selector, bound, tls_context
from gokamsg.errors import BrokerUnavailableError, UsageError

log = logging.getLogger(__name__)
T = TypeVar("T")

BOOTSTRAP_TIMEOUT_S = 3.5
NOT_ANSWERED = "connections are accepted, but a request was not answered in time"

_PROPERTIES = {
    "security.protocol": "security_protocol",
    "sasl.mechanism": "sasl_mechanism",
    "sasl.mechanisms": "sasl_mechanism",
    "sasl.username": "sasl_plain_username",
    "sasl.password": "sasl_plain_password",
    "sasl.kerberos.service.name": "sasl_kerberos_service_name",
    "ssl.ca.location": "ssl_cafile",
    "ssl.truststore.location": "ssl_cafile",
    "ssl.certificate.location": "ssl_certfile",
    "ssl.keystore.location": "ssl_certfile",
    "ssl.key.location": "ssl_keyfile",
    "ssl.key.password": "ssl_password",
    "ssl.crl.location": "ssl_crlfile",
    "client.dns.lookup": "client_dns_lookup",
}
_HANDLED = {"sasl.jaas.config", "ssl.endpoint.identification.algorithm", "ssl.truststore.type", "ssl.keystore.type"}
_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_WITH_PASSWORD = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_MECHANISMS = (*_WITH_PASSWORD, "GSSAPI")
_JAAS = re.compile(r"""\b(username|password)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([^\s;]+))""")


@dataclass(frozen=True)
class ClientConfig:
    """Where the brokers are, and how all clients of one process reach them. UsageError when it cannot be used.

    brokers: HOST:PORT, several separated by commas or in a tuple. properties: entries of a client properties file, for
    TLS and SASL. request_timeout_ms: of one request. session_timeout_ms: a member of a group that is silent for so long
    is put out of it. heartbeat_interval_ms: a member hears that its group rebalances by its next heartbeat, so what a
    stopped one leaves rests for so long at most. fetch_max_wait_ms: how long a broker holds a fetch that finds nothing.
    """

    brokers: tuple[str, ...] | str
    client_id: str = "gokamsg"
    properties: Mapping[str, str] = field(default_factory=dict, repr=False)
    request_timeout_ms: int = 10_000
    session_timeout_ms: int = 10_000
    heartbeat_interval_ms: int = 400
    fetch_max_wait_ms: int = 5_000
    security: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        brokers = self.brokers.split(",") if isinstance(self.brokers, str) else self.brokers
        addresses = tuple(address.strip() for address in brokers if address.strip())
        if not addresses:
            raise UsageError("no broker address is given; use HOST:PORT, several separated by commas")
        for address in addresses:
            _host_and_port(address)
        object.__setattr__(self, "brokers", addresses)
        object.__setattr__(self, "security", _security(self.properties))

    @property
    def addresses(self) -> tuple[str, ...]:
        """The bootstrap addresses, one by one."""
        return self.brokers if isinstance(self.brokers, tuple) else (self.brokers,)

    def common(self) -> dict[str, Any]:
        """The settings that every kafka-python client takes."""
        return {
            "bootstrap_servers": list(self.addresses),
            "client_id": self.client_id,
            "request_timeout_ms": self.request_timeout_ms,
            "reconnect_backoff_ms": 50,
            "reconnect_backoff_max_ms": 1_000,
            "proxy_url": f"{ClosingSocket.SCHEMES[0]}://",  # not a proxy: how kafka-python chooses a kind of socket
            **self.security,
        }


class ClusterInfo(Struct, frozen=True):
    """Who a cluster is, and how many brokers it has."""

    cluster_id: str
    broker_count: int


def check_broker(config: ClientConfig, timeout_s: float = BOOTSTRAP_TIMEOUT_S) -> ClusterInfo:
    """Who answers at the addresses; BrokerUnavailableError, within `timeout_s` and a little, when nobody does."""
    with connecting(config), quiet():
        admin = connect(config, KafkaAdminClient, timeout_s=timeout_s)
        try:
            cluster = admin.describe_cluster()
        finally:
            admin.close()
    return ClusterInfo(str(cluster["cluster_id"]), len(cluster["brokers"]))


def connect(
    config: ClientConfig, build: Callable[..., T], *, timeout_s: float = BOOTSTRAP_TIMEOUT_S, **settings: Any
) -> T:
    """A kafka-python client, built with the common settings and these; nothing of it is left when it cannot be."""
    tls = tls_context(config.security)
    started = time.monotonic()
    reasons = [_refusal(address, timeout_s / len(config.addresses)) for address in config.addresses]
    if all(reasons):
        raise BrokerUnavailableError(_nobody(config, "; ".join(filter(None, reasons))))
    inner: list[KafkaNetClient] = []
    attempts = Attempts()
    kind = settings.get("kafka_client", KafkaNetClient)

    def make_inner(**inner_settings: Any) -> KafkaNetClient:
        inner.append(bound(kind(**{**inner_settings, "selector": Selector}), attempts))
        return inner[-1]

    settings |= {
        "kafka_client": make_inner,
        "ssl_context": tls,
        "bootstrap_timeout_ms": max(500, int((timeout_s - (time.monotonic() - started)) * 1000)),
    }
    with connecting(config, attempts):
        try:
            client = build(**{**config.common(), **settings})
            attempts.over = True
            return client
        except BaseException:
            for client in inner:  # kafka-python leaves its thread and sockets behind when a constructor fails
                client.close()
            raise


@contextmanager
def connecting(config: ClientConfig, attempts: Attempts | None = None) -> Iterator[None]:
    """Turns kafka-python's errors into one sentence for a person; `attempts` know more of why a client got nowhere."""
    try:
        yield
    except kafka_errors.UnsupportedSaslMechanismError as error:
        raise BrokerUnavailableError(
            f"Kafka at {_list(config)} does not know sasl.mechanism {config.security.get('sasl_mechanism')}; "
            "ask for the one that its listener has"
        ) from error
    except (kafka_errors.SaslAuthenticationFailedError, kafka_errors.AuthorizationError) as error:
        raise BrokerUnavailableError(
            f"Kafka at {_list(config)} refuses us: {_said(error)}; check sasl.mechanism, user name and password"
        ) from error
    except (
        kafka_errors.KafkaTimeoutError,
        kafka_errors.RequestTimedOutError,
        kafka_errors.KafkaConnectionError,
        kafka_errors.NodeNotReadyError,
    ) as error:
        if attempts is not None and (refusal := _refused_in_tls(config, attempts.refusal)):
            raise BrokerUnavailableError(refusal) from error
        raise BrokerUnavailableError(_nobody(config, _cause(config, error, attempts))) from error
    except kafka_errors.IncompatibleBrokerVersion as error:
        raise BrokerUnavailableError(
            f"{_list(config)} is no Kafka broker that we can use: {_text(error)}; Kafka 2.5 or later is needed"
        ) from error
    except kafka_errors.KafkaConfigurationError as error:
        raise UsageError(f"the client properties are not usable: {_text(error)}") from error
    except kafka_errors.KafkaError as error:
        raise BrokerUnavailableError(f"Kafka at {_list(config)} does not do it: {_text(error)}") from error
    except OSError as error:  # a certificate file that is not there, a name that does not resolve
        raise BrokerUnavailableError(f"Kafka at {_list(config)} cannot be reached: {_text(error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No chatter of kafka-python while we try something and report its failure ourselves."""
    logger = logging.getLogger("kafka")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _refused_in_tls(config: ClientConfig, refusal: Exception | None) -> str | None:
    """What to say of a TLS connection that one side does not want; None if that is not why."""
    if refusal is None:
        return None
    cause = refusal.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        why = cause.verify_message.rstrip(".")
        what = "the address in --brokers" if "mismatch" in why else "ssl.ca.location"
        return f"Kafka at {_list(config)} is not to be trusted: its certificate does not verify ({why}); check {what}"
    if isinstance(cause, ssl.SSLError):
        return f"{_list(config)} does not speak TLS; check security.protocol and the port"
    return (
        f"Kafka at {_list(config)} wants a certificate of ours that it trusts; set ssl.certificate.location and "
        "ssl.key.location, or ssl.keystore.location"
    )


def _cause(config: ClientConfig, error: Exception, attempts: Attempts | None) -> str:
    protocol = config.security.get("security_protocol", "PLAINTEXT")
    if isinstance(error, kafka_errors.KafkaTimeoutError) and not all(_refusal(a, 0.5) for a in config.addresses):
        # Who hangs up, or answers nonsense, may want TLS; who says nothing at all would only cost more time.
        hung_up = attempts is not None and attempts.hung_up
        if hung_up and not protocol.endswith("SSL") and any(_speaks_tls(a, 1.0) for a in config.addresses):
            return f"something listens that speaks TLS, and not {protocol}; set security.protocol to SSL or SASL_SSL"
        if attempts is not None and attempts.connected and not protocol.startswith("SASL"):
            return (
                f"something listens, but does not serve clients that speak {protocol}; it may want a login: check "
                "security.protocol"
            )
        if attempts is None:
            return NOT_ANSWERED
        return (
            f"something listens, but does not answer as a Kafka broker speaking {protocol} within "
            f"{BOOTSTRAP_TIMEOUT_S:g} s; check security.protocol, certificates and the port"
        )
    if isinstance(error, kafka_errors.RequestTimedOutError):
        return NOT_ANSWERED
    return "; ".join(filter(None, (_refusal(a, 0.5) for a in config.addresses))) or _text(error)


def _speaks_tls(address: str, timeout_s: float) -> bool:
    """Whether a TLS handshake is answered there, by whomever."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection(_host_and_port(address), timeout=timeout_s) as plain,
            context.wrap_socket(plain) as wrapped,
        ):
            return wrapped.version() is not None
    except OSError:
        return False


def _refusal(address: str, timeout_s: float) -> str | None:
    """Why no connection can be made to the address, or None when one can."""
    host, port = _host_and_port(address)
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except TimeoutError:
        return f"no answer from {address}"
    except socket.gaierror:
        return f"host name {host!r} is not known"
    except OSError as error:
        return f"{address}: {(error.strerror or str(error)).lower()}"
    return None


def _host_and_port(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or "]" in port:
        host, port = address, "9092"
    if not port.isdigit() or not 0 < int(port) < 65536 or not host:
        raise UsageError(f"broker address {address!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def _security(properties: Mapping[str, str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, value in properties.items():
        if name in _PROPERTIES:
            settings[_PROPERTIES[name]] = value
        elif name.startswith(("sasl.", "ssl.", "security.")) and name not in _HANDLED:
            raise UsageError(
                f"client property {name!r} is not supported; supported are {', '.join(sorted(_PROPERTIES))}"
            )
    for store in ("truststore", "keystore"):
        location, kind = properties.get(f"ssl.{store}.location"), properties.get(f"ssl.{store}.type", "PEM").upper()
        if location and (kind != "PEM" or location.endswith((".jks", ".p12", ".pfx"))):
            raise UsageError(
                f"ssl.{store}.location {location!r} must be a PEM file; convert it with keytool and openssl"
            )
    if jaas := properties.get("sasl.jaas.config"):
        found = {name: next(filter(None, values), "") for name, *values in _JAAS.findall(jaas)}
        if "username" not in found or "password" not in found:
            raise UsageError("client property 'sasl.jaas.config' holds no username and password")
        for name, value in found.items():
            settings[f"sasl_plain_{name}"] = re.sub(r"\\(.)", r"\1", value)
    if properties.get("ssl.endpoint.identification.algorithm", "https") == "":
        settings["ssl_check_hostname"] = False
    if "security_protocol" in settings:
        settings["security_protocol"] = settings["security_protocol"].upper()
        _check_login(settings)
    return settings


def _check_login(settings: Mapping[str, Any]) -> None:
    protocol, mechanism = settings["security_protocol"], settings.get("sasl_mechanism")
    if protocol not in _PROTOCOLS:
        raise UsageError(f"security.protocol is {protocol!r}; it can be {', '.join(_PROTOCOLS)}")
    if not protocol.startswith("SASL"):
        return
    if mechanism not in _MECHANISMS:
        given = "missing" if mechanism is None else repr(mechanism)
        raise UsageError(f"sasl.mechanism is {given}; with {protocol} it can be {', '.join(_MECHANISMS)}")
    if mechanism in _WITH_PASSWORD and not {"sasl_plain_username", "sasl_plain_password"} <= settings.keys():
        raise UsageError(f"sasl.mechanism {mechanism} needs sasl.username and sasl.password, or sasl.jaas.config")


def _list(config: ClientConfig) -> str:
    return ",".join(config.addresses)


def _nobody(config: ClientConfig, why: str) -> str:
    return f"no Kafka broker answers at {_list(config)} ({why.removeprefix(f'{_list(config)}: ')})"


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _said(error: BaseException) -> str:
    """What the broker said, without the error's names and number that kafka-python puts before it."""
    return re.sub(r"^(\[Error \d+\] |\w+Error: )+", "", _text(error)).rstrip(".")
