"""The partitions of a controller's store that is made again (`recovery`): where each was led, and who is in sync.

A partition is taken from the head with the highest leader epoch, then partition epoch, of those whose leader has received
it. Where its in-sync set is empty, its eligible replicas (`partitions.py`) stand for it; otherwise they are eligible no
more: what made them so may have ended in a moment that is missing. Its in-sync set is exact where the leader of that very
epoch reports that it leads: nothing is acknowledged beyond that set until there is a controller again. Otherwise a moment
may be missing, and the logs decide (the longest: last epoch, then end; such a log holds every committed record):

| of the in-sync set                                | the set becomes                                                   |
| ------------------------------------------------- | ----------------------------------------------------------------- |
| some hold usable logs                             | those with the longest                                            |
| none does; some have damaged ones, or no report   | these; the partition waits for them                               |
| all have reported, and none holds a log           | empty: an operator elects uncleanly. The records are lost with the|
|                                                   | disks, or set aside; an empty log never leads under a known id    |
| none holds a log, and no broker knows the         | as it was: no one can have written there                          |
| partition                                         |                                                                   |

A log with a batch of a later epoch than the metadata knows shows that an election is missing; then the longest of all
its replicas decide. Where two heads have leaders that both served, all members of both sets decide: where their logs
agree they are in sync, else an operator has to say which history goes on. A partition that waits for an unclean election
goes on waiting.

A topic that no metadata knows is adopted from the logs on disks: the replicas of a partition are the brokers that hold a
log of it, and those with the longest are in sync.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from fencepost_controller.decisions.recovery_inputs import BrokerReport, HeldLog
from fencepost_controller.decisions.topics import MAX_PARTITIONS_PER_TOPIC
from fencepost_proto.protocol.metadata import NO_LEADER, MetadataImage, Partition, PartitionKey, Topic

EPOCH_JUMP = 1_000  # of leader epochs and partition epochs
WHICH_HISTORY = "their logs differ, and an operator has to say which goes on: 'fencepost topic elect', with --unclean"


class PartitionRecovery:
    """`logs`: on brokers' disks, by partition and broker id. `heads`: the newest images. Adds lines to `report`."""

    def __init__(
        self,
        reports: Sequence[BrokerReport],
        logs: Mapping[PartitionKey, Mapping[int, HeldLog]],
        heads: Sequence[MetadataImage],
        report: list[str],
    ) -> None:
        self._reports = reports
        self._logs = logs
        self._heads = heads
        self._report = report

    def partitions(self, topics: Iterable[Topic]) -> list[Partition]:
        partitions: list[Partition] = []
        for topic in topics:
            keys = {key for image in self._heads for key in image.partitions if key[0] == topic.topic_id}
            found = {key for key in self._logs if key[0] == topic.topic_id} if not keys else set()
            partitions += [self._partition(topic, key) for key in sorted(keys)]
            partitions += self._adopted_all(topic, sorted(found)) if found else []
        return partitions

    def _adopted_all(self, topic: Topic, found: Sequence[PartitionKey]) -> list[Partition]:
        """Of a topic that no metadata tells of: those that a broker holds a log of, and those that are missing between."""
        within = [key for key in found if key[1] < MAX_PARTITIONS_PER_TOPIC]
        for key in found[len(within) :]:
            self._report.append(f"{topic.name}-{key[1]} is not adopted: no topic has so many partitions")
        adopted = {key: self._adopted(topic, key) for key in within}
        holders = sorted({broker_id for partition in adopted.values() for broker_id in partition.replicas})
        size = max((len(partition.replicas) for partition in adopted.values()), default=0)
        for index in range(within[-1][1]):
            key = (topic.topic_id, index)
            if key not in adopted:
                replicas = tuple(holders[(index + number) % len(holders)] for number in range(size))
                adopted[key] = Partition(*key, replicas, (), NO_LEADER, EPOCH_JUMP, EPOCH_JUMP, last_known_isr=replicas)
                self._report.append(
                    f"{topic.name}-{index}: no broker holds a log of it; it is made empty by 'fencepost topic elect "
                    f"{topic.name} {index} --unclean', and until then no one can write there"
                )
        return [partition for _, partition in sorted(adopted.items())]

    def _partition(self, topic: Topic, key: PartitionKey) -> Partition:
        versions = [image.partitions[key] for image in self._heads if key in image.partitions]
        logs = self._logs.get(key, {})
        served = [p for p in versions if self._has_served(p, logs)]
        newest = max(served or versions, key=lambda p: (p.leader_epoch, p.partition_epoch))
        newest = replace(newest, isr=newest.isr or newest.eligible, eligible=())
        rivals = [p for p in served if (p.leader_epoch, p.leader) != (newest.leader_epoch, newest.leader)]
        newest = self._reconciled(topic, newest, rivals, logs) if rivals else self._with_in_sync(topic, newest, logs)
        epochs = [p.leader_epoch for p in versions]
        epochs += [epoch for held in logs.values() for epoch in (held.leader_epoch, held.last_epoch)]
        deleted = max(versions, key=lambda p: (p.deleted_in_epoch, p.deleted_end_offset))
        return replace(
            newest,
            deleted_end_offset=deleted.deleted_end_offset,
            deleted_in_epoch=deleted.deleted_in_epoch,
            leader=NO_LEADER,
            leader_epoch=max(epochs) + EPOCH_JUMP,
            partition_epoch=max(p.partition_epoch for p in versions) + EPOCH_JUMP,
        )

    def _has_served(self, partition: Partition, logs: Mapping[int, HeldLog]) -> bool:
        """Whether its leader has received that epoch, as far as is known."""
        leader = logs.get(partition.leader)
        asked = any(one.broker_id == partition.leader for one in self._reports)
        return leader.leader_epoch >= partition.leader_epoch if leader is not None else not asked

    def _reconciled(
        self, topic: Topic, newest: Partition, rivals: Sequence[Partition], logs: Mapping[int, HeldLog]
    ) -> Partition:
        """A partition that two leaders of different histories have served."""
        members = tuple(dict.fromkeys(b for p in (newest, *rivals) for b in p.isr))
        usable = {b: held for b, held in logs.items() if b in members and not held.failure}
        agree = len(usable) == len(members) and len({held.length for held in usable.values()}) == 1
        replicas = tuple(dict.fromkeys((*newest.replicas, *members)))
        epochs = sorted(p.leader_epoch for p in (newest, *rivals))
        self._report.append(
            f"{topic.name}-{newest.index}: led under epochs {epochs} of different histories; "
            + (f"in sync {list(members)}, whose logs agree" if agree else WHICH_HISTORY)
        )
        if agree:
            return replace(newest, replicas=replicas, isr=members, last_known_isr=())
        return replace(newest, replicas=replicas, isr=(), last_known_isr=members)

    def _with_in_sync(self, topic: Topic, newest: Partition, logs: Mapping[int, HeldLog]) -> Partition:
        isr = self._in_sync(newest, logs)
        if isr == newest.isr:
            return newest
        name = f"{topic.name}-{newest.index}"
        if isr:
            self._report.append(
                f"{name}: in sync {list(isr)}, by the lengths of their logs; the metadata had {list(newest.isr)}"
            )
            return replace(newest, isr=isr)
        self._report.append(
            f"{name}: none of the brokers in sync, {list(newest.isr)}, holds a log of it: what it held is lost with their "
            f"disks, or set aside as .stray; 'fencepost topic elect {topic.name} {newest.index} --unclean' goes on with "
            f"what there is, and until then no one can write there"
        )
        return replace(newest, isr=(), last_known_isr=newest.isr)

    def _in_sync(self, newest: Partition, logs: Mapping[int, HeldLog]) -> tuple[int, ...]:
        leader = logs.get(newest.leader)
        if leader is not None and leader.leads and leader.leader_epoch == newest.leader_epoch:
            return newest.isr
        usable = {b: held for b, held in logs.items() if b in newest.replicas and not held.failure}
        later = any(max(held.last_epoch, held.leader_epoch) > newest.leader_epoch for held in usable.values())
        candidates = usable if later else {b: held for b, held in usable.items() if b in newest.isr}
        if candidates and newest.isr:
            return _longest(newest.replicas, candidates)
        if not any(newest.id in one.image.partitions for one in self._reports):
            return newest.isr  # no broker knows it: there never was a log
        empty_handed = {one.broker_id for one in self._reports} - logs.keys()
        return tuple(b for b in newest.isr if b not in empty_handed)

    def _adopted(self, topic: Topic, key: PartitionKey) -> Partition:
        """What no metadata tells of: its replicas are those who hold a log, the longest first."""
        logs = self._logs[key]
        replicas = tuple(sorted(logs, key=lambda b: (logs[b].failure != "", *(-n for n in logs[b].length), b)))
        usable = {b: held for b, held in logs.items() if not held.failure}
        isr = _longest(replicas, usable)
        epoch = max(max(held.leader_epoch, held.last_epoch) for held in logs.values()) + EPOCH_JUMP
        return Partition(*key, replicas, isr, NO_LEADER, epoch, EPOCH_JUMP, last_known_isr=() if isr else replicas)


def _longest(order: Iterable[int], logs: Mapping[int, HeldLog]) -> tuple[int, ...]:
    best = max((held.length for held in logs.values()), default=None)
    return tuple(b for b in order if b in logs and logs[b].length == best)
