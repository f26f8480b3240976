"""A worker whose callback hangs is found out by its silence, shows where it hangs, and is replaced.

Invariants: an idle worker is left alone; the record that hung, and those after it, count exactly once.
"""

import json
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gokamsg.commands.process import worker_specs
from gokamsg.config import Settings
from gokamsg.supervisor import Supervisor, SupervisorOptions
from tests.engine.kafka_scene import PARTITIONS, Scene
from tests.helpers import eventually
from tests.kafka_server import KafkaCluster
from tests.system.messaging import pause

STALL_S = 4.0


def test_a_worker_whose_callback_hangs_shows_its_stacks_and_is_replaced(
    embedded_cluster: KafkaCluster, tmp_path: Path, fresh_name: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, note = fresh_name("stall"), tmp_path / "hung"
    embedded_cluster.create_topics({topic: {"num_partitions": PARTITIONS}})
    scene = Scene(embedded_cluster.address, tmp_path / "state")
    scene.produce(topic, [("a", "go")])
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    [spec] = worker_specs(
        Settings(brokers=embedded_cluster.address, state_dir=str(tmp_path / "state"), role=("collector",))
    )
    greeting = {**json.loads(spec.greeting), "role": "hanging"}
    argv = [sys.executable, "-m", "tests.system.hanging", topic, str(note)]
    spec = replace(spec, name="hanging", argv=argv, greeting=json.dumps(greeting).encode() + b"\n")
    statuses: list[dict[str, Any]] = []
    events: list[str] = []
    logs: list[str] = []
    supervisor = Supervisor(
        [spec],
        on_message=lambda _, message: statuses.append(message),
        on_event=lambda _, text: events.append(text),
        on_log=lambda _, line: logs.append(line),
        options=SupervisorOptions(stall_s=STALL_S),
    )
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        eventually("the first record is handled", lambda: statuses and statuses[-1]["records"] == 1, timeout_s=40)
        pause(seconds=STALL_S + 1.5)
        assert (events, logs) == ([], []), "an idle worker was disturbed"
        scene.produce(topic, [("a", "hang"), ("b", "hang"), ("a", "go")])
        eventually("it hangs", note.exists)
        eventually("it is replaced", lambda: events, timeout_s=STALL_S + 10)
        eventually("its partitions go on", lambda: statuses[-1]["records"] == 3, timeout_s=40)
    finally:
        supervisor.stop()
        thread.join(30)
    assert events == [f"did not move for {STALL_S:.0f} s; its stacks are above; it is replaced"]
    assert any("hang_for_ever" in line for line in logs), logs
    assert any("in count" in line for line in logs), logs
    rows = {key: int(value) for key, value in scene.table(f"{topic}-hanging-table").items()}
    assert rows == {"a": 3, "b": 1}
