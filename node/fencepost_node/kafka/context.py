"""What the handlers of the Kafka edge work with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from fencepost_node.client_limits import ClientLimits
from fencepost_node.config import BrokerConfig
from fencepost_node.controller_link import ControllerLink
from fencepost_node.coordinators.group_coordinators import GroupCoordinators
from fencepost_node.kafka.metadata_answers import Incarnation, MetadataAnswers
from fencepost_node.metadata_feed import MetadataFeed
from fencepost_node.producers.new_producers import NewProducers
from fencepost_node.producers.producer_ids import ProducerIds
from fencepost_node.producers.refusals import Refusals
from fencepost_node.replica_manager import ReplicaManager
from fencepost_proto.protocol.record_batch import Buffer
from fencepost_proto.transport.streams import Listen

ANONYMOUS = "User:ANONYMOUS"  # who a connection is, while none authenticates


@dataclass(frozen=True, slots=True)
class KafkaBroker:
    """The parts of one broker that its Kafka edge uses."""

    config: BrokerConfig
    manager: ReplicaManager
    feed: MetadataFeed
    ids: ProducerIds
    link: ControllerLink
    limits: ClientLimits
    new_producers: NewProducers
    metadata: MetadataAnswers
    groups: GroupCoordinators
    listen: Listen
    on_failure: Callable[[BaseException], None]  # is given what no one can handle

    @property
    def broker_id(self) -> int:
        return self.config.broker_id


@dataclass(slots=True)
class KafkaContext:
    """One connection, for the handlers of its requests. `client_id` is that of the request in hand."""

    broker: KafkaBroker
    peer: str
    metadata_asked_at: float = 0.0  # the last time, by the loop's clock; before the first: when it was opened
    client_id: str | None = None
    principal: str = ANONYMOUS
    refusals: Refusals = field(default_factory=Refusals)
    told_fenced: list[Incarnation] = field(default_factory=list)  # as of the last answer to Metadata

    def admit(self, producer_id: int) -> None:
        """A partition is about to take the first batch of a producer. Raises ThrottlingQuotaExceeded."""
        self.broker.new_producers.admit(self.peer, producer_id)

    @property
    def config(self) -> BrokerConfig:
        return self.broker.config

    @property
    def manager(self) -> ReplicaManager:
        return self.broker.manager

    @property
    def feed(self) -> MetadataFeed:
        return self.broker.feed

    @property
    def ids(self) -> ProducerIds:
        return self.broker.ids

    @property
    def link(self) -> ControllerLink:
        return self.broker.link

    @property
    def groups(self) -> GroupCoordinators:
        return self.broker.groups

    @property
    def limits(self) -> ClientLimits:
        return self.broker.limits


class Encoded:
    """A response that is encoded already: its frame, with whatever correlation id."""

    __slots__ = ("frame",)

    def __init__(self, frame: bytes) -> None:
        self.frame = frame


class Answer:
    """The place of one response among those of its connection. It is written once all before it are."""

    __slots__ = ("api_key", "began_at", "chunks", "correlation_id", "version", "written")

    def __init__(self, api_key: int, version: int, correlation_id: int, began_at: float = 0.0) -> None:
        self.api_key = api_key
        self.began_at = began_at  # when the bytes that completed the request came, by the loop's clock
        self.version = version
        self.correlation_id = correlation_id
        self.chunks: list[Buffer] | None = None  # None: it is not there yet
        self.written: asyncio.Future[None] | None = None  # where someone waits for it
