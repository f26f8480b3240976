"""What is done before a fork need not be done by each child after it.

In a process of its own: what kafka-python has made there once, it keeps.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kafka_server import KafkaCluster

WORK = """
import json, sys, threading
from pathlib import Path

made = []


def hook(event, arguments):
    if event == "compile" and "<codegen" in str(arguments[1]):
        made.append(arguments[1])


sys.addaudithook(hook)

from gokamsg.engine import ClientConfig, Emitter, Input, Join, Persist, Processor, ProcessorOptions, String
from gokamsg.engine import TopicManager, define_group, warm_up

address, name, directory, warm = sys.argv[1:]
config = ClientConfig(address)
if warm == "warm":
    warm_up()
    assert threading.active_count() == 1, "no child can be forked any more"
before = len(made)
with TopicManager(config) as manager:
    manager.ensure_stream(name, 2)
    manager.ensure_table(name + "-joined", 2)
emitter = Emitter(config, name, String())
emitter.emit_sync("key", "value")
emitter.finish()
joined = Join(name + "-joined", String())
handled = lambda context, value: (context.set_value(value), context.join(joined.topic))
graph = define_group(name + "-group", Input(name, String(), handled), joined, Persist(String()))


def on_status(status):
    if status.commits and not status.total_lag:
        processor.stop()


processor = Processor(config, graph, ProcessorOptions(state_dir=Path(directory)), on_status=on_status)
processor.run()
print(json.dumps({"before": before, "after": made[before:]}))
"""


def made_at_work(cluster: KafkaCluster, name: str, directory: Path, warm: str) -> tuple[int, list[str]]:
    """How many pieces of code were made by warming up, and what was made at work."""
    done = subprocess.run(
        [sys.executable, "-c", WORK, cluster.address, name, str(directory), warm],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return found["before"], found["after"]


def test_a_worker_that_was_warmed_up_makes_no_code_for_its_requests(
    kafka_cluster: KafkaCluster, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    before, after = made_at_work(kafka_cluster, fresh_name("warm"), tmp_path, "warm")
    assert before > 30
    assert [code for code in after if "create_topics" not in code] == []


@pytest.mark.any_broker
def test_without_it_the_code_is_made_when_it_is_needed(
    kafka_cluster: KafkaCluster, fresh_name: Callable[[str], str], tmp_path: Path
) -> None:
    before, after = made_at_work(kafka_cluster, fresh_name("cold"), tmp_path, "cold")
    assert before == 0
    assert len(set(after)) > 30
