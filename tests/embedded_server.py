"""The embedded broker as a process of its own, with a KafkaServer's ways: the same tests run on both."""

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from tests.helpers import Process, eventually, free_port
from tests.kafka_server import KafkaCluster


class EmbeddedServer(KafkaCluster):
    """One `gokamsg broker`, its data and logs in `directory`. start, stop, kill and pause keep address and data."""

    def __init__(self, directory: Path, *, options: Sequence[str] = ()) -> None:
        self._directory = directory
        self._options = list(options)
        self._port = free_port()
        self._process: Process | None = None
        super().__init__(f"127.0.0.1:{self._port}")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Returns when the broker accepts connections."""
        assert self._process is None, "this broker runs already"
        process = self._process = self._launch()
        eventually("the embedded broker is ready", lambda: self._ready(process), timeout_s=60)

    def _launch(self) -> Process:
        flags = ["--port", str(self._port), "--data-dir", str(self._directory / "data"), "--json", *self._options]
        return Process.gokamsg("broker", *flags, log_dir=self._directory, name="broker")

    def stop(self) -> None:
        """A controlled shutdown."""
        process, self._process = self._process, None
        assert process is not None
        process.terminate()

    def kill(self) -> None:
        """kill -9: connections break at once."""
        process, self._process = self._process, None
        if process is not None:
            process.kill9()

    def pause(self) -> None:
        """The process stands still: connections stay open and nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        self.kill()

    def log(self) -> str:
        path = self._directory / "broker.err"
        return path.read_text(errors="replace") if path.exists() else ""

    @staticmethod
    def _ready(process: Process) -> bool:
        assert process.running, f"the embedded broker ended at its start:\n{process.tail()}"
        return any("ready" in json.loads(line) for line in process.stdout().splitlines())
