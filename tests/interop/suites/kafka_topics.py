"""What librdkafka's tests use of Kafka's `kafka-topics.sh`: create, alter and delete a topic, by confluent-kafka."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from confluent_kafka.admin import AdminClient, NewPartitions
from confluent_kafka.cimpl import NewTopic

TIMEOUT_S = 30
ROOT = Path(__file__).parent.parent.parent.parent


def write_script(folder: Path) -> Path:
    """A folder that looks like Kafka's, with that one script, which runs this module."""
    script = folder / "bin" / "kafka-topics.sh"
    script.parent.mkdir(parents=True, exist_ok=True)
    command = shlex.join([sys.executable, "-m", "tests.interop.suites.kafka_topics"])
    script.write_text(f'#!/bin/sh\ncd {shlex.quote(str(ROOT))} && exec {command} "$@"\n')
    script.chmod(0o755)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bootstrap-server", required=True)
    action = parser.add_mutually_exclusive_group(required=True)
    for name in ("create", "alter", "delete"):
        action.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--topic", required=True)
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--replication-factor", type=int, default=-1)
    parser.add_argument("--config", action="append", default=[], metavar="NAME=VALUE")
    asked = parser.parse_args()
    admin = AdminClient({"bootstrap.servers": asked.bootstrap_server})
    if asked.create:
        config = dict(setting.split("=", 1) for setting in asked.config)
        done = admin.create_topics([NewTopic(asked.topic, asked.partitions, asked.replication_factor, config=config)])
    elif asked.alter:
        done = admin.create_partitions([NewPartitions(asked.topic, asked.partitions)])
    else:
        done = admin.delete_topics([asked.topic])
    done[asked.topic].result(TIMEOUT_S)


if __name__ == "__main__":
    main()
