"""A correct log and its clients, run at random: whatever it does, its history is clean.

Sends are appended in the order of each producer and partition, or never; acknowledgements get lost; consumers read what
is committed, go to and fro, and at the end someone reads everything.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from random import Random

from fencepost.history_format import Operation, OperationType, RecordStamp

TOPIC = "orders"
PRODUCERS = ("p0", "p1", "p2")
CONSUMERS = ("c0", "c1")
PARTITIONS = 2


@dataclass(slots=True)
class Sent:
    process: str
    id: int
    value: str
    partition: int
    stamp: RecordStamp | None = None
    offset: int = -1


@dataclass
class ModelHistory:
    """Call `run`; the history is in `operations`."""

    random: Random
    with_final_reads: bool = True
    with_elections: bool = False  # unclean ones
    operations: list[Operation] = field(default_factory=list)
    logs: list[list[Sent]] = field(default_factory=lambda: [[] for _ in range(PARTITIONS)])
    acked: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    taken: list[tuple[int, int, int, int]] = field(default_factory=list)  # of elections: line, partition, offsets shown

    def __post_init__(self) -> None:
        self._committed = [0] * PARTITIONS
        self._pending: dict[tuple[str, int], deque[Sent]] = {}
        self._appended: list[Sent] = []  # and not completed
        self._stamps: dict[tuple[str, int], tuple[int, int]] = {}  # epoch, next sequence
        self._positions: dict[tuple[str, int], int] = {}
        self._sent = 0

    def run(self, steps: int) -> list[Operation]:
        actions = [
            self._send,
            self._send,
            self._append,
            self._append,
            self._complete,
            self._commit,
            self._poll,
            self._poll,
        ]
        for _ in range(steps):
            self.random.choice([*actions, self._drop, self._seek, *[self._elect] * self.with_elections])()
        while any(self._pending.values()):
            self._append()
        while self._appended and self.random.random() < 0.9:
            self._complete()
        self._committed = [len(log) for log in self.logs]
        for partition in range(PARTITIONS):
            if self.with_final_reads:
                self._final_read(partition)
            else:
                self._read(CONSUMERS[0], partition, 0, len(self.logs[partition]))
        return self.operations

    def poll_of_three(self) -> None:
        """Three records are sent, stored and committed, and a consumer gets them at once."""
        while len(self.logs[0]) < 3:
            self._send()
            self._append()
        self._committed[0] = len(self.logs[0])
        self._read(CONSUMERS[0], 0, 0, len(self.logs[0]))

    def _tell(self, process: str, kind: OperationType, op: str, partition: int = -1, **fields: object) -> None:
        base = Operation(process, len(self.operations) + 1, kind, op, 0, TOPIC, partition)  # type: ignore[arg-type]
        self.operations.append(base._replace(**fields))  # type: ignore[arg-type]

    # ---- Sends ----

    def _send(self) -> None:
        process, partition = self.random.choice(PRODUCERS), self.random.randrange(PARTITIONS)
        self._sent += 1
        sent = Sent(process, self._sent, f"v{self._sent}", partition)
        self._tell(process, "invoke", "send", id=sent.id, value=sent.value)
        self._pending.setdefault((process, partition), deque()).append(sent)

    def _head(self) -> deque[Sent] | None:
        waiting = [queue for queue in self._pending.values() if queue]
        return self.random.choice(waiting) if waiting else None

    def _append(self) -> None:
        if (queue := self._head()) is None:
            return
        sent = queue.popleft()
        epoch, sequence = self._stamps.get((sent.process, sent.partition), (0, 0))
        self._stamps[sent.process, sent.partition] = epoch, sequence + 1
        sent.stamp = RecordStamp(PRODUCERS.index(sent.process), epoch, sequence)
        log = self.logs[sent.partition]
        sent.offset = len(log)
        log.append(sent)
        self._appended.append(sent)

    def _drop(self) -> None:
        """Given up before any broker had it; its producer goes on in the next epoch."""
        if (queue := self._head()) is None:
            return
        sent = queue.popleft()
        epoch, _ = self._stamps.get((sent.process, sent.partition), (0, 0))
        self._stamps[sent.process, sent.partition] = epoch + 1, 0
        how = self.random.choice(["fail", "info", "may", "nothing"])
        if how == "fail":
            self.failed.add(sent.value)
            self._tell(sent.process, "fail", "send", id=sent.id)
        elif how == "info":
            self._tell(sent.process, "info", "send", id=sent.id)
        elif how == "may":
            self._tell(sent.process, "fail", "send", id=sent.id, may_have_been_appended=True)

    def _complete(self) -> None:
        if not self._appended:
            return
        sent = self._appended.pop(self.random.randrange(len(self._appended)))
        how = self.random.choices(["ok", "ok, offset forgotten", "info", "nothing"], [8, 1, 1, 1])[0]
        stamp = sent.stamp if self.random.random() < 0.8 else None
        if how == "info":
            self._tell(sent.process, "info", "send", id=sent.id, producer=stamp)
        elif how != "nothing":
            self._committed[sent.partition] = max(self._committed[sent.partition], sent.offset + 1)
            self.acked.add(sent.value)
            offset = sent.offset if how == "ok" else -1
            self._tell(sent.process, "ok", "send", sent.partition, id=sent.id, offset=offset, producer=stamp)

    # ---- Unclean elections ----

    def _elect(self) -> None:
        """A broker leads whose log parts from the one of before, and holds some of what came then at other places."""
        partition = self.random.randrange(PARTITIONS)
        old = self.logs[partition]
        parts_at = self.random.randint(0, len(old))
        kept_end = self.random.choice([parts_at, self.random.randint(0, parts_at)])
        gone = old[parts_at:]
        tail: list[Sent] = []
        if kept_end < parts_at and gone:
            ours = [sent for sent in gone if sent.process == gone[-1].process]
            tail = ours[: self.random.randint(0, len(ours))]
        self._tell("operator", "invoke", "elect", partition, start_offset=kept_end, end_offset=parts_at + len(tail))
        new = old[:parts_at]
        for sent in tail:
            new.append(replace(sent, offset=len(new)))
        for sent in self._appended:  # acknowledgements of before come in late, or never
            if sent in gone and self.random.random() < 0.5:
                self._tell(sent.process, "ok", "send", partition, id=sent.id, offset=sent.offset, producer=sent.stamp)
        self._appended = [sent for sent in self._appended if sent not in gone]
        for process in CONSUMERS:
            position = self._positions.get((process, partition), 0)
            if position > parts_at:
                records = [(sent.offset, sent.value) for sent in old[position : position + self.random.randint(0, 2)]]
                if records and self._committed[partition] >= records[-1][0] + 1:
                    self._tell(process, "ok", "poll", partition, records=records)
                self._tell(process, "info", "seek", partition, offset=parts_at)
                self._positions[process, partition] = parts_at
        self.logs[partition] = new
        self._committed[partition] = len(new)
        for process in PRODUCERS:
            epoch, _ = self._stamps.get((process, partition), (0, 0))
            self._stamps[process, partition] = epoch + 1, 0
        self.taken.append((len(self.operations), partition, kept_end, parts_at + len(tail)))
        self._tell("operator", self.random.choice(["ok", "info"]), "elect", partition)

    # ---- Reads ----

    def _commit(self) -> None:
        partition = self.random.randrange(PARTITIONS)
        self._committed[partition] = self.random.randint(self._committed[partition], len(self.logs[partition]))

    def _poll(self) -> None:
        process, partition = self.random.choice(CONSUMERS), self.random.randrange(PARTITIONS)
        position = self._positions.get((process, partition), 0)
        self._read(process, partition, position, min(self._committed[partition], position + self.random.randint(0, 3)))

    def _seek(self) -> None:
        process, partition = self.random.choice(CONSUMERS), self.random.randrange(PARTITIONS)
        position = self.random.randint(0, self._committed[partition])
        self._positions[process, partition] = position
        told = position if self.random.random() < 0.5 else -1
        self._tell(process, "info", "seek", partition, offset=told)

    def _final_read(self, partition: int) -> None:
        self._tell("reader", "invoke", "final", partition)
        end = len(self.logs[partition])
        self._read("reader", partition, 0, end)
        self._tell("reader", "ok", "final", partition, start_offset=0, end_offset=end)

    def _read(self, process: str, partition: int, start: int, end: int) -> None:
        if self._positions.get((process, partition), 0) != start:
            self._tell(process, "info", "seek", partition, offset=start)
        records = [(sent.offset, sent.value) for sent in self.logs[partition][start:end]]
        if records:
            self._tell(process, "ok", "poll", partition, records=records, high_watermark=self._committed[partition])
        self._positions[process, partition] = max(start, end)
