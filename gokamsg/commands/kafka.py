"""What commands have in common on Kafka: the client's configuration, and the topics that they need."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gokamsg import console
from gokamsg.config import Settings, load_client_properties, secrets_of

if TYPE_CHECKING:
    from gokamsg.engine import ClientConfig


def client_config(settings: Settings) -> "ClientConfig":
    """How to reach the brokers; from now on stderr keeps the properties' secrets. Raises UsageError."""
    from gokamsg.engine import ClientConfig

    properties = load_client_properties(settings.kafka_config)
    console.hide(secrets_of(properties))
    return ClientConfig(settings.addresses, properties=properties)


def make_topics(config: "ClientConfig", names: Iterable[str]) -> None:
    """Creates the topics among `names` that are missing, and says so. Raises TopicError, BrokerUnavailableError."""
    from gokamsg.engine import TopicManager
    from gokamsg.messaging.topics import ensure

    with TopicManager(config) as manager:
        created = list(ensure(manager, names))
    if created:
        console.note(f"created {'topics' if len(created) > 1 else 'topic'} {', '.join(created)}")
