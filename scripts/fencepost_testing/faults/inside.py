"""The faults that concern one process, as its own code asks for them. Cheap where there are none: one number is compared."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable

from fencepost_testing.faults.board import Board
from fencepost_testing.faults.rules import Limits, Posted, RequestRule

log = logging.getLogger(__name__)

CONTROLLER = "controller"


def party_of(node: int | str) -> str:
    """What a process is called in a cluster: its folder's name."""
    return f"broker-{node}" if isinstance(node, int) else node


class FaultsInside:
    """Of one process. `topic_name`: the name of a topic's id; the id itself where it is not known."""

    def __init__(self, board: Board, party: str, chance: random.Random | None = None) -> None:
        self.party = party
        self.topic_name: Callable[[str], str] = lambda topic_id: topic_id
        self._board = board
        self._chance = chance or random.Random()
        self._seen = -1
        self._requests: tuple[Posted, ...] = ()

    def requests(self, protocol: str, api: str) -> list[Posted]:
        """The rules that may meet such a request, oldest first."""
        if self._board.version != self._seen:
            self._look()
        return [posted for posted in self._requests if posted.rule.concerns(protocol, api)]

    @property
    def any_requests(self) -> bool:
        """Whether any request may be met."""
        if self._board.version != self._seen:
            self._look()
        return bool(self._requests)

    def _look(self) -> None:
        self._seen = self._board.version
        mine = [posted for posted in self._board.posted() if self._is_mine(posted.rule)]
        self._requests = tuple(posted for posted in mine if isinstance(posted.rule, RequestRule))
        for posted in mine:
            log.warning("fault in force id=%s %s", posted.id, posted.rule.describe())

    def _is_mine(self, rule: RequestRule) -> bool:
        return rule.broker is None or party_of(rule.broker) == self.party

    def is_chosen(self, limits: Limits) -> bool:
        """Whether chance has this one fire."""
        return limits.probability >= 1 or self._chance.random() < limits.probability

    def first_met(self, rules: Iterable[Posted], places: Iterable[tuple[str, int | None]]) -> Posted | None:
        """The first rule that meets a request with these topics and partitions, may fire still, and is chosen."""
        places = list(places)
        for posted in rules:
            may_fire = posted.rule.meets_any(places) and not self._board.is_spent(posted)
            if may_fire and self.is_chosen(posted.rule.limits):
                return posted
        return None

    def fire(self, posted: Posted, text: str) -> bool:
        """False: it may not, or not any more. `text`: what happened, for the timeline."""
        if not self._board.fire(posted):
            return False
        self._board.note("fired", posted, f"{self.party}: {text}")
        return True

    def delay_s(self, rule: RequestRule) -> float:
        return (rule.delay_ms + self._chance.random() * rule.jitter_ms) / 1000
