"""What brokers hold, as they report it for the recovery of a controller's store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fencepost_controller.decisions.histories import Heard
from fencepost_proto.protocol.lineage import UNKNOWN_LINEAGE
from fencepost_proto.protocol.metadata import MetadataImage, PartitionKey

NO_PRODUCER = -1


@dataclass(frozen=True, slots=True)
class HeldLog:
    """One log in a broker's folder."""

    topic_id: str
    topic_name: str
    partition: int
    leads: bool
    leader_epoch: int  # the newest that the broker knows; -1: none
    last_epoch: int  # of the last batch; -1: none
    log_end_offset: int
    max_producer_id: int = NO_PRODUCER  # of anonymous producers
    failure: str = ""
    max_named_id: int = NO_PRODUCER  # of named ones

    @property
    def key(self) -> PartitionKey:
        return self.topic_id, self.partition

    @property
    def length(self) -> tuple[int, int]:
        """A log with a greater one holds every committed record of one with a smaller one."""
        return self.last_epoch, self.log_end_offset


@dataclass(frozen=True, slots=True)
class BrokerReport:
    """What one broker holds."""

    broker_id: int
    cluster_id: str
    address: str
    broker_epoch: int
    known_version: int
    image: MetadataImage
    logs: tuple[HeldLog, ...] = ()
    epochs: Mapping[int, int] = field(default_factory=dict)  # of named producers' ids, in its logs
    known_lineage_id: int = UNKNOWN_LINEAGE  # of the known version
    controller_epoch: int = 0  # the newest that it has seen; 0: none

    @property
    def heard(self) -> tuple[Heard, Heard]:
        of_image = self.image.lineage.id_at(self.image.version)
        return Heard(self.known_version, self.known_lineage_id), Heard(self.image.version, of_image)
