"""The one place where metadata changes: a queue of commands, decided in turn, committed in groups.

All commands that wait are taken together. Each is decided against the image that the ones before it leave behind. All that
they change is one metadata version, committed to the store in one transaction; only then the new image is in force, the
delta is published and the answers are given: refusals too, since they may rest on a change that was not yet true for
anyone. While one group is on its way to disk the next one gathers, so a version is shared by as many commands as
arrive during one commit.

A group is decided in the thread that commits it. One command may change every partition of the cluster (a broker dies),
and the event loop has heartbeats to read meanwhile. What the thread reads never changes under it: the image in force, and
a copy of the failed replicas as they were when the group began.

Where the commit fails, every command of the group fails with STORAGE_ERROR and the image stays as it was. A store that is
not at the expected version has been written to by someone else: the process stops.

With a shared store several controllers may believe that they are the active one. There a group that changes
nothing is confirmed before it is answered: the answer rests on the image, and another controller may have changed it.
Where this controller is not the active one any more, every caller gets NOT_CONTROLLER, whose outcome is not known,
and no command is taken again.

A command whose caller has left before it was decided is dropped; once decided it is carried out.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fencepost_controller.decisions.draft import Command, Group
from fencepost_controller.decisions.invariants import check_image
from fencepost_controller.failed_replicas import FailedReplicas
from fencepost_controller.store import (
    CommitFailed,
    LeadershipLost,
    SharedStore,
    Store,
    StoreError,
    VersionMismatch,
    image_of,
)
from fencepost_proto.protocol.errors import (
    FencepostError,
    InvariantBroken,
    NotController,
    StorageError,
    UnknownServerError,
)
from fencepost_proto.protocol.metadata import Changes, MetadataImage
from fencepost_proto.transport.latencies import Latencies

log = logging.getLogger(__name__)

A = TypeVar("A")

MAX_WAITING_COMMANDS = 4_096
MAX_GROUP = 256  # commands of one version

OnCommit = Callable[[MetadataImage, Changes], None]


@dataclass(frozen=True, slots=True)
class Committed(Generic[A]):
    """An answer, and the metadata version at which it holds."""

    answer: A
    version: int


class _Waiting(Generic[A]):
    """One command in the queue, and after its decision what its caller will get."""

    __slots__ = ("command", "future", "outcome")

    def __init__(self, command: Command[A]) -> None:
        self.command = command
        self.future: asyncio.Future[Committed[A]] = asyncio.get_running_loop().create_future()
        self.outcome: Committed[A] | FencepostError | None = None

    def decide(self, group: Group) -> None:
        """[thread] As the next one of its group."""
        try:
            answer = group.decide(self.command)
        except FencepostError as error:
            self.outcome = error
        except InvariantBroken:
            raise
        except Exception as error:  # decisions are pure: a bug in one has changed nothing, and is not others' fault
            log.exception("a command failed unforeseen command=%r", self.command)
            self.outcome = UnknownServerError(f"{type(error).__name__}: {error}")
        else:
            self.outcome = Committed(answer, group.version)

    def fail(self, error: FencepostError) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def answer(self) -> None:
        if self.future.done() or self.outcome is None:
            return
        if isinstance(self.outcome, FencepostError):
            self.future.set_exception(self.outcome)
        else:
            self.future.set_result(self.outcome)


@dataclass(slots=True)
class CommitCounts:
    """Since the start of the process."""

    times: Latencies = field(default_factory=Latencies)  # of groups, their decisions included
    failed: int = 0


class Commands:
    """The queue, the image in force, and the store behind it."""

    def __init__(
        self,
        store: Store | None,
        failed: FailedReplicas,
        on_commit: OnCommit,
        *,
        shared: SharedStore | None = None,
        on_lost: Callable[[str], None] = lambda reason: None,
        counts: CommitCounts | None = None,
    ) -> None:
        """`store`: None with a shared one, `shared`. `on_lost` is called when it turns out that another controller may
        write to that."""
        self.image = MetadataImage()  # as committed
        self._store = store
        self._shared = shared
        self._on_lost = on_lost
        self._failed = failed
        self._on_commit = on_commit
        self._queue: deque[_Waiting[object]] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._refused_with = ""  # what the last commit failed of
        self.counts = counts or CommitCounts()

    @property
    def waiting(self) -> int:
        """Commands in the queue."""
        return len(self._queue)

    async def load(self) -> None:
        """Take the image from the store, which is not a shared one. Raises StoreError."""
        if self._store is None:
            raise InvariantBroken("a shared store is read by its reader")
        image = await asyncio.get_running_loop().run_in_executor(None, image_of, self._store)
        try:
            check_image(image)
        except InvariantBroken as error:
            raise StoreError(f"the metadata store contradicts itself: {error}") from error
        self.image = image

    async def submit(self, command: Command[A]) -> Committed[A]:
        """Have the command decided and committed. Raises the FencepostError that refuses it."""
        if self._closing:
            raise NotController("the controller is stopping")
        if len(self._queue) >= MAX_WAITING_COMMANDS:
            raise NotController(f"{MAX_WAITING_COMMANDS} commands wait for the controller already")
        waiting = _Waiting(command)
        self._queue.append(waiting)  # type: ignore[arg-type]  # the queue does not look at answers
        self._wake.set()
        return await waiting.future

    async def check(self, command: Command[A]) -> Committed[A]:
        """Have the command decided on the image in force, and change nothing. Raises the FencepostError that refuses
        it."""
        group = Group(self.image, self._failed.snapshot())
        version = self.image.version
        answer = await asyncio.get_running_loop().run_in_executor(None, group.decide, command)
        await self.confirm()
        return Committed(answer, version)

    async def confirm(self) -> None:
        """Return if the image is the newest that there is. Raises NotController, or StorageError where that is not
        known."""
        if self._shared is None:
            return
        try:
            await self._shared.confirm()
        except LeadershipLost as error:
            self._on_lost(str(error))
            raise _not_active(f": {error}") from error
        except CommitFailed as error:
            raise StorageError(f"the controller could not ask its store: {error}") from error

    async def run(self) -> None:
        """Carry out commands until `close`, and what waits at that moment."""
        while True:
            while self._queue:
                group = [self._queue.popleft() for _ in range(min(MAX_GROUP, len(self._queue)))]
                await self._carry_out(group)
            if self._closing:
                return
            self._wake.clear()
            await self._wake.wait()

    def close(self) -> None:
        """Take no more commands; `run` ends after those that wait."""
        self._closing = True
        self._wake.set()

    def abandon(self, error: FencepostError) -> None:
        """Take no more commands, and refuse those that wait."""
        waiting, self._queue = list(self._queue), deque()
        for one in waiting:
            one.fail(error)
        self.close()

    async def _carry_out(self, waiting: Sequence[_Waiting[object]]) -> None:
        asked = [one for one in waiting if not one.future.done()]  # the callers of the others have left
        if not asked:
            return
        group = Group(self.image, self._failed.snapshot())
        time = asyncio.get_running_loop().time
        began = time()
        try:
            if self._shared is None:
                image = await asyncio.get_running_loop().run_in_executor(None, self._decide_and_commit, group, asked)
            else:
                image = await self._decide_and_share(self._shared, group, asked)
        except asyncio.CancelledError:  # this controller steps down, and it is not known what becomes of the commit
            for one in asked:
                one.fail(_not_active())
            raise
        except LeadershipLost as error:
            lost = _not_active(f": {error}")
            for one in asked:
                one.fail(lost)
            self.abandon(lost)
            self._on_lost(str(error))
            return
        except CommitFailed as error:
            again, self._refused_with = self._refused_with == str(error), str(error)
            log.log(
                logging.DEBUG if again else logging.ERROR,  # a full disk is logged once
                "commit failed version=%d commands=%d reason=%s", group.version, len(asked), error,
            )  # fmt: skip
            self.counts.failed += 1
            for one in asked:
                one.fail(StorageError(f"the controller could not store the change: {error}"))
            return
        self.counts.times.add(time() - began)
        if group.changes:
            if self._refused_with:
                self._refused_with = ""
                log.warning("commits succeed again version=%d", image.version)
            self.image = image
            self._on_commit(image, group.changes)
        for one in asked:
            one.answer()

    async def _decide_and_share(
        self, store: SharedStore, group: Group, asked: Sequence[_Waiting[object]]
    ) -> MetadataImage:
        """The same with a shared store. Raises CommitFailed, LeadershipLost, InvariantBroken."""
        image = await asyncio.get_running_loop().run_in_executor(None, self._decide, group, asked)
        if group.changes:
            await store.commit(self.image, image, group.changes)
        else:
            await store.confirm()
        return image

    @staticmethod
    def _decide(group: Group, asked: Sequence[_Waiting[object]]) -> MetadataImage:
        """[thread] The image after the group."""
        for one in asked:
            one.decide(group)
        return group.image()

    def _decide_and_commit(self, group: Group, asked: Sequence[_Waiting[object]]) -> MetadataImage:
        """[thread] Returns the image after the group, which is stored. Raises CommitFailed, InvariantBroken."""
        image = self._decide(group, asked)
        if group.changes and self._store is not None:
            try:
                self._store.commit(self.image.version, image.version, group.changes)
            except VersionMismatch as error:
                raise InvariantBroken(str(error)) from error
        return image


def _not_active(why: str = "") -> NotController:
    """Its callers do not know the outcome. `why` begins with what stands behind the sentence, or is empty."""
    return NotController(f"this controller is not active any more{why}")
