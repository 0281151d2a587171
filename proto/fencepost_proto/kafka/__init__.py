"""Kafka's protocol as values and bytes: message schemas, the codec that is compiled from them, headers. No I/O."""
