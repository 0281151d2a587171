"""The coordinator of the groups of one partition of `__consumer_offsets`, for one leadership: the shell of the pure core.

Theory of operation. The log folds a table of its records (`coordination/table.py`), here as on every follower. A leadership
begins with reading that table into a core. From then on each question is decided against the core's state, uncommitted
records included; the decision's records are appended as one batch; then the core takes the decision; and the answers go
out when everything that the group's state rests on is below the high watermark. What may happen between two of these:

- **The append is refused.** The core has not changed; whoever the decision would have answered is told
  COORDINATOR_NOT_AVAILABLE (too few in sync, no room in the table) or NOT_COORDINATOR (no leader, the disk).
- **The commit does not come.** After COMMIT_TIMEOUT_S those who wait are told COORDINATOR_NOT_AVAILABLE. The record stays in
  the log and in the core: the two are the same still. Whoever asks again is answered by what is there.
- **The leadership ends.** Everyone who waits, for a commit or for a rebalance, is told NOT_COORDINATOR, and the core is
  dropped with its timers. The next leader reads its own table. It may have a record that nobody was told of, as if the
  answer had been lost on its way.
- **The process dies.** The same, without the answers.

A heartbeat is answered at once: it promises nothing that would have to be committed.

Bounds: those of the core; a table of MAX_TABLE_BYTES; GROUPS_IN_A_TURN whose time has come, before others have a turn.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from fencepost_node.coordination.coordinator import Answer, Coordinator, Decision, Loading, Question
from fencepost_node.coordination.messages import (
    Alive,
    Commit,
    Deleted,
    DeleteGroup,
    DeleteOffsets,
    Describe,
    FetchOffsets,
    Heartbeat,
    ListedGroup,
)
from fencepost_node.coordination.moment import ConsumerSettings, KnownTopics, Moment
from fencepost_node.coordination.record_bytes import decode_entry, encode_record
from fencepost_node.coordination.records import OffsetKey, Record
from fencepost_node.coordination.table import MAX_TABLE_BYTES, TABLE
from fencepost_node.replication.leadership import ALL_ACKS, AppendOrigin, Leadership
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.runtime.backoff import Backoff
from fencepost_proto.runtime.turns import STEPS_PER_TURN, Turns

log = logging.getLogger(__name__)

NEVER = float("inf")
COMMIT_TIMEOUT_S = 5.0  # as Kafka's `offsets.commit.timeout.ms`
RETRY = Backoff(first_s=0.5, most_s=5.0)  # pauses between attempts to append what time has decided
GROUPS_IN_A_TURN = 32
REMEMBERED_ENDS = 1_024  # of groups' newest records; then those that are committed are forgotten
MAX_BATCH_BYTES = 8 * 1024 * 1024

Reply = Callable[[Answer], None]
IsGone = Callable[[str, bytes], bool]  # whether a topic of that name and id is known not to be there

# They only move a group's deadlines into the future.
_MOVES_NO_DEADLINE = (Heartbeat, Commit, FetchOffsets, DeleteOffsets, Describe)


@dataclass(frozen=True, slots=True)
class GroupSettings:
    initial_rebalance_delay_ms: int
    offsets_retention_ms: int
    consumer: ConsumerSettings = field(default_factory=ConsumerSettings)


class PartitionCoordinator:
    """Made when a leadership begins. It is a reader of its leadership, which tells it of the end."""

    def __init__(
        self,
        leadership: Leadership,
        settings: GroupSettings,
        wall_clock_ms: Callable[[], int],
        known_topics: Callable[[], KnownTopics],
    ) -> None:
        self.leadership = leadership
        self._settings = settings
        self._wall_clock_ms = wall_clock_ms
        self._known_topics = known_topics
        self._loop = asyncio.get_running_loop()
        self._core: Coordinator | None = None  # None: it is not read yet
        self._unreadable = ""  # why it never will be
        self._read_end = 0  # the log's end when the table was read
        self._ends: dict[str, int] = {}  # by group: the end of its newest record, where that may not be committed yet
        self._replies: dict[int, Reply] = {}  # of questions that are not answered
        self._tokens = 0
        self._due: list[tuple[float, str]] = []  # a heap: when to look at which group …
        self._looks: dict[str, float] = {}  # … and which of a group's entries counts: the earliest
        self._timer: asyncio.TimerHandle | None = None
        self._refused_in_a_row = 0
        self._being_deleted: set[str] = set()  # groups
        leadership.add_reader(self)

    @property
    def is_over(self) -> bool:
        return self.leadership.is_over

    # ---- The beginning and the end ----

    async def load(self) -> None:
        """Read the table. Nothing is appended meanwhile: only this appends."""
        loading, turns = Loading(), Turns()
        table = self.leadership.log.states[TABLE]
        read_end = self.leadership.log.log_end_offset
        for key, value in list(table.items()):
            try:
                record = decode_entry(key, value)
            except errors.CorruptMessage as error:
                self._unreadable = f"{self.leadership.name} has a record that this version cannot read: {error.message}"
                log.error("no coordinator partition=%s key=%r reason=%s", self.leadership.name, key[:300], error)
                return
            if record is not None:
                loading.add(*record)
            await turns.step()
        if self.is_over:
            return
        core = loading.finish(self._moment())
        self._core, self._read_end = core, read_end
        for group_id in list(core.groups):
            self._look_later(group_id)
            await turns.step()
        log.info(
            "coordinator began partition=%s epoch=%d groups=%d entries=%d bytes=%d",
            self.leadership.name, self.leadership.epoch, len(core.groups), len(table), table.size_bytes,
        )  # fmt: skip

    def set(self) -> None:
        """For the leadership: something has moved, or it has ended."""
        if self.is_over:
            self._end()

    def _end(self) -> None:
        self._core = None
        self._due.clear()
        self._looks.clear()
        self._set_timer()
        replies, self._replies = self._replies, {}
        for reply in replies.values():
            reply(self._not_coordinator())

    def _not_coordinator(self) -> FencepostError:
        return errors.NotCoordinator(
            f"the leadership of {self.leadership.name} under epoch {self.leadership.epoch} is over"
        )

    # ---- Questions ----

    async def ask(self, question: Question) -> Answer:
        """The answer, which may take as long as a rebalance does. An error is returned, not raised."""
        if isinstance(question, DeleteGroup):
            return await self._delete(question)
        return await self._ask(question)

    async def _delete(self, question: DeleteGroup) -> Answer:
        """A large group is deleted in parts. Nothing else is done to it before the last one, so no one sees half of it.

        Where the leadership ends in between, the rest is left, for whoever asks again.
        """
        if question.group_id in self._being_deleted:
            return self._is_being_deleted(question)
        self._being_deleted.add(question.group_id)
        try:
            while True:
                answer = await self._ask(question)
                if not isinstance(answer, Deleted) or answer.is_complete:
                    return answer
        finally:
            self._being_deleted.discard(question.group_id)

    def _is_being_deleted(self, question: Question) -> FencepostError:
        return errors.CoordinatorLoadInProgress(f"group {question.group_id!r} is being deleted")

    async def _ask(self, question: Question) -> Answer:
        answered: asyncio.Future[Answer] = self._loop.create_future()

        def reply(answer: Answer) -> None:
            if not answered.done():
                answered.set_result(answer)

        self._take(question, reply)
        return await answered

    def _take(self, question: Question, reply: Reply) -> None:
        if self.is_over:
            reply(self._not_coordinator())
            return
        if self._core is None:
            refusal = errors.CoordinatorNotAvailable if self._unreadable else errors.CoordinatorLoadInProgress
            reply(refusal(self._unreadable or f"the groups of {self.leadership.name} are being read"))
            return
        if question.group_id in self._being_deleted and not isinstance(question, DeleteGroup):
            reply(self._is_being_deleted(question))
            return
        self._tokens += 1
        token = self._tokens
        try:
            decision = self._core.decide(question, token, self._moment())
        except FencepostError as error:
            reply(error)
            return
        self._replies[token] = reply
        self._carry_out(decision)
        if not isinstance(question, _MOVES_NO_DEADLINE):
            self._look_later(question.group_id)

    def list_groups(self) -> list[ListedGroup]:
        """Raises CoordinatorLoadInProgress, NotCoordinator."""
        if self.is_over:
            raise self._not_coordinator()
        if self._core is None:
            raise errors.CoordinatorLoadInProgress(f"the groups of {self.leadership.name} are being read")
        return self._core.list_groups()

    def _moment(self) -> Moment:
        return Moment(
            now=self._loop.time(),
            wall_ms=self._wall_clock_ms(),
            initial_delay_s=self._settings.initial_rebalance_delay_ms / 1000,
            topics=self._known_topics(),
            consumer=self._settings.consumer,
        )

    # ---- Decisions ----

    def _carry_out(self, decision: Decision) -> bool:
        """Append, apply, answer. False: it could not be appended, and whoever waits is told so."""
        core = self._core
        if core is None:
            return False
        if decision.records:
            try:
                end = self._append(decision.records)
            except FencepostError as error:
                refused = core.refuse(decision, self._as_refusal(error, decision), self._moment())
                if not self.is_over:
                    core.apply(refused)
                for token, answer in refused.answers:
                    self._reply(token, answer)
                return False
            self._ends[decision.group_id] = end
        core.apply(decision)
        self._answer_when_committed(decision)
        return True

    def _append(self, records: Sequence[Record]) -> int:
        """The end of the batch. Raises FencepostError where nothing was appended."""
        entries = [encode_record(record) for record in records]
        table = self.leadership.log.states[TABLE]
        growth = table.growth(entries)
        if growth > 0 and table.size_bytes + growth > MAX_TABLE_BYTES:
            raise errors.GroupMaxSizeReached(
                f"{growth} bytes more would make the table of {self.leadership.name}, of {table.size_bytes} bytes, larger "
                f"than {MAX_TABLE_BYTES}"
            )
        from fencepost_proto.protocol.records import BatchBuilder, Compression  # loaded when the log was opened

        builder, now_ms = BatchBuilder(Compression.NONE, MAX_BATCH_BYTES), self._wall_clock_ms()
        for key, value in entries:
            if not builder.append(now_ms, key, value, []):
                raise errors.GroupMaxSizeReached(
                    f"{len(entries)} records are more than one batch of {MAX_BATCH_BYTES} bytes"
                )
        batch = builder.build(-1, -1, -1)
        appended = self.leadership.append_batch(batch, ALL_ACKS, self._loop.time(), origin=AppendOrigin.COORDINATOR)
        if len(self._ends) >= REMEMBERED_ENDS:
            committed = self.leadership.high_watermark
            self._ends = {group_id: end for group_id, end in self._ends.items() if end > committed}
        return appended.end_offset

    def _as_refusal(self, error: FencepostError, decision: Decision) -> FencepostError:
        """What those who ask a coordinator are told."""
        match error:
            case errors.NotLeaderOrFollower() | errors.StorageError():
                return errors.NotCoordinator(error.message)
            case errors.GroupMaxSizeReached() | errors.MessageTooLarge():
                log.warning("no room partition=%s group=%r reason=%s", self.leadership.name, decision.group_id, error)
                of_offsets = all(isinstance(key, OffsetKey) for key, _ in decision.records)
                refusal = errors.InvalidCommitOffsetSize if of_offsets else errors.GroupMaxSizeReached
                return refusal(error.message)
            case _:
                return errors.CoordinatorNotAvailable(error.message)

    def _answer_when_committed(self, decision: Decision) -> None:
        waiting = []
        for token, answer in decision.answers:
            if isinstance(answer, Alive | FencepostError):
                self._reply(token, answer)
            else:
                waiting.append((token, answer))
        if not waiting:
            return
        group_id = decision.group_id
        end = max(self._ends.get(group_id, 0), self._read_end)
        if end <= self.leadership.high_watermark:
            self._ends.pop(group_id, None)
            if not decision.records:
                for token, answer in waiting:
                    self._reply(token, answer)
                return
        timer = self._loop.call_later(COMMIT_TIMEOUT_S, self._commit_late, waiting, end)
        committed = partial(self._committed, waiting, timer)
        self.leadership.when_committed(end, committed, patient=not decision.records)  # they were appended before

    def _committed(
        self,
        waiting: Sequence[tuple[int, Answer]],
        timer: asyncio.TimerHandle,
        error: FencepostError | None,
    ) -> None:
        """What was answered since then, or whose leadership is over, has no reply here any more."""
        timer.cancel()
        if self.is_over:
            error = self._not_coordinator()
        elif isinstance(error, errors.NotEnoughReplicasAfterAppend):
            error = errors.CoordinatorNotAvailable(error.message)
        for token, answer in waiting:
            self._reply(token, answer if error is None else error)

    def _commit_late(self, waiting: Sequence[tuple[int, Answer]], end: int) -> None:
        late = errors.CoordinatorNotAvailable(
            f"offset {end} of {self.leadership.name} was not committed in {COMMIT_TIMEOUT_S:g} s"
        )
        for token, _ in waiting:
            self._reply(token, late)

    def _reply(self, token: int, answer: Answer) -> None:
        reply = self._replies.pop(token, None)
        if reply is not None:
            reply(answer)

    # ---- Time ----

    def _look_later(self, group_id: str, not_before: float = 0.0) -> None:
        """See that the group is looked at when its next deadline comes, or before that."""
        group = self._core.groups.get(group_id) if self._core is not None else None
        deadline = max(group.next_deadline(), not_before) if group is not None else NEVER
        if deadline < self._looks.get(group_id, NEVER):
            self._looks[group_id] = deadline
            heapq.heappush(self._due, (deadline, group_id))
            if self._due[0][1] == group_id:
                self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._due[0][0], self._time_has_come) if self._due else None

    def _time_has_come(self) -> None:
        """Look at the groups whose deadlines may be over: they may have been put off since."""
        self._timer = None
        now, looked_at = self._loop.time(), 0
        while self._due and self._due[0][0] <= now and self._core is not None and looked_at < GROUPS_IN_A_TURN:
            deadline, group_id = heapq.heappop(self._due)
            if self._looks.get(group_id) != deadline:
                continue  # it is looked at earlier
            del self._looks[group_id]
            looked_at += 1
            self._look(group_id, now)
        if self._core is not None:
            self._set_timer()

    def _look(self, group_id: str, now: float) -> None:
        assert self._core is not None
        group = self._core.groups.get(group_id)
        not_before = 0.0
        if group is not None and group.next_deadline() <= now:
            if self._carry_out(self._core.tick(group_id, self._moment())):
                self._refused_in_a_row = 0
            else:
                self._refused_in_a_row += 1
                not_before = now + RETRY.pause_s(self._refused_in_a_row)
        self._look_later(group_id, not_before)

    async def sweep(self, is_gone: IsGone) -> None:
        """Forget offsets whose time is over, and groups of which nothing is left."""
        turns = Turns()
        for group_id in list(self._core.groups) if self._core is not None else ():
            while self._sweep(group_id, is_gone):
                await turns.step(STEPS_PER_TURN)
            await turns.step()

    def _sweep(self, group_id: str, is_gone: IsGone) -> bool:
        """Whether something was forgotten, and more may be to forget."""
        core = self._core
        if core is None or group_id not in core.groups:
            return False
        decision = core.sweep(group_id, self._moment(), self._settings.offsets_retention_ms, is_gone)
        if decision is None or not self._carry_out(decision) or not decision.records:
            return False
        log.info("offsets forgotten partition=%s group=%r records=%d",
                 self.leadership.name, group_id, len(decision.records))  # fmt: skip
        return True
