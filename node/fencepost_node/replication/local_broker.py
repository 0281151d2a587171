"""This broker as its replicas and their streams see it: who it is, the newest metadata, and the memory that they share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from fencepost_node.replication.broker_counts import BrokerCounts
from fencepost_node.replication.event_ring import EventRing
from fencepost_node.replication.tail import TailBudget
from fencepost_proto.protocol.metadata import MetadataImage


@dataclass(slots=True, eq=False)
class LocalBroker:
    """One per process. The replica manager keeps `image` and `broker_epoch` current; everyone else only reads them."""

    broker_id: int
    tails: TailBudget
    image: MetadataImage = field(default_factory=MetadataImage)
    broker_epoch: int = -1  # not registered yet
    counts: BrokerCounts = field(default_factory=BrokerCounts)
    events: EventRing = field(default_factory=EventRing)
    # Looked up once: asyncio.get_running_loop() asks the system for the process's id each time (Python 3.11).
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
