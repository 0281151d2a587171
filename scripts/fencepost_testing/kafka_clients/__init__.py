"""Kafka clients of other projects, with the calls that workloads make: what `--client` of the commands runs.

A producer here sends as `fencepost.Producer` does, as far as `Workload` needs it. A reader is a member of a consumer group.
Both record the same histories as Fencepost's own clients, without stamps: those clients do not show them.
"""

from __future__ import annotations

from typing import Final

FENCEPOST: Final = "fencepost"
CONFLUENT_KAFKA: Final = "confluent-kafka"
KAFKA_PYTHON: Final = "kafka-python"
AIOKAFKA: Final = "aiokafka"
KAFKA_CLIENTS: Final = (CONFLUENT_KAFKA, KAFKA_PYTHON, AIOKAFKA)
CLIENTS: Final = (FENCEPOST, *KAFKA_CLIENTS)
MIXED: Final = "mixed"  # all of them, in one chaos run
