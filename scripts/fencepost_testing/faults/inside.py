"""The faults that concern one process, as its own code asks for them. Cheap where there are none: one number is compared."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from fencepost_testing.faults.board import Board
from fencepost_testing.faults.rules import (
    DiskAction,
    DiskRule,
    Limits,
    LinkAction,
    LinkRule,
    Posted,
    RequestRule,
)

STRANGER: Final = "stranger"  # whoever is none of the cluster's
MAX_LINKS: Final = 1_024  # pairs of parties whose rules are remembered: clients have any number of names
_LOOK_S = 0.02  # between two looks at the board, for what waits: one number is compared

log = logging.getLogger(__name__)


class PostedRequest(NamedTuple):
    """A rule about requests, with what it was posted as."""

    posted: Posted
    rule: RequestRule


class PostedLink(NamedTuple):
    posted: Posted
    rule: LinkRule


class PostedDisk(NamedTuple):
    posted: Posted
    rule: DiskRule


class Watcher(Protocol):
    """What is to look again when the rules have changed."""

    def rules_changed(self) -> None: ...


def party_of(node: int | str) -> str:
    """What a process is called in a cluster: its folder's name."""
    return f"broker-{node}" if isinstance(node, int) else node


class FaultsInside:
    """Of one process. Safe to ask from any thread but for what waits."""

    def __init__(
        self, board: Board, party: str, *, cluster_file: Path | None = None, chance: random.Random | None = None
    ) -> None:
        """`cluster_file`: says who listens where."""
        self.party = party
        self.topic_name: Callable[[str], str] = lambda topic_id: topic_id  # the name of a topic's id, where it is known
        self._board = board
        self._version = board.version_cell
        self._cluster_file = cluster_file
        self._chance = chance or random.Random()
        self._seen = -1
        self._is_quiet = False
        self._requests: tuple[PostedRequest, ...] = ()
        self._links: tuple[PostedLink, ...] = ()
        self._disks: tuple[PostedDisk, ...] = ()
        self._by_link: dict[tuple[str, str], tuple[PostedLink, ...]] = {}
        self._watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()
        self._waiting: list[asyncio.Future[None]] = []
        self._woken_at = -1  # the version that what waits was last woken for

    # ---- Changes of the rules ----

    def listen(self) -> None:
        """From now on, what waits and what watches is woken when the rules change. In the running event loop."""
        self._woken_at = self._board.version
        self._look_soon(asyncio.get_running_loop())

    def _look_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(_LOOK_S, self._look_for_changes, loop)

    def _look_for_changes(self, loop: asyncio.AbstractEventLoop) -> None:
        self._look_soon(loop)
        version = self._board.version
        if version != self._woken_at:
            self._woken_at = version
            self._wake()

    def _wake(self) -> None:
        self._look()
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
        for watcher in list(self._watchers):
            watcher.rules_changed()

    def watch(self, watcher: Watcher) -> None:
        """`rules_changed` is called when they have changed, and now, for as long as the watcher is there."""
        self._watchers.add(watcher)
        if self.has_links:
            watcher.rules_changed()

    async def changed(self, timeout_s: float | None = None) -> None:
        """Return when the rules have changed, or the time is over."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        try:
            await asyncio.wait([future], timeout=timeout_s)
        finally:
            if future in self._waiting:
                self._waiting.remove(future)

    def _look(self) -> None:
        version = self._board.version
        if version == self._seen:
            return
        posted = self._board.posted()
        rules = [(one, one.rule) for one in posted]
        self._requests = tuple(
            PostedRequest(one, rule)
            for one, rule in rules
            if isinstance(rule, RequestRule) and self._is_mine(rule.broker)
        )
        self._links = tuple(PostedLink(one, rule) for one, rule in rules if isinstance(rule, LinkRule))
        self._disks = tuple(
            PostedDisk(one, rule) for one, rule in rules if isinstance(rule, DiskRule) and self._is_mine(rule.broker)
        )
        self._by_link = {}
        self._is_quiet = not (self._requests or self._links or self._disks)
        self._seen = version
        log.info("faults in force: %s", ", ".join(one.id for one in posted) or "none")

    def _is_mine(self, broker: int | str | None) -> bool:
        return broker is None or party_of(broker) == self.party

    # ---- Which rules there are ----

    @property
    def is_quiet(self) -> bool:
        """No rule concerns this process. Asked for every read of a connection, so it costs next to nothing."""
        if self._version[0] != self._seen:
            self._look()
        return self._is_quiet

    @property
    def has_requests(self) -> bool:
        """Whether any request may be met."""
        if self._board.version != self._seen:
            self._look()
        return bool(self._requests)

    def requests(self, protocol: str, api: str) -> list[PostedRequest]:
        """The rules that may meet such a request, oldest first."""
        if not self.has_requests:
            return []
        return [one for one in self._requests if one.rule.concerns(protocol, api)]

    @property
    def has_links(self) -> bool:
        """Whether there is any rule about links."""
        if self._board.version != self._seen:
            self._look()
        return bool(self._links)

    def link_rules(self, sender: str, receiver: str) -> tuple[PostedLink, ...]:
        if not self.has_links:
            return ()
        found = self._by_link.get((sender, receiver))
        if found is None:
            found = tuple(one for one in self._links if one.rule.affects(sender, receiver))
            if len(self._by_link) >= MAX_LINKS:
                self._by_link.clear()
            self._by_link[sender, receiver] = found
        return found

    def disk_rules(self, action: DiskAction, folder: str) -> list[PostedDisk]:
        """The rules that meet what is done in that folder."""
        if self._board.version != self._seen:
            self._look()
        if not self._disks:
            return []
        name = os.path.basename(folder)
        return [one for one in self._disks if one.rule.action is action and one.rule.meets_folder(name)]

    def store_rules(self, action: DiskAction) -> list[PostedDisk]:
        """The rules that meet the store of this process, the controller."""
        if self._board.version != self._seen:
            self._look()
        return [one for one in self._disks if one.rule.action is action and one.rule.broker == self.party]

    def party_at(self, address: str) -> str:
        """Who listens there."""
        if self._cluster_file is not None:
            try:
                members = json.loads(self._cluster_file.read_bytes())["members"]
            except (OSError, ValueError, KeyError):  # it is just being removed
                return STRANGER
            for member in members:
                if address.endswith(f":{member['port']}"):
                    return party_of(member["node"])
        return STRANGER

    # ---- Firing ----

    def is_chosen(self, limits: Limits) -> bool:
        """Whether chance has this one fire."""
        return limits.probability >= 1 or self._chance.random() < limits.probability

    def fired(self, disks: Iterable[PostedDisk], text: str) -> Iterator[PostedDisk]:
        """Those of these rules that are chosen and may fire still, which they have then. `text`: what happens."""
        for one in disks:
            if self.is_chosen(one.rule.limits) and self.fire(one.posted, text):
                yield one

    def first_met(
        self, rules: Iterable[PostedRequest], places: Iterable[tuple[str, int | None]]
    ) -> PostedRequest | None:
        """The first rule that meets a request with these topics and partitions, may fire still, and is chosen."""
        places = list(places)
        for one in rules:
            may_fire = one.rule.meets_any(places) and not self._board.is_spent(one.posted)
            if may_fire and self.is_chosen(one.rule.limits):
                return one
        return None

    def fire(self, posted: Posted, text: str, *, every: bool = True) -> bool:
        """False: it may not, or not any more. `text`: what happened, for the timeline; of the first time, unless `every`."""
        count = self._board.fire(posted)
        if count == 1 or (count and every):
            self._board.note("fired", posted, f"{self.party}: {text}")
        return bool(count)

    def is_reset(self, peer: str) -> bool:
        """Whether an open connection between this process and that party is reset now."""
        return any(
            one.rule.action is LinkAction.RESET and self.fire(one.posted, f"a connection with {peer}")
            for one in (*self.link_rules(self.party, peer), *self.link_rules(peer, self.party))
        )

    def delay_s(self, rule: RequestRule | LinkRule | DiskRule) -> float:
        return (rule.delay_ms + self._chance.random() * rule.jitter_ms) / 1000
