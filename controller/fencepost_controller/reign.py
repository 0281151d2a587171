"""The time in which one controller decides: its commands, the brokers' sessions, and what it does by itself.

With a store of its own a controller decides from its start to its end. With a shared store each leadership is one
reign; all of it is made afresh for the next one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from fencepost_controller.commands import Commands, CommitCounts
from fencepost_controller.config import ControllerConfig
from fencepost_controller.decisions.cluster import FormCluster
from fencepost_controller.decisions.elections import RestorePreferredLeaders
from fencepost_controller.decisions.producers import ExpireNames
from fencepost_controller.election_counts import ElectionCounts
from fencepost_controller.failed_replicas import FailedReplicas
from fencepost_controller.fences import Fences
from fencepost_controller.random_id import random_id
from fencepost_controller.recovery import new_lineage_id
from fencepost_controller.session_registry import SessionRegistry
from fencepost_controller.store import SharedStore, Store
from fencepost_proto.protocol.errors import FencepostError, NotController, RetriableError
from fencepost_proto.protocol.metadata import Changes, MetadataImage, Partition
from fencepost_proto.runtime.failure import Failure
from fencepost_proto.runtime.host import Host
from fencepost_proto.runtime.running_time import RunningTime
from fencepost_proto.runtime.tasks import Tasks

log = logging.getLogger(__name__)

NAME_CLOCK_STEPS = 64  # how finely the expiration time of names is divided
MIN_NAME_CLOCK_STEP_MS, MAX_NAME_CLOCK_STEP_MS = 100, 3_600_000  # a commit each
MAX_LOGGED = 50  # partitions of one commit, a line each: logging must not hold up the next


@dataclass(frozen=True, slots=True)
class Counts:
    """What all reigns of one process count together."""

    commits: CommitCounts
    elections: ElectionCounts


class Reign:
    """Made, started and ended once, inside one running event loop."""

    def __init__(
        self,
        config: ControllerConfig,
        host: Host,
        failure: Failure,
        store: Store | None,
        counts: Counts,
        *,
        shared: SharedStore | None = None,
        epoch: int = 0,
        on_image: Callable[[MetadataImage], None] = lambda image: None,
        on_lost: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """`store`: of this controller alone; None: there is a shared one, `shared`, and `epoch` is the controller epoch
        under which this controller may write to it. `on_image` is given each image that
        is committed.

        `on_lost` is called when another controller may decide.
        """
        self.config = config
        self.epoch = epoch
        self._host = host
        self._failure = failure
        self._on_image = on_image
        self._counts = counts
        self._tasks = Tasks(failure.report)
        failed = FailedReplicas()
        self.commands = Commands(store, failed, self._committed, shared=shared, on_lost=on_lost, counts=counts.commits)
        self.sessions = SessionRegistry(
            wire=host.wire,
            config=config,
            commands=self.commands,
            failed=failed,
            on_applied=self._check_fences,
            on_went_back=self._went_back,
            spawn=self._tasks.spawn,
            controller_epoch=epoch,
        )
        self.fences = Fences(lambda: self.image, self.sessions.applied)
        self._committing: asyncio.Task[None] | None = None

    @property
    def image(self) -> MetadataImage:
        """All metadata, as committed."""
        return self.commands.image

    async def start(self, loaded: MetadataImage | None = None, *, is_warm: bool = False) -> None:
        """Returns when the brokers may come. Raises StoreError, StorageError; NotController where the reign is over
        already.

        `loaded`: the image of a shared store. `is_warm`: this controller has followed the store until it took over.
        """
        if loaded is None:
            await self.commands.load()
        else:
            self.commands.image = loaded
        self._counts.elections.start(self.image)
        self._committing = self._tasks.spawn(self.commands.run(), "commands")
        await self.commands.submit(FormCluster(random_id(self._host.random), new_lineage_id(self._host.random)))
        self.sessions.start(is_warm=is_warm)
        self._tasks.spawn(self.sessions.watch(), "watch sessions")
        self._tasks.spawn(self._restore_preferred_leaders(), "restore preferred leaders")
        self._tasks.spawn(self._expire_names(), "expire names of producers")

    # ---- While it lasts ----

    def _committed(self, image: MetadataImage, changes: Changes) -> None:
        self._on_image(image)
        self._counts.elections.add(image, changes)
        self.sessions.publish(changes)
        self.fences.check()
        changed = [entity for entity in changes.values() if isinstance(entity, Partition)]
        for partition in changed[:MAX_LOGGED]:
            _log_partition(partition)
        for partition in changed:
            if not partition.isr and not partition.eligible:
                _log_lost(partition)
        if len(changed) > MAX_LOGGED:
            log.info("more partitions changed count=%d version=%d", len(changed) - MAX_LOGGED, image.version)

    def _went_back(self, error: BaseException) -> None:
        """No waiting command is decided any more; every caller gets the reason as its answer."""
        self.refuse_all(NotController(str(error)))
        self._failure.report(error)

    def refuse_all(self, reason: FencepostError) -> None:
        """Nothing is decided any more; everyone who waits gets the reason as its answer."""
        self.commands.abandon(reason)
        self.sessions.end_all(reason)
        self.fences.close(reason)

    def _check_fences(self) -> None:
        self.fences.check()

    async def _restore_preferred_leaders(self) -> None:
        while True:
            await asyncio.sleep(self.config.preferred_leader_interval_ms / 1000)
            try:
                moved = (await self.commands.submit(RestorePreferredLeaders(self.sessions.settled()))).answer
            except RetriableError as error:
                log.warning("could not restore preferred leaders reason=%s", error)
            else:
                if moved:
                    log.info("preferred leaders restored partitions=%d", moved)

    async def _expire_names(self) -> None:
        expiration_ms = self.config.producer_name_expiration_ms
        step_ms = min(max(expiration_ms // NAME_CLOCK_STEPS, MIN_NAME_CLOCK_STEP_MS), MAX_NAME_CLOCK_STEP_MS)
        step_s = step_ms / 1000
        running = RunningTime(2 * step_s)
        told_ms = running.advance(asyncio.get_running_loop().time())
        while True:
            await asyncio.sleep(step_s)
            now_ms = running.advance(asyncio.get_running_loop().time())
            try:
                command = ExpireNames(now_ms - told_ms, expiration_ms, self.config.max_producer_names)
                expired = (await self.commands.submit(command)).answer
            except RetriableError as error:
                log.warning("could not look for names to expire reason=%s", error)
            else:
                told_ms = now_ms
                if expired:
                    log.info("names of producers expired count=%d left=%d", expired, len(self.image.producers))

    # ---- End ----

    def begin_to_end(self, error: FencepostError) -> None:
        """No new commands, and no waiting; the commands that wait are carried out."""
        self.sessions.end_all(error)
        self.fences.close(error)
        self.commands.close()

    async def end(self) -> None:
        """After `begin_to_end`: once the commands that wait are carried out, end every task."""
        if self._committing is not None and not self._committing.done():
            await asyncio.wait([self._committing])
        await self._tasks.close()

    async def step_down(self, error: FencepostError) -> None:
        """Another controller may decide: end at once. What becomes of a commit that is under way is not known."""
        self.refuse_all(error)
        self.sessions.opening.give_up()
        await self._tasks.close()


def _log_partition(partition: Partition) -> None:
    """One line for each change: a failover can be followed in them."""
    log.info(
        "partition changed topic_id=%s partition=%d leader=%d leader_epoch=%d isr=%s eligible=%s partition_epoch=%d "
        "replicas=%s",
        partition.topic_id,
        partition.index,
        partition.leader,
        partition.leader_epoch,
        list(partition.isr),
        list(partition.eligible),
        partition.partition_epoch,
        list(partition.replicas),
    )


def _log_lost(partition: Partition) -> None:
    """Notify the operator: nothing that the controller knows makes one of the replicas the right leader."""
    log.error(
        "partition needs an unclean election topic_id=%s partition=%d last_known_isr=%s replicas=%s: whoever held all that "
        "was acknowledged may have lost some of it; 'fencepost topic elect TOPIC PARTITION --unclean' compares the logs",
        partition.topic_id,
        partition.index,
        list(partition.last_known_isr),
        list(partition.replicas),
    )
