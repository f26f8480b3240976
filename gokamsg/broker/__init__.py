"""A durable single-node Kafka-protocol broker for development, tests and small deployments."""
