"""When something is decided, by which settings, and what is known of the cluster's topics then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol


class TopicFacts(NamedTuple):
    topic_id: bytes
    partitions: int


class KnownTopics(Protocol):
    """The topics of the cluster at one version of its metadata."""

    @property
    def version(self) -> int: ...

    def find(self, name: str) -> TopicFacts | None: ...


class NoTopics:
    """Where no metadata is known, and none is needed."""

    version = -1

    def find(self, name: str) -> TopicFacts | None:
        return None


@dataclass(frozen=True, slots=True)
class ConsumerSettings:
    """Of consumer groups (KIP-848), whose timeouts are the broker's."""

    session_timeout_s: float = 45.0
    heartbeat_interval_ms: int = 5_000


@dataclass(frozen=True, slots=True)
class Moment:
    now: float  # seconds, of the running time
    wall_ms: int
    initial_delay_s: float  # of an empty classic group's first rebalance
    topics: KnownTopics = field(default_factory=NoTopics)
    consumer: ConsumerSettings = ConsumerSettings()
