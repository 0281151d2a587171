"""A controller's store made again from what the brokers hold: where it was lost, or put back from a backup.

**What the brokers hold.** Each has the newest metadata that it applied, its logs, and the newest version that it has
received notice of. A change that no broker received had no effect: changes take effect only where brokers apply them. The
exceptions are covered by jumps: every number that may have been given out without a broker's knowledge is skipped by a wide
margin.

**What is made of it** (`recover`):

1. *Sources* are the images of all brokers, and the store as it is now. Which of them hold (the *heads*: mostly one, several
   where a store that had gone back has served some brokers), and what was removed since: `histories`. The heads are united.
2. A *topic*, whatever logs of it are on disks:

   | known to                                    | what becomes of it                                                      |
   | ------------------------------------------- | ----------------------------------------------------------------------- |
   | every head                                  | it stays; each partition by 3                                           |
   | some heads, and the others have deleted it  | it stays deleted: reported; brokers set the logs that are left aside    |
   | some heads, and it was created there        | it stays                                                                |
   | some heads, and it is not known which       | it stays; a partition without a log waits for an operator (3)           |
   | no head, but an ancestor                    | it was deleted since: reported; logs that are left are set aside        |
   | a store alone that no broker follows        | the same; or it was created there, and no one can have used it: reported|
   | no metadata, but logs on disks              | it is adopted with default settings: its own are not known              |

   So only newer metadata says that a topic was deleted, never a log that is missing. Of an adopted topic, a partition that
   no broker holds a log of, below one that is held, waits for an unclean election: without it the topic's numbers would have
   a gap, and no one could use it.
3. A *partition*: `recovered_partitions`.
4. Every *broker* is fenced and of no incarnation: all register as new ones. What the metadata knows of the epochs under
   which it has served stays, so that an older folder of a broker is seen as one.
5. *Jumps*: the metadata version (and with it all broker epochs), leader epochs, partition epochs, producer ids and the
   epochs of named producers; where a name has no epoch left it goes on under a new id, and the old one is retired.
6. A new lineage begins, and of older versions nothing is known: a broker that knows one of them is merely behind.

Named producers that run are fenced by that, as by a take-over of their names; anonymous ones go on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fencepost_controller.decisions.histories import Histories
from fencepost_controller.decisions.invariants import check_image
from fencepost_controller.decisions.recovered_partitions import PartitionRecovery
from fencepost_controller.decisions.recovery_inputs import NO_PRODUCER, BrokerReport, HeldLog
from fencepost_controller.decisions.topics import MAX_PARTITIONS_PER_TOPIC
from fencepost_proto.protocol import record_batch
from fencepost_proto.protocol.errors import InvalidTopic
from fencepost_proto.protocol.lineage import Lineage, LineageStart
from fencepost_proto.protocol.metadata import (
    FIRST_NAMED_ID,
    BrokerRegistration,
    ClusterIdentity,
    Entity,
    MetadataImage,
    NamedProducer,
    NextProducerId,
    PartitionKey,
    Topic,
    check_topic_name,
)

VERSION_JUMP = 1_000_000
PRODUCER_EPOCH_JUMP = 100
PRODUCER_ID_JUMP = 1_000_000
MAX_SOUND_PRODUCER_ID = FIRST_NAMED_ID // 2  # an id in a log above this was never allocated …
MAX_SOUND_NAMED_ID = 2**62  # … nor one of a named producer above that
NO_INCARNATION = "recovered"  # no process has it


class RecoveryRefused(Exception):
    """The store cannot be made from this; the message says what is missing or contradicts."""


@dataclass(frozen=True, slots=True)
class RecoveredMetadata:
    image: MetadataImage
    report: tuple[str, ...]  # what was done, a line each


def recover(
    store: MetadataImage, reports: Sequence[BrokerReport], without: Collection[int], lineage_id: int
) -> RecoveredMetadata:
    """The store as it has to be. `without`: brokers that may be missing. Raises RecoveryRefused."""
    return _MetadataRecovery(store, reports, without).image(lineage_id)


class _MetadataRecovery:
    def __init__(self, store: MetadataImage, reports: Sequence[BrokerReport], without: Collection[int]) -> None:
        self._cluster_id = _cluster_id(store, reports)
        self._store = store if _is_used(store) else MetadataImage()
        self._reports = sorted(reports, key=lambda one: one.broker_id)
        self._logs: dict[PartitionKey, dict[int, HeldLog]] = {}
        for one in self._reports:
            for held in one.logs:
                self._logs.setdefault(held.key, {})[one.broker_id] = held
        images = [self._store, *(one.image for one in self._reports)]
        self._histories = Histories(self._store, images, [heard for one in self._reports for heard in one.heard])
        self._heads = self._histories.heads
        self._report: list[str] = []
        self._check_all_have_reported(without)

    def image(self, lineage_id: int) -> RecoveredMetadata:
        version = self._version()
        topics = self._topics(version)
        partitions = PartitionRecovery(self._reports, self._logs, self._heads, self._report).partitions(topics)
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
            f"cluster {self._cluster_id}: reported by brokers {[one.broker_id for one in self._reports]}",
            f"metadata version {version}, which was {self._store.version} in the store; "
            f"lineage {lineage_id:016x} begins there",
            f"producer ids from {next_ids.next_id} on, of named ones from {next_ids.next_named_id} on; "
            f"{sum(not producer.expired for producer in producers)} named producers; "
            f"{len(topics)} topics with {len(partitions)} partitions",
        ]
        return RecoveredMetadata(image, (*head, *self._report))

    def _check_all_have_reported(self, without: Collection[int]) -> None:
        if not self._reports:
            raise RecoveryRefused("no broker has reported what it holds")
        known = self._histories.brokers().keys()
        missing = sorted(known - {one.broker_id for one in self._reports} - set(without))
        if missing:
            names = ", ".join(map(str, missing))
            raise RecoveryRefused(
                f"broker {names} has not reported what it holds: it may be the only one that knows of the newest changes, "
                f"or has acknowledged records. Start it; or go on without it, where it is lost permanently:"
                f" --without {missing[0]}"
            )
        for broker_id in sorted(known & set(without) - {one.broker_id for one in self._reports}):
            self._report.append(f"broker {broker_id} was not asked: what only it knew is not in the store")

    # ---- Numbers ----

    def _version(self) -> int:
        known = [self._store.version, *(image.version for image in self._histories.sources)]
        known += [number for one in self._reports for number in (one.known_version, one.broker_epoch)]
        newest_image = max((image.version for image in self._heads), default=0)
        newest = max(one.known_version for one in self._reports)
        if newest > newest_image:
            self._report.append(
                f"versions {newest_image + 1} to {newest} were announced to brokers and are in no image"
            )
        return max(known) + VERSION_JUMP

    def _brokers(self) -> list[BrokerRegistration]:
        known = self._histories.brokers()
        for one in self._reports:
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
        for one in self._reports:
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
                    f"and no broker knows it"
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


def _is_used(store: MetadataImage) -> bool:
    """Not one that a start has just made where there was none."""
    return bool(store.brokers or store.topics)


def _cluster_id(store: MetadataImage, reports: Sequence[BrokerReport]) -> str:
    ids = sorted({one.cluster_id for one in reports if one.cluster_id})
    if len(ids) > 1:
        of = {one.broker_id: one.cluster_id for one in reports}
        raise RecoveryRefused(f"the brokers belong to different clusters: {of}")
    if not ids:
        raise RecoveryRefused("no broker has ever been in a cluster: there is nothing to recover")
    if _is_used(store) and store.cluster_id != ids[0]:
        raise RecoveryRefused(f"the store belongs to cluster {store.cluster_id}, the brokers to {ids[0]}")
    return ids[0]


def _united(producers: Sequence[NamedProducer]) -> NamedProducer:
    """One name, in several heads: the newest id goes on, the others are retired."""
    newest = max(producers, key=lambda p: (p.producer_id, p.epoch))
    others = {number for p in producers for number in (p.producer_id, *p.retired_ids)} - {newest.producer_id}
    forgotten = any(producer.predecessor_expired for producer in producers)
    return replace(newest, retired_ids=tuple(sorted(others)), predecessor_expired=forgotten)
