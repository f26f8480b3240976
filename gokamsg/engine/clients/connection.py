"""Connections of kafka-python that end: what its own leave open or wait for without a limit.

- The socket of a refused connection is closed at once, not by the garbage collector.
- A TLS handshake that the other side does not answer ends with the connection's time limit; kafka-python's has none,
  and with it a client's constructor would never return.
- Certificates are loaded once, and what is wrong with them is said before anything is connected.
"""

import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from kafka import errors as kafka_errors
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket, create_connection
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport

from gokamsg.errors import UsageError


class ClosingSocket(KafkaNetSocket):  # type: ignore[misc]  # kafka-python has no types
    """kafka-python chooses a kind of socket by the scheme of `proxy_url`; this is a direct one."""

    SCHEMES = ("gokamsg-direct",)

    async def sock_connect(self, net: Any, sock: socket.socket, sockaddr: Any, timeout_at: float | None = None) -> Any:
        try:
            return await super().sock_connect(net, sock, sockaddr, timeout_at=timeout_at)
        except BaseException:
            sock.close()
            raise


def bound(client: KafkaNetClient) -> KafkaNetClient:
    """The client, with handshakes that end."""
    manager = client._manager

    async def build_transport(node: Any, timeout_at: float | None = None) -> Any:
        config, net = manager.config, manager._net
        sock = await create_connection(
            net, node.host, node.port, config["socket_options"], proxy_url=config["proxy_url"], timeout_at=timeout_at
        )
        kind = KafkaSSLTransport if manager.ssl_enabled else KafkaTCPTransport
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
        return transport

    manager._build_transport = build_transport
    return client


def tls_context(security: Mapping[str, Any]) -> ssl.SSLContext | None:
    """What the TLS settings mean, None for connections without; UsageError when a file is missing or no PEM file."""
    if security.get("security_protocol") not in ("SSL", "SASL_SSL"):
        return None
    try:
        context = KafkaSSLTransport._build_ssl_context({**KafkaSSLTransport.DEFAULT_CONFIG, **security})
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        files = [str(value) for name, value in security.items() if name.endswith("file")]
        raise UsageError(f"the TLS files {', '.join(files)} cannot be used: {error}") from error
    assert isinstance(context, ssl.SSLContext)
    return context


def _wake(sock: socket.socket) -> None:
    with suppress(OSError):  # it ended meanwhile
        sock.shutdown(socket.SHUT_RDWR)
