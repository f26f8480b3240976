"""The embedded broker as `gokamsg broker` runs it, and with what the command cannot set: the port that clients see."""

import json
import sys
from pathlib import Path

from gokamsg.broker.kafka_package import defer_clients


def main(given: dict[str, int | str]) -> None:
    defer_clients()
    from gokamsg.broker.server import run_broker
    from gokamsg.broker.settings import BrokerSettings

    settings = BrokerSettings(
        data_dir=Path(str(given["data_dir"])),
        port=int(given["port"]),
        advertised_host="127.0.0.1",
        advertised_port=int(given["advertised_port"]),
    )

    def ready(address: str) -> None:
        sys.stdout.write(json.dumps({"ready": address}) + "\n")
        sys.stdout.flush()

    run_broker(settings, on_ready=ready)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
