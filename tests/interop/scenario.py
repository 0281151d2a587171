"""One client against a cluster of three: it produces while leaders are killed and its connections are cut.

1. The client's admin part creates a topic of its own and describes it (a column of the table; nothing else depends on it).
2. A producer sends keyed records at a steady rate, to brokers that lose answers after appends. Meanwhile the
   leader of one partition after the other is killed, started again, and waited for until all replicas are in sync.
3. Consumers read along: three members of a group, of which one is killed half-way and another joins; or, where groups are
   not asked for, one consumer of all partitions.
4. The judge: every record is acknowledged; the log, read by Fencepost's own consumer and from the segment files of every
   replica, has each exactly once and in order; what the client's consumers read is what the log has, all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fencepost import AdminClient, ConsumerRecord
from fencepost_testing.exactly_once import judge
from fencepost_testing.failures import CommandFailed
from fencepost_testing.faults import FaultHandle
from fencepost_testing.local_cluster import AsyncLocalCluster
from fencepost_testing.log_check.findings import Findings, Kind
from fencepost_testing.log_check.ledger import Ledger, read_mark
from fencepost_testing.read_back import read_everything
from fencepost_testing.record_check import RecordCheck
from fencepost_testing.topic_waits import wait_in_sync, wait_settled
from fencepost_testing.waiting import until
from tests.interop.clients import Client
from tests.interop.program import Program

TOPIC = "interop"
GROUP = "interop-group"
REPLICAS = 3
MIN_INSYNC = 2
MEMBERS = 3
CUT_EVERY_MS = 2_000
CUT_PROBABILITY = 0.5  # a client with long pauses before it tries again does not lose every answer
DELIVERY_TIMEOUT_S = 180.0  # for the producer's end after the last record is due; above every client's own
READ_TIMEOUT_S = 60.0
ADMIN_TIMEOUT_S = 60.0
_OF_RETRIES = (Kind.DUPLICATED, Kind.MOVED)
PROCESS_TIMEOUT_S = 120.0  # for what a cluster does in a second or two: the machine may be busy
WARM_ACKS = 100  # acknowledged before the first kill: a program's own start is not part of a failover
KILL_PAUSE_S = 0.5  # of undisturbed work between two kills


@dataclass(frozen=True, slots=True)
class Options:
    records: int = 20_000
    rate: float = 400.0  # records a second: 10 kills fit in, also on a busy machine
    kills: int = 10  # at most; they end with the producer
    partitions: int = 3
    groups: bool = True


@dataclass(frozen=True, slots=True)
class Kill:
    partition: int
    at: float  # time.time()


@dataclass(slots=True)
class Result:
    """What one client's run showed. Empty lists of problems are a pass."""

    client: str
    version: str = ""
    skipped: str = ""  # why it was not run
    produce: list[str] = field(default_factory=list)
    consume: list[str] = field(default_factory=list)
    admin: list[str] = field(default_factory=list)
    administers: bool = True
    story: list[str] = field(default_factory=list)  # what did not happen as planned, whatever came of it
    records: int = 0
    duplicates: int = 0  # of a client that has no idempotent producer
    kills: int = 0
    cuts: int = 0
    unavailable_ms: list[float] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.produce or self.consume or self.story)

    def failover(self) -> str:
        """Median and greatest time, in words."""
        if not self.unavailable_ms:
            return "–"
        return f"{statistics.median(self.unavailable_ms):.0f} / {max(self.unavailable_ms):.0f}"


@dataclass(slots=True)
class Acks:
    """What the producer's program said."""

    ledger: Ledger
    received: dict[int, tuple[float, float]] = field(default_factory=dict)  # record id → when sent, when acknowledged
    failures: list[str] = field(default_factory=list)
    failed: int = 0
    fatal: list[str] = field(default_factory=list)
    last_at: float = 0.0

    def on_line(self, word: str, words: list[str], read_at: float) -> None:
        if word == "ack":
            record_id, partition, offset, sent_ms = (int(each) for each in words)
            self.ledger.ack(record_id, partition, offset)
            self.received[record_id] = (sent_ms / 1000, read_at)
            self.last_at = read_at
        elif word == "fail":
            self.failed += 1
            self.failures = [*self.failures[:3], " ".join(words)]
            self.ledger.fail(int(words[0]), may_have_been_appended=True)
        elif word == "fatal":
            self.fatal.append(" ".join(words))


@dataclass(slots=True)
class Reader:
    """What one consumer's program said."""

    name: str
    may_go_back: bool  # without a word
    records: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)  # (partition, offset) → key, value
    last: dict[int, int] = field(default_factory=dict)  # partition → offset, since the last assignment
    assigned: list[str] | None = None
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def on_line(self, word: str, words: list[str], read_at: float) -> None:
        if word == "record":
            partition, offset = int(words[0]), int(words[1])
            if offset <= self.last.get(partition, -1) and not self.may_go_back:
                self.problems.append(
                    f"{self.name}: offset {offset} of partition {partition} after {self.last[partition]}"
                )
            self.last[partition] = offset
            self.records[partition, offset] = (words[2], words[3])
        elif word in ("assigned", "revoked"):
            self.last.clear()
            self.assigned = words if word == "assigned" else self.assigned
        elif word == "fatal":
            self.problems.append(f"{self.name}: {' '.join(words)}")
        elif word == "note":
            self.notes.append(" ".join(words))


class Scenario:
    """One run; `tell` gets a line for each thing that happens."""

    def __init__(self, client: Client, options: Options, folder: Path, tell: Callable[[str], None]) -> None:
        self._client = client
        self._options = options
        self._folder = folder
        self._tell = tell
        self._acks = Acks(Ledger(f"{time.time_ns() % 16**8:08x}"))
        self._readers: list[Reader] = []
        self._kills: list[Kill] = []
        self._cuts: FaultHandle | None = None
        self.result = Result(client.name, client.version(), administers=client.administers)

    async def run(self) -> Result:
        """Raises CommandFailed and FencepostError where the run itself cannot go on."""
        async with contextlib.AsyncExitStack() as stack:
            cluster = AsyncLocalCluster(self._folder / "cluster")
            stack.callback(cluster.close)
            bootstrap = cluster.kafka_bootstrap
            self._cuts = cluster.faults.drop_answers("Produce", every_ms=CUT_EVERY_MS, probability=CUT_PROBABILITY)
            await cluster.up(timeout_s=PROCESS_TIMEOUT_S)
            admin = await stack.enter_async_context(AdminClient(cluster.bootstrap))
            if self._client.administers:
                await self._administer(bootstrap)
            await admin.create_topic(
                TOPIC,
                partitions=self._options.partitions,
                replication_factor=REPLICAS,
                min_insync_replicas=MIN_INSYNC,
            )
            await wait_in_sync(admin, TOPIC, PROCESS_TIMEOUT_S)
            await self._produce_and_read(cluster, admin, bootstrap)
            await self._judge(cluster, admin)
        return self.result

    def _program(self, name: str, words: list[str], on_line: Callable[[str, list[str], float], None]) -> Program:
        return Program([*self._client.command, *words], self._folder / f"{name}.log", on_line)

    async def _administer(self, bootstrap: str) -> None:
        said: list[str] = []
        program = self._program(
            "admin",
            ["admin", bootstrap, "made-by-client", "3"],
            lambda word, words, _: said.append(" ".join([word, *words])),
        )
        try:
            async with program:
                await program.wait(ADMIN_TIMEOUT_S)
        except CommandFailed as error:
            self.result.admin.append(f"{said[-1] if said else error}")
        if "topic made-by-client 3" not in said and not self.result.admin:
            self.result.admin.append(f"the topic was described as {said}")

    # ---- While it runs ----

    async def _produce_and_read(self, cluster: AsyncLocalCluster, admin: AdminClient, bootstrap: str) -> None:
        options, acks = self._options, self._acks
        async with contextlib.AsyncExitStack() as stack:
            members = await self._start_readers(stack, bootstrap)

            async def replace_member() -> None:
                if self._options.groups:
                    members[0].kill()
                    members.append(await self._start_reader(stack, bootstrap))
                    self._tell("a member of the group was killed, another joins")

            for _ in range(options.records):
                acks.ledger.send()
            words = ["produce", bootstrap, TOPIC, acks.ledger.run, str(options.records), str(options.rate)]
            producer = await stack.enter_async_context(self._program("producer", words, acks.on_line))
            ended = asyncio.create_task(producer.wait(options.records / options.rate + DELIVERY_TIMEOUT_S))
            try:
                await self._disturb(cluster, admin, ended, replace_member)
                await ended
            except CommandFailed as error:
                self.result.produce.append(str(error))
            finally:
                ended.cancel()
                await asyncio.gather(ended, return_exceptions=True)
            await cluster.up(timeout_s=PROCESS_TIMEOUT_S)
            await wait_in_sync(admin, TOPIC, PROCESS_TIMEOUT_S)
            ends = (await wait_settled(admin, TOPIC)).ends
            try:
                await until(lambda: not self._unread(ends), "the consumers have read everything", READ_TIMEOUT_S)
            except CommandFailed as error:
                self.result.consume.append(f"{error}; {self._unread(ends)} records were not read")
            for member in members[1:]:
                try:
                    await member.terminate()
                except CommandFailed as error:
                    self.result.story.append(str(error))

    async def _start_readers(self, stack: contextlib.AsyncExitStack, bootstrap: str) -> list[Program]:
        """Programs of the readers; the first of a group's will be killed."""
        if not self._options.groups and not self._client.reads_without_group:
            return []
        count = MEMBERS if self._options.groups else 1
        programs = [await self._start_reader(stack, bootstrap) for _ in range(count)]
        what = f"{count} readers have received partitions"
        try:
            await until(lambda: all(each.assigned is not None for each in self._readers), what, READ_TIMEOUT_S)
        except CommandFailed as error:
            self.result.consume.append(str(error))
        return programs if self._options.groups else [programs[0], *programs]

    async def _start_reader(self, stack: contextlib.AsyncExitStack, bootstrap: str) -> Program:
        reader = Reader(f"reader {len(self._readers)}", may_go_back=not self._client.tells_assignment)
        self._readers.append(reader)
        group = GROUP if self._options.groups else "-"
        name = f"reader-{len(self._readers) - 1}"
        return await stack.enter_async_context(
            self._program(name, ["consume", bootstrap, TOPIC, group], reader.on_line)
        )

    async def _disturb(
        self,
        cluster: AsyncLocalCluster,
        admin: AdminClient,
        ended: asyncio.Task[None],
        replace_member: Callable[[], Awaitable[None]],
    ) -> None:
        """Kill leaders until the producer has ended; half-way kill a member and let another join."""
        options, acks = self._options, self._acks
        warm = min(WARM_ACKS, options.records // 10)
        while acks.ledger.acked < warm and not ended.done():
            await asyncio.wait([ended], timeout=KILL_PAUSE_S)
        for number in range(options.kills):
            await asyncio.wait([ended], timeout=KILL_PAUSE_S)
            if ended.done():
                return
            if number == options.kills // 2:
                await replace_member()
            await self._kill_leader(cluster, admin, number % options.partitions)

    async def _kill_leader(self, cluster: AsyncLocalCluster, admin: AdminClient, partition: int) -> None:
        before = (await admin.describe_topic(TOPIC)).partitions[partition]
        self._kills.append(Kill(partition, time.time()))
        await cluster.kill(before.leader)

        async def has_new_leader() -> bool:
            now = (await admin.describe_topic(TOPIC)).partitions[partition]
            return now.leader_epoch > before.leader_epoch and now.leader >= 0

        await until(has_new_leader, f"{TOPIC}-{partition} has another leader", PROCESS_TIMEOUT_S)
        await cluster.start(before.leader, timeout_s=PROCESS_TIMEOUT_S)
        await wait_in_sync(admin, TOPIC, PROCESS_TIMEOUT_S)
        self._tell(f"broker {before.leader}, leader of {TOPIC}-{partition}, was killed and is back")

    def _unread(self, ends: Mapping[int, int]) -> int:
        """How many records of the log no reader has read."""
        if not self._readers:
            return 0
        read = set().union(*(reader.records for reader in self._readers))
        return sum(ends.values()) - len(read)

    # ---- The judge ----

    async def _judge(self, cluster: AsyncLocalCluster, admin: AdminClient) -> None:
        result, options, acks = self.result, self._options, self._acks
        result.kills, result.cuts = len(self._kills), self._cuts.fired if self._cuts is not None else 0
        settled = await wait_settled(admin, TOPIC)
        log: dict[tuple[int, int], tuple[str, str]] = {}
        partition_of: dict[int, int] = {}
        check = RecordCheck(TOPIC, [acks.ledger])

        def see(record: ConsumerRecord) -> None:
            check.add_record(record)
            log[record.partition, record.offset] = ((record.key or b"").decode(), (record.value or b"").decode())
            mark = read_mark(record.value)
            if mark is not None:
                partition_of[mark.record_id] = record.partition

        result.records = await read_everything(cluster.bootstrap, TOPIC, self._folder / "history.jsonl", see)
        findings = check.finish()
        findings.merge((await judge(cluster, TOPIC, settled=settled)).findings)
        self._judge_producer(findings)
        self._judge_readers(log)
        for kill in self._kills:
            after = [
                received
                for record_id, (sent, received) in acks.received.items()
                if sent > kill.at and partition_of.get(record_id) == kill.partition
            ]
            if after:
                result.unavailable_ms.append((min(after) - kill.at) * 1000)
        if len(self._kills) < options.kills:
            result.story.append(f"only {len(self._kills)} leaders were killed before the producer ended")

    def _judge_producer(self, findings: Findings) -> None:
        result, options, acks = self.result, self._options, self._acks
        result.produce += [f"fatal: {text}" for text in acks.fatal[:3]]
        if acks.failed:
            result.produce.append(f"{acks.failed} sends failed: {'; '.join(acks.failures)}")
        if acks.ledger.acked != options.records:
            result.produce.append(f"{acks.ledger.acked} of {options.records} records were acknowledged")
        if not self._client.idempotent:  # and an acknowledgement may be of the second copy
            result.duplicates = findings.counts.pop(Kind.DUPLICATED, 0)
            findings.counts.pop(Kind.MOVED, None)
            findings.shown = [example for example in findings.shown if example.kind not in _OF_RETRIES]
        if not findings.clean:
            result.produce += [f"{kind}: {count}" for kind, count in findings.counts.items() if count]
            result.produce += findings.examples[:3]

    def _judge_readers(self, log: dict[tuple[int, int], tuple[str, str]]) -> None:
        result = self.result
        for reader in self._readers:
            result.consume += reader.problems[:3]
            wrong = [place for place, content in reader.records.items() if log.get(place) != content]
            if wrong:
                result.consume.append(
                    f"{reader.name}: {len(wrong)} records are not those of the log, such as {wrong[:3]}"
                )
