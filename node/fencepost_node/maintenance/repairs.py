"""Brings failed replicas back, without an operator and without a restart.

A replica fails when its disk refuses a write or a sync, or when what the disk holds turns out to be damaged. The controller
is notified by the next heartbeat and lets others lead. Then, with growing pauses between attempts:

- Where the disk refused, the log is opened again: recovery cuts what was left half written, and writes again what a failed
  sync may have lost (`log/recovery.py`). Before that a full disk has to show that there is room. Once one replica has
  found it, all others that failed for want of it are due.
- Where the log is damaged, and another broker leads, the log is given up: its folder is set aside (`.damaged`), and an
  empty one takes its place, which is filled by the leader. The controller is asked first: from its answer on this replica
  is neither in sync nor eligible, and a new leader epoch begins, under which it has to join with what it holds then
  (`StartReplicaOver`).
- Where the log is damaged and no one else may lead, nothing is given up: the log is opened as it is, so that what is whole
  in it can be read.

Never while this broker counts as the leader: the leadership that the failure ended must be over for the controller too, so
that there are no two leaderships of one epoch.

**Between any two steps** the process may die: the next start finds the damaged log, the folder set aside, or an empty log.
In each case this broker is a new incarnation, and is in sync or eligible only where nothing was given up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fencepost_node.folders.partition_folders import PartitionFolders
from fencepost_node.log.log import CorruptLog
from fencepost_node.replication.local_broker import LocalBroker
from fencepost_node.replication.replica import Replica
from fencepost_proto.protocol import errors
from fencepost_proto.protocol.metadata import NO_LEADER, PartitionKey
from fencepost_proto.protocol.v1 import controller_pb2
from fencepost_proto.runtime.backoff import Backoff
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.signal import Signal
from fencepost_proto.runtime.tasks import Tasks

log = logging.getLogger(__name__)

PAUSES = Backoff(first_s=0.5, most_s=5.0, jitter=(0.75, 1.25))  # between attempts at one replica
SOUND_AFTER_S = 60.0  # a replica that has served for so long since it was brought back begins with short pauses again
METADATA_TIMEOUT_S = 5.0  # for a version that the controller has answered to arrive


class StartReplicaOverClient(Protocol):
    async def start_replica_over(
        self, request: controller_pb2.StartReplicaOverRequest
    ) -> controller_pb2.StartReplicaOverResponse: ...


@dataclass(slots=True)
class _Attempts:
    """Of one replica."""

    pauses: int = 1  # so many, the coming one among them
    due_at: float = 0.0
    recovered_at: float = 0.0
    logged: set[str] = field(default_factory=set)  # reasons that were logged


class Repairs:
    """Of the replicas of one broker, whichever they are at the time. `tasks` owns what it starts."""

    def __init__(
        self,
        host: Host,
        local: LocalBroker,
        replicas: Mapping[PartitionKey, Replica],
        *,
        unopened: Mapping[PartitionKey, str],  # logs that could not be opened, and why
        folders: PartitionFolders,
        controller: StartReplicaOverClient,
        tasks: Tasks,
        in_turn: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]],  # when no log's folder is being changed
        open_again: Callable[[PartitionKey], None],  # try once more to open a log that could not be opened
        on_recovered: Callable[[], None],  # the controller is to be notified
    ) -> None:
        self._host = host
        self._local = local
        self._replicas = replicas
        self._unopened = unopened
        self._folders = folders
        self._controller = controller
        self._in_turn = in_turn
        self._open_log_again = open_again
        self._on_recovered = on_recovered
        self._tasks = tasks
        self._attempts: dict[PartitionKey, _Attempts] = {}
        self._wake = asyncio.Event()
        self._image_changed = Signal()

    def start(self) -> None:
        self._tasks.spawn(self._run(), "repairs")

    def wake(self) -> None:
        """A replica has failed, or a log could not be opened."""
        self._wake.set()

    def image_changed(self) -> None:
        """The broker's image of the metadata is a newer one."""
        self._image_changed.set()

    async def _run(self) -> None:
        """One after another: a disk in trouble is not asked for everything at once."""
        loop = asyncio.get_running_loop()
        while True:
            failed = [*self._unopened, *(key for key, replica in self._replicas.items() if replica.failure)]
            self._forget(failed)
            now = loop.time()
            for key in failed:
                attempts = self._attempts.get(key)
                if attempts is None or 0 < attempts.recovered_at < now - SOUND_AFTER_S:
                    attempts = self._attempts[key] = _Attempts(due_at=now + self._pause_s(1))
                elif attempts.recovered_at:
                    attempts.recovered_at, attempts.due_at = 0.0, now + self._pause_s(attempts.pauses)
                if attempts.due_at <= now:
                    attempts.pauses += 1
                    await self._try(key, attempts)
                    attempts.due_at = loop.time() + self._pause_s(attempts.pauses)
            due_at = min((self._attempts[key].due_at for key in failed if key in self._attempts), default=None)
            self._wake.clear()
            try:
                async with asyncio.timeout_at(due_at):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _pause_s(self, number: int) -> float:
        return PAUSES.jittered_pause_s(number, self._host.random)

    def _forget(self, failed: list[PartitionKey]) -> None:
        for key in [key for key in self._attempts if key not in self._replicas and key not in failed]:
            del self._attempts[key]

    async def _try(self, key: PartitionKey, attempts: _Attempts) -> None:
        if key in self._unopened:
            await self._open_again(key)
            return
        replica = self._replicas.get(key)
        partition = self._local.image.partitions.get(key)
        if replica is None or partition is None or partition.leader == self._local.broker_id:
            return
        electable = (*partition.isr, *partition.eligible)
        only_here = partition.leader == NO_LEADER and electable == (self._local.broker_id,)
        starts_over = replica.damaged and not only_here
        had_no_room = replica.out_of_room
        try:
            if starts_over:
                await self._ask_to_start_over(replica.key)
            await self._in_turn(lambda: self._bring_back(replica, starts_over))
        except CorruptLog as error:
            replica.damaged = True
            self._log_once(attempts, replica, error)
        except (OSError, errors.FencepostError) as error:
            self._log_once(attempts, replica, error)
        else:
            attempts.recovered_at = asyncio.get_running_loop().time()
            attempts.logged.clear()
            if had_no_room:
                self._room_found()

    def _room_found(self) -> None:
        for key, attempts in self._attempts.items():
            replica = self._replicas.get(key)
            if replica is not None and replica.failure and replica.out_of_room:
                attempts.due_at = 0.0

    async def _open_again(self, key: PartitionKey) -> None:
        """A log that could not be opened at all."""
        if key in self._folders.unread_damage:
            try:
                await self._ask_to_start_over(key)
            except errors.FencepostError as error:
                log.debug("log not given up topic_id=%s partition=%d reason=%s", *key, error)
                return
            self._folders.give_up(key)
        self._open_log_again(key)

    async def _bring_back(self, replica: Replica, starts_over: bool) -> None:
        """Raises CorruptLog, StorageError, OSError."""
        if self._replicas.get(replica.key) is not replica:
            return
        if replica.partition is not self._local.image.partitions.get(replica.key):
            raise errors.RequestTimedOut("the newest metadata is still being applied")
        await replica.let_go_of_log()
        topic, index = replica.topic, replica.key[1]
        if starts_over:
            log.warning("giving up a damaged log topic=%s partition=%d", topic.name, index)
            opened = await self._folders.replace(index, topic)
        else:
            opened = await self._folders.reopen(index, topic, probe=replica.out_of_room)
        if self._replicas.get(replica.key) is replica:
            replica.recovered(opened)
            self._on_recovered()
        else:
            await asyncio.to_thread(opened.close, False)

    async def _ask_to_start_over(self, key: PartitionKey) -> None:
        """Returns when this replica is neither in sync nor eligible, here too. Raises FencepostError."""
        request = controller_pb2.StartReplicaOverRequest(
            broker_id=self._local.broker_id,
            broker_epoch=self._local.broker_epoch,
            topic_id=key[0],
            partition=key[1],
        )
        answer = await self._controller.start_replica_over(request)
        errors.raise_for(answer.error)
        try:
            async with asyncio.timeout(METADATA_TIMEOUT_S):
                while self._local.image.version < answer.version:
                    await self._image_changed.wait()
        except TimeoutError:
            raise errors.RequestTimedOut(f"metadata version {answer.version} has not arrived") from None

    def _log_once(self, attempts: _Attempts, replica: Replica, error: BaseException) -> None:
        """Each reason once."""
        reason = str(error)
        if reason not in attempts.logged:
            attempts.logged.add(reason)
            log.warning(
                "replica not recovered yet topic=%s partition=%d reason=%s", replica.topic.name, replica.key[1], reason
            )
