"""One file per Kafka API key; each registers its handler with the registry when it is imported."""
