"""Makes a consumer a member of a group: the shell of `group_member`.

Three tasks run beside the application: heartbeats; finding out where granted partitions begin; and commits of what was read,
every `auto_commit_ms`. Everything that the application can notice happens in `settle`, inside its own reading calls:
callbacks, and partitions that come or go. So while it works on records none of its partitions is given up, and whatever it
has got by earlier calls is done when it reads again: that is what is committed (at least once).

Where the coordinator dies, heartbeats and commits are repeated at its successor with growing pauses. A repeated commit is
the same commit. One that is refused because the member's epoch has moved on is repeated under the next epoch, as long as
each of its partitions is still held under the same grant; otherwise it fails with PartitionLost, and nothing is committed.
Commits of one member are sent one after another, so a later one is never overtaken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from inspect import isawaitable
from typing import NamedTuple
from uuid import UUID

from fencepost.cluster import ClusterClient
from fencepost.consuming.group_member import JOINING, LEAVING, Alive, Beat, GroupMember
from fencepost.consuming.partition import LATEST, UNRESOLVED, TopicPartition
from fencepost.errors import PartitionLost
from fencepost.group_requests import GroupRequests
from fencepost.log_queries import list_offset
from fencepost_proto.protocol.errors import (
    FencedMemberEpoch,
    FencepostError,
    InvalidConfig,
    InvalidRequest,
    StaleMemberEpoch,
    UnknownMemberId,
    from_proto,
)
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.protocol.v1 import common_pb2, groups_pb2
from fencepost_proto.runtime.backoff import Backoff
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.tasks import Tasks
from fencepost_proto.transport.client_ids import DEFAULT_CLIENT_ID

log = logging.getLogger(__name__)

BEAT_TIMEOUT_S = 10.0  # for an answer to one heartbeat, through failovers; then the next one is made
OFFSETS_TIMEOUT_S = 30.0  # for committed offsets, and for a commit of the application's
SEEN_WITHIN_S = 5.0  # a granted partition, in the metadata
COMMIT_TIMEOUT_S = 5.0  # for a commit that is not the application's: at intervals, before a partition goes, at the end
LEAVE_TIMEOUT_S = 2.0
RETRY = Backoff(first_s=0.05, most_s=2.0)  # pauses after an attempt to find out where partitions begin
MAX_GROUP_ID_CHARACTERS = 255

Told = Callable[[list[TopicPartition]], Awaitable[None] | None]


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """What an application says of its membership. Raises InvalidConfig."""

    group: str
    auto_commit_ms: int | None = 5_000  # None: only `commit` commits
    max_poll_interval_ms: int = 300_000
    client_id: str = DEFAULT_CLIENT_ID
    on_assigned: Told | None = None
    on_revoked: Told | None = None
    on_lost: Told | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.group) <= MAX_GROUP_ID_CHARACTERS:
            raise InvalidConfig(f"group={self.group[:80]!r}: 1 to {MAX_GROUP_ID_CHARACTERS} characters are possible")
        for name, value in (
            ("auto_commit_ms", self.auto_commit_ms),
            ("max_poll_interval_ms", self.max_poll_interval_ms),
        ):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InvalidConfig(f"{name}={value!r}: a number of 1 or more")


class Beginning(NamedTuple):
    """Where the reading of a granted partition begins."""

    tp: TopicPartition
    grant: int
    position: int  # UNRESOLVED: at the log's start
    leader_epoch: int  # of the record before it; -1: not known


class Reading(NamedTuple):
    """What the consumer does for its group."""

    take: Callable[[Mapping[PartitionKey, Beginning]], None]  # read these too
    drop: Callable[[Iterable[TopicPartition]], None]  # read these no more, nor hand out what is buffered
    done: Callable[[], Mapping[TopicPartition, int]]  # the position behind what the application is done with
    epoch_before: Callable[[TopicPartition, int], int]  # leader epoch of the record before a position; -1: not known
    arrived: Callable[[], None]  # a reading call is to look again


class Group:
    """One consumer's membership. Between `start` and `close`."""

    def __init__(
        self, options: GroupOptions, cluster: ClusterClient, host: Host, reading: Reading, *, from_latest: bool
    ) -> None:
        self._options = options
        self._cluster = cluster
        self._requests = GroupRequests(cluster)
        self._reading = reading
        self._from_latest = from_latest
        self._member_id = str(UUID(bytes=host.random.randbytes(16), version=4))
        self._member = GroupMember(options.max_poll_interval_ms / 1000)
        self._names: dict[PartitionKey, TopicPartition] = {}  # of what is or was read
        self._begin: dict[PartitionKey, Beginning] = {}  # found out, and not taken yet
        self._not_told: list[TopicPartition] = []  # taken, and `on_assigned` has not returned yet
        self._committed: dict[PartitionKey, int] = {}  # by this member, under the present grants
        self._commits = asyncio.Lock()  # one at a time
        self._beat_wanted = asyncio.Event()
        self._granted = asyncio.Event()
        self._beats = asyncio.Condition()  # notified with every answer, or refusal, of a heartbeat
        self._trouble: FencepostError | None = None  # why granted partitions cannot begin
        self._has_news = True  # since `settle` was last called
        self._warned = ""

    # ---- Life ----

    def start(self, tasks: Tasks) -> None:
        self._loop = asyncio.get_running_loop()
        tasks.spawn(self._beat_for_ever(), "group-heartbeats")
        tasks.spawn(self._begin_for_ever(), "group-beginnings")
        if self._options.auto_commit_ms is not None:
            tasks.spawn(self._commit_for_ever(self._options.auto_commit_ms / 1000), "group-commits")

    async def finish(self) -> None:
        """Commit what is done, where that is automatic. Raises nothing."""
        if self._options.auto_commit_ms is not None:
            await self._commit_done()

    async def leave(self) -> None:
        """The end: its tasks have ended. Raises nothing."""
        if self._member.epoch == JOINING:
            return
        request = self._request(Beat(self._member.incarnation, LEAVING, None, ()))
        try:
            await self._requests.ask(
                self.group_id, lambda groups: groups.GroupHeartbeat, lambda: request, LEAVE_TIMEOUT_S
            )
        except FencepostError as error:  # it is removed when its session is over
            log.info("not left group=%r member=%s reason=%s", self.group_id, self._member_id, error.message)
        self._member.fence()

    def subscribe(self, topics: Sequence[str]) -> None:
        self._member.subscribe(topics, self._loop.time())
        self._beat_wanted.set()

    @property
    def group_id(self) -> str:
        return self._options.group

    # ---- In the application's reading calls ----

    def reading(self) -> None:
        """It reads: everything that it has got before is done."""
        if self._member.reading(self._loop.time()):
            self._beat_wanted.set()

    def has_read(self) -> None:
        self._member.has_read(self._loop.time())

    @property
    def may_hand_out(self) -> bool:
        return self._member.is_sure(self._loop.time())

    @property
    def is_settled(self) -> bool:
        """There is nothing for `settle` to do."""
        return not self._has_news and self.may_hand_out

    def raise_failure(self) -> None:
        """Raise why it cannot be a member, or cannot begin to read what it was granted. It goes on trying."""
        for failure in (self._member.failure, self._trouble):
            if failure is not None:
                raise failure.with_traceback(None)

    async def settle(self) -> None:
        """Tell the application of lost partitions, give up what is to be given up, take what is granted.

        Where it is cancelled in a callback, the callback is called again the next time; one that raises is not.
        """
        self._has_news = False
        while True:
            self.reading()
            if lost := list(self._member.lost):
                await self._tell(self._options.on_lost or self._options.on_revoked, lost, self._lost_told)
            elif leaving := self._member.to_give_up():
                if self._options.auto_commit_ms is not None:
                    await self._commit_done()
                await self._tell(self._options.on_revoked, leaving, self._given_up)
            elif self._begin and self.may_hand_out:
                self._take()
            elif self._not_told:
                told = [tp for tp in self._not_told if tp in {self._names[key] for key in self._member.adopted}]
                await self._call(self._options.on_assigned, told, self._not_told.clear)
            else:
                return

    async def _tell(
        self, callback: Told | None, keys: list[PartitionKey], after: Callable[[list[PartitionKey]], None]
    ) -> None:
        await self._call(callback, [self._names[key] for key in keys], lambda: after(keys))

    async def _call(self, callback: Told | None, tps: list[TopicPartition], after: Callable[[], None]) -> None:
        """`after` is called unless this is cancelled."""
        try:
            if callback is not None and tps:
                result = callback(sorted(tps))
                if isawaitable(result):
                    await result
        except Exception:
            after()
            raise
        after()

    def _lost_told(self, keys: list[PartitionKey]) -> None:
        for key in keys:
            self._member.lost.pop(key, None)

    def _given_up(self, keys: list[PartitionKey]) -> None:
        self._lost_told(keys)  # it may have been fenced meanwhile
        self._reading.drop([self._names[key] for key in keys])
        self._member.given_up(keys, self._loop.time())
        for key in keys:
            self._committed.pop(key, None)
        log.info("given up group=%r member=%s partitions=%s", self.group_id, self._member_id, self._shown(keys))
        self._beat_wanted.set()
        self._granted.set()

    def _take(self) -> None:
        found, self._begin = self._begin, {}
        now = self._loop.time()
        taken = {key: each for key, each in found.items() if self._member.adopt(key, each.grant, now)}
        if taken:
            for key, each in taken.items():
                self._names[key] = each.tp
                self._committed.pop(key, None)
                self._not_told.append(each.tp)
            self._reading.take(taken)
            log.info("assigned group=%r member=%s partitions=%s", self.group_id, self._member_id, self._shown(taken))
        if len(taken) < len(found):
            self._granted.set()  # what is still granted is looked for again

    def _shown(self, keys: Iterable[PartitionKey]) -> str:
        return ",".join(f"{tp.topic}-{tp.partition}" for tp in sorted(self._names[key] for key in keys))

    # ---- Heartbeats ----

    async def _beat_for_ever(self) -> None:
        while True:
            self._beat_wanted.clear()
            beat = self._member.beat(self._loop.time())
            self._changed()
            if beat is not None:
                await self._send(beat)
                continue
            due_at = self._member.due_at
            with suppress(TimeoutError):
                async with asyncio.timeout_at(None if due_at == float("inf") else due_at):
                    await self._beat_wanted.wait()

    async def _send(self, beat: Beat) -> None:
        sent_at, request = 0.0, self._request(beat)

        def now_sent() -> groups_pb2.GroupHeartbeatRequest:
            nonlocal sent_at
            sent_at = self._loop.time()
            return request

        try:
            answer = await self._requests.ask(
                self.group_id, lambda groups: groups.GroupHeartbeat, now_sent, BEAT_TIMEOUT_S
            )
        except FencepostError as error:
            log.info("heartbeat refused group=%r member=%s reason=%s", self.group_id, self._member_id, error)
            self._member.refused(beat, error, self._loop.time())
        else:
            self._member.answered(beat, _alive(answer), sent_at, self._loop.time())
        self._changed()
        async with self._beats:
            self._beats.notify_all()

    def _request(self, beat: Beat) -> groups_pb2.GroupHeartbeatRequest:
        request = groups_pb2.GroupHeartbeatRequest(
            group_id=self.group_id,
            member_id=self._member_id,
            member_epoch=beat.epoch,
            client_id=self._options.client_id,
        )
        if beat.topics is not None:
            request.subscribed.names.extend(beat.topics)
            request.rebalance_timeout_ms = self._options.max_poll_interval_ms
        request.owned.SetInParent()
        for topic_id, index in beat.owned:
            request.owned.partitions.add(topic_id=topic_id, partition=index)
        return request

    def _changed(self) -> None:
        """The member's state may have changed: read nothing that is lost, and have a reading call look."""
        if self._member.lost:
            self._reading.drop([self._names[key] for key in self._member.lost])
            for key in self._member.lost:
                self._committed.pop(key, None)
        failure = self._member.failure
        if failure is not None and str(failure) != self._warned:
            log.warning("no member group=%r reason=%s", self.group_id, failure)
        self._warned = str(failure)
        self._granted.set()
        self._news()

    def _news(self) -> None:
        self._has_news = True
        self._reading.arrived()

    def _fenced(self) -> None:
        """A coordinator does not know this member."""
        self._member.fence()
        self._member.beat_now(self._loop.time())
        self._beat_wanted.set()
        self._changed()

    # ---- Where granted partitions begin ----

    async def _begin_for_ever(self) -> None:
        failures = 0
        while True:
            self._granted.clear()
            granted = self._member.to_adopt()
            self._begin = {key: each for key, each in self._begin.items() if granted.get(key) == each.grant}
            missing = {key: grant for key, grant in granted.items() if key not in self._begin}
            if not missing:
                self._trouble = None
                await self._granted.wait()
                continue
            try:
                found = await self._find_beginnings(missing)
            except FencepostError as error:
                failures += 1
                expected = isinstance(error, StaleMemberEpoch | UnknownMemberId | FencedMemberEpoch)
                self._trouble = None if error.retriable or expected else error
                log.info("beginnings not known yet group=%r reason=%s", self.group_id, error)
                self._member.beat_now(self._loop.time())
                self._beat_wanted.set()
                self._news()
                await asyncio.sleep(RETRY.pause_s(failures))
            else:
                failures = 0
                self._begin |= found
                self._news()

    async def _find_beginnings(self, grants: Mapping[PartitionKey, int]) -> dict[PartitionKey, Beginning]:
        """Raises FencepostError."""
        image = self._cluster.image
        with suppress(TimeoutError):
            image = await self._cluster.wait_until(lambda seen: grants.keys() <= seen.partitions.keys(), SEEN_WITHIN_S)
        names = {key: TopicPartition(image.topics[key[0]].name, key[1]) for key in grants if key in image.partitions}
        if not names:
            raise StaleMemberEpoch(f"partitions {sorted(grants)} are granted, and not in the cluster")
        offsets = await self._fetch(list(names))
        found: dict[PartitionKey, Beginning] = {}
        for key, tp in names.items():
            position, epoch = offsets.get(key, (UNRESOLVED, -1))
            if position == UNRESOLVED and self._from_latest:
                position, _ = await list_offset(self._cluster, key, LATEST, OFFSETS_TIMEOUT_S)
                await self._commit_first(key, grants[key], position)
            found[key] = Beginning(tp, grants[key], position, epoch)
        return found

    async def _commit_first(self, key: PartitionKey, grant: int, position: int) -> None:
        """What comes after the end of today belongs to the group, also where this member reads none of it."""

        def request() -> groups_pb2.CommitOffsetsRequest:
            if self._member.to_adopt().get(key) != grant:
                raise StaleMemberEpoch(f"partition {key[0]}-{key[1]} is granted no more")
            return self._commit_request({key: position}, {})

        answer = await self._requests.ask(
            self.group_id, lambda groups: groups.CommitOffsets, request, OFFSETS_TIMEOUT_S
        )
        for refused in answer.refused:
            raise from_proto(refused.error)

    async def _fetch(
        self, keys: Sequence[PartitionKey], *, as_member: bool = True
    ) -> dict[PartitionKey, tuple[int, int]]:
        """(offset, leader epoch or -1) of those that the group has a commit for."""

        def request() -> groups_pb2.FetchOffsetsRequest:
            return groups_pb2.FetchOffsetsRequest(
                group_id=self.group_id,
                member_id=self._member_id if as_member else "",
                member_epoch=self._member.epoch,
                partitions=[common_pb2.PartitionRef(topic_id=key[0], partition=key[1]) for key in keys],
            )

        answer = await self._requests.ask(self.group_id, lambda groups: groups.FetchOffsets, request, OFFSETS_TIMEOUT_S)
        return {
            (each.topic_id, each.partition): (each.offset, each.leader_epoch if each.HasField("leader_epoch") else -1)
            for each in answer.offsets
            if each.offset >= 0
        }

    async def committed(self, keys: Sequence[PartitionKey]) -> dict[PartitionKey, int]:
        """What the group has committed, of these. Raises FencepostError."""
        return {key: offset for key, (offset, _) in (await self._fetch(keys, as_member=False)).items()}

    # ---- Commits ----

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Raises PartitionLost, InvalidRequest, or the last retriable error."""
        keys = {self._names[key]: key for key in self._member.adopted}
        for tp, offset in offsets.items():
            if TopicPartition(*tp) not in keys:
                raise PartitionLost(f"{tp[0]}-{tp[1]} is not assigned to this member of group {self.group_id!r}")
            if offset < 0:
                raise InvalidRequest(f"offset {offset} of {tp[0]}-{tp[1]} is negative")
        wanted = {keys[TopicPartition(*tp)]: offset for tp, offset in offsets.items()}
        await self._commit(wanted, OFFSETS_TIMEOUT_S)

    async def _commit(self, offsets: Mapping[PartitionKey, int], timeout_s: float) -> None:
        grants = {key: self._member.adopted[key] for key in offsets}
        deadline = self._loop.time() + timeout_s

        def request() -> groups_pb2.CommitOffsetsRequest:
            for key, grant in grants.items():
                if self._member.adopted.get(key) != grant:
                    raise self._lost(key)
            epochs = {key: self._reading.epoch_before(self._names[key], offset) for key, offset in offsets.items()}
            return self._commit_request(offsets, epochs)

        async with self._commits:
            while offsets:
                try:
                    answer = await self._requests.ask(
                        self.group_id,
                        lambda groups: groups.CommitOffsets,
                        request,
                        max(0.001, deadline - self._loop.time()),
                    )
                    for refused in answer.refused:
                        raise from_proto(refused.error)
                    break
                except StaleMemberEpoch:  # the next answer to a heartbeat has the epoch, or says what is lost
                    if self._loop.time() >= deadline:
                        raise
                    await self._next_beat(deadline)
                except (UnknownMemberId, FencedMemberEpoch) as error:
                    self._fenced()
                    raise self._lost(next(iter(offsets))) from error
            for key, offset in offsets.items():
                if self._member.adopted.get(key) == grants[key]:
                    self._committed[key] = offset

    async def _next_beat(self, deadline: float) -> None:
        self._member.beat_now(self._loop.time())
        self._beat_wanted.set()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(deadline), self._beats:
                await self._beats.wait()

    def _lost(self, key: PartitionKey) -> PartitionLost:
        tp = self._names[key]
        return PartitionLost(
            f"{tp.topic}-{tp.partition} is not this member's of group {self.group_id!r} any more: nothing is committed"
        )

    def _commit_request(
        self, offsets: Mapping[PartitionKey, int], epochs: Mapping[PartitionKey, int]
    ) -> groups_pb2.CommitOffsetsRequest:
        request = groups_pb2.CommitOffsetsRequest(
            group_id=self.group_id, member_id=self._member_id, member_epoch=self._member.epoch
        )
        for (topic_id, index), offset in sorted(offsets.items()):
            each = request.offsets.add(topic_id=topic_id, partition=index, offset=offset)
            if (epoch := epochs.get((topic_id, index), -1)) >= 0:
                each.leader_epoch = epoch
        return request

    async def _commit_for_ever(self, interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            await self._commit_done()

    async def _commit_done(self) -> None:
        """Commit what is done and not committed yet. A failure is logged: what is read again is not lost."""
        done = self._reading.done()
        wanted = {}
        for key in self._member.adopted:
            position = done.get(self._names[key], UNRESOLVED)
            if position >= 0 and position != self._committed.get(key):
                wanted[key] = position
        try:
            await self._commit(wanted, COMMIT_TIMEOUT_S)
        except FencepostError as error:
            log.warning("not committed group=%r member=%s reason=%s", self.group_id, self._member_id, error)


def _alive(answer: groups_pb2.GroupHeartbeatResponse) -> Alive:
    assignment = None
    if answer.HasField("assignment"):
        assignment = tuple((each.topic_id, each.partition) for each in answer.assignment.partitions)
    return Alive(answer.member_epoch, answer.heartbeat_interval_ms / 1000, answer.session_timeout_ms / 1000, assignment)
