"""Links that are cut without root: by the faults of the cluster (`faults.links`), which its processes and clients obey.

Cutting the link from A to B holds back what A sends to B, on calls that are open too, until the link is mended; nothing is
ever damaged. That is what a broken cable does to TCP, which sends again once the cable is mended. Kafka's clients are not
cut off.

One thing is less true than a network: connections themselves stay, and where a process is gone its kernel refuses new ones,
also over a link that is cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from fencepost_testing.chaos.faults import Link, Party
from fencepost_testing.faults.board import FOLDER, Board
from fencepost_testing.faults.rules import LinkAction, LinkRule, Posted


class FaultCuts:
    """The links of one run, once its cluster was made."""

    def __init__(self) -> None:
        self._board: Board | None = None
        self._cuts: Counter[Link] = Counter()  # how many cuts hold each link
        self._posted: list[Posted] = []

    def place(self, party: Party) -> None:
        """Everyone is where it is without a network."""

    def attach(self, cluster: Path) -> None:
        """To the cluster in that folder."""
        self._board = Board(cluster / FOLDER)

    async def cut(self, links: Iterable[Link]) -> None:
        """What the first of each link sends to the second is held back from now on."""
        self._cuts.update(links)
        self._post()

    async def mend(self, links: Iterable[Link]) -> None:
        """Undo a `cut` of the same links; one that is cut by another cut too stays cut."""
        self._cuts.subtract(links)
        self._post()

    def _post(self) -> None:
        """Rules for the links that are cut now, instead of those before: one for all senders with the same receivers."""
        assert self._board is not None
        receivers: dict[Party, list[Party]] = {}
        for (sender, receiver), count in sorted(self._cuts.items()):
            if count > 0:
                receivers.setdefault(sender, []).append(receiver)
        senders: dict[tuple[Party, ...], list[Party]] = {}
        for sender, cut_off in receivers.items():
            senders.setdefault(tuple(cut_off), []).append(sender)
        before, self._posted = self._posted, []
        for others, group in senders.items():
            rule = LinkRule(LinkAction.CUT, tuple(group), others, both_ways=False)
            self._posted.append(self._board.post(rule))
        for posted in before:
            self._board.remove(posted.id)

    def close(self) -> None:
        """Nothing was made outside of the cluster's folder."""
        if self._board is not None:
            self._board.close()
