"""What tests share holds what it promises."""

import contextlib
import socket

from tests.helpers import free_port


def test_a_free_port_is_nobody_elses_when_it_is_used() -> None:
    """A node whose port had gone to a proxy on port 0 ended at its start."""
    with contextlib.ExitStack() as sockets:
        ports = {free_port() for _ in range(200)}
        others = {sockets.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(400)}
        assert len(ports) == 200
        assert ports & others == set()
        for port in ports:
            sockets.enter_context(socket.create_server(("127.0.0.1", port)))
