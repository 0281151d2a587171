"""The log against a list of batches, over arbitrary interleavings of everything that may happen to it."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fencepost_node.log.log import Log
from fencepost_node.producers.producer_state import Duplicate
from fencepost_node.producers.producer_state_codec import encode_producers
from fencepost_node.producers.producer_state_machine import PRODUCERS
from fencepost_proto.protocol.errors import StorageError
from fencepost_proto.protocol.record_batch import BatchHeader, read_header
from tests.simulation.disk import Fault
from tests.unit.logs import (
    NOW_MS,
    Machine,
    PowerCut,
    assert_lawful,
    content,
    open_log,
    produce,
    settings,
    snapshot_bytes,
)


class LogLaw(RuleBasedStateMachine):
    """`batches` is what the log holds, as bytes; `synced` is how far it must survive a power failure."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(7)
        self.log: Log = open_log(self.machine.mount())
        self.batches: list[bytes] = []
        self.synced = 0

    def headers(self) -> list[BatchHeader]:
        return [read_header(data) for data in self.batches]

    def keep(self, log: Log) -> None:
        """Make the list that of a log that lost its end, or its start."""
        self.log = log
        start, end = log.log_start_offset, log.log_end_offset
        self.batches = [
            data
            for data, header in zip(self.batches, self.headers(), strict=True)
            if start <= header.base_offset and header.end_offset <= end
        ]

    @rule(producer_id=st.integers(1, 3), count=st.integers(1, 4), new_epoch=st.booleans(), size=st.integers(0, 300))
    def append(self, producer_id: int, count: int, new_epoch: bool, size: int) -> None:
        leader_epoch = max(self.log.last_epoch, 0) + new_epoch
        self.batches.append(produce(self.log, producer_id, count, leader_epoch=leader_epoch, value=bytes(size)))

    @rule(count=st.integers(5, 25))
    def append_many(self, count: int) -> None:
        for number in range(count):
            self.batches.append(produce(self.log, 1 + number % 3))

    @precondition(lambda self: self.batches)
    @rule(producer_id=st.integers(1, 3))
    def bump_producer_epoch(self, producer_id: int) -> None:
        entry = self.log.states[PRODUCERS].get(producer_id)
        self.batches.append(produce(self.log, producer_id, epoch=entry.epoch + 1 if entry else 0))

    @rule(kind=st.sampled_from(["append", "open"]))
    def refuse_an_append(self, kind: str) -> None:
        self.machine.disk.faults.append(Fault((kind,), errno.ENOSPC, ".log"))
        try:
            self.batches.append(produce(self.log, 1, 2))
        except StorageError:
            pass
        finally:
            self.machine.disk.faults.clear()

    @rule()
    def maintain(self) -> None:
        due = self.log.maintenance_due
        self.log.maintain()
        if due:
            self.synced = self.log.log_end_offset
        assert not self.log.maintenance_due

    @rule()
    def sync(self) -> None:
        self.synced = self.log.sync()
        assert self.synced == self.log.log_end_offset

    @rule(back=st.integers(0, 30))
    def truncate(self, back: int) -> None:
        offset = max(self.log.log_end_offset - back, self.log.log_start_offset)
        self.log.truncate_to(offset)
        assert offset - 4 <= self.log.log_end_offset <= offset
        self.keep(self.log)
        self.synced = min(self.synced, self.log.log_end_offset)

    @rule(retained=st.integers(0, 3_000), behind=st.integers(0, 40))
    def retain(self, retained: int, behind: int) -> None:
        self.log.config = settings(retention_bytes=retained)
        high_watermark = self.log.log_end_offset - behind
        start = self.log.log_start_offset
        self.log.apply_retention(NOW_MS, high_watermark)
        assert start <= self.log.log_start_offset <= max(high_watermark, start)
        self.keep(self.log)
        self.log.config = settings()

    @rule(forward=st.integers(0, 20))
    def reset(self, forward: int) -> None:
        """To a leader's log start, with the state there; here the one that this log has."""
        start = self.log.log_end_offset + forward
        self.log.reset_to(start, snapshot_bytes(start, self.log.states[PRODUCERS].copy()))
        self.batches = []
        self.synced = start

    @rule(clean=st.booleans())
    def restart(self, clean: bool) -> None:
        self.log.close(clean)
        before = encode_producers(self.log.states[PRODUCERS])
        self.log = open_log(self.machine.mount())
        assert encode_producers(self.log.states[PRODUCERS]) == before
        if clean:
            self.synced = self.log.log_end_offset

    @rule()
    def lose_power(self) -> None:
        self.machine.mount()
        self.machine.disk.lose_power()
        self.keep(open_log(self.machine.mount()))
        assert self.log.log_end_offset >= self.synced
        self.synced = self.log.log_end_offset

    @rule(step=st.integers(1, 60), what=st.sampled_from(["maintain", "truncate", "retain"]))
    def die_within(self, step: int, what: str) -> None:
        """What was cut or deleted in part is a log nevertheless."""
        end, start = self.log.log_end_offset, self.log.log_start_offset
        cut = max(end - 15, start)
        self.log.config = settings(retention_bytes=500)
        operations: dict[str, Callable[[], None]] = {
            "maintain": self.log.maintain,
            "truncate": lambda: self.log.truncate_to(cut),
            "retain": lambda: self.log.apply_retention(NOW_MS, end),
        }
        self.machine.die_at(step)
        try:
            operations[what]()
        except PowerCut:
            self.machine.disk.lose_power()
            self.synced = min(self.synced, max(cut - 4, start)) if what == "truncate" else self.synced
        else:
            self.machine.survive()
            self.log.close(clean=False)
        self.keep(open_log(self.machine.mount()))
        assert self.log.log_end_offset >= self.synced or what == "truncate"
        self.synced = min(self.synced, self.log.log_end_offset)

    @precondition(lambda self: self.batches)
    @rule(data=st.data())
    def ask_for_duplicates(self, data: st.DataObject) -> None:
        """The last five of a producer are recognised at their offsets."""
        headers = self.headers()
        producer_id = data.draw(st.sampled_from(headers)).producer_id
        own = [header for header in headers if header.producer_id == producer_id]
        for header in [header for header in own if header.producer_epoch == own[-1].producer_epoch][-5:]:
            answer = self.log.states[PRODUCERS].check(header, ever_held_records=True)
            assert answer == Duplicate(header.base_offset, header.last_offset)

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), max_bytes=st.integers(1, 2_000))
    def read_somewhere(self, data: st.DataObject, max_bytes: int) -> None:
        number = data.draw(st.integers(0, len(self.batches) - 1))
        found = self.log.read_batches(read_header(self.batches[number]).last_offset, max_bytes)
        assert found.startswith(self.batches[number])
        assert b"".join(self.batches[number:]).startswith(found)

    @invariant()
    def the_log_is_the_list(self) -> None:
        assert content(self.log) == b"".join(self.batches)
        assert_lawful(self.log)


LogLaw.TestCase.settings = hypothesis_settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLogLaw = pytest.mark.timeout(300)(LogLaw.TestCase)
