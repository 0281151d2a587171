"""The part of the judge that looks at logs: what is committed, who holds it, what may have been lost. See `judge`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from fencepost_node.log.names import DAMAGED
from fencepost_proto.protocol.metadata import (
    APPEND_TIME,
    FIRST_NAMED_ID,
    MetadataImage,
    Partition,
    PartitionKey,
    Topic,
)
from tests.simulation.cause_judge import Causes
from tests.simulation.elected_log import common, index_of
from tests.simulation.judged import Leader, PartitionRecord, Producers, Violation
from tests.simulation.logview import Batch, LogView, ProducerFold
from tests.simulation.world import World

EXPIRY_SLACK_S = 0.5  # between when a batch is stored and when it is seen here


class LogJudge:
    """Of the controller's commits, and of all logs on disks. Raises Violation."""

    def __init__(
        self, world: World, broker_of_node: Callable[[str], int | None], producer_expiration_s: float = math.inf
    ) -> None:
        self.world = world
        self.producer_expiration_s = producer_expiration_s
        self.image = MetadataImage()
        self.records: dict[PartitionKey, PartitionRecord] = {}
        self.counts: dict[str, int] = {}
        self.lost_tail: dict[int, None] = {}  # brokers whose machines have lost power, until they register with that
        self.told_lost_tail: dict[int, int] = {}  # broker -> metadata version of its last such registration
        self.damaged: dict[tuple[int, PartitionKey], None] = {}  # where recovery is to find out
        self.deleted: dict[PartitionKey, int] = {}  # partitions that were deleted, and where they ended
        self.put_back_on: dict[PartitionKey, None] = {}  # partitions of which a replica was put back from an older copy
        self.put_back_to: dict[int, None] = {}  # the brokers of those replicas
        self.unreadable: dict[bytes, None] = {}  # contents of batches that hostile clients have written
        self.strangers: list[tuple[int, str, dict[str, bytes]]] = []  # (broker, folder, files): not to be touched
        self.rotten: dict[tuple[int, PartitionKey], None] = {}  # of these, where a running process is to find out
        self.clocks_jumped_s = 0.0  # retention by time goes by them
        self.violation: Violation | None = None
        self.leader_epoch_of: Callable[[int, PartitionKey], int] = lambda broker_id, key: -1  # a peephole
        self.incarnation_of: Callable[[int], str] = lambda broker_id: ""  # another
        self.log_end_of: Callable[[int, PartitionKey], int] = lambda broker_id, key: -1  # another
        self.high_watermark_of: Callable[[int, PartitionKey], int] = lambda broker_id, key: -1  # another
        self._recovered: tuple[MetadataImage, MetadataImage] | None = None  # before and after the last one
        self._heard_epochs: dict[PartitionKey, int] = {}  # of leaders, where a recovery's are not known to any broker
        self.causes: Causes | None = None  # None: no one asks for them
        self._broker_of_node = broker_of_node
        self._disks: dict[int, Any] = {}

    def count(self, what: str, number: int = 1) -> None:
        self.counts[what] = self.counts.get(what, 0) + number

    def fail(self, promise: str, text: str) -> None:
        """Raises Violation, and keeps the first one in case someone swallows it."""
        violation = Violation(promise, text)
        if self.violation is None:
            self.violation = violation
            self.world.tell("judge", f"VIOLATION {violation}")
            self.world.stop(violation)
        raise violation

    # ---- The controller's commits ----

    def metadata(self, image: MetadataImage) -> None:
        """The controller has committed this."""
        old, self.image = self.image, image
        self._look_for_causes(old, image)
        for key, partition in image.partitions.items():
            before = old.partitions.get(key)
            if before is partition:
                continue
            self._partition_changed(key, before, partition)
        for topic_id, topic in image.topics.items():
            if (was := old.topics.get(topic_id)) is not None and was is not topic:
                self._settings_changed(was, topic)
        for key in [key for key in self.records if key not in image.partitions]:
            self.deleted[key] = self.records.pop(key).committed_end  # what a deleted topic held is no one's any more
            self.damaged = {damaged: hidden for damaged, hidden in self.damaged.items() if damaged[1] != key}
            self.rotten = {rotten: hidden for rotten, hidden in self.rotten.items() if rotten[1] != key}
            self.count("partitions deleted")

    def ends(self) -> dict[PartitionKey, int]:
        """Where what is committed ends, of partitions of which that is certain."""
        return {
            key: record.committed_end
            for key, record in self.records.items()
            if not record.tainted and not record.past.elections
        }

    def newest_of(self, name: str) -> tuple[int, int]:
        """Producer id and epoch that the controller has given out last to that name."""
        producer = self.image.producers.get(name)
        return (producer.producer_id, producer.epoch) if producer is not None else (-1, -1)

    def _look_for_causes(self, before: MetadataImage, image: MetadataImage) -> None:
        if self.causes is None:
            return
        now = self.world.now
        for causeless in self.causes.deaths(before, image, self.incarnation_of, now):
            self.count("deaths of brokers judged")
            if causeless:
                self.fail("G11", causeless)
        for causeless in self.causes.departures(before, image, lambda *replica: replica in self.damaged, now):
            self.count("departures from in-sync sets judged")
            if causeless:
                self.fail("G11", causeless)

    def _settings_changed(self, before: Topic, topic: Topic) -> None:
        """What was acknowledged without a sync may be lost with the power, whatever the setting is now."""
        for key, record in self.records.items():
            if key[0] == topic.topic_id:
                record.flush_always &= before.config.flush_always and topic.config.flush_always
                record.append_time |= topic.config.message_timestamp_type == APPEND_TIME
        self.count("settings of topics changed")

    def undone(self, image: MetadataImage) -> None:
        """The controller's store has lost versions that no broker knows. This one is the newest again."""
        self.image = image
        self.lost_tail |= {broker: None for broker, told_at in self.told_lost_tail.items() if told_at > image.version}
        self.count("unused versions lost")

    def unheard(self, known_version: int) -> None:
        """The controller's store is an older one again, and this is the newest version that a broker knows. Of leader epochs
        that a recovery has made since then no one has heard, and the next one may make smaller ones."""
        if self._recovered is not None and known_version < self._recovered[1].version:
            before = self._recovered[0]
            self._heard_epochs = {key: partition.leader_epoch for key, partition in before.partitions.items()}

    def recovered(self, image: MetadataImage) -> None:
        """An operator has made the controller's store again. Nothing that a broker has heard of may be missing, and no
        number may be given out twice."""
        old = self.image
        if image.next_ids.next_id < old.next_ids.next_id:
            self.fail(
                "G8", f"producer ids from {image.next_ids.next_id} on: those below {old.next_ids.next_id} are used"
            )
        if image.next_ids.next_named_id < old.next_ids.next_named_id:
            self.fail(
                "G8",
                f"ids of names from {image.next_ids.next_named_id} on: those below {old.next_ids.next_named_id} are used",
            )
        for name, producer in old.producers.items():
            now = image.producers.get(name)
            # The same again: of the recovery before this one, which no broker has heard of, and no one got it.
            if now is not None and (now.producer_id, now.epoch) < (producer.producer_id, producer.epoch):
                self.fail("G9", f"after a recovery {producer} is followed by {now}")
        for broker_id, broker in image.brokers.items():
            known = old.brokers.get(broker_id)
            if known is not None and broker.broker_epoch > image.version:
                self.fail("G7", f"broker epoch {known.broker_epoch} of {broker_id} is followed by {image.version}")
        for key, record in self.records.items():
            if record.committed and key in old.partitions and key not in image.partitions:
                self.fail("G1", f"{record.name} is missing after a recovery")
        for key, partition in image.partitions.items():
            if self.deleted.get(key) and partition.isr:
                folder = f"/data/{image.topics[key[0]].name}-{key[1]}"
                if all(self._disks[member].find(folder) is None for member in partition.isr):
                    self.fail("G10", f"{folder} was deleted when it ended at {self.deleted[key]}, and is back, empty")
        self.count("controllers recovered")
        self._recovered = (old, image)
        self.metadata(image)
        self._heard_epochs.clear()

    def _partition_changed(self, key: PartitionKey, before: Partition | None, partition: Partition) -> None:
        if before is not None:
            if partition.leader_epoch < self._heard_epochs.get(key, before.leader_epoch):
                self.fail("G7", f"leader epoch of {key} went back from {before.leader_epoch}")
            if partition.leader_epoch == before.leader_epoch and partition.leader != before.leader:
                self.fail("G7", f"two leaders of {key} in epoch {before.leader_epoch}: {before} and {partition}")
            if partition.leader_epoch > before.leader_epoch:
                self.count("elections")
        record = self.record(key)
        if record is None:
            return
        if partition.leader >= 0:
            record.past.leaders[partition.leader_epoch] = partition.leader
        if before is not None and partition.leader in before.eligible:
            self.count("elections of eligible replicas")
        elif before is not None and before.leader < 0 <= partition.leader and partition.leader not in before.isr:
            self._elected_uncleanly(record, partition)
        self._heal(record)
        self._check_members(record, partition)

    # ---- Unclean elections ----

    def shown(self, key: PartitionKey, broker_id: int, kept_end_offset: int) -> None:
        """An operator was shown that with this broker nothing below that offset is lost, and elects it."""
        record = self.record(key)
        if record is not None:
            record.past.shown[broker_id] = kept_end_offset

    def unclean_elections(self, topic: str, partition: int) -> int:
        """How many the topic of that name has had there."""
        return sum(
            len(record.past.elections) for record in self.records.values() if record.name == f"{topic}-{partition}"
        )

    def _elected_uncleanly(self, record: PartitionRecord, partition: Partition) -> None:
        record.past.elections.append(partition.leader_epoch)
        record.past.pending = partition.leader_epoch
        record.past.elected_at = self.world.now
        if record.tainted and record.past.led_between(record.past.tainted_epoch, partition.leader_epoch):
            record.past.shown.clear()  # the power took what was committed, and something else stands in its place
        record.tainted = ""
        record.deleted = (-1, 0)  # the elected log may end below that
        self.count("unclean elections")
        self.world.tell("judge", f"{record.name}: the log of broker {partition.leader} is to be the truth")

    def _take_for_truth(self, record: PartitionRecord, broker_id: int, view: LogView) -> None:
        """The broker that was elected uncleanly begins to lead: its log is what is committed from now on."""
        past, epoch = record.past, record.past.pending
        past.pending = -1
        below = past.below_start(view, record.committed)
        if below is None:
            record.tainted = f"no one has seen what stood below the log start {view.start_offset} of broker {broker_id}"
            return
        held = [*below, *(batch for batch in view.batches if batch.leader_epoch < epoch)]
        parts = common(record.committed, held)
        gone = record.committed[parts:]
        gone += [
            batch for batch in past.unseen_and_gone(held, epoch, append_time=record.append_time) if batch not in gone
        ]
        kept_end = past.shown.pop(broker_id, -1)
        for batch in gone:
            if broker_id not in past.estranged and batch.base_offset < kept_end:
                self.fail(
                    "G1",
                    f"{record.name}: {batch} was committed, and is not in the log of broker {broker_id}, with which, as an "
                    f"operator was shown, nothing below {kept_end} is lost",
                )
        past.lost += gone
        record.committed = held[: max(parts, len(below))]
        record.fold = ProducerFold().add_all(record.committed)
        record.verified.clear()
        past.estranged = dict.fromkeys(other for other in record.views if other != broker_id)
        self.count("batches lost to unclean elections", len(gone))
        self.world.tell(
            "judge",
            f"{record.name}: the log of broker {broker_id} is the truth; lost: {len(gone)} batches from {parts} on",
        )

    def _look_for_truth(self, record: PartitionRecord, replica: Leader) -> None:
        """A log that had been damaged has been elected: it may have been given up and be empty. What was committed before
        cannot tell whether it is whole, since it is itself what is committed from now on."""
        elected = record.past.pending >= 0 and replica.leads and (replica.broker_id, record.key) in self.damaged
        if elected and not record.past.overruled(replica.broker_id, replica.leader_epoch):
            view = self.view(record, replica.broker_id)
            if not view.damage:
                self._take_for_truth(record, replica.broker_id, view)

    def _is_overruled(self, record: PartitionRecord, broker_id: int) -> bool:
        """The broker answers as a leader of before an unclean election, which it has not heard of."""
        return record.past.overruled(broker_id, self.leader_epoch_of(broker_id, record.key))

    def _is_estranged(self, record: PartitionRecord, replica: Leader, view: LogView) -> bool:
        """Its log may still be the one of before an unclean election."""
        past = record.past
        if replica.leader_epoch < past.epoch:
            return True
        if replica.broker_id not in past.estranged:
            return False
        last = view.batches[-1] if view.batches else None
        leader = self.image.partitions[record.key].leader
        index = index_of(record.committed, last.base_offset) if last else 0
        if (
            last is None
            or record.committed[index : index + 1] == [last]
            or (leader >= 0 and self.view(record, leader).at(last.base_offset) == last)
        ):
            del past.estranged[replica.broker_id]
            return False
        return True

    def record(self, key: PartitionKey) -> PartitionRecord | None:
        record = self.records.get(key)
        if record is None:
            topic = self.image.topics.get(key[0])
            if topic is None:
                return None
            record = PartitionRecord(
                key,
                f"{topic.name}-{key[1]}",
                topic.config.flush_always,
                topic.config.message_timestamp_type == APPEND_TIME,
            )
            self.records[key] = record
        return record

    def broker_disk(self, broker_id: int, disk: Any) -> None:
        self._disks[broker_id] = disk

    def view(self, record: PartitionRecord, broker_id: int) -> LogView:
        view = record.views.get(broker_id)
        if view is None:
            folder = f"/data/{record.name}"
            view = LogView(
                self._disks[broker_id], folder, record.key[0], lambda batch: self._appended(record, broker_id, batch)
            )
            record.views[broker_id] = view
        return view.refresh()

    # ---- Every batch that appears on any disk ----

    def _appended(self, record: PartitionRecord, broker_id: int, batch: Batch) -> None:
        record.appended_at.setdefault(batch, self.world.now)
        record.stored_at[batch] = self.world.now
        if (broker_id, record.key) in self.damaged:
            return  # no one has appended these bytes
        if not self._was_given_out(batch.producer_id, batch.producer_epoch):
            self.fail(
                "G8", f"{record.name}: broker {broker_id} appended {batch}, whose id or epoch was never given out"
            )
        if problem := record.past.seen(record.views[broker_id], broker_id):
            self.fail("G4", f"{record.name}: broker {broker_id} {problem}")
        known = record.appended.setdefault((batch.leader_epoch, batch.base_offset), batch)
        if known != batch and not record.tainted:
            self.fail("G7", f"{record.name}: broker {broker_id} holds {batch} where another log has {known}")
        for fence in record.fences:
            if (
                batch.producer_id == fence.producer_id
                and batch.producer_epoch < fence.epoch
                and record.appended_at[batch] >= fence.at
                and (batch.leader_epoch, batch.base_offset) >= (fence.leader_epoch, fence.log_end_offset)
                and (batch.leader_epoch > fence.leader_epoch or batch.base_offset >= fence.log_end_offset)
            ):
                self.fail("G9", f"{record.name}: broker {broker_id} appended {batch} behind the fence {fence}")

    def _was_given_out(self, producer_id: int, epoch: int) -> bool:
        if producer_id < FIRST_NAMED_ID:
            return producer_id < self.image.next_ids.next_id
        return producer_id < self.image.next_ids.next_named_id and epoch <= self.image.fences.get(producer_id, epoch)

    # ---- What is committed ----

    def _members(self, record: PartitionRecord, partition: Partition) -> list[int]:
        """Replicas that may be elected, in sync or eligible: they must hold all that is committed."""
        electable = (*partition.isr, *partition.eligible)
        return [
            member for member in electable if not self._excused(member) and (member, record.key) not in self.damaged
        ]

    def _excused(self, broker_id: int) -> bool:
        """Its machine has lost power, and the controller has not heard of it yet: its process has not registered. (One from
        before may have, since: its request had waited with the controller.)"""
        if broker_id not in self.lost_tail:
            return False
        broker = self.image.brokers.get(broker_id)
        if broker is not None and broker.incarnation == self.incarnation_of(broker_id):
            del self.lost_tail[broker_id]
            self.told_lost_tail[broker_id] = self.image.version
            return False
        return True

    def committed(self, record: PartitionRecord, broker_id: int, end_offset: int, promise: str, why: str) -> None:
        """Broker `broker_id` treats everything in its log below `end_offset` as committed."""
        if record.tainted or (record.past.elections and self._is_overruled(record, broker_id)):
            return
        view = self.view(record, broker_id)
        if record.past.pending >= 0:
            self._take_for_truth(record, broker_id, view)
            if record.tainted:
                return
        if end_offset > view.end_offset:
            self.fail(promise, f"{record.name}: {why} up to {end_offset}, its log ends at {view.end_offset}")
        new = self._removed_unnoticed(record, view)
        new += [batch for batch in view.since(record.committed_end) if batch.end_offset <= end_offset]
        partition = self.image.partitions[record.key]
        if new:
            for member in self._members(record, partition):
                log = self.view(record, member)
                for batch in new:
                    held = log.at(batch.base_offset)
                    if held != batch and batch.base_offset >= log.start_offset:
                        self.fail(
                            promise,
                            f"{record.name}: {why} on broker {broker_id}, but in-sync replica {member} has "
                            f"{held} where {batch} is committed (isr {partition.isr}, epoch {partition.leader_epoch})",
                        )
            for batch in new:
                problem = record.fold.add(batch)
                if problem:
                    promise = "G2" if "repeat" in problem else "G3"
                    self.fail(promise, f"{record.name}: {problem} in {batch}")
                record.committed.append(batch)
                self.count("committed batches")
                if batch.last_sequence < batch.base_sequence:
                    self.count("sequences wrapped")

    def _removed_unnoticed(self, record: PartitionRecord, view: LogView) -> list[Batch]:
        """What retention has removed since it was committed, before anyone looked: as it was seen in the log before."""
        removed: list[Batch] = []
        offset = record.committed_end
        if record.past.elections and offset < view.start_offset:
            below = record.past.below_start(view, record.committed)
            return [batch for batch in below or [] if batch.base_offset >= offset]
        while offset < view.start_offset:
            seen = [batch for (_, base_offset), batch in record.appended.items() if base_offset == offset]
            if not seen:
                break
            removed.append(max(seen, key=lambda batch: batch.leader_epoch))
            offset = removed[-1].end_offset
        return removed

    def _check_members(self, record: PartitionRecord, partition: Partition) -> None:
        """Every in-sync replica holds every committed batch that its log start has not passed."""
        if record.tainted or record.past.pending >= 0:
            return
        for member in self._members(record, partition):
            self._compare(record, member, "G1")

    def _compare(self, record: PartitionRecord, broker_id: int, promise: str, end_offset: int | None = None) -> None:
        """The log of a replica agrees with what is committed, all of it or below `end_offset`."""
        view = self.view(record, broker_id)
        rebuilds, done = record.verified.get(broker_id, (-1, 0))
        if rebuilds != view.rebuilds:
            done = 0
        skipped = index_of(record.committed, view.start_offset)
        wanted = record.committed[skipped + done :]
        compared = 0
        for index, batch in enumerate(wanted, done):
            if end_offset is not None and batch.end_offset > end_offset:
                break
            held = view.batches[index] if index < len(view.batches) else None
            if held != batch:
                broken = promise if held is None else "G4"  # not there, or something else in its place
                self.fail(broken, f"{record.name}: broker {broker_id} has {held} where {batch} is committed")
            compared += 1
        record.verified[broker_id] = (view.rebuilds, done + compared)

    # ---- Sweeps ----

    def sweep(self, replicas: Iterable[Leader]) -> None:
        """Look at everything."""
        for replica in replicas:
            record = self.record(replica.key)
            if record is not None:
                self._look_for_truth(record, replica)
                self._heal(record)
                damaged = (replica.broker_id, replica.key) in self.damaged.keys() - self.rotten.keys()
                if replica.leads and damaged and not record.tainted:
                    self.fail("G1", f"{record.name}: broker {replica.broker_id} leads with a damaged log")
            if record is None or record.tainted or (replica.broker_id, replica.key) in self.damaged:
                continue
            if replica.high_watermark > replica.log_end_offset and not replica.being_cut:
                self.fail(
                    "G6",
                    f"{record.name}: the high watermark {replica.high_watermark} of broker {replica.broker_id} is above "
                    f"its log's end {replica.log_end_offset}",
                )
            if replica.leads:
                self.committed(record, replica.broker_id, replica.high_watermark, "G6", "its high watermark is")
            elif record.past.pending < 0 and not self._is_estranged(
                record, replica, self.view(record, replica.broker_id)
            ):
                self._compare(record, replica.broker_id, "G4", replica.high_watermark)
            if not replica.being_cut:  # a cut that has failed may not have been heard of
                self._check_producers(record, replica)
        for key, partition in self.image.partitions.items():
            record = self.record(key)
            if record is not None:
                self._check_starts(record, partition)
                self._check_members(record, partition)

    def _check_starts(self, record: PartitionRecord, partition: Partition) -> None:
        views = {broker_id: self.view(record, broker_id) for broker_id in partition.replicas}
        if record.tainted:
            return
        record.starts.settings(partition, self.image.topics[record.key[0]].config)

        def age_s(start_offset: int, end_offset: int) -> float:
            stored = [at for batch, at in record.appended_at.items() if start_offset <= batch.base_offset < end_offset]
            return self.world.now - max(stored, default=self.world.now) + self.clocks_jumped_s

        damaged = {broker_id for broker_id in views if (broker_id, record.key) in self.damaged}
        moved = record.starts.look(views, damaged, age_s, lambda problem: self.fail("G1", f"{record.name}: {problem}"))
        self.count("log starts justified", moved)

    def _check_producers(self, record: PartitionRecord, replica: Leader) -> None:
        """G5: live producer state is the fold of all batches that were ever below the log's end."""
        view = self.view(record, replica.broker_id)
        if view.end_offset != replica.log_end_offset:
            self.fail("G5", f"{record.name}: broker {replica.broker_id} says its log ends at {replica.log_end_offset}; "
                      f"its files end at {view.end_offset} {view.damage}")  # fmt: skip
        rebuilds, done, fold = record.folds.get(replica.broker_id, (-1, 0, ProducerFold()))
        if rebuilds != view.rebuilds:
            below = record.past.below_start(view, record.committed)
            if below is None:
                return
            done, fold = 0, ProducerFold().add_all(below)
        fold.add_all(view.batches[done:])
        record.folds[replica.broker_id] = (view.rebuilds, len(view.batches), fold)
        found = replica.producers()
        expected: Producers = {
            producer_id: (epoch, tuple((b.base_sequence, b.last_sequence, b.base_offset) for b in batches))
            for producer_id, (epoch, known) in fold.producers.items()
            if (batches := self._remembered(record, producer_id, known, found.get(producer_id)))
        }
        if found != expected:
            wrong = sorted(i for i in expected.keys() | found.keys() if expected.get(i) != found.get(i))[0]
            self.fail(
                "G5",
                f"{record.name}: broker {replica.broker_id} (leads: {replica.leads}) knows producer {wrong} as "
                f"{found.get(wrong)}; the log says {expected.get(wrong)} (log {view.start_offset} to {view.end_offset})",
            )
        self.count("producer states compared")

    def _remembered(
        self,
        record: PartitionRecord,
        producer_id: int,
        batches: tuple[Batch, ...],
        found: tuple[int, tuple[tuple[int, int, int], ...]] | None,
    ) -> tuple[Batch, ...]:
        """Of a producer's last batches those that the replica has to know, given what it does know: it may have forgotten
        the producer whenever that had been idle for the expiration time, and it then knows only what came after. Idle is
        what a replica sees: one that lags may forget a producer whose next batch it has not got yet, and those that start
        over from its snapshot know no more than it does."""
        kept = min(len(found[1]), len(batches)) if found is not None else 0
        if kept == len(batches) or producer_id in self.image.fences:
            return batches  # a named producer is not forgotten while its name is known
        last = batches[-kept - 1]  # of those that it does not know
        until = record.stored_at[batches[-kept]] if kept else self.world.now
        hidden = any(key == record.key for _, key in self.damaged)  # what is committed may be known only later
        if last.end_offset > record.committed_end and not hidden:
            return batches
        if not self.may_have_expired(until - record.appended_at[last]):
            return batches
        self.count("expired producers met")
        return batches[len(batches) - kept :]

    def may_have_expired(self, idle_s: float) -> bool:
        return idle_s >= self.producer_expiration_s - EXPIRY_SLACK_S

    # ---- Power failures and damage ----

    def damage(self, record: PartitionRecord, broker_id: int) -> None:
        """Bytes of this replica have changed on its disk. Nothing is asked of it until it is whole again, except that it
        must not lead before."""
        self.damaged[broker_id, record.key] = None
        self._heal(record)  # also what is behind all that is committed counts: it may be committed in this moment
        if (broker_id, record.key) in self.damaged:
            self.count("logs damaged")

    def rot(self, record: PartitionRecord, broker_id: int) -> None:
        """As `damage`, while its process runs, which cannot know before it reads them: until then it may lead."""
        self.rotten[broker_id, record.key] = None
        self.damage(record, broker_id)

    def _heal(self, record: PartitionRecord) -> None:
        """Forget damage where the replica's log is whole again."""
        for broker_id, key in list(self.damaged):
            if key == record.key and not self.view(record, broker_id).damage and self._is_whole(record, broker_id):
                del self.damaged[broker_id, key]
                self.rotten.pop((broker_id, key), None)
                self.count("damaged logs made whole")

    def _is_whole(self, record: PartitionRecord, broker_id: int) -> bool:
        view = self.view(record, broker_id)
        wanted = record.committed[index_of(record.committed, view.start_offset) :]
        return view.end_offset >= record.committed_end and view.batches[: len(wanted)] == wanted

    def lost_power(self, broker_ids: list[int]) -> None:
        """After the machines of these brokers have lost power: where did it take what was committed?"""
        for broker_id in broker_ids:
            self.lost_tail[broker_id] = None
        for record in self.records.values():
            partition = self.image.partitions[record.key]
            electable = (*partition.isr, *partition.eligible)
            if record.tainted or record.past.pending >= 0 or not set(broker_ids).intersection(electable):
                continue
            if record.flush_always and any(
                self._may_cut(record, member) for member in electable if member in broker_ids
            ):
                # Two faults at once: what has changed looks like what was not synced, and the replica may lead without it.
                record.tainted = f"damage that no one had found on one of {broker_ids}, and a power failure"
                self.count("damage that a power failure hides")
                continue
            # One that is neither in sync nor eligible counts, too: where none of those is whole, none leads until an
            # operator elects.
            if any(self.holds_all(record, member) for member in partition.replicas):
                continue
            # What was synced no power failure takes: where none is whole, it is for the damage that was there before.
            if record.flush_always and any((member, record.key) in self.damaged for member in partition.replicas):
                continue
            self.taint(record, f"power failure of {broker_ids}")

    def _may_cut(self, record: PartitionRecord, broker_id: int) -> bool:
        """Bytes of this replica have changed, and no process has found and noted that."""
        noted = f"/data/{record.name}/{DAMAGED}"
        return (broker_id, record.key) in self.damaged and self._disks[broker_id].find(noted) is None

    def put_back(self, broker_id: int) -> None:
        """The folder of this broker, which is down, is an older one from now on. Nothing is asked of it until it has
        registered with that."""
        self.lost_tail[broker_id] = None
        self.put_back_to[broker_id] = None
        for record in self.records.values():
            if broker_id in self.image.partitions[record.key].replicas:
                self.put_back_on[record.key] = None
                lacks = record.committed_end - self.view(record, broker_id).end_offset
                self.count("committed records that folders lacked when they were put back", max(0, lacks))
                if self.view(record, broker_id).damage:  # bytes had changed before the copy was made
                    self.rot(record, broker_id)
        self.strangers = [stranger for stranger in self.strangers if stranger[0] != broker_id]
        self.count("folders put back")

    def look_at_suspicions(self) -> None:
        """No folder is taken for an older one but those that are: that costs its broker every in-sync set."""
        for line in self.world.trace:
            if "data folder may lack acknowledged records" in line and "because=it is new" not in line:
                broker_id = int(line.partition(" broker=")[2].split()[0])
                self.count("folders found to be older ones")
                if broker_id not in self.put_back_to:
                    self.fail("G11", f"no one has put back a folder of broker {broker_id}: {line}")

    def look_at_strangers(self) -> None:
        """What someone has put into a data folder is neither opened nor removed."""
        for broker_id, folder, files in self.strangers:
            if self._disks[broker_id].content(folder) != files:
                self.fail("G4", f"broker {broker_id} has touched {folder}, which is none of its logs")
        self.count("strangers looked at", len(self.strangers))

    def taint(self, record: PartitionRecord, why: str) -> None:
        """What is committed here is on no disk any more, or on none that will lead."""
        if record.tainted:
            return
        if record.flush_always and record.key not in self.put_back_on:
            self.fail("G1", f"{record.name}: synced before it was acknowledged, and lost: {why}")
        record.tainted, record.past.tainted_epoch = why, self.image.partitions[record.key].leader_epoch
        self.count("partitions that lost data to power failures")
        self.world.tell("judge", f"{record.name} has lost unsynced data permanently: {why}")

    def holds_all(self, record: PartitionRecord, broker_id: int) -> bool:
        return (broker_id, record.key) not in self.damaged and self._is_whole(record, broker_id)
