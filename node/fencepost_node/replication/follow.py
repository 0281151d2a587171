"""The follower's side of one Replicate stream: all partitions that this broker follows on one leader broker.

One task keeps a stream to the leader broker, subscribes every replica that follows it, stores what is pushed, and
acknowledges. Three things may happen to a subscription instead of records: the leader asks to truncate, asks to start
over, or refuses. After each, the replica subscribes again for as long as the controller says that it follows there: at once
while the two logs are being reconciled (`reconciliation.py` shows that this ends), else after pauses that grow.

What may fail between any two lines: the stream breaks (subscribe again, from the log's end as it then is); the role ends
(what still arrives names an old subscription and is dropped); the disk refuses, or what is pushed contradicts what the log
holds (the replica gives up, alone).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import grpc

from fencepost_node.replication.local_broker import LocalBroker
from fencepost_node.replication.reconciliation import Truncate, cut_for
from fencepost_node.replication.replica import Following, Replica
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.errors import ErrorCode, FencepostError
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.protocol.v1 import replication_pb2 as pb
from fencepost_proto.protocol.v1.replication_pb2_grpc import ReplicationStub
from fencepost_proto.runtime.backoff import Backoff
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.signal import Signal
from fencepost_proto.transport.cancellation import CallCancelled, own_cancellation_only

log = logging.getLogger(__name__)

RECONNECT = Backoff(first_s=0.05, most_s=0.5, jitter=(0.5, 1.5))  # pauses between streams
_NO_SOUND_BATCH = (errors.CorruptMessage, errors.InvalidRecord, errors.UnsupportedForMessageFormat)
_WRITE_ENDS = (grpc.aio.AioRpcError, asyncio.InvalidStateError)  # what a write on a call that has ended raises
MAX_IN_A_REQUEST = 250  # subscriptions, acknowledgements, partitions given up: each; the rest goes in the next one
PUSHES_IN_A_TURN = 32  # taken before others get a turn on the loop: a millisecond or two
MAX_CATCHING_UP = 500  # replicas out of sync that subscribe at the same time, on one stream …
CATCH_UP_S = 10.0  # … and for how long one keeps the others waiting
RESUBSCRIBE = Backoff(first_s=0.02, most_s=1.0, jitter=(0.5, 1.5))  # pauses after refusals: the leader may not have
# received its leadership yet
RECONCILING_ROUNDS = 50  # answers of cuts and resets in a row that are obeyed without a pause: an exchange needs a few


@dataclass(slots=True, eq=False)
class _Followed:
    """One replica on this link."""

    replica: Replica
    following: Following
    subscription: int = 0  # the current one's number; 0: none
    nothing_agrees: bool = False  # a divergence has shown that the log is to be started over
    rounds: int = 0  # cuts and resets since records or a high watermark were last taken
    refusals: int = 0  # and refusals, and pushes that could not be taken
    refused_with: int = ErrorCode.NONE  # the last of these refusals
    mismatch: bool = False  # what was pushed last was no sound batch


class FollowerLink:
    """The stream to one leader broker."""

    def __init__(self, host: Host, local: LocalBroker, leader: int) -> None:
        self._host = host
        self._local = local
        self._leader = leader
        self._followed: dict[PartitionKey, _Followed] = {}
        self._next_subscription = 1
        # Which are to subscribe, each in one of these:
        self._to_sync: dict[PartitionKey, None] = {}  # with flush=always, so that their ends count
        self._members: dict[PartitionKey, None] = {}  # of the in-sync set: at once
        self._others: dict[PartitionKey, None] = {}  # in turns
        self._to_unsubscribe: list[PartitionKey] = []
        self._catching_up: dict[PartitionKey, float] = {}  # admitted, and when; oldest first
        self._to_ack: dict[PartitionKey, int] = {}  # the end offset to acknowledge, to its current subscription
        self._unsynced: dict[_Followed, int] = {}  # with flush=always, stored and not acknowledged: the subscription
        self._has_unsynced = Signal()
        self._wake = Signal()
        self._call: grpc.aio.StreamStreamCall[pb.ReplicateRequest, pb.ReplicateResponse] | None = None
        self.address = ""
        self.lost_at: float | None = None  # when the last stream ended; None: there is one, or never was any
        self.on_lost: Callable[[], None] = lambda: None  # called then

    # ---- From the manager ----

    def follow(self, replica: Replica, following: Following) -> None:
        self._followed[replica.key] = _Followed(replica, following)
        self._to_ack.pop(replica.key, None)
        self._wants_to_subscribe(replica)

    def unfollow(self, key: PartitionKey) -> None:
        if self._followed.pop(key, None) is not None:
            self._forget_wish(key)
            self._catching_up.pop(key, None)
            self._to_ack.pop(key, None)
            self._to_unsubscribe.append(key)
            self._wake.set()

    def following(self, key: PartitionKey) -> Following | None:
        followed = self._followed.get(key)
        return followed.following if followed else None

    def reconnect(self) -> None:
        """Break the stream: its address or its first message is out of date."""
        if self._call is not None:
            self._call.cancel()

    @property
    def idle(self) -> bool:
        return not self._followed

    # ---- The stream ----

    async def run(self) -> None:
        """Until cancelled: keep a stream to the leader broker."""
        failures = 0
        while True:
            broker = self._local.image.brokers.get(self._leader)
            if broker is not None:
                self.address = broker.address
                if await self._stream(broker.address):
                    failures = 0
            failures += 1
            await asyncio.sleep(RECONNECT.jittered_pause_s(failures, self._host.random))

    async def _stream(self, address: str) -> bool:
        """One stream's life. True where anything came back on it."""
        channel = self._host.wire.connect(address)
        self._call = call = ReplicationStub(channel).Replicate()
        for followed in self._followed.values():
            followed.subscription = 0
        self._to_unsubscribe.clear()
        self._to_ack.clear()
        self._catching_up.clear()
        self._unsynced.clear()
        for followed in self._followed.values():
            self._wants_to_subscribe(followed.replica)
        tasks = [asyncio.create_task(self._write(call)), asyncio.create_task(self._sync_stored())]
        for task in tasks:  # where one fails the stream is over
            task.add_done_callback(lambda done: done.cancelled() or done.exception() is None or call.cancel())
        answered = False
        try:
            with own_cancellation_only():
                async for message in call:  # ends, one way or another, whenever the call does: also when a write fails
                    answered, self.lost_at = True, None
                    await self._take(message)
        except grpc.aio.AioRpcError as broken:
            log.info("replication stream broke leader=%d address=%s code=%s", self._leader, address, broken.code())
        except CallCancelled:
            log.debug("replication stream given up leader=%d address=%s", self._leader, address)  # by `reconnect`
        finally:
            self._call = None
            if answered:
                self.lost_at = asyncio.get_running_loop().time()
                self.on_lost()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await channel.close()
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, _WRITE_ENDS):
                raise error
        return answered

    async def _write(self, call: grpc.aio.StreamStreamCall[pb.ReplicateRequest, pb.ReplicateResponse]) -> None:
        await call.write(
            pb.ReplicateRequest(
                broker_id=self._local.broker_id,
                broker_epoch=self._local.broker_epoch,
                cluster_id=self._local.image.cluster_id,
            )
        )
        while True:
            await self._wake.wait()
            if self._to_sync:
                await self._sync_subscribers()
            request = self._next_request()
            if request is not None:
                await call.write(request)

    async def _sync_subscribers(self) -> None:
        """A subscription says where the log ends, and the leader counts on that: with flush=always it is to be synced."""
        for key in list(self._to_sync):
            followed = self._followed.get(key)
            if followed is None or key not in self._to_sync:
                continue  # it follows no more
            try:
                await followed.replica.on_disk(followed.replica.log.sync)
            except errors.StorageError:
                continue
            if self._followed.get(key) is followed and key in self._to_sync:
                del self._to_sync[key]
                self._queue_up(followed.replica)

    def _wants_to_subscribe(self, replica: Replica) -> None:
        self._forget_wish(replica.key)
        if replica.topic.config.flush_always:
            self._to_sync[replica.key] = None
        else:
            self._queue_up(replica)
        self._wake.set()

    def _queue_up(self, replica: Replica) -> None:
        queue = self._members if self._local.broker_id in replica.partition.isr else self._others
        queue[replica.key] = None

    def _forget_wish(self, key: PartitionKey) -> None:
        for queue in (self._to_sync, self._members, self._others):
            queue.pop(key, None)

    def _next_request(self) -> pb.ReplicateRequest | None:
        request = pb.ReplicateRequest()
        for key in self._to_unsubscribe[:MAX_IN_A_REQUEST]:
            request.unsubscribe.add(topic_id=key[0], partition=key[1])
        del self._to_unsubscribe[:MAX_IN_A_REQUEST]
        # What has been given up and is followed again is sent in that order.
        waiting = (self._members or self._others) and not self._to_unsubscribe
        ready = self._admitted() if waiting else []
        for key in ready:
            followed = self._followed[key]
            followed.subscription = self._next_subscription
            self._next_subscription += 1
            replica_log = followed.replica.log
            request.subscribe.add(
                topic_id=key[0],
                partition=key[1],
                subscription=followed.subscription,
                leader_epoch=followed.following.epoch,
                log_end_offset=replica_log.log_end_offset,
                last_epoch=replica_log.last_epoch,
                nothing_agrees=followed.nothing_agrees,
                mismatch=followed.mismatch,
            )
            self._to_ack.pop(key, None)
        for key in list(self._to_ack)[:MAX_IN_A_REQUEST]:
            end_offset = self._to_ack.pop(key)
            request.acks.add(
                topic_id=key[0],
                partition=key[1],
                subscription=self._followed[key].subscription,
                log_end_offset=end_offset,
            )
        if self._to_unsubscribe or self._to_ack or len(ready) == MAX_IN_A_REQUEST:
            self._wake.set()
        return request if request.ByteSize() else None

    def _admitted(self) -> list[PartitionKey]:
        """Those that may subscribe now; they wait no more.

        Who is in sync does so at once, for writes wait for it, and it lacks nothing that is committed. The others, which may
        have much to catch up with, take turns: after a restart there are thousands.
        """
        now = asyncio.get_running_loop().time()
        while self._catching_up and now - next(iter(self._catching_up.values())) > CATCH_UP_S:
            del self._catching_up[next(iter(self._catching_up))]
        members = list(islice(self._members, MAX_IN_A_REQUEST))
        room = max(0, min(MAX_CATCHING_UP - len(self._catching_up), MAX_IN_A_REQUEST - len(members)))
        others = list(islice(self._others, room))
        for key in members:
            del self._members[key]
        for key in others:
            del self._others[key]
        self._catching_up.update(dict.fromkeys(others, now))
        return members + others

    def _caught_up(self, key: PartitionKey) -> None:
        """Another one's turn."""
        if self._catching_up.pop(key, None) is not None and self._others:
            self._wake.set()

    # ---- What the leader pushes ----

    async def _take(self, message: pb.ReplicateResponse) -> None:
        stored: list[_Followed] = []
        for number, push in enumerate(message.pushes, 1):
            if number % PUSHES_IN_A_TURN == 0:
                await asyncio.sleep(0)
            followed = self._followed.get((push.topic_id, push.partition))
            if followed is None or followed.subscription != push.subscription:
                continue  # of a subscription that is over
            records = push.records
            try:
                if push.HasField("error") or push.HasField("divergence") or push.HasField("reset"):
                    await self._take_answer(followed, push)
                else:
                    self._store(followed, push, records)
            except FencepostError as error:
                followed.mismatch = isinstance(error, _NO_SOUND_BATCH)
                log.log(
                    logging.WARNING if error.code != followed.refused_with else logging.DEBUG,  # logged once
                    "push not taken topic=%s partition=%d leader=%d error=%s",
                    followed.replica.topic.name, push.partition, self._leader, error,
                )  # fmt: skip
                followed.refused_with = error.code
                self._refused(followed)
            else:
                if records:
                    followed.mismatch = False
                    stored.append(followed)
        for followed in stored:
            if followed.replica.topic.config.flush_always:
                self._unsynced[followed] = followed.subscription
                self._has_unsynced.set()
            else:
                self._acknowledge(followed, followed.subscription, followed.replica.log.log_end_offset)

    def _store(self, followed: _Followed, push: pb.PartitionPush, records: bytes) -> None:
        """Batches, or only a high watermark."""
        replica, following = followed.replica, followed.following
        high_watermark = push.high_watermark
        if records:
            replica.append_as_follower(following, push.base_offset, records)
        if self._catching_up and replica.log.log_end_offset >= high_watermark:
            self._caught_up(replica.key)
        replica.leader_told(following, high_watermark)
        followed.rounds = followed.refusals = 0
        followed.refused_with = ErrorCode.NONE

    async def _take_answer(self, followed: _Followed, push: pb.PartitionPush) -> None:
        """What comes to a subscription instead of records."""
        replica, following = followed.replica, followed.following
        self._caught_up(replica.key)  # or not: it subscribes again, and waits for its turn
        if push.HasField("error"):
            error = errors.from_proto(push.error)
            log.log(
                logging.INFO if push.error.code != followed.refused_with else logging.DEBUG,  # a refusal is logged once
                "subscription refused topic=%s partition=%d epoch=%d leader=%d error=%s",
                replica.topic.name, push.partition, following.epoch, self._leader, error,
            )  # fmt: skip
            followed.refused_with = push.error.code
            self._refused(followed)
        elif push.HasField("divergence"):
            cut = self._cut(replica, push.divergence)
            if cut is None:
                followed.nothing_agrees = True
            else:
                await replica.truncate(following, cut)
            self._reconcile(followed)
        else:
            await replica.start_over(following, push.reset.start_offset, push.reset.snapshot)
            followed.nothing_agrees = False
            self._reconcile(followed)

    @staticmethod
    def _cut(replica: Replica, divergence: pb.Divergence) -> int | None:
        """Where to truncate; None: nothing that the log holds agrees. Raises InvalidRequest for a cut that cuts nothing."""
        replica_log = replica.log
        answer = Truncate(divergence.epoch, divergence.end_offset)
        cut = cut_for(answer, replica_log.leader_epochs, replica_log.base_offset, replica_log.log_end_offset)
        if cut is not None and cut >= replica_log.log_end_offset:
            raise errors.InvalidRequest(
                f"{answer} of {replica.key} cuts nothing: the log ends at {replica_log.log_end_offset}, "
                f"its history is {replica_log.leader_epochs}"
            )
        return cut

    async def _sync_stored(self) -> None:
        """With flush=always only what is synced is acknowledged. While a log is synced more is stored, and the next sync is
        for all of it: else each message would wait for a sync of its own, and a follower that is behind would stay so."""
        while True:
            await self._has_unsynced.wait()
            while self._unsynced:
                followed = next(iter(self._unsynced))
                subscription = self._unsynced.pop(followed)
                try:
                    end_offset = await followed.replica.on_disk(followed.replica.log.sync)
                except errors.StorageError:
                    continue
                self._acknowledge(followed, subscription, end_offset)

    def _acknowledge(self, followed: _Followed, subscription: int, end_offset: int) -> None:
        key = followed.replica.key
        if subscription and followed.subscription == subscription and self._followed.get(key) is followed:
            self._to_ack[key] = end_offset
            self._wake.set()

    def _reconcile(self, followed: _Followed) -> None:
        """Go on with the exchange that finds where the logs agree."""
        followed.rounds += 1
        if followed.rounds <= RECONCILING_ROUNDS:
            self._subscribe_again(followed, 0)
        else:
            self._refused(followed)

    def _refused(self, followed: _Followed) -> None:
        """Try again after a pause that grows with each refusal in a row."""
        followed.refusals += 1
        self._subscribe_again(followed, RESUBSCRIBE.jittered_pause_s(followed.refusals, self._host.random))

    def _subscribe_again(self, followed: _Followed, delay_s: float) -> None:
        """As long as it still follows here."""
        followed.subscription = 0
        key = followed.replica.key
        self._to_ack.pop(key, None)

        def now() -> None:
            if self._followed.get(key) is followed and not followed.replica.failure:
                self._wants_to_subscribe(followed.replica)

        if delay_s:
            asyncio.get_running_loop().call_later(delay_s, now)
        else:
            now()
