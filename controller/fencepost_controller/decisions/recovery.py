"""A controller's store made again from what the brokers hold: where it was lost, or put back from a backup.

**What the brokers hold.** Each has the newest metadata that it applied, its logs, and the newest version that it was told
of. What no broker heard of, no one rested on: it takes effect only where brokers apply it. The exceptions are made good by
jumps: every number that may have been given out without a broker's hearing of it is left behind by a wide margin.

**What is made of it** (`recover`):

1. *Sources* are the images of all brokers, and the store as it is now. Which of them hold (the *heads*: mostly one, several
   where a store that had gone back has served some brokers), and what was removed since: `histories`. The heads are united.
2. A *topic*, whatever logs of it are on disks:

   | known to                                    | what becomes of it                                                      |
   | ------------------------------------------- | ----------------------------------------------------------------------- |
   | every head                                  | it stays; each partition by 3                                           |
   | some heads, and the others have deleted it  | it stays deleted: reported; brokers set the logs that are left aside    |
   | some heads, and it was created there        | it stays                                                                |
   | some heads, and nothing tells which         | it stays; a partition without a log waits for an operator (3)           |
   | no head, but an ancestor                    | it was deleted since: reported; logs that are left are set aside        |
   | a store alone that no broker follows        | the same; or it was created there, and no one can have used it: reported|
   | no metadata, but logs on disks              | it is adopted, with default settings: nothing tells its own             |

   So only newer metadata says that a topic was deleted, never a log that is missing. Of an adopted topic, a partition that
   no broker holds a log of, below one that is held, waits for an unclean election: without it the topic's numbers would have
   a gap, and no one could use it.
3. A *partition* is taken from the head with the highest leader epoch, then partition epoch, of those whose leader has heard
   of it. Its in-sync set is exact where the leader of that very epoch tells that it leads: nothing is acknowledged beyond
   that set until there is a controller again. Otherwise a moment may be missing, and the logs decide (the longest: last
   epoch, then end; such a log holds every committed record):

   | of the in-sync set                                | the set becomes                                                   |
   | ------------------------------------------------- | ----------------------------------------------------------------- |
   | some hold usable logs                             | those with the longest                                            |
   | none does; some have damaged ones, or do not tell | these; the partition waits for them                               |
   | all tell, and none holds a log                    | empty: an operator elects uncleanly. The records are lost with the|
   |                                                   | disks, or set aside; an empty log never leads under a known id    |
   | none holds a log, and no broker has heard of the  | as it was: no one can have written there                          |
   | partition                                         |                                                                   |

   A log with a batch of a later epoch than the metadata knows shows that an election is missing; then the longest of all
   its replicas decide. Where two heads have leaders that both served, all members of both sets decide: where their logs
   agree they are in sync, else an operator has to say which history goes on. A partition that waits for an unclean election
   goes on waiting.
4. Every *broker* is fenced and of no incarnation: all register as new ones. What the metadata knows of the epochs under
   which it has served stays, so that an older folder of a broker is seen as one.
5. *Jumps*: the metadata version (and with it all broker epochs), leader epochs, partition epochs, producer ids and the
   epochs of named producers; where a name has no epoch left it goes on under a new id, and the old one is retired.
6. A new lineage begins, and of older versions nothing is known: whoever knows one of them is merely behind.

Named producers that run are fenced by that, as by a take-over of their names; anonymous ones go on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fencepost_controller.decisions.histories import Heard, Histories
from fencepost_controller.decisions.invariants import check_image
from fencepost_controller.decisions.topics import MAX_PARTITIONS_PER_TOPIC
from fencepost_proto.protocol import record_batch
from fencepost_proto.protocol.errors import InvalidTopic
from fencepost_proto.protocol.lineage import UNKNOWN_LINEAGE, Lineage, LineageStart
from fencepost_proto.protocol.metadata import (
    FIRST_NAMED_ID,
    NO_LEADER,
    BrokerRegistration,
    ClusterIdentity,
    Entity,
    MetadataImage,
    NamedProducer,
    NextProducerId,
    Partition,
    PartitionKey,
    Topic,
    check_topic_name,
)

VERSION_JUMP = 1_000_000
EPOCH_JUMP = 1_000  # of leader epochs and partition epochs
PRODUCER_EPOCH_JUMP = 100
PRODUCER_ID_JUMP = 1_000_000
MAX_SOUND_PRODUCER_ID = FIRST_NAMED_ID // 2  # an id in a log above this was never allocated …
MAX_SOUND_NAMED_ID = 2**62  # … nor one of a named producer above that
NO_INCARNATION = "recovered"  # no process has it
NO_PRODUCER = -1
WHICH_HISTORY = "their logs differ, and an operator has to say which goes on: 'fencepost topic elect', with --unclean"


class RecoveryRefused(Exception):
    """The store cannot be made from this; the message says what is missing or contradicts."""


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
class Told:
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

    @property
    def heard(self) -> tuple[Heard, Heard]:
        of_image = self.image.lineage.id_at(self.image.version)
        return Heard(self.known_version, self.known_lineage_id), Heard(self.image.version, of_image)


@dataclass(frozen=True, slots=True)
class RecoveredMetadata:
    image: MetadataImage
    report: tuple[str, ...]  # what was done, a line each


def recover(store: MetadataImage, told: Sequence[Told], without: Collection[int], lineage_id: int) -> RecoveredMetadata:
    """The store as it has to be. `without`: brokers that may be missing. Raises RecoveryRefused."""
    return _MetadataRecovery(store, told, without).image(lineage_id)


class _MetadataRecovery:
    def __init__(self, store: MetadataImage, told: Sequence[Told], without: Collection[int]) -> None:
        self._cluster_id = _cluster_id(store, told)
        self._store = store if _is_used(store) else MetadataImage()
        self._told = sorted(told, key=lambda one: one.broker_id)
        self._logs: dict[PartitionKey, dict[int, HeldLog]] = {}
        for one in self._told:
            for held in one.logs:
                self._logs.setdefault(held.key, {})[one.broker_id] = held
        images = [self._store, *(one.image for one in self._told)]
        self._histories = Histories(self._store, images, [heard for one in self._told for heard in one.heard])
        self._heads = self._histories.heads
        self._report: list[str] = []
        self._check_all_have_told(without)

    def image(self, lineage_id: int) -> RecoveredMetadata:
        version = self._version()
        topics = self._topics(version)
        partitions = self._partitions(topics)
        producers, next_ids = self._producers()
        entities: list[Entity] = [
            ClusterIdentity(self._cluster_id),
            Lineage((LineageStart(lineage_id, version),)),
            next_ids,
            *self._brokers(),
            *topics,
            *partitions,
            *producers,
        ]
        image = MetadataImage().with_changes(version, {entity.key: entity for entity in entities})
        check_image(image)
        head = [
            f"cluster {self._cluster_id}: told by brokers {[one.broker_id for one in self._told]}",
            f"metadata version {version}, which was {self._store.version} in the store; "
            f"lineage {lineage_id:016x} begins there",
            f"producer ids from {next_ids.next_id} on, of named ones from {next_ids.next_named_id} on; "
            f"{sum(not producer.expired for producer in producers)} named producers; "
            f"{len(topics)} topics with {len(partitions)} partitions",
        ]
        return RecoveredMetadata(image, (*head, *self._report))

    def _check_all_have_told(self, without: Collection[int]) -> None:
        if not self._told:
            raise RecoveryRefused("no broker has told what it holds")
        known = self._histories.brokers().keys()
        missing = sorted(known - {one.broker_id for one in self._told} - set(without))
        if missing:
            names = ", ".join(map(str, missing))
            raise RecoveryRefused(
                f"broker {names} has not told what it holds: it may be the only one that knows of the newest changes, or "
                f"has acknowledged records. Start it; or go on without it, where it is lost for ever: --without {missing[0]}"
            )
        for broker_id in sorted(known & set(without) - {one.broker_id for one in self._told}):
            self._report.append(f"broker {broker_id} was not asked: what only it knew is not in the store")

    # ---- Numbers ----

    def _version(self) -> int:
        known = [self._store.version, *(image.version for image in self._histories.sources)]
        known += [number for one in self._told for number in (one.known_version, one.broker_epoch)]
        newest_image = max((image.version for image in self._heads), default=0)
        newest = max(one.known_version for one in self._told)
        if newest > newest_image:
            self._report.append(f"versions {newest_image + 1} to {newest} were told to brokers and are in no image")
        return max(known) + VERSION_JUMP

    def _brokers(self) -> list[BrokerRegistration]:
        known = self._histories.brokers()
        for one in self._told:
            before = known.get(one.broker_id, BrokerRegistration(one.broker_id, "", 1, NO_INCARNATION, fenced=True))
            epoch = max(one.broker_epoch, before.broker_epoch)
            served = max(one.broker_epoch, before.served_epoch)  # an older copy of its folder is one from now on
            known[one.broker_id] = replace(before, address=one.address, broker_epoch=epoch, served_epoch=served)
        return [
            replace(known[broker_id], incarnation=NO_INCARNATION, fenced=True, shutting_down=False)
            for broker_id in sorted(known)
        ]

    def _producers(self) -> tuple[list[NamedProducer], NextProducerId]:
        """The named ones, and the first ids that are free."""
        ids = [image.next_ids.next_id for image in self._histories.sources]
        ids += self._ids_in_logs([held.max_producer_id for held in self._all_logs()], MAX_SOUND_PRODUCER_ID)
        named_ids = [image.next_ids.next_named_id for image in self._histories.sources]
        named_ids += self._ids_in_logs([held.max_named_id for held in self._all_logs()], MAX_SOUND_NAMED_ID)
        epochs: dict[int, int] = {}
        for one in self._told:
            for producer_id, epoch in one.epochs.items():
                epochs[producer_id] = max(epoch, epochs.get(producer_id, 0))
        next_named_id = max(named_ids, default=FIRST_NAMED_ID) + PRODUCER_ID_JUMP
        expired = {name: p for image in reversed(self._heads) for name, p in image.expired_producers.items()}
        producers = []
        for name in sorted({name for image in self._heads for name in image.producers}):
            producer = _united([image.producers[name] for image in self._heads if name in image.producers])
            if name in expired:  # in another head: what it wrote under that id is forgotten
                producer = replace(producer, predecessor_expired=True)
            epoch = max(producer.epoch, epochs.get(producer.producer_id, 0)) + PRODUCER_EPOCH_JUMP
            if epoch <= record_batch.MAX_EPOCH:
                producers.append(replace(producer, epoch=epoch, bumped_by_holder=False))
                continue
            retired = (*producer.retired_ids, producer.producer_id)
            producers.append(
                replace(producer, producer_id=next_named_id, epoch=0, retired_ids=retired, bumped_by_holder=False)
            )
            next_named_id += 1
        known = {producer.name for producer in producers}
        producers += [producer for name, producer in sorted(expired.items()) if name not in known]
        clock_ms = max((image.next_ids.names_clock_ms for image in self._heads), default=0)
        return producers, NextProducerId(max(ids, default=0) + PRODUCER_ID_JUMP, next_named_id, clock_ms)

    def _all_logs(self) -> Iterable[HeldLog]:
        return (held for logs in self._logs.values() for held in logs.values())

    def _ids_in_logs(self, ids: Sequence[int], most: int) -> list[int]:
        """What is free by them."""
        if any(producer_id > most for producer_id in ids):
            self._report.append(f"a log holds producer id {max(ids)}, which was never allocated: it does not count")
        return [producer_id + 1 for producer_id in ids if NO_PRODUCER < producer_id <= most]

    # ---- Topics ----

    def _topics(self, version: int) -> list[Topic]:
        topics: dict[str, Topic] = {}
        names: dict[str, str] = {}  # to ids
        self._report_removed()
        for image in self._heads:
            for topic in image.topics.values():
                if topic.topic_id in topics or self._histories.was_removed(topic.topic_id):
                    continue
                if names.setdefault(topic.name, topic.topic_id) == topic.topic_id:
                    topics[topic.topic_id] = topic
                else:
                    self._report.append(
                        f"topic {topic.name} (id {topic.topic_id}) is not taken: id {names[topic.name]} has its name"
                    )
        for topic in self._unknown_topics(topics):
            if topic.name in names:
                self._report.append(
                    f"topic {topic.name} (id {topic.topic_id}), found on disks, is not adopted: "
                    f"id {names[topic.name]} has its name; its logs will be set aside"
                )
                continue
            names[topic.name] = topic.topic_id
            topics[topic.topic_id] = replace(topic, created_version=version)
            self._report.append(
                f"topic {topic.name} (id {topic.topic_id}), found on disks and in no metadata, is adopted with the default "
                f"settings: compare them with what it had"
            )
        return list(topics.values())

    def _report_removed(self) -> None:
        """Topics that the store has, or that logs are left of, and that brokers' newer metadata has no more."""
        asked_for = self._store.topics.keys() | {topic_id for topic_id, _ in self._logs}
        removed = [topic_id for topic_id in asked_for if self._histories.was_removed(topic_id)]
        named = [topic for topic_id in removed if (topic := self._histories.topic(topic_id)) is not None]
        for topic in sorted(named, key=lambda topic: (topic.name, topic.topic_id)):
            if self._histories.is_unheard(topic.topic_id):
                self._report.append(
                    f"topic {topic.name} (id {topic.topic_id}) is not taken: this store created it after it had gone back, "
                    f"and no broker has heard of it"
                )
                continue
            left = sorted({b for (topic_id, _), logs in self._logs.items() if topic_id == topic.topic_id for b in logs})
            logs = (
                f"logs of it on brokers {left} will be set aside"
                if left
                else "no broker that was asked holds a log of it"
            )
            self._report.append(
                f"topic {topic.name} (id {topic.topic_id}) was deleted: the brokers' newer metadata does not have it; {logs}"
            )

    def _unknown_topics(self, known: Mapping[str, Topic]) -> Iterable[Topic]:
        """Of logs on disks, in order of their names."""
        names = {
            held.topic_id: held.topic_name
            for (_, index), logs in self._logs.items()
            for held in logs.values()
            if index < MAX_PARTITIONS_PER_TOPIC
        }
        for topic_id, name in sorted(names.items(), key=lambda item: (item[1], item[0])):
            if not topic_id or topic_id in known or self._histories.topic(topic_id) is not None:
                continue  # known, or deleted since, or another topic has its name
            try:
                check_topic_name(name)
            except InvalidTopic as error:
                self._report.append(f"logs of topic id {topic_id} are not adopted: {error}")
                continue
            yield Topic(topic_id, name)

    # ---- Partitions ----

    def _partitions(self, topics: Iterable[Topic]) -> list[Partition]:
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
        rivals = [p for p in served if (p.leader_epoch, p.leader) != (newest.leader_epoch, newest.leader)]
        newest = self._reconciled(topic, newest, rivals, logs) if rivals else self._with_in_sync(topic, newest, logs)
        epochs = [p.leader_epoch for p in versions]
        epochs += [epoch for held in logs.values() for epoch in (held.leader_epoch, held.last_epoch)]
        return replace(
            newest,
            leader=NO_LEADER,
            leader_epoch=max(epochs) + EPOCH_JUMP,
            partition_epoch=max(p.partition_epoch for p in versions) + EPOCH_JUMP,
        )

    def _has_served(self, partition: Partition, logs: Mapping[int, HeldLog]) -> bool:
        """Has its leader heard of that epoch, as far as this can be told?"""
        leader = logs.get(partition.leader)
        asked = any(one.broker_id == partition.leader for one in self._told)
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
        if not any(newest.id in one.image.partitions for one in self._told):
            return newest.isr  # no broker has heard of it: there never was a log
        empty_handed = {one.broker_id for one in self._told} - logs.keys()
        return tuple(b for b in newest.isr if b not in empty_handed)

    def _adopted(self, topic: Topic, key: PartitionKey) -> Partition:
        """What no metadata tells of: its replicas are those who hold a log, the longest first."""
        logs = self._logs[key]
        replicas = tuple(sorted(logs, key=lambda b: (logs[b].failure != "", *(-n for n in logs[b].length), b)))
        usable = {b: held for b, held in logs.items() if not held.failure}
        isr = _longest(replicas, usable)
        epoch = max(max(held.leader_epoch, held.last_epoch) for held in logs.values()) + EPOCH_JUMP
        return Partition(*key, replicas, isr, NO_LEADER, epoch, EPOCH_JUMP, last_known_isr=() if isr else replicas)


def _is_used(store: MetadataImage) -> bool:
    """Not one that a start has just made where there was none."""
    return bool(store.brokers or store.topics)


def _cluster_id(store: MetadataImage, told: Sequence[Told]) -> str:
    ids = sorted({one.cluster_id for one in told if one.cluster_id})
    if len(ids) > 1:
        of = {one.broker_id: one.cluster_id for one in told}
        raise RecoveryRefused(f"the brokers belong to different clusters: {of}")
    if not ids:
        raise RecoveryRefused("no broker has ever been in a cluster: there is nothing to recover")
    if _is_used(store) and store.cluster_id != ids[0]:
        raise RecoveryRefused(f"the store belongs to cluster {store.cluster_id}, the brokers to {ids[0]}")
    return ids[0]


def _longest(order: Iterable[int], logs: Mapping[int, HeldLog]) -> tuple[int, ...]:
    best = max((held.length for held in logs.values()), default=None)
    return tuple(b for b in order if b in logs and logs[b].length == best)


def _united(producers: Sequence[NamedProducer]) -> NamedProducer:
    """One name, in several heads: the newest id goes on, the others are retired."""
    newest = max(producers, key=lambda p: (p.producer_id, p.epoch))
    others = {number for p in producers for number in (p.producer_id, *p.retired_ids)} - {newest.producer_id}
    forgotten = any(producer.predecessor_expired for producer in producers)
    return replace(newest, retired_ids=tuple(sorted(others)), predecessor_expired=forgotten)
