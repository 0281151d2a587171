"""The judge sees everything: every log's bytes, every commit of the controller, every answer. It checks the promises.

*Committed* is what the judge has seen committed: acknowledged to a producer, shown to a consumer, or below a leader's
high watermark. It is kept for ever, whatever retention or a power failure removes from disks. Each time it grows, every
member of the in-sync set that the controller has committed must hold the new batches on its disk; and at every sweep,
every such member must hold all of it. So a hole in the protocol shows when it opens, not when a failover falls into it.

A producer that has been idle for the expiration time may be forgotten, by each replica in its own time (G5).

What legitimately may be lost: a power failure takes unsynced data, and where it took it from every in-sync replica of a
partition that does not sync before it acknowledges, the partition is *tainted*: promises about keeping data (G1, G4, G6,
G10) are not checked on it until an operator elects a leader uncleanly. That is decided here from the disks, not by the
schedule of faults. After an unclean election the elected log is what is committed (`elected_log`), and all is checked again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.metadata import (
    RETIRED_EPOCH,
    PartitionKey,
)
from fencepost_proto.protocol.record_batch import BatchHeader, check_batch, read_header
from fencepost_proto.protocol.records import Compression
from tests.simulation.elected_log import Stamp, index_of
from tests.simulation.judged import Fence, PartitionRecord
from tests.simulation.log_judge import LogJudge
from tests.simulation.logview import Batch
from tests.simulation.network import Tap
from tests.simulation.process import SimProcess
from tests.simulation.taps import DeleteRecordsTap, FetchTap, InitTap, ProduceTap, ReplicateTap
from tests.simulation.world import World

BROKER = "/fencepost.v1.Broker/"
REPLICATE = "/fencepost.v1.Replication/Replicate"


class Judge(LogJudge):
    """Hand it what happens; it raises Violation. Here is what clients ask and are answered, and what followers say."""

    def __init__(
        self, world: World, broker_of_node: Callable[[str], int | None], producer_expiration_s: float = math.inf
    ) -> None:
        super().__init__(world, broker_of_node, producer_expiration_s)
        self._unsound: dict[
            tuple[SimProcess, PartitionKey, bytes], int
        ] = {}  # batches served, by client and base offset
        self._producer_ids: dict[int, str] = {}
        self._seen_high_watermarks: dict[tuple[SimProcess, PartitionKey], tuple[int, int]] = {}
        self._last_read: dict[tuple[SimProcess, PartitionKey], Batch] = {}
        self.kafka_stamps: dict[bytes, Stamp] = {}  # of records acknowledged on the Kafka edge, by value
        taps: dict[str, Tap] = {
            "Produce": ProduceTap(self),
            "Fetch": FetchTap(self),
            "DeleteRecords": DeleteRecordsTap(self),
            "InitProducerId": InitTap(self),
        }
        for method, tap in taps.items():
            world.network.taps[BROKER + method] = tap
        world.network.taps[REPLICATE] = ReplicateTap(self)

    # ---- Answers to clients ----

    def acknowledged(self, server: SimProcess, key: PartitionKey, acks: int, batch: BatchHeader, result: Any) -> None:
        broker_id = self._broker_of_node(server.node)
        record = self.record(key)
        if broker_id is None or record is None or acks == 0 or result.base_offset < 0:
            return
        if record.tainted:  # nothing is asked of it, but that an unclean election may take it
            record.past.unseen |= {self._as_answered(record, broker_id, batch, result): None} if acks < 0 else {}
            return
        if record.past.elections and self._is_overruled(record, broker_id):
            unseen = (broker_id, key) in self.damaged
            answered = self._as_answered(record, broker_id, batch, result) if unseen else None
            held = answered or self.view(record, broker_id).at(result.base_offset)
            if held is not None and record.committed[index_of(record.committed, held.base_offset) :][:1] != [held]:
                record.past.lost.append(held)  # acknowledged by a leader that does not know that it is none
            return
        if (broker_id, key) in self.damaged:
            # Its files cannot be compared now; they are when they are whole again, unless that is never.
            record.past.unseen |= {self._as_answered(record, broker_id, batch, result): None} if acks < 0 else {}
            return
        self.count("acknowledged batches")
        if batch.attributes:
            self.count(f"acknowledged batches, {Compression(batch.attributes).name.lower()}")
        if result.duplicate:
            self.count("duplicates recognised")
        view = self.view(record, broker_id)
        held = view.at(result.base_offset)
        if result.base_offset < view.start_offset:  # retention has removed it; its producer's state lives on
            index = index_of(record.committed, result.base_offset)
            held = record.committed[index] if index < len(record.committed) else None
        wanted = (batch.producer_id, batch.producer_epoch, batch.base_sequence, batch.record_count, batch.crc)
        if held is None or (*held[5:], batch.crc if record.append_time else held.crc) != wanted:
            self.fail("G6", f"{record.name}: broker {broker_id} acknowledged {wanted} at {result.base_offset}: {held}")
            return
        if acks < 0:
            if result.base_offset >= view.start_offset:
                self.committed(record, broker_id, held.end_offset, "G6", f"acknowledged {held}")
            below = record.committed[index_of(record.committed, held.base_offset)]
            if below != held:
                self.fail("G6", f"{record.name}: broker {broker_id} acknowledged {held}; committed is {below}")

    def _as_answered(self, record: PartitionRecord, broker_id: int, batch: BatchHeader, result: Any) -> Batch:
        """An acknowledged batch as its answer tells it; appended under the leader's epoch, or an older one."""
        epoch = self.leader_epoch_of(broker_id, record.key)
        if epoch < 0:  # it has let go of the replica since
            epoch = self.image.partitions[record.key].leader_epoch
        end_offset = result.base_offset + batch.record_count
        return Batch.of(batch)._replace(base_offset=result.base_offset, end_offset=end_offset, leader_epoch=epoch)

    def fetched(self, server: SimProcess, client: SimProcess, answer: Any, *, by_kafka: bool = False) -> None:
        """`by_kafka`: the client is one of Kafka's, which does not tell the leader epoch of what it had read last, and to
        which a new leader answers the high watermark that it knows, though its predecessor may have known a higher one."""
        key = (answer.topic_id, answer.partition)
        record = self.record(key)
        broker_id = self._broker_of_node(server.node)
        if record is None or broker_id is None or record.tainted or answer.high_watermark < 0:
            return
        if (broker_id, key) not in self.damaged:  # else what is read may be what no one has written
            self._check_continues(record, client, answer.records, not by_kafka)
        epoch = self.leader_epoch_of(broker_id, key)
        if epoch < 0 or record.past.overruled(broker_id, epoch):
            return  # the broker has let go of the replica since it read this, or does not know that it leads no more
        seen_epoch, seen = self._seen_high_watermarks.get((client, key), (-1, 0))
        if any(seen_epoch < elected <= epoch for elected in record.past.elections):
            seen = 0  # what a client has seen before an unclean election
        if by_kafka and epoch > seen_epoch:
            seen = 0
        if epoch >= seen_epoch:  # a deposed leader that does not know it yet may be behind; clients know its epoch
            if answer.high_watermark < seen:
                self.fail(
                    "G10",
                    f"{record.name}: {client!r} saw high watermark {seen} in leader epoch {seen_epoch}, then "
                    f"{answer.high_watermark} in {epoch}",
                )
            self._seen_high_watermarks[client, key] = (epoch, answer.high_watermark)
        if (broker_id, key) in self.damaged:
            self._look_for_unsound(record, client, answer.records)
            return
        position = 0
        while position < len(answer.records):
            header = read_header(answer.records, position)
            batch = Batch.of(header)
            position += header.size_bytes
            if batch.end_offset > answer.high_watermark:
                self.fail("G10", f"{record.name}: {batch} read above the high watermark {answer.high_watermark}")
            self.committed(record, broker_id, batch.end_offset, "G10", f"{client!r} read {batch}")
            index = index_of(record.committed, batch.base_offset)
            if index >= len(record.committed) or record.committed[index] != batch:
                self.fail("G10", f"{record.name}: {client!r} read {batch}, which is not what is committed there")

    # ---- Deleted records ----

    def records_deleted(self, server: SimProcess, key: PartitionKey, log_start_offset: int) -> None:
        """A leader has told an operator that the partition begins there."""
        record, broker_id = self.record(key), self._broker_of_node(server.node)
        if record is None or broker_id is None or record.tainted or record.past.pending >= 0:
            return
        epoch = self.leader_epoch_of(broker_id, key)
        if epoch < 0 or record.past.overruled(broker_id, epoch):
            return
        high_watermark = self.high_watermark_of(broker_id, key)
        if log_start_offset > high_watermark >= 0:
            self.fail("G6", f"{record.name} begins at {log_start_offset}, above the high watermark {high_watermark}")
        record.deleted = max(record.deleted, (epoch, max(log_start_offset, record.deleted[1])))
        self.count("deletions of records")

    def deleted_for(self, server: SimProcess, key: PartitionKey) -> int:
        """Below which offset records are deleted that this broker, by the leader epoch that it knows, must not show. What
        the leader of an earlier epoch shows, who does not know yet that it is none, is not judged."""
        record, broker_id = self.records.get(key), self._broker_of_node(server.node)
        if record is None or broker_id is None or self.leader_epoch_of(broker_id, key) < record.deleted[0]:
            return 0
        return record.deleted[1]

    def shows(self, server: SimProcess, key: PartitionKey, log_start_offset: int, data: bytes, deleted_to: int) -> None:
        """A reader who asked after records below `deleted_to` were deleted is given what begins there."""
        record = self.records.get(key)
        if record is None or record.tainted or not deleted_to or record.deleted[1] < deleted_to:
            return  # deleted, tainted or elected uncleanly meanwhile
        if log_start_offset < deleted_to:
            self.fail(
                "G10", f"{record.name}: {server!r} begins at {log_start_offset}; all below {deleted_to} was deleted"
            )
        if data and read_header(data).end_offset <= deleted_to:
            self.fail(
                "G10", f"{record.name}: {server!r} serves {read_header(data)}; all below {deleted_to} was deleted"
            )
        self.count("readings behind deleted records")

    def subscribes(self, client: SimProcess, key: PartitionKey) -> None:
        """A follower says where its log ends, perhaps since it has just cut it."""
        record, broker_id = self.record(key), self._broker_of_node(client.node)
        if record is None or broker_id is None or not client.alive or record.tainted:
            return
        high_watermark, end_offset = self.high_watermark_of(broker_id, key), self.log_end_of(broker_id, key)
        if high_watermark > end_offset:
            self.fail(
                "G6",
                f"{record.name}: broker {broker_id} subscribes from its log's end {end_offset}, and takes what is below "
                f"{high_watermark} for committed",
            )
        self.count("subscriptions looked at")

    def continued(
        self, server: SimProcess, client: SimProcess, key: PartitionKey, offset: int, last_epoch: int
    ) -> None:
        """A leader serves a reader who has read a batch of `last_epoch` just before `offset`: its log has that batch."""
        record, broker_id = self.record(key), self._broker_of_node(server.node)
        if record is None or broker_id is None or record.tainted or (broker_id, key) in self.damaged:
            return
        if record.past.leaders.get(self.leader_epoch_of(broker_id, key)) != broker_id:
            return  # it has ceased to lead since it read this; its log may be cut already
        view = self.view(record, broker_id)
        index = index_of(view.batches, offset) - 1
        before = view.batches[index] if index >= 0 else None
        if before is not None and offset <= before.end_offset and before.leader_epoch != last_epoch:
            self.fail(
                "G10",
                f"{record.name}: broker {broker_id} serves {client!r} from {offset}, before which that had read a batch of "
                f"leader epoch {last_epoch}; its log has {before} there",
            )
        self.count("continued readings looked at")

    def _check_continues(self, record: PartitionRecord, client: SimProcess, content: bytes, tells_epoch: bool) -> None:
        """What a client gets behind the last batch that it got continues that one, also after an unclean election: there
        only if it tells the epoch of that batch, for else no leader can know what it has read."""
        position = 0
        while position < len(content):
            header = read_header(content, position)
            position += header.size_bytes
            batch, last = Batch.of(header), self._last_read.get((client, record.key))
            before = record.past.predecessors.get(batch)
            if last is not None and before is not None and last.end_offset == batch.base_offset and before != last:
                if tells_epoch or last.leader_epoch >= record.past.epoch:
                    self.fail(
                        "G10", f"{record.name}: {client!r} read {last} and then {batch}, which stands behind {before}"
                    )
                self.count("readings across unclean elections")
            self._last_read[client, record.key] = batch

    def _look_for_unsound(self, record: PartitionRecord, client: SimProcess, records: bytes) -> None:
        """A leader whose bytes have changed after it had read them may serve them once: then the consumer says so."""
        position = 0
        while position < len(records):
            try:
                position += check_batch(records, position).size_bytes
            except FencepostError as error:
                place = (client, record.key, records[position : position + 8])
                self._unsound[place] = self._unsound.get(place, 0) + 1
                self.count("unsound batches served")
                if self._unsound[place] > 1:
                    self.fail("G10", f"{record.name}: {client!r} is served the same unsound batch again: {error}")
                return

    def producer_initialised(self, client: SimProcess, request: Any, answer: Any) -> None:
        owner = f"name {request.name}" if request.name else f"{client!r} at {self.world.now:.6f}"
        known = self._producer_ids.setdefault(answer.producer_id, owner)
        if known != owner:
            self.fail("G8", f"producer id {answer.producer_id} was given to {known} and to {owner}")
        self.count("producer ids given")
        if not request.name:
            return
        self.count("fences")
        self._fence(answer.producer_id, answer.producer_epoch)
        entity = self.image.producers.get(request.name)
        for retired in entity.retired_ids if entity is not None else ():
            if retired == answer.producer_id:
                break  # someone has taken over, and that fence may not stand yet
            self.count("fences of used-up producer ids")
            self._fence(retired, RETIRED_EPOCH)

    def earlier_ids(self, producer_id: int) -> frozenset[int]:
        """The ids that were given out under the same name before this one."""
        owner = self._producer_ids.get(producer_id)
        return frozenset(other for other, of in self._producer_ids.items() if of == owner and other < producer_id)

    def _fence(self, producer_id: int, epoch: int) -> None:
        """From the present leader on. Where there is none, whoever led last may not know that: what it appends comes before
        all that the new instance does there, and no leader that is elected from now on may append more of it."""
        for key, partition in self.image.partitions.items():
            record = self.record(key)
            if record is not None:
                end_offset = self.view(record, partition.leader).end_offset if partition.leader >= 0 else 0
                if (partition.leader, key) in self.damaged:  # which hides what comes behind it
                    end_offset = max(end_offset, self.log_end_of(partition.leader, key))
                record.fences.append(Fence(producer_id, epoch, partition.leader_epoch, end_offset, self.world.now))
                self.count("fences of partitions without a leader", partition.leader < 0)
