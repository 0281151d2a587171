"""The judgement at a run's end: what producers were told, what consumers read, and what is in the logs, compared."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from fencepost.history import History
from fencepost.history_format import Operation
from fencepost_proto.protocol import records
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_testing.history_check import check_history
from fencepost_testing.log_check.check import LogCheck
from fencepost_testing.log_check.findings import Kind
from fencepost_testing.log_check.ledger import Ledger
from tests.simulation import histories
from tests.simulation.judge import Judge
from tests.simulation.judged import PartitionRecord
from tests.simulation.kafka_workload import TOPIC as KAFKA_TOPIC
from tests.simulation.logview import Batch
from tests.simulation.poison import readable_records
from tests.simulation.workload import ConsumerApp, Fate, Resumption, SendLedger
from tests.simulation.world import World

# The promise that each finding breaks. Of several the first one here is told: the others may follow from it.
PROMISES: Mapping[Kind, str] = {
    Kind.DUPLICATED: "G2",
    Kind.FOREIGN: "G2",
    Kind.REORDERED: "G3",
    Kind.RESURRECTED: "G1",
    Kind.LOST: "G1",
    Kind.MOVED: "G1",
    Kind.GAP: "G3",
}
OVERRULED_S = 15.0  # how long a leader may still answer, cut off or asleep, after an unclean election of another one


class FinalVerdict:
    """`give` it when all is healed, sent and read."""

    def __init__(self, world: World, judge: Judge, ledger: SendLedger, consumers: list[ConsumerApp]) -> None:
        self._world = world
        self._judge = judge
        self._ledger = ledger
        self._consumers = consumers
        self.history: list[Operation] = []  # what was recorded and judged
        self._unreadable: dict[PartitionKey, dict[int, int]] = {}  # batches in logs that no one can read: offset -> end

    def give(self) -> None:
        found = dict(self._committed_records())
        logs = {name: [(record.offset, record.value or b"") for record in log] for name, log in found.items()}
        self._check_logs(logs)
        self._check_reads(logs)
        self._check_passed_over()
        self._check_resumptions()
        self._check_history(found)

    def _check_logs(self, logs: dict[str, list[tuple[int, bytes]]]) -> None:
        """What stands in the logs, against all that producers sent and were told: G1, G2 and G3."""
        for topic in self._judge.image.topics.values():
            check = LogCheck(topic.name, self._ledgers_of(topic.topic_id), may_be_gone=self._is_lost_as_shown)
            for record in self._judge.records.values():
                if record.key[0] != topic.topic_id or record.tainted:
                    continue
                for offset, value in logs[record.name]:
                    if value not in self._ledger.entries:
                        self._judge.fail("G2", f"{value!r} at {record.name} {offset} was never sent")
                    check.enter_record(record.key[1], offset, *_name_of(value))
            findings = check.finish()
            if not findings.clean:
                first = min(findings.shown, key=lambda example: list(PROMISES).index(example.kind))
                self._judge.fail(PROMISES[first.kind], f"logs: {first.text}")

    def _ledgers_of(self, topic_id: str) -> list[Ledger]:
        """What each incarnation of a producer sent to the topic, and what it was told as far as that binds.

        Nothing is promised of records with acks=1 or 0 (a batch of a broken stream may also come late), of those in a
        partition that has lost its tail, and of those below the log's start. After an unclean election sequences of what
        it took are missing, so stamps are not compared.
        """
        ledgers: dict[str, Ledger] = {}
        for value, entry in self._ledger.entries.items():
            sender, number = _name_of(value)
            ledger = ledgers.setdefault(sender, Ledger(sender, ordered=not entry.may_be_lost))
            if entry.topic_id != topic_id:
                continue
            ledger.send_as(number)
            record = self._judge.records.get((topic_id, entry.partition))
            if entry.may_be_lost:
                continue
            if entry.fate is Fate.REFUSED:
                ledger.fail(number, may_have_been_appended=False)
            elif entry.fate is Fate.ACKED and record is not None and self._is_kept(record, entry.offset):
                stamp = None if record.past.elections else entry.stamp
                ledger.ack(number, entry.partition, entry.offset, stamp)
        return list(ledgers.values())

    def _is_kept(self, record: PartitionRecord, offset: int) -> bool:
        """What was in a topic that was deleted is gone, also where a recovery has found the topic on a disk again."""
        gone_below = max(self._log_start(record), self._judge.deleted.get(record.key, 0))
        return not record.tainted and not 0 <= offset < gone_below

    def _is_lost_as_shown(self, ledger: Ledger, number: int) -> bool:
        """An unclean election took it, or what its producer was told does not say where it stood."""
        value = f"{ledger.run}/{number}".encode()
        entry = self._ledger.entries[value]
        record = self._judge.records[entry.topic_id, entry.partition]
        stamp = entry.stamp or self._judge.kafka_stamps.get(value)
        if stamp is not None and record.past.is_lost(stamp):
            self._judge.count("acknowledged records lost to unclean elections")
            return True
        return entry.offset < 0

    def _check_history(self, logs: dict[str, list[records.Record]]) -> None:
        """What the clients recorded, and a reader who now reads everything."""
        reader = History(self._ledger.history.append, process=histories.FINAL_READER)
        for record in self._judge.records.values():
            topic, _, partition = record.name.rpartition("-")
            histories.read_whole(reader, topic, int(partition), logs[record.name], self._log_start(record))
        topics = {topic.name: topic.topic_id for topic in self._judge.image.topics.values()}
        tainted = [record.key for record in self._judge.records.values() if record.tainted or record.past.elections]
        if (kafka := self._judge.image.topic_ids.get(KAFKA_TOPIC)) is not None:  # its producers record no history
            tainted.append((kafka, 0))
        self.history = histories.told_of(self._ledger, topics, tainted)
        verdict = check_history(self.history)
        self._judge.count("operations in histories", verdict.lines)
        if not verdict.clean:
            first = verdict.findings[0]
            self._judge.fail(histories.PROMISES[first.anomaly], f"history: {first.anomaly}: {first.text}")

    def _check_resumptions(self) -> None:
        """What a named producer was told of its predecessors stayed true: nothing of theirs came after, nothing went."""
        for told in self._ledger.resumptions:
            record = self._judge.records.get(told.key)
            if record is None or record.tainted or told.told_at < record.past.elected_at + OVERRULED_S:
                continue  # deleted since, or lost its tail, or it was told of a log that an unclean election overruled
            predecessors = self._judge.earlier_ids(told.producer_id)

            def is_earlier(batch: Batch, told: Resumption = told, ids: Collection[int] = predecessors) -> bool:
                own = batch.producer_id == told.producer_id and batch.producer_epoch < told.epoch
                return own or batch.producer_id in ids

            last = max((batch.end_offset - 1 for batch in record.committed if is_earlier(batch)), default=-1)
            if any(is_earlier(batch) and batch.end_offset > last for batch in record.past.lost):
                continue  # it was told of what an unclean election has taken
            if last != told.last_offset:
                self._judge.fail("G9", f"{record.name}: {told}, but the last record of earlier epochs is at {last}")

    def _log_start(self, record: PartitionRecord) -> int:
        leader = self._judge.image.partitions[record.key].leader
        return self._judge.view(record, leader).start_offset

    def _committed_records(self) -> Iterator[tuple[str, list[records.Record]]]:
        """Of each partition's leader: every record in its files."""
        for record in self._judge.records.values():
            partition = self._judge.image.partitions[record.key]
            contents = self._judge.view(record, partition.leader).contents()
            unreadable = self._unreadable[record.key] = {}
            readable: list[records.Record] = []
            for content in contents:
                for found in readable_records(content, self._judge.unreadable):
                    if isinstance(found, records.Record):
                        readable.append(found)
                    else:
                        unreadable[found[0]] = found[1]
            self._judge.count("unreadable batches in logs", len(unreadable))
            yield record.name, readable

    def _check_passed_over(self) -> None:
        """Readers went past what no one can read, and past nothing else."""
        for consumer in self._consumers:
            for key, offset, end_offset in consumer.passed_over:
                record = self._judge.records.get(key)
                if record is None or record.tainted or record.past.elections or offset < self._log_start(record):
                    continue  # deleted, lost, overruled, or removed by retention since
                if self._unreadable[key].get(offset) != end_offset:
                    self._judge.fail(
                        "G10", f"{consumer.node} passed over {record.name} {offset} to {end_offset}, which can be read"
                    )
                self._judge.count("unreadable batches passed over")

    def _check_reads(self, logs: dict[str, list[tuple[int, bytes]]]) -> None:
        for consumer in self._consumers:
            for record in self._judge.records.values():
                if record.tainted:
                    continue
                topic, _, index = record.name.rpartition("-")
                read = consumer.read.get((topic, int(index)), {})
                partition = self._judge.image.partitions[record.key]
                # What was read there before an unclean election, and is deleted in the elected log, is read by no one again.
                unread = partition.deleted_end_offset if record.past.elections else 0
                for offset, value in logs[record.name]:
                    if offset >= unread and read.get(offset, value) != value:
                        self._judge.fail(
                            "G10", f"{consumer.node} read {read[offset]!r} at {record.name} {offset}: {value!r}"
                        )


def _name_of(value: bytes) -> tuple[str, int]:
    """A record's value is its name: its sender, and its number in the order of sending."""
    sender, _, number = value.decode().rpartition("/")
    return sender, int(number)
