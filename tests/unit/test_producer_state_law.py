"""Producer state against an independent model, over arbitrary interleavings of sends, retries and accidents.

The model keeps the log as a list of batches with *unbounded* sequence numbers and answers from that list alone, knowing
nothing of windows, wraps or encodings. What is sent on the wire is the number modulo 2^31.
"""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fencepost_node.log.snapshot import decode_snapshot
from fencepost_node.producers.producer_state import Duplicate, ProducerState
from fencepost_node.producers.producer_state_codec import encode_producers
from fencepost_node.producers.producer_state_machine import PRODUCERS
from fencepost_node.state_machines import STATE_MACHINES
from fencepost_proto.protocol.errors import ErrorCode, FencepostError
from fencepost_proto.protocol.record_batch import BatchHeader
from tests.unit.batches import header
from tests.unit.logs import snapshot_bytes

SEQUENCES = 2**31
PRODUCER_IDS = st.integers(1, 3)


@dataclass(frozen=True)
class Stored:
    """A batch in the model's log."""

    producer_id: int
    epoch: int
    first: int  # unbounded
    count: int
    base_offset: int

    @property
    def end(self) -> int:
        return self.first + self.count


class ProducerStateLaw(RuleBasedStateMachine):
    """What `check` answers is what the list says; what `record` makes is what a fold from scratch makes."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Stored] = []
        self.state = ProducerState()
        self.snapshots: list[bytes] = []
        self.fences: dict[int, int] = {}

    @initialize(near_wrap=st.booleans(), below=st.integers(0, 6))
    def start(self, near_wrap: bool, below: int) -> None:
        """Half of the runs begin a few sequences before the wrap: one huge batch of producer 1 stands in the log."""
        if near_wrap:
            self.store(1, 0, 0, SEQUENCES - below)

    # ---- The model ----

    def of(self, producer_id: int) -> list[Stored]:
        """The batches of the newest epoch."""
        stored = [batch for batch in self.log if batch.producer_id == producer_id]
        return [batch for batch in stored if batch.epoch == stored[-1].epoch]

    def expected(self, producer_id: int, epoch: int, first: int, count: int) -> str | tuple[int, int]:
        """By the table, in unbounded numbers."""
        known = self.of(producer_id)
        newest = known[-1].epoch if known else -1
        if epoch < max(newest, self.fences.get(producer_id, 0)):
            return "INVALID_PRODUCER_EPOCH"
        if not known and first != 0:
            return "UNKNOWN_PRODUCER_ID" if self.log else "OUT_OF_ORDER_SEQUENCE_NUMBER"
        if not known or epoch > newest:
            return "append" if first == 0 else "OUT_OF_ORDER_SEQUENCE_NUMBER"
        for batch in known[-5:]:
            if (batch.first, batch.count) == (first, count):
                return (batch.base_offset, batch.base_offset + count - 1)
        if first + count <= known[-5:][0].first:
            return "DUPLICATE_SEQUENCE_NUMBER"
        return "append" if first == known[-1].end else "OUT_OF_ORDER_SEQUENCE_NUMBER"

    def end_offset(self) -> int:
        return self.log[-1].base_offset + self.log[-1].count if self.log else 0

    def store(self, producer_id: int, epoch: int, first: int, count: int) -> None:
        stored = Stored(producer_id, epoch, first, count, self.end_offset())
        self.log.append(stored)
        self.state.record(self.header(stored), stored.base_offset)

    @staticmethod
    def header(batch: Stored) -> BatchHeader:
        return header(
            batch.count,
            producer_id=batch.producer_id,
            epoch=batch.epoch,
            sequence=batch.first % SEQUENCES,
            base_offset=batch.base_offset,
        )

    # ---- What happens ----

    def send(self, producer_id: int, epoch: int, first: int, count: int) -> None:
        """A leader's step: check, and append what is new."""
        sent = self.header(Stored(producer_id, epoch, first, count, 0))
        expected = self.expected(producer_id, epoch, first, count)
        answer: str | tuple[int, int]
        try:
            checked = self.state.check(
                sent, ever_held_records=bool(self.log), fence_epoch=self.fences.get(producer_id, 0)
            )
            answer = (checked.base_offset, checked.last_offset) if isinstance(checked, Duplicate) else "append"
        except FencepostError as error:
            answer = ErrorCode(error.code).name
        assert answer == expected
        if answer == "append":
            self.store(producer_id, epoch, first, count)

    @rule(producer_id=PRODUCER_IDS, count=st.integers(1, 4), skip=st.integers(-3, 3), bump=st.integers(-1, 1))
    def send_near_the_end(self, producer_id: int, count: int, skip: int, bump: int) -> None:
        """The next batch, one that leaves a gap, or one that overlaps; perhaps under another epoch."""
        known = self.of(producer_id)
        epoch, end = (known[-1].epoch, known[-1].end) if known else (0, 0)
        sent_epoch = max(epoch + bump, 0)
        self.send(producer_id, sent_epoch, max(end + skip if sent_epoch == epoch else skip, 0), count)

    @rule(producer_id=PRODUCER_IDS, count=st.integers(1, 4))
    def send_next(self, producer_id: int, count: int) -> None:
        known = self.of(producer_id)
        epoch, end = (known[-1].epoch, known[-1].end) if known else (self.fences.get(producer_id, 0), 0)
        self.send(producer_id, epoch, end, count)

    @precondition(lambda self: self.log)
    @rule(data=st.data(), change=st.integers(-1, 1))
    def retry(self, data: st.DataObject, change: int) -> None:
        """Any batch ever stored, as it was or with another count. Only as far back as one can tell round a wrap."""
        batch = data.draw(st.sampled_from(self.log[-12:]))
        known = self.of(batch.producer_id)
        count = max(batch.count + change, 1)
        if batch.count < SEQUENCES // 4 and known[-1].end - batch.first < SEQUENCES // 4:
            self.send(batch.producer_id, batch.epoch, batch.first, count)

    @rule(producer_id=PRODUCER_IDS, by=st.integers(0, 2))
    def fence(self, producer_id: int, by: int) -> None:
        known = self.of(producer_id)
        self.fences[producer_id] = max(self.fences.get(producer_id, 0), (known[-1].epoch if known else 0) + by)

    @rule()
    def take_snapshot(self) -> None:
        self.snapshots.append(snapshot_bytes(self.end_offset(), self.state.copy()))

    @precondition(lambda self: self.log)
    @rule(data=st.data())
    def truncate(self, data: st.DataObject) -> None:
        """The newest snapshot at or below the cut, plus the fold of what remains."""
        keep = data.draw(st.integers(max(len(self.log) - 6, 0), len(self.log)))
        self.log = self.log[:keep]
        self.reload()

    @rule()
    def reload(self) -> None:
        end = self.end_offset()
        self.snapshots = [data for data in self.snapshots if decode_snapshot(data, STATE_MACHINES).offset <= end]
        snapshot = decode_snapshot(self.snapshots[-1] if self.snapshots else snapshot_bytes(0), STATE_MACHINES)
        start, self.state = snapshot.offset, snapshot.states[PRODUCERS]
        for batch in self.log:
            if batch.base_offset >= start:
                self.state.record(self.header(batch), batch.base_offset)

    @invariant()
    def live_state_is_the_fold_from_scratch(self) -> None:
        scratch = ProducerState()
        for batch in self.log:
            scratch.record(self.header(batch), batch.base_offset)
        assert scratch == self.state
        assert encode_producers(scratch) == encode_producers(self.state)


ProducerStateLaw.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestProducerStateLaw = ProducerStateLaw.TestCase
