"""Which state machines the logs of partitions fold: producer state, and in internal topics a table of newest values too."""

from __future__ import annotations

from fencepost_node.coordination.table import TABLE
from fencepost_node.log.names import LOG_FOLDER
from fencepost_node.log.state_machine import AnyMachine
from fencepost_node.producers.producer_state_machine import PRODUCERS
from fencepost_proto.protocol.internal_topics import INTERNAL_TOPICS

STATE_MACHINES: tuple[AnyMachine, ...] = (PRODUCERS,)
OF_INTERNAL_TOPICS: tuple[AnyMachine, ...] = (PRODUCERS, TABLE)


def machines_of(topic_name: str) -> tuple[AnyMachine, ...]:
    """What the partitions of that topic fold."""
    return OF_INTERNAL_TOPICS if topic_name in INTERNAL_TOPICS else STATE_MACHINES


def machines_of_folder(name: str) -> tuple[AnyMachine, ...]:
    """What the log in a folder of that name, without its parents, folds."""
    match = LOG_FOLDER.fullmatch(name)
    return machines_of(match["topic"]) if match else STATE_MACHINES
