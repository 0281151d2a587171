"""Brokers of a small cluster that tell what they hold, for tests of `fencepost controller recover`."""

from __future__ import annotations

from dataclasses import replace

from fencepost_controller.decisions.recovery_inputs import BrokerReport, HeldLog
from fencepost_proto.protocol.metadata import ClusterIdentity, MetadataImage, Partition, TopicConfig
from tests.unit.controller_story import Story

EMPTY = MetadataImage(version=1, cluster=ClusterIdentity("made by a start"))
LINEAGE = 99


def started(image: MetadataImage, lineage_id: int) -> MetadataImage:
    """A start of the controller."""
    lineage = image.lineage.begin(lineage_id, image.version + 1)
    return image.with_changes(image.version + 1, {lineage.key: lineage})


def story() -> Story:
    made = Story().cluster(1, 2, 3)
    made.image = started(made.image, 7)
    return made.topic("a", (1, 2, 3), config=TopicConfig(min_insync_replicas=2))


def log_of(partition: Partition, broker_id: int, end: int = 10, epoch: int = 0, **details: object) -> HeldLog:
    made = HeldLog(partition.topic_id, "a", partition.index, False, epoch, epoch, end)
    return replace(made, **details)  # type: ignore[arg-type]


def told_by(image: MetadataImage, *broker_ids: int, ends: dict[int, int] | None = None) -> list[BrokerReport]:
    """These brokers have all of the image, and equal logs unless `ends` says how long each is."""
    return [
        BrokerReport(
            broker_id,
            image.cluster_id,
            f"h{broker_id}:1",
            image.brokers[broker_id].broker_epoch,
            image.version,
            image,
            tuple(
                log_of(
                    p,
                    broker_id,
                    (ends or {}).get(broker_id, 10),
                    p.leader_epoch,
                    topic_name=image.topics[p.topic_id].name,
                )
                for p in image.partitions.values()
                if broker_id in p.replicas
            ),
        )
        for broker_id in broker_ids
    ]


def partition(image: MetadataImage, name: str = "a", index: int = 0) -> Partition:
    return image.partitions[image.topic_ids[name], index]
