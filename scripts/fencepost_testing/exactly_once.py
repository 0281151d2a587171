"""Is each record in the log exactly once and in order? One judge for tests, the demo, chaos and `workload verify`: `judge`.

It has two checks:

- `replica_check`: the files of every replica, byte by byte: whole batches, offsets without a hole, each producer's sequence
  numbers without a repeat or a gap, and all replicas of a partition the same below the high watermark.
- `history_check`: what was sent and acknowledged, and what was read, against what stands in the log.

What a test says that it sent and read is written as a history, with the leader's file as its final read.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fencepost.history_format import Operation
from fencepost_node.log.names import (
    PARTITION_METADATA,
    RESET,
    SNAPSHOT_SUFFIX,
    TEMPORARY_SUFFIX,
    PartitionIdentity,
    offsets_with,
)
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.records import read_records
from fencepost_testing import leader_word, topic_control
from fencepost_testing.cluster_folder import ClusterFolder
from fencepost_testing.history_check import Verdict, of_history
from fencepost_testing.history_check import check_history as history_verdict
from fencepost_testing.history_files import HistoryFiles, UnreadableHistory, check_history_files
from fencepost_testing.log_check.findings import Findings, Kind
from fencepost_testing.replica_check import (
    ReplicaSummary,
    Segment,
    batches_below,
    check_older,
    check_replica,
    check_same,
)
from fencepost_testing.replica_files import read_segments, replica_folder
from fencepost_testing.said_records import SaidRecord, StoredLog, operations_of, said_records
from fencepost_testing.topic_control import PartitionState
from fencepost_testing.topic_waits import Settled
from fencepost_testing.waiting import NotInTime, until

TIMEOUT_S = 30.0  # for brokers to answer, and for replicas to have what is committed
_POLL_S = 0.02
# What a kill may leave of a log that is being made.
_BEGUN = {PARTITION_METADATA, PARTITION_METADATA + TEMPORARY_SUFFIX}
_AROUND = 3  # records that are shown before and after a wrong one
_SHOWN_FINDINGS = 5
_SHOWN_CHARS = 60  # of a key or value


class NotExactlyOnce(AssertionError):
    """Something is wrong with the log, or with what was read of it; the message shows the records around the first."""


@dataclass(slots=True)
class ExactlyOnce:
    """What a check has looked at, and what it has found."""

    topic: str
    records: int = 0  # in the log, that are committed
    replicas_checked: int = 0
    findings: Findings = field(default_factory=Findings)
    files: Findings = field(default_factory=Findings)  # those of the replicas' files alone
    details: list[str] = field(default_factory=list)  # the first findings, with the records around them
    history: Verdict | None = None  # of what clients recorded
    problems: list[str] = field(
        default_factory=list
    )  # what is wrong with what consumers were handed, and with histories

    @property
    def ok(self) -> bool:
        return self.findings.clean and not self.details and not self.problems

    def __str__(self) -> str:
        checked = f"{self.records} records in {self.replicas_checked} replicas were checked"
        if self.ok:
            return f"topic {self.topic!r}: exactly once; {checked}"
        counts = ", ".join(f"{count} {kind.value}" for kind, count in sorted(self.findings.counts.items()) if count)
        lines = [f"topic {self.topic!r} is not exactly once: {counts or 'misread'}; {checked}", *self.details]
        return "\n".join(lines + [f"  {problem}" for problem in self.problems if not self.details])


async def check_exactly_once(
    cluster: ClusterFolder,
    topic: str,
    *,
    sent: Iterable[object] | None = None,
    unacknowledged: Iterable[object] = (),
    read: Iterable[object] | None = None,
    ordered: bool = True,
    timeout_s: float,
) -> ExactlyOnce:
    """See `LocalCluster.check_exactly_once`."""
    found = await judge(
        cluster,
        topic,
        sent=sent,
        unacknowledged=unacknowledged,
        read=read,
        ordered=ordered,
        timeout_s=timeout_s,
    )
    if not found.ok:
        raise NotExactlyOnce(str(found))
    return found


async def judge(
    cluster: ClusterFolder,
    topic: str,
    *,
    settled: Settled | None = None,
    history: Sequence[Path] = (),
    sent: Iterable[object] | None = None,
    unacknowledged: Iterable[object] = (),
    read: Iterable[object] | None = None,
    ordered: bool = True,
    one_partition_per_key: bool = False,
    on_operation: Callable[[Operation], object] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> ExactlyOnce:
    """All that is wrong with a topic's log, and with what was read of it; see `LocalCluster.check_exactly_once`.

    `settled`: what every replica has, and whose files are whole, whether its broker runs or not. None: the brokers are
    asked, and what is not committed is not looked at. `history`: files in which clients have recorded what they did; the
    next two are of these: whether a key in two partitions is wrong, and what is given each operation.
    """
    found = ExactlyOnce(topic)
    if not isinstance(topic, str) or not topic:
        raise TypeError(f"topic {topic!r}: the name of a topic is wanted, which is text")
    acknowledged = None if sent is None else said_records(sent, "sent", topic)
    unknown = said_records(unacknowledged, "unacknowledged", topic)
    handed_out = None if read is None else said_records(read, "read", topic)
    says = acknowledged is not None or bool(unknown) or handed_out is not None
    logs: list[StoredLog] = []
    if settled is not None:
        for partition, brokers in settled.replicas.items():
            await _check_settled(cluster, (topic, partition), brokers, settled.ends[partition], found)
    for state in await topic_control.partitions(cluster, topic, timeout_s) if settled is None or says else ():
        end = await topic_control.high_watermark(cluster, topic, state.partition, timeout_s)
        if settled is None:
            await _check_partition(cluster, state, end, found, timeout_s)
        if says:
            start = await leader_word.log_start(cluster, topic, state.partition, timeout_s)
            records = await asyncio.to_thread(_read_records, cluster, state, end, found)
            logs.append(StoredLog(state.partition, [(record.offset, record.value) for record in records], start))
    found.files.merge(found.findings)
    if says:
        _check_said(found, logs, acknowledged, unknown, handed_out, ordered=ordered)
    if history:
        await asyncio.to_thread(
            judge_history, found, history, one_partition_per_key=one_partition_per_key, on_operation=on_operation
        )
    return found


def judge_history(
    found: ExactlyOnce,
    history: Sequence[Path],
    *,
    one_partition_per_key: bool = False,
    on_operation: Callable[[Operation], object] | None = None,
) -> None:
    """Add what is wrong by the files in which clients have recorded what they did."""
    try:
        found.history = check_history_files(
            HistoryFiles(history), one_partition_per_key=one_partition_per_key, on_operation=on_operation
        )
    except UnreadableHistory as error:
        found.problems.append(f"the history cannot be checked: {error}")
    else:
        _take_verdict(found, found.history)


# ---- The files ----


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A record as it stands in a replica's file."""

    offset: int
    key: bytes | None
    value: bytes | None
    producer_id: int
    producer_epoch: int
    sequence: int  # -1: of a producer that is not idempotent

    def __str__(self) -> str:
        stamp = f"producer {self.producer_id} epoch {self.producer_epoch} sequence {self.sequence}"
        return (
            f"offset {self.offset}  {stamp if self.sequence >= 0 else 'no producer id'}"
            f"  key {_shown(self.key)}  value {_shown(self.value)}"
        )


async def _check_settled(
    cluster: ClusterFolder, key: tuple[str, int], brokers: Sequence[int], end: int, found: ExactlyOnce
) -> None:
    """Every replica's files to their ends, which are all the same."""
    summaries = [await asyncio.to_thread(_whole_summary, cluster, broker, key) for broker in brokers]
    for summary in summaries:
        _take(found, summary.findings, cluster, key, summary.broker)
    _take(found, check_same(summaries, end), cluster, key, brokers[0])
    found.replicas_checked += len(summaries)
    found.records += summaries[0].records


def _whole_summary(cluster: ClusterFolder, broker: int, key: tuple[str, int]) -> ReplicaSummary:
    """A replica without a folder or a file is a finding."""
    folder = replica_folder(cluster, broker, *key)
    try:
        return check_replica(broker, folder.name, read_segments(folder))
    except FileNotFoundError as error:
        summary = ReplicaSummary(broker, folder.name)
        summary.findings.add(Kind.CORRUPT, f"broker {broker} {folder.name}: {error}")
        return summary


async def _check_partition(
    cluster: ClusterFolder, state: PartitionState, end: int, found: ExactlyOnce, timeout_s: float
) -> None:
    """The committed records of every replica. What is wrong goes to `found`."""
    topic, index = state.topic, state.partition
    late: list[ReplicaSummary] = []

    async def behind() -> list[str]:
        """Replicas that run and do not have everything yet; of those in the in-sync set of now."""
        nonlocal state, late
        state = await topic_control.partition(cluster, topic, index, timeout_s)
        summaries = await asyncio.to_thread(_summaries, cluster, _live(cluster, state), state, end)
        late = [each for each in summaries if _is_behind(each, end)]
        return [f"broker {each.broker} ends at {each.end_offset}" for each in late]

    what = f"every replica of {topic}-{index} whose broker runs has the records below {end}"
    only_late: set[int] = set()
    try:
        await until(behind, what, timeout_s, holds=lambda late: not late, poll_s=_POLL_S)
    except NotInTime:  # is that a replica that is late, or one that lacks what it has acknowledged?
        only_late = {each.broker for each in late if not await _has_all(cluster, state, each.broker, timeout_s)}
        if len(only_late) == len(late):
            raise
    live, key = _live(cluster, state), (topic, index)
    looked_at = sorted(
        (broker for broker in live if broker not in only_late), key=lambda broker: broker != state.leader
    )
    summaries = await asyncio.to_thread(_summaries, cluster, looked_at, state, end)
    summaries.sort(key=lambda each: not each.findings.clean or each.end_offset < end)
    model = summaries[0]  # what the others must be
    for summary in summaries:
        _take(found, summary.findings, cluster, key, summary.broker)
    _take(found, check_same(summaries, end), cluster, key, model.broker)
    for broker in state.replicas:
        if broker not in live:  # what it has may end early, or in what it could not replicate any more
            older = await asyncio.to_thread(_older_summary, cluster, broker, state, model.broker)
            if broker in _live(cluster, state):
                continue  # it has come back, and changes what it has
            wrong = check_older(older, model, end)
            if wrong.clean and not (more := check_older(older, model, end, has_all=True)).clean:
                wrong = more if await _has_all(cluster, state, broker, timeout_s) else wrong
            wrong.merge(older.findings)
            _take(found, wrong, cluster, key, broker)
            summaries.append(older)
    found.replicas_checked += len(summaries)
    found.records += model.records


async def _has_all(cluster: ClusterFolder, state: PartitionState, broker: int, timeout_s: float) -> bool:
    return await leader_word.counts_on(cluster, state.topic, state.partition, broker, timeout_s)


def _summaries(cluster: ClusterFolder, brokers: list[int], state: PartitionState, end: int) -> list[ReplicaSummary]:
    return [_summary(cluster, broker, state, end) for broker in brokers]


def _live(cluster: ClusterFolder, state: PartitionState) -> list[int]:
    return [broker for broker in state.replicas if cluster.running(broker) and not cluster.paused(broker)]


def _is_behind(summary: ReplicaSummary, end: int) -> bool:
    return summary.end_offset < end and summary.findings.clean


def _summary(cluster: ClusterFolder, broker: int, state: PartitionState, end: int) -> ReplicaSummary:
    name = f"{state.topic}-{state.partition}"
    return check_replica(broker, name, _segments(cluster, broker, state), end_offset=end)


def _segments(cluster: ClusterFolder, broker: int, state: PartitionState) -> list[Segment]:
    try:
        return list(read_segments(replica_folder(cluster, broker, state.topic, state.partition)))
    except FileNotFoundError:  # it has only just been told of the partition
        return []


def _older_summary(cluster: ClusterFolder, broker: int, state: PartitionState, model_broker: int) -> ReplicaSummary:
    """Of a broker that does not run: its last batch may be half written, and recovery will cut that off.

    Its other files tell more: a log that has been opened has a segment; and it reaches to its newest snapshot, which is
    written when what is below it is safe, and removed before that is truncated. Void is what it has of a topic of this name
    that was deleted since, and what it was about to replace by a snapshot of the leader's. Without a folder it may never
    have been told of the partition.
    """
    name = f"{state.topic}-{state.partition}"
    folder = replica_folder(cluster, broker, state.topic, state.partition)
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    of_model = _topic_id(replica_folder(cluster, model_broker, state.topic, state.partition))
    if RESET in names or of_model not in ("", _topic_id(folder) or of_model):
        return ReplicaSummary(broker, name)
    segments = _segments(cluster, broker, state)
    summary = check_replica(broker, name, segments, stopped=True)
    snapshot = max(offsets_with(sorted(names), SNAPSHOT_SUFFIX), default=0)
    if names - _BEGUN and not segments:
        summary.findings.add(Kind.CORRUPT, f"broker {broker} {name}: its folder has no segment (a file .log)")
    elif summary.findings.clean and summary.end_offset < snapshot:
        text = f"broker {broker} {name} ends at {summary.end_offset}, and has a snapshot of all below {snapshot}"
        summary.findings.add(Kind.CORRUPT, text)
    return summary


def _read_records(cluster: ClusterFolder, state: PartitionState, end: int, found: ExactlyOnce) -> list[LogRecord]:
    """The committed ones, by the leader's file; where that is damaged, by another's, or by what can be read of one."""
    longest: list[LogRecord] = []
    for broker in sorted(_live(cluster, state), key=lambda broker: broker != state.leader):
        records: list[LogRecord] = []
        try:
            records += _records(cluster, broker, (state.topic, state.partition), end)
        except FileNotFoundError:
            continue
        except FencepostError as error:
            if found.findings.clean:  # batches are whole, and the records in one cannot be read
                text = f"broker {broker} {state.topic}-{state.partition}: the records cannot be read: {error}"
                found.findings.add(Kind.CORRUPT, text)
            continue
        if len(records) > len(longest):
            longest = records
        if records and records[0].offset + len(records) == records[-1].offset + 1 >= end:
            return records
    return longest


def _records(cluster: ClusterFolder, broker: int, key: tuple[str, int], end: int | None) -> Iterator[LogRecord]:
    folder = replica_folder(cluster, broker, *key)
    for base_offset, data in read_segments(folder):
        if end is not None and base_offset >= end:
            break
        for header, batch in batches_below(data, end):
            for number, record in enumerate(read_records(bytes(batch))):
                sequence = (header.base_sequence + number) % 2**31 if header.idempotent else -1
                yield LogRecord(
                    record.offset, record.key, record.value, header.producer_id, header.producer_epoch, sequence
                )


def _take(found: ExactlyOnce, findings: Findings, cluster: ClusterFolder, key: tuple[str, int], broker: int) -> None:
    found.findings.merge(findings)
    for example in findings.shown:
        if len(found.details) >= _SHOWN_FINDINGS:
            return
        lines = [f"  {example}"]
        if example.offset >= 0 and not found.details:  # around the first
            lines += _around(cluster, broker, key, example.offset)
        found.details.append("\n".join(lines))


def _around(cluster: ClusterFolder, broker: int, key: tuple[str, int], offset: int) -> Iterator[str]:
    yield f"    {key[0]}-{key[1]} on broker {broker}:"
    try:
        for record in _records(cluster, broker, key, None):
            if abs(record.offset - offset) <= _AROUND:
                yield f"    {'>' if record.offset == offset else ' '} {record}"
    except Exception as error:  # noqa: BLE001  # damaged bytes, which are what was found
        yield f"      what follows cannot be read: {error}"


def _shown(data: bytes | None) -> str:
    text = repr(data)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}… ({len(data or b'')} bytes)"


def _topic_id(folder: Path) -> str:
    """Empty: not known."""
    try:
        identity = PartitionIdentity.decode((folder / PARTITION_METADATA).read_bytes())
    except FileNotFoundError:
        return ""
    return identity.topic_id if identity is not None else ""


# ---- What a test says ----


def _check_said(
    found: ExactlyOnce,
    logs: list[StoredLog],
    sent: list[SaidRecord] | None,
    unacknowledged: list[SaidRecord],
    read: list[SaidRecord] | None,
    *,
    ordered: bool,
) -> None:
    operations, unplaced = operations_of(found.topic, logs, sent, unacknowledged, read, ordered=ordered)
    for text in unplaced:
        found.findings.add(Kind.MISREAD, text)
        found.details.append(f"  {Kind.MISREAD}: {text}")
    _take_verdict(found, history_verdict(operations, foreign_records=sent is None))


def _take_verdict(found: ExactlyOnce, verdict: Verdict) -> None:
    findings, misread = of_history(verdict)
    found.findings.merge(findings)
    found.findings.counts[Kind.MISREAD] += len(misread)
    found.problems += misread
    found.details += _told(verdict)


def _told(verdict: Verdict) -> list[str]:
    """The findings of a history in words, each with the operations around it."""
    told = []
    for finding in verdict.findings[:_SHOWN_FINDINGS]:
        lines = [f"  {finding.anomaly}: {finding.text}"]
        lines += [f"    {'>' if line.evidence else ' '} {line.text}" for line in finding.operations]
        told.append("\n".join(lines))
    return told


# ---- Recorded histories ----


def check_history(
    *histories: str | os.PathLike[str] | Iterable[str | Operation],
    foreign_records: bool = False,
    one_partition_per_key: bool = False,
) -> Verdict:
    """Judge what clients recorded (`fencepost.history`, docs of the format there): files, merged by time, or lines.

    `foreign_records`: others write to the same topics too. `one_partition_per_key`: a key in two partitions is wrong.
    Raises NotExactlyOnce with what is wrong, and the operations around it; UnreadableHistory, BrokenHistory for what is no
    history.
    """
    paths = [Path(each) for each in histories if isinstance(each, str | os.PathLike)]
    if len(paths) == len(histories):
        verdict = check_history_files(
            HistoryFiles(paths), foreign_records=foreign_records, one_partition_per_key=one_partition_per_key
        )
    elif len(histories) == 1:
        (lines,) = histories
        assert not isinstance(lines, str | os.PathLike)
        verdict = history_verdict(
            list(lines), foreign_records=foreign_records, one_partition_per_key=one_partition_per_key
        )
    else:
        raise TypeError("a history is files, or one list of lines or operations")
    if not verdict.clean:
        counts = ", ".join(f"{count} {anomaly.value}" for anomaly, count in verdict.counts.items() if count)
        raise NotExactlyOnce("\n".join([f"the history is not that of a correct log: {counts}", *_told(verdict)]))
    return verdict
