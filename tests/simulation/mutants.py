"""Deliberate faults in the production code, to show that the simulator can fail.

Each mutant is a patch in memory, the promises by which it may be caught, and the kinds of faults that bring it out. The
promise `invariant` means that the production code stopped itself: an assertion of its own met the fault first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from dataclasses import replace as changed
from functools import partial
from typing import Any, Generic, Protocol, TypeVar
from unittest.mock import patch

from fencepost.consuming.consumer_core import ConsumerCore
from fencepost.producing.sequencer import Sequencer
from fencepost_controller.commands import Commands
from fencepost_controller.decisions import histories, invariants, partitions, recovered_partitions
from fencepost_controller.decisions import recovery as controller_recovery
from fencepost_controller.decisions.brokers import RegisterBroker
from fencepost_controller.decisions.draft import Group
from fencepost_controller.decisions.histories import Histories
from fencepost_controller.decisions.isr import AlterPartition
from fencepost_controller.decisions.producers import ID_BLOCK_SIZE, AllocateProducerIds
from fencepost_controller.fences import Fences
from fencepost_controller.session_registry import SessionRegistry
from fencepost_node import metadata_feed
from fencepost_node.folders import partition_folders
from fencepost_node.folders.known_metadata import KnownMetadata
from fencepost_node.folders.partition_folders import PartitionFolders
from fencepost_node.grpc import delete_records as grpc_delete_records
from fencepost_node.kafka import fetch as kafka_fetch
from fencepost_node.kafka.connection import KafkaConnection
from fencepost_node.log import log as log_module
from fencepost_node.log import recovery, retention, segment, snapshot
from fencepost_node.log.log import Log
from fencepost_node.log.names import LOG_FOLDER, read_identity
from fencepost_node.log.state_machine import States
from fencepost_node.maintenance.repairs import Repairs
from fencepost_node.producers import producer_state
from fencepost_node.producers.producer_state import APPEND, ProducerState
from fencepost_node.producers.refusals import Refusals
from fencepost_node.replication import leadership, push, reconciliation
from fencepost_node.replication.leader_state import LeaderState
from fencepost_node.replication.leadership import Leadership
from fencepost_node.replication.replica import Replica
from fencepost_node.requests.read import Poll
from fencepost_proto.kafka.codec import encode_response
from fencepost_proto.protocol.errors import (
    DuplicateSequenceNumber,
    InvariantBroken,
    OutOfOrderSequenceNumber,
    StorageError,
    UnknownProducerId,
)
from fencepost_proto.protocol.metadata import NO_LEADER
from fencepost_proto.protocol.v1 import common_pb2
from fencepost_proto.transport import malformed
from tests.simulation.disk import MountedDisk
from tests.simulation.simulation import Result, simulate

KILLS = ("kill broker", "kill leader", "pause broker", "clean restart")
NETWORK = ("cut one way", "cut both ways", "isolate broker", "reset connections", "flaky links")
POWER = ("power failure", "power failure of several", "kill leader")
PRODUCERS = ("kill producer", "pause producer", "pause broker", "isolate broker")


class Judged(Protocol):
    """What came of one run."""

    @property
    def ok(self) -> bool: ...


R = TypeVar("R", bound=Judged)


@dataclass(frozen=True, slots=True)
class Mutant(Generic[R]):
    """One fault. It must be caught within `seeds` seeds from `first_seed` on (near one that is known to catch it)."""

    name: str
    patches: Callable[[Callable[..., Any]], None]  # is given a function like patch.object
    promises: frozenset[str]
    kinds: tuple[str, ...]
    seeds: int
    first_seed: int
    run: Callable[[int, tuple[str, ...]], R]  # one seed, with faults of these kinds

    @contextmanager
    def applied(self) -> Iterator[None]:
        with ExitStack() as stack:
            self.patches(lambda *args, **kwargs: stack.enter_context(patch.object(*args, **kwargs)))
            yield

    def caught(self) -> R | None:
        """The first run that finds something wrong; None: none of those allowed does."""
        with self.applied():
            for seed in range(self.first_seed, self.first_seed + self.seeds):
                result = self.run(seed, self.kinds)
                if not result.ok:
                    return result
        return None


MUTANTS: list[Mutant[Result]] = []


def mutant(
    *promises: str, kinds: tuple[str, ...], seeds: int = 20, first_seed: int = 0, kafka: bool = False
) -> Callable[[Callable[..., None]], None]:
    """Register a function that patches as a mutant."""

    def register(patches: Callable[..., None]) -> None:
        name, run = patches.__name__.replace("_", "-"), partial(simulate, kafka=kafka)
        MUTANTS.append(Mutant(name, patches, frozenset(promises), kinds, seeds, first_seed, run))

    return register


# ---- Deleted records ----


@mutant("G10", kinds=("delete records", "kill leader", "kill broker", "isolate broker"), first_seed=3)
def followers_take_no_notice_of_deletions(replace: Any) -> None:
    """The log's start goes back with a failover."""
    apply = Replica.apply

    def leaders_only(self: Replica, partition: Any, topic: Any = None) -> None:
        if self.is_leader:
            apply(self, partition, topic)
        else:
            with patch.object(self.log, "delete_below", lambda *_: None):
                apply(self, partition, topic)

    replace(Replica, "apply", leaders_only)


@mutant("G1", "G10", kinds=("delete records", "kill leader", "kill broker", "pause broker"), first_seed=3)
def a_deletion_is_answered_before_it_is_committed(replace: Any) -> None:
    async def delete(manager: Any, link: Any, deletions: Any, timeout_ms: int) -> list[Any]:
        answers: list[Any] = []
        for deletion in deletions:
            leadership = manager.leader(deletion.topic_id, deletion.partition, deletion.leader_epoch)
            high_watermark = leadership.latest_offset()
            end_offset = high_watermark if deletion.end_offset < 0 else min(deletion.end_offset, high_watermark)
            leadership.log.delete_below(end_offset, leadership.epoch)
            answers.append(leadership.log.log_start_offset)
        return answers

    replace(grpc_delete_records, "delete", delete)


# ---- Producer state ----


def _state_takes_whatever_comes(replace: Any) -> None:
    original = producer_state._next_entry

    def next_entry(entry: Any, header: Any) -> Any:
        try:
            return original(entry, header)
        except InvariantBroken:
            return original(None, header)

    replace(producer_state, "_next_entry", next_entry)


@mutant("G2", kinds=(*KILLS, *NETWORK))
def no_duplicate_check(replace: Any) -> None:
    """A batch that is there already is appended once more."""
    check = ProducerState.check

    def unmindful(self: ProducerState, header: Any, **given: Any) -> Any:
        with suppress(DuplicateSequenceNumber):
            check(self, header, **given)
        return APPEND

    replace(ProducerState, "check", unmindful)
    _state_takes_whatever_comes(replace)


@mutant("G5", kinds=KILLS)
def only_two_batches_are_remembered(replace: Any) -> None:
    replace(producer_state, "REMEMBERED_BATCHES", 2)


@mutant("G5", kinds=KILLS)
def snapshot_without_producer_state(replace: Any) -> None:
    original = snapshot.encode_snapshot

    def encode(taken: snapshot.Snapshot) -> bytes:
        return original(taken._replace(states=States.initial(taken.states.machines)))

    replace(snapshot, "encode_snapshot", encode)


@mutant("G5", "invariant", kinds=("isolate broker", "pause broker", "kill leader"))
def truncation_keeps_the_state_of_what_it_cut(replace: Any) -> None:
    original = Log._forget_above

    def forget_above(self: Log, *cut: Any) -> Any:
        number, position, end_offset, _, folded_bytes = cut
        return original(self, number, position, end_offset, self.states, folded_bytes)

    replace(Log, "_forget_above", forget_above)


@mutant("G5", "invariant", kinds=("disk error", "disk full", "kill leader"), first_seed=2)
def state_changes_though_the_append_failed(replace: Any) -> None:
    """And the replica goes on, as though nothing had been."""
    original = Log._append_and_fold

    def append(self: Log, data: bytes, batches: Any) -> None:
        staged = self.states.stage([header for _, header in batches])
        try:
            original(self, data, batches)
        except StorageError:
            self.states.apply(staged)
            raise

    replace(Log, "_append_and_fold", append)
    replace(Replica, "fail", lambda self, reason: None)


@mutant("G5", "invariant", kinds=("replica begins again",), seeds=40, first_seed=7)
def moved_replica_gets_no_producer_state(replace: Any) -> None:
    original = Log.reset_to

    def reset_to(self: Log, start_offset: int, _: bytes) -> None:
        original(self, start_offset, snapshot.empty_snapshot(self.states.machines, start_offset))

    replace(Log, "reset_to", reset_to)


@mutant("G3", kinds=("followers gone for a moment",), seeds=30, first_seed=3)
def batches_after_a_gap_are_appended(replace: Any) -> None:
    """The leader takes any sequence beyond the last one: a batch that it refused a moment before can never follow."""
    check = ProducerState.check

    def lenient(self: ProducerState, header: Any, **given: Any) -> Any:
        try:
            return check(self, header, **given)
        except (OutOfOrderSequenceNumber, UnknownProducerId):
            return APPEND

    replace(ProducerState, "check", lenient)
    _state_takes_whatever_comes(replace)


# ---- Commits ----


@mutant("G6", kinds=KILLS)
def acknowledged_before_the_commit(replace: Any) -> None:
    replace(Leadership, "when_committed", lambda self, end_offset, done: done(None))


@mutant("G6", kinds=(*KILLS, *NETWORK), first_seed=3)
def duplicate_acknowledged_before_the_commit(replace: Any) -> None:
    original = Leadership.append_batch

    def append(self: Leadership, *given: Any) -> Any:
        appended = original(self, *given)
        if appended.duplicate:
            object.__setattr__(appended, "end_offset", 0)  # committed, as the waiting sees it
        return appended

    replace(Leadership, "append_batch", append)


@mutant("G1", "G10", kinds=(*KILLS, *NETWORK))
def high_watermark_ignores_a_joining_member(replace: Any) -> None:
    replace(LeaderState, "_maximal_isr", lambda self: self.partition.isr)
    replace(LeaderState, "_may_join", lambda self, broker_id, lag_max_s, now: not self._lags(broker_id, lag_max_s, now))


@mutant("G6", kinds=(*KILLS, *NETWORK), first_seed=2)
def high_watermark_of_a_majority(replace: Any) -> None:
    """Two of three suffice, while all three count as in sync."""

    def advance(self: LeaderState) -> bool:
        ends = sorted(
            (self.durable_end_offset if m == self.broker_id else self._end_of(m) for m in self.maximal_isr),
            reverse=True,
        )
        reached = ends[len(ends) // 2]
        if reached <= self.high_watermark:
            return False
        self.high_watermark = reached
        return True

    replace(LeaderState, "_advance", advance)


@mutant("G6", kinds=("isolate broker",), first_seed=5)
def leader_answers_after_losing_its_epoch(replace: Any) -> None:
    original = Leadership.end

    def end(self: Leadership, error: Any, unknown: Any) -> None:
        waiters, self._waiters = self._waiters, type(self._waiters)()
        for waiter in waiters:
            waiter.done(None)
        original(self, error, unknown)

    replace(Leadership, "end", end)


@mutant("G10", kinds=(*KILLS, *NETWORK))
def reads_above_the_high_watermark(replace: Any) -> None:
    async def read_committed(self: Leadership, offset: int, max_bytes: int, *, mismatch: bool = False) -> bytes:
        self.require_leading()
        return self.log.read_batches(offset, max_bytes) if offset < self.log.log_end_offset else b""

    replace(Leadership, "read_committed", read_committed)


@mutant("G10", kinds=("successor out of touch",), first_seed=2)
def new_leader_tells_an_old_high_watermark(replace: Any) -> None:
    original = LeaderState.__init__

    def init(self: LeaderState, *args: Any, **named: Any) -> None:
        original(self, *args, **named)
        self.epoch_start_offset = 0

    replace(LeaderState, "__init__", init)


# ---- Replication ----


@mutant("G4", "invariant", kinds=("isolate broker", "pause broker", "kill leader"), first_seed=2)
def no_truncation(replace: Any) -> None:
    original = reconciliation.answer_subscribe

    def answer(follower: Any, epochs: Any, start: int, end: int) -> Any:
        answered = original(follower, epochs, start, end)
        fits = follower.log_end_offset <= end
        return reconciliation.Push() if isinstance(answered, reconciliation.Truncate) and fits else answered

    replace(push, "answer_subscribe", answer)


@mutant("G1", "G4", kinds=(*KILLS, *NETWORK, "reassign"), first_seed=7)
def isr_change_without_epoch_checks(replace: Any) -> None:
    """Whoever once led may change the in-sync set, and members need not be the incarnations that caught up. (Nor does one
    that leaves the set by that take over, where none of those that are left serves: else none of 90 seeds is harmed.)"""

    def decide(self: AlterPartition, draft: Any) -> None:
        partition = draft.partition(self.partition)
        members = tuple(broker_id for broker_id, _ in self.new_isr)
        partitions.recompute(draft, partition, changed(partition, isr=members))

    def sound_eligible(before: Any, partition: Any, lost: Any) -> tuple[int, ...]:
        return tuple(b for b in partition.replicas if b in partition.eligible and b not in lost)

    replace(AlterPartition, "decide", decide)
    replace(partitions, "_sound_eligible", sound_eligible)


@mutant("G1", "G4", "G10", kinds=("isolate broker", "pause broker", "kill leader", "power failure"), first_seed=4)
def any_live_replica_is_elected(replace: Any) -> None:
    original = partitions._leader

    def leader(draft: Any, partition: Any) -> int:
        for broker_id in reversed(partition.replicas):
            if draft.serves(broker_id, partition.id):
                return int(broker_id)
        return original(draft, partition)

    replace(partitions, "_leader", leader)
    replace(
        partitions,
        "_in_sync",
        lambda draft, before, partition, lost, original=partitions._in_sync: _with_leader(
            draft, original(draft, before, partition, lost), leader
        ),
    )
    replace(invariants, "_problem_of_electable", lambda before, partition: "")


def _with_leader(draft: Any, partition: Any, leader: Any) -> Any:
    elected = leader(draft, partition)
    if elected < 0 or elected in partition.isr:
        return partition
    return changed(partition, isr=(*(m for m in partition.isr if draft.serves(m, partition.id)), elected))


# ---- Eligible replicas (KIP-966) ----


@mutant("G1", "G4", kinds=(*POWER, "power failure", "kill everything"), seeds=30)
def replica_whose_machine_went_down_stays_eligible(replace: Any) -> None:
    original = partitions._eligible

    def eligible(draft: Any, before: Any, settled: Any, leader: int, lost: Any) -> tuple[int, ...]:
        return original(draft, before, settled, leader, ())

    replace(partitions, "_eligible", eligible)


@mutant("G1", "G6", "G10", kinds=(*KILLS, *NETWORK), seeds=30, first_seed=3)
def leader_commits_with_too_few_in_sync(replace: Any) -> None:
    replace(LeaderState, "can_commit", property(lambda self: True))


@mutant("G1", "G6", "G10", kinds=(*KILLS, *NETWORK), seeds=30)
def replicas_stay_eligible_while_the_leader_commits_without_them(replace: Any) -> None:
    original = partitions._eligible

    def eligible(draft: Any, before: Any, settled: Any, leader: int, lost: Any) -> tuple[int, ...]:
        return original(draft, before, settled, NO_LEADER, lost)

    replace(partitions, "_eligible", eligible)
    replace(invariants, "_problem_of_eligible", lambda partition, after: "")


# ---- The disk ----


@mutant("G1", "G4", kinds=POWER, seeds=30, first_seed=5)
def lost_tail_is_not_told(replace: Any) -> None:
    original = RegisterBroker.decide

    def decide(self: RegisterBroker, draft: Any) -> Any:
        object.__setattr__(self, "may_have_lost_tail", False)
        return original(self, draft)

    replace(RegisterBroker, "decide", decide)


@mutant("G1", kinds=POWER, seeds=30)
def acknowledged_before_the_sync(replace: Any) -> None:
    replace(Log, "sync", lambda self: self.log_end_offset)


@mutant("G5", "G4", kinds=POWER, first_seed=5)
def recovery_keeps_a_torn_batch(replace: Any) -> None:
    replace(recovery, "scan", segment.walk)


# ---- The data folder ----


@mutant("G1", "G4", kinds=("older folder put back",), first_seed=2)
def epoch_of_the_folder_is_not_compared(replace: Any) -> None:
    replace(RegisterBroker, "folder_problem", lambda self, known: "" if self.cluster_id else "it is new")


@mutant("G1", "G4", kinds=("older folder put back",), first_seed=12)
def copy_passes_for_the_original(replace: Any) -> None:
    replace(MountedDisk, "is_original", lambda self, path: True)


@mutant("G1", "G4", "G6", kinds=("log is lost",), first_seed=2)
def lost_log_is_not_missed(replace: Any) -> None:
    replace(PartitionFolders, "_compare_with_catalogue", lambda self, was_clean: None)


@mutant("G4", kinds=("log is copied",))
def copied_log_is_opened(replace: Any) -> None:
    """By the number in its name, as whose ever it looks; then it is none of this broker's, and goes."""

    def identify(self: PartitionFolders, name: str, folder: str) -> Any:
        match = LOG_FOLDER.fullmatch(name)
        identity = read_identity(self._disk, folder) if match else None
        return partition_folders._Found(folder, identity, int(match["partition"])) if match and identity else None

    replace(PartitionFolders, "_identify", identify)


# ---- Damage and recovery ----


@mutant("G10", kinds=("bit rot", "kill leader"), first_seed=7)
def cold_reads_are_not_checked(replace: Any) -> None:
    replace(segment.Segment, "_sound_end", lambda self, data, first, epochs: first.position + len(data))


@mutant("G1", kinds=("kill leader", "clean restart"), first_seed=7)
def retention_takes_one_segment_too_many(replace: Any) -> None:
    def one_more(segments: Any, *given: Any, **named: Any) -> int:
        count = retention.segments_to_delete(segments, *given, **named)
        return min(count + 1, len(segments) - 1) if count else 0

    replace(log_module, "segments_to_delete", one_more)


@mutant("G10", kinds=("small files rot",))
def one_entry_of_a_time_index_is_believed(replace: Any) -> None:
    def none_reaches(self: segment.Segment, timestamp_ms: int) -> int:
        found = self.time_index.two_below_first(timestamp_ms)
        return found[1].second if found else self.base_offset

    replace(segment.Segment, "_none_reaches", none_reaches)


@mutant("G1", "G10", kinds=("small files rot",), first_seed=3)
def a_time_index_is_believed_after_a_restart(replace: Any) -> None:
    def confirmed(self: segment.Segment, number: int) -> Any:
        entry, (told_ms, base_offset) = self.offset_index.entry(number), self.time_index.entry(number)
        return (entry, told_ms) if entry.first == base_offset and self._fits(entry) else None

    replace(segment.Segment, "_confirmed", confirmed)


@mutant("G11", kinds=("bit rot",))
def scrubber_sees_no_damage(replace: Any) -> None:
    def check_from(self: segment.Segment, place: Any, size: int, max_bytes: int, epochs: Any) -> Any:
        return segment.LogPlace(self.base_offset, size, self.end_offset)

    replace(segment.Segment, "check_from", check_from)


@mutant("G11", kinds=("disk full", "disk error"), first_seed=1)
def failed_replica_never_returns(replace: Any) -> None:
    async def leave_it(self: Repairs, key: Any, attempts: Any) -> None:
        return

    replace(Repairs, "_try", leave_it)


@mutant("G11", kinds=("disk full", "disk error"), first_seed=1)
def recovered_replica_counts_as_failed(replace: Any) -> None:
    """For the controller, until its broker starts again."""
    original = SessionRegistry._take_failed

    def take_failed(self: SessionRegistry, session: Any, refs: Any) -> None:
        known = self._failed.of(session.broker_id, session.broker_epoch)
        kept = [common_pb2.PartitionRef(topic_id=topic_id, partition=index) for topic_id, index in known]
        original(self, session, [*refs, *kept])

    replace(SessionRegistry, "_take_failed", take_failed)


@mutant("G11", kinds=("kill controller", "kill broker", "power failure"), first_seed=4)
def waiting_counts_as_silence(replace: Any) -> None:
    """Whoever came at the controller's start, and had to wait until another one did not come, is taken for dead too."""
    replace(SessionRegistry, "_waiting", lambda self, broker_id: nullcontext())


@mutant("G11", kinds=("kill producer", "pause producer"))
def whoever_is_a_batch_behind_leaves(replace: Any) -> None:
    """Its leader does not wait for `replica_lag_time_max_ms`."""

    def lags(self: LeaderState, broker_id: int, lag_max_s: float, now: float) -> bool:
        return self._followers[broker_id].end_offset < self.log_end_offset

    replace(LeaderState, "_lags", lags)


@mutant("G11", kinds=("kill producer", "pause producer"))
def some_acknowledgements_wait_for_three_seconds(replace: Any) -> None:
    original = Leadership.when_committed

    def when_committed(self: Leadership, end_offset: int, done: Any, **rest: Any) -> None:
        def late(error: Any) -> None:
            asyncio.get_running_loop().call_later(3 if end_offset % 50 == 0 else 0, done, error)

        original(self, end_offset, late, **rest)

    replace(Leadership, "when_committed", when_committed)


@mutant("G11", kinds=("kill producer", "pause producer"))
def some_readers_wait_for_three_seconds(replace: Any) -> None:
    original = Poll.enough

    async def enough(self: Poll) -> bool:
        found = await original(self)
        if found and self._available % 7 == 0:
            await asyncio.sleep(3)
        return found

    replace(Poll, "enough", enough)


# ---- Identity ----


@mutant("G9", kinds=("take-over behind a cut",), seeds=30, first_seed=2)
def fence_is_not_waited_for(replace: Any) -> None:
    async def wait(self: Fences, version: int, timeout_s: float) -> None:
        return

    replace(Fences, "wait", wait)


@mutant("G9", kinds=PRODUCERS)
def older_epoch_is_accepted(replace: Any) -> None:
    """Where the leader itself has not seen the newer one."""
    original = ProducerState.check

    def check(self: ProducerState, header: Any, *, fence_epoch: int = 0, **rest: Any) -> Any:
        return original(self, header, **rest)

    replace(ProducerState, "check", check)


@mutant("G8", kinds=("kill controller", "kill broker", "kill producer"), first_seed=3)
def id_block_is_not_persisted(replace: Any) -> None:
    """The next broker gets the same one."""

    def decide(self: AllocateProducerIds, draft: Any) -> range:
        first = draft.image.next_ids.next_id
        return range(first, first + ID_BLOCK_SIZE)

    replace(AllocateProducerIds, "decide", decide)


@mutant("G6", "G10", kinds=("kill controller", "kill broker", "kill producer"))
def group_is_answered_before_its_commit(replace: Any) -> None:
    """Brokers act on an in-sync set that the store does not have yet, and a controller that is killed never will."""

    async def carry_out(self: Commands, waiting: Any) -> None:
        asked = [one for one in waiting if not one.future.done()]
        group = Group(self.image, self._failed.snapshot())
        for one in asked:
            one.decide(group)
        before, self.image = self.image, group.image()
        if group.changes:
            self._on_commit(self.image, group.changes)
        for one in asked:
            one.answer()
        if group.changes:
            after = self.image.version
            assert self._store is not None
            commit = partial(self._store.commit, before.version, after, group.changes)
            await asyncio.get_running_loop().run_in_executor(None, commit)

    replace(Commands, "_carry_out", carry_out)


# ---- Hostile clients ----


@mutant("bounds", kinds=("hostile client",))
def bounds_of_requests_are_not_checked(replace: Any) -> None:
    replace(malformed, "bounded", lambda method, deserialize: deserialize)


@mutant("G8", kinds=("ids never given out",))
def unallocated_id_is_accepted(replace: Any) -> None:
    replace(leadership, "lowest_epoch", lambda producer_id, epoch, image: image.fences.get(producer_id, 0))


@mutant("G6", kinds=("ids of the next producers",), first_seed=4)
def repeat_is_told_by_its_sequences_alone(replace: Any) -> None:
    """Whoever is given an id that a stranger has written under has its first records acknowledged, and not stored."""
    replace(producer_state, "_check_same", lambda batch, header, crcs_at: None)


@mutant("G2", "G5", kinds=("flood of new producers",))
def young_producer_is_evicted(replace: Any) -> None:
    """The one idle for longest makes room for a new one, however short a time ago it wrote."""
    original = ProducerState.apply

    def apply(self: ProducerState, staged: Any) -> None:
        original(self, staged)
        while len(self._entries) > producer_state.MAX_PRODUCERS:
            del self._entries[next(iter(self._entries))]

    replace(ProducerState, "apply", apply)
    replace(ProducerState, "_check_room", lambda self, producer_id: None)


@mutant("bounds", kinds=("hostile client",))
def incarnations_are_shown_to_clients(replace: Any) -> None:
    replace(metadata_feed, "replace", lambda broker, **_: broker)


@mutant("invariant", kinds=("controller put back", "kill leader"), first_seed=3)
def known_version_is_not_kept(replace: Any) -> None:
    """Brokers do not know what they were told: a store that has gone back serves them."""
    replace(KnownMetadata, "learn", lambda self, version, lineage_id: None)


@mutant("G8", "G9", kinds=("controller put back", "kill producer"), first_seed=8)
def recovery_trusts_the_store(replace: Any) -> None:
    """What the brokers hold is asked for, and what the store has is taken."""
    original = Histories.__init__
    replace(Histories, "__init__", lambda self, store, sources, heard: original(self, store, [store], ()))
    replace(controller_recovery, "PRODUCER_ID_JUMP", 0)


@mutant("G10", kinds=("controller put back", "delete a topic"), first_seed=9)
def recovery_brings_deleted_topics_back(replace: Any) -> None:
    """A topic that the backup has is taken from it, and led by whoever was in sync."""
    replace(histories, "_last_change", lambda image: image.version)
    replace(Histories, "_followed", lambda self, found, heard: found)
    replace(Histories, "_is_removed", lambda self, since, is_in: not any(map(is_in, self.heads)))
    replace(recovered_partitions.PartitionRecovery, "_in_sync", lambda self, newest, logs: newest.isr)


@mutant("G7", kinds=("controller put back", "kill leader"), first_seed=3)
def recovery_takes_leader_epochs_back(replace: Any) -> None:
    replace(recovered_partitions, "EPOCH_JUMP", -1)


# ---- The client ----


@mutant("G2", "G11", kinds=(*KILLS, *NETWORK))
def retry_with_a_fresh_sequence(replace: Any) -> None:
    original = Sequencer.attempts_to_send

    def attempts_to_send(self: Sequencer, now: float) -> Any:
        for batch in self.unresolved:
            if batch.current is None and batch.attempts and not self.bump_needed:
                self._stamp(batch)
        return original(self, now)

    replace(Sequencer, "attempts_to_send", attempts_to_send)


@mutant("G3", "unhandled", kinds=KILLS, first_seed=3)
def split_restamps_wrongly(replace: Any) -> None:
    """The halves of a split batch get each other's sequences: the second is stored before the first."""
    original = Sequencer._split

    def split(self: Sequencer, batch: Any) -> None:
        original(self, batch)
        first, second = batch.pieces
        if self.idempotent and first.record_count == second.record_count:
            first.stamp, second.stamp = second.stamp, first.stamp

    replace(Sequencer, "_split", split)


@mutant("G1", "unhandled", kinds=("isolate broker", "take-over behind a cut"), seeds=30, first_seed=2)
def unknown_outcome_reported_as_certain(replace: Any) -> None:
    """The judge notices, or the sequencer itself: an acknowledgement comes of what it has given up for certain."""
    original = Sequencer._fail

    def fail(self: Sequencer, batch: Any, error: Any) -> Any:
        failed = original(self, batch, error)
        failed.outcome.error.may_have_been_appended = False  # type: ignore[union-attr]
        return failed

    replace(Sequencer, "_fail", fail)


@mutant("G3", kinds=("followers gone for a moment",), seeds=30)
def retry_sent_out_of_order(replace: Any) -> None:
    """What was refused goes again in the opposite order, in the same sequences. (With each batch under its own sequence
    the leader would refuse what leaves a gap: disorder in sending alone costs time and breaks no promise.)"""
    original = Sequencer.attempts_to_send

    def attempts_to_send(self: Sequencer, now: float) -> Any:
        waiting = self.unresolved
        refused = all(batch.attempts and batch.current is None and batch.certainly_absent for batch in waiting)
        if len(waiting) > 1 and refused and not self.bump_needed:
            self.next_sequence = waiting[0].stamp.base_sequence  # type: ignore[union-attr]
            self._window = type(self._window)(reversed(waiting))
            for batch in self._window:
                self._stamp(batch)
        return original(self, now)

    replace(Sequencer, "attempts_to_send", attempts_to_send)


@mutant("G10", kinds=("unreadable batches",), first_seed=2)
def more_is_passed_over_than_what_no_one_can_read(replace: Any) -> None:
    """A consumer that skips an unreadable batch goes on one record too late."""
    original = ConsumerCore._corrupt

    def corrupt(self: ConsumerCore, p: Any, error: Any, end_offset: int | None) -> None:
        original(self, p, error, end_offset + 1 if end_offset is not None else None)

    replace(ConsumerCore, "_corrupt", corrupt)


# ---- Unclean elections ----


@mutant("G6", kinds=("unclean election",))
def cut_log_keeps_its_high_watermark(replace: Any) -> None:
    """Also one that has been started over."""
    for name in ("truncate", "start_over"):

        def patched(original: Any) -> Any:
            async def operate(self: Replica, *args: Any) -> None:
                kept = self.high_watermark
                await original(self, *args)
                self._high_watermark = max(kept, self._high_watermark)

            return operate

        replace(Replica, name, patched(getattr(Replica, name)))


@mutant("G10", kinds=("unclean election",))
def readers_go_on_over_an_unclean_election(replace: Any) -> None:
    """Their offset is all that counts, as though the log were still the one that they have read."""
    replace(Leadership, "check_continues", lambda self, offset, last_epoch: None)


# ---- The Kafka edge ----


@mutant("G14", kinds=("kill leader", "clean restart", "disk full"), first_seed=3, kafka=True)
def no_latch(replace: Any) -> None:
    """A gap that the broker's own refusal has made is told as the producer's."""
    replace(Refusals, "answer", lambda self, place, header, error, now: error)


@mutant("G10", kinds=("slow links", "isolate broker", "kill leader"), first_seed=1, kafka=True)
def kafka_readers_see_what_is_not_committed(replace: Any) -> None:
    class Uncommitted(Poll):
        async def read(self, room: int) -> int:
            taken = await super().read(room)
            for wanted in self._wanted:
                leadership, offset = wanted.leadership, wanted.position.offset
                if leadership is not None and wanted.error is None and not leadership.is_over:
                    taken -= len(wanted.records)
                    wanted.records = await leadership.read(offset, 1 << 20, leadership.log.log_end_offset)
                    taken += len(wanted.records)
            return taken

    replace(kafka_fetch, "Poll", Uncommitted)


@mutant("order", kinds=("kill leader", "isolate broker"), first_seed=1, kafka=True)
def kafka_answers_go_out_as_they_come(replace: Any) -> None:
    """Not in the order of their requests."""

    def write_at_once(self: KafkaConnection, answer: Any, response: object) -> None:
        chunks = encode_response(answer.api_key, answer.version, answer.correlation_id, response)
        if self._transport is not None and answer in self._answers:
            self._answers.remove(answer)
            self._transport.writelines(chunks)

    replace(KafkaConnection, "_set", write_at_once)
