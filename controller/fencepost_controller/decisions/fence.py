"""How far the fence of named producers stands (G9).

InitProducerId may answer at metadata version v once no leader, of now or later, appends a batch of an older epoch:

**Every broker that is not fenced has applied v.** The leader of a partition is one of them, and refuses older epochs from
then on. So is every in-sync member of a partition that has a leader: one of them may have led a moment ago and not know yet
that it no longer does; until it has applied v it would go on accepting the old epoch into its own log, and, still in the
in-sync set, could be elected with that log.

**A fenced broker** (dead, or declared so) leads nothing. It may not know that: cut off from here and still reached by old
producers, it goes on as the leader of an earlier leader epoch. What it appends then does no harm:

- *Where the partition has a leader that may commit*, the fenced broker is neither in sync nor eligible. Before it can join
  it follows the leader of the current epoch, which cuts what it has beyond.
- *Where the partition has a leader that may not commit*, with too few in sync, the fenced broker may be eligible
  (`partitions.py`), and be elected with what it appended. Until enough are in sync, and it is no longer eligible, that
  leader commits nothing of the new instance; and it answers no `resume` before everyone who is eligible has joined it
  (`Leadership.wait_final` of the broker), and so cut what it has beyond. Then it is as in the next case.
- *Where the partition has none*, the fenced broker may be in sync or eligible. Then its log may be the partition's log, and
  what it appended before it receives v stays, acknowledged perhaps: it comes *before* everything that the new instance does
  there. For no one leads this partition again but by an election at a version behind v, which a broker applies only after
  v; that leader refuses the older epochs. And until then the new instance gets no answer there: a leader accepts a batch of
  epoch e, and answers a `resume` of epoch e, only where it has applied the fence of e (`identities.py` and
  `describe_producers.py` of the broker). So the answer to a resuming instance is final, and its first batch stands behind
  every batch of an older epoch.

So a partition without a leader holds nothing back but the sends to it, which wait for a leader anyway; and a broker that
does not answer holds an answer back for a session timeout at most, until it is declared dead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from fencepost_proto.protocol.metadata import MetadataImage

NO_BROKER = -1


class Standing(NamedTuple):
    """The newest version whose fence stands everywhere, and the broker that keeps it from being newer."""

    version: int
    broker_id: int  # NO_BROKER: none does

    def why_not(self) -> str:
        """The error for a caller whose wait has timed out."""
        if self.broker_id == NO_BROKER:
            return ""
        return f"broker {self.broker_id} has not applied the new epoch yet, and is not declared dead"


def standing(image: MetadataImage, applied: Mapping[int, int]) -> Standing:
    """`applied`: metadata version applied by each broker that has a live session under its current broker epoch."""
    found = Standing(image.version, NO_BROKER)
    for broker in image.brokers.values():
        version = applied.get(broker.id, -1)
        if not broker.fenced and version < found.version:
            found = Standing(version, broker.id)
    return found
