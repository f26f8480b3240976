"""kafka-python's clients stay unimported in a broker's process, until somebody asks for them."""

import subprocess
import sys
from pathlib import Path

from tests.helpers import Process, gokamsg_env

ROOT = Path(__file__).parents[2]


def run(code: str) -> None:
    """In a fresh interpreter, where nothing of kafka-python is imported yet."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, env=gokamsg_env(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_broker_command_imports_the_protocol_and_no_client(tmp_path: Path) -> None:
    argv = [sys.executable, "-X", "importtime", "-m", "gokamsg", "broker", "--port", "0", "--data-dir", str(tmp_path)]
    process = Process(argv, tmp_path / "logs", name="broker", env=gokamsg_env(), cwd=ROOT)
    try:
        process.wait_line(r"^127\.0\.0\.1:\d+$")
        assert process.terminate() == 0  # before it stops, it has imported every handler
        imported = {line.rpartition("|")[2].strip() for line in process.stderr().splitlines()}
    finally:
        process.close()
    assert "kafka.protocol.consumer.fetch" in imported
    assert not imported & {"kafka.consumer", "kafka.producer", "kafka.admin", "kafka.net"}


def test_a_client_can_be_imported_later() -> None:
    run(
        "from gokamsg.broker.kafka_package import defer_clients\n"
        "defer_clients(); defer_clients()\n"
        "import sys, kafka.protocol.metadata as before\n"
        "assert 'kafka.consumer' not in sys.modules\n"
        "from kafka import KafkaConsumer, KafkaProducer\n"
        "import kafka, kafka.consumer\n"
        "assert KafkaConsumer is kafka.consumer.KafkaConsumer and kafka.__version__\n"
        "assert kafka.protocol.metadata is before\n"
        "assert not hasattr(kafka, 'NoSuchName')\n"
    )


def test_a_package_that_is_there_already_is_left_alone() -> None:
    run(
        "import kafka\n"
        "from gokamsg.broker.kafka_package import defer_clients\n"
        "defer_clients()\n"
        "import sys\n"
        "assert sys.modules['kafka'] is kafka and '__getattr__' not in vars(kafka)\n"
    )
