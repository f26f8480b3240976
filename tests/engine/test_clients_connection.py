"""How connections receive, which kafka-python does otherwise. Their ends and refusals are tested with the clients."""

import socket
import threading

from kafka.errors import KafkaConnectionError

from gokamsg.engine.clients.connection import _much
from tests.helpers import eventually

ANSWER = bytes(range(256)) * 8_192  # 2 MB, as a fetch brings


def test_an_answer_is_received_in_large_pieces() -> None:
    """The thread that receives gets the interpreter rarely while records are handled; 4 KB at a time took 500 turns."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        receive = _much(ours)
        assert receive() == (b"", None)
        sender = threading.Thread(target=theirs.sendall, args=(ANSWER,))
        sender.start()
        pieces: list[bytes] = []

        def all_there() -> bool:
            data, error = receive()
            assert error is None
            pieces.extend([data] if data else [])
            return sum(map(len, pieces)) == len(ANSWER)

        eventually("the answer is received", all_there, interval_s=0.005)
        sender.join()
        assert b"".join(pieces) == ANSWER
        assert len(pieces) <= 60
        theirs.close()
        data, error = receive()
        assert data == b""
        assert isinstance(error, KafkaConnectionError)
