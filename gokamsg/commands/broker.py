"""broker: the embedded broker alone, until it is told to stop."""

from gokamsg import console
from gokamsg.config import Settings

from .registration import command

BROKER_DATA = "broker"
"""The broker's folder in the data directory; `up` keeps its tables beside it."""


@command("broker", "Run the embedded Kafka broker alone: one durable node for development and small installations.")
def broker(settings: Settings) -> None:
    from gokamsg.broker.kafka_package import defer_clients

    defer_clients()
    from gokamsg.broker.server import run_broker
    from gokamsg.broker.settings import BrokerSettings

    host = settings.broker_host
    if host not in ("127.0.0.1", "::1", "localhost"):
        console.note(
            f"Warning: the broker has no authentication; whoever reaches {host} can read and change everything."
        )
    if settings.no_fsync:
        console.note("Warning: --no-fsync: a power failure may take the last acknowledged records.")

    def ready(address: str) -> None:
        if settings.json:
            console.data({"ready": address, "data_dir": str(settings.data_path / BROKER_DATA)})
        else:
            console.out(address)

    run_broker(
        BrokerSettings(
            data_dir=settings.data_path / BROKER_DATA,
            host=host,
            port=settings.broker_port,
            fsync=not settings.no_fsync,
            retention_ms=settings.retention_ms,
            retention_bytes=settings.retention_bytes,
        ),
        on_ready=ready,
    )
    if not settings.json:
        console.note("stopped")
