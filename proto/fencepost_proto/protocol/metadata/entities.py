"""The kinds of entities that the metadata consists of, as values. `kinds.py` has a row for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from fencepost_proto.protocol.entity import Entity
from fencepost_proto.protocol.errors import InvalidTopic
from fencepost_proto.protocol.metadata.topic_config import DEFAULT_CONFIG, TopicConfig

NO_LEADER = -1
RETIRED_EPOCH = 2**15  # above every epoch that fits: a retired producer id is refused permanently
FIRST_NAMED_ID = 10**15  # ids of named producers begin here; those of anonymous ones stay below
MAX_TOPIC_NAME = 249

_TOPIC_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def check_topic_name(name: str) -> None:
    """Raises InvalidTopic for a name that could not be a folder's: Kafka's rules."""
    if not name or name in (".", ".."):
        raise InvalidTopic(f"topic name {name!r} is not allowed")
    if len(name) > MAX_TOPIC_NAME:
        raise InvalidTopic(f"topic name of {len(name)} characters; at most {MAX_TOPIC_NAME} are allowed")
    if not _TOPIC_CHARACTERS.issuperset(name):
        raise InvalidTopic(f"topic name {name!r}: only letters, digits, '.', '_' and '-' are allowed")


@dataclass(frozen=True, slots=True)
class ClusterIdentity(Entity):
    cluster_id: str

    @property
    def key(self) -> str:
        return "cluster"


@dataclass(frozen=True, slots=True)
class BrokerRegistration(Entity):
    id: int
    address: str
    broker_epoch: int
    incarnation: str
    fenced: bool
    shutting_down: bool = False
    served_epoch: int = 0  # newest broker epoch under which it was unfenced; 0: it never was
    kafka_address: str = ""  # host:port for Kafka's clients; empty: it serves none
    feature_level: int = 0  # what its process can do (`features.py`)

    @property
    def key(self) -> str:
        return f"brokers/{self.id}"


@dataclass(frozen=True, slots=True)
class Topic(Entity):
    topic_id: str
    name: str
    config: TopicConfig = DEFAULT_CONFIG
    created_version: int = 0  # the metadata version that created it; 0: not known
    was_unsynced: bool = False  # it has run without `flush_always`: what was acknowledged then was not synced

    @property
    def key(self) -> str:
        return f"topics/{self.topic_id}"

    @property
    def is_synced(self) -> bool:
        """Whatever was acknowledged was synced before: a loss of power takes nothing of it."""
        return self.config.flush_always and not self.was_unsynced


PartitionKey = tuple[str, int]  # topic id, partition index


class PartitionState(NamedTuple):
    """Everything of a partition but its name."""

    replicas: tuple[int, ...]
    isr: tuple[int, ...]
    leader: int
    leader_epoch: int
    partition_epoch: int
    adding: tuple[int, ...]
    removing: tuple[int, ...]
    last_known_isr: tuple[int, ...]
    deleted_end_offset: int
    deleted_in_epoch: int
    eligible: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Partition(Entity):
    topic_id: str
    index: int
    replicas: tuple[int, ...]  # assignment order; the first is the preferred leader
    isr: tuple[int, ...]
    leader: int  # NO_LEADER: offline
    leader_epoch: int
    partition_epoch: int
    adding: tuple[int, ...] = ()
    removing: tuple[int, ...] = ()
    # Without a leader: who had all that was committed, and may have lost some of it.
    last_known_isr: tuple[int, ...] = ()
    deleted_end_offset: int = 0  # records below it are deleted …
    # … that were written under leader epochs up to this one, whose leader has deleted them. What a leader that was elected
    # uncleanly writes at these offsets later is not.
    deleted_in_epoch: int = 0
    # Not in sync, and hold all that is committed: may be elected (KIP-966). The controller's decisions/partitions.py says
    # why.
    eligible: tuple[int, ...] = ()

    @property
    def key(self) -> str:
        return f"partitions/{self.topic_id}/{self.index}"

    @property
    def state(self) -> PartitionState:
        return PartitionState(
            self.replicas,
            self.isr,
            self.leader,
            self.leader_epoch,
            self.partition_epoch,
            self.adding,
            self.removing,
            self.last_known_isr,
            self.deleted_end_offset,
            self.deleted_in_epoch,
            self.eligible,
        )

    @property
    def id(self) -> PartitionKey:
        return (self.topic_id, self.index)


@dataclass(frozen=True, slots=True)
class NamedProducer(Entity):
    name: str
    producer_id: int
    epoch: int
    retired_ids: tuple[int, ...] = ()
    bumped_by_holder: bool = False  # the holder of the epoch before asked for this one: a repeat of that gets it again
    used_at_ms: int = 0  # its last use, on the clock of names
    expired: bool = False  # not used for the expiration time: its id is refused permanently
    predecessor_expired: bool = False  # the name had expired before it was given this id

    @property
    def key(self) -> str:
        return f"producers/{self.name}"


@dataclass(frozen=True, slots=True)
class NextProducerId(Entity):
    next_id: int
    next_named_id: int = FIRST_NAMED_ID
    names_clock_ms: int = 0  # for how long a controller has run, in coarse steps: the clock by which names expire

    @property
    def key(self) -> str:
        return "next-producer-id"


NO_CLUSTER = ClusterIdentity("")
NO_IDS_USED = NextProducerId(0)
