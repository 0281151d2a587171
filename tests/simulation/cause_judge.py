"""Whether what costs availability had a cause: that a broker is declared dead, that a replica leaves the in-sync set, that a
record waits. Where it had none nothing is lost, so no other judge sees it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import permutations

from fencepost_proto.protocol.metadata import MetadataImage, Partition, PartitionKey
from tests.simulation.network import MAX_RETRANSMIT_S, Link

LOOKED_EVERY_S = 0.25  # what is over sooner is not seen, and no cause
SETTLED_S = 2.0  # whatever was in trouble for a moment has caught up after that
MOST_WAIT_S = 2.0  # of a record, for its fate or for a reader, where nothing is wrong


class Quiet:
    """Since when nothing is wrong on which nodes, and between them."""

    def __init__(self, process_of: Callable[[str], str]) -> None:
        """`process_of`: which process runs on a node; empty: none does, or something is wrong with it."""
        self._process_of = process_of
        self._processes: dict[str, str] = {}
        self._troubled_at: dict[str, float] = {}  # node -> when it was last seen so
        self._cut_until: dict[tuple[str, str], float] = {}  # link -> when what was held up has arrived, at the latest

    def look(self, nodes: Iterable[str], links: Iterable[Link], now: float) -> None:
        """Call every `LOOKED_EVERY_S`."""
        for node in nodes:
            process = self._process_of(node)
            if not process or process != self._processes.get(node):
                self._troubled_at[node] = now
            self._processes[node] = process
        for link in links:
            if not link.is_sound:
                self._cut_until[link.source, link.target] = now + MAX_RETRANSMIT_S

    def since(self, nodes: Iterable[str], now: float) -> float:
        """`now` where something is wrong just now, or was since the last look."""
        everybody = list(nodes)
        if any(not (process := self._process_of(node)) or process != self._processes.get(node) for node in everybody):
            return now
        troubled = max(self._troubled_at.get(node, now) for node in everybody)
        return max([troubled, *(self._cut_until.get(pair, 0.0) for pair in permutations(everybody, 2))])


class Causes:
    """Looks at each commit of the controller."""

    def __init__(
        self, quiet: Quiet, nodes_of: Callable[[Iterable[int]], list[str]], session_timeout_s: float, lag_time_s: float
    ) -> None:
        """`nodes_of`: of these brokers, and of everything that decides. `session_timeout_s`: so long may a broker be silent;
        `lag_time_s`: so long may a replica lag."""
        self._quiet = quiet
        self._nodes_of = nodes_of
        self._silent_s = session_timeout_s - 2 * LOOKED_EVERY_S
        self._lagging_s = lag_time_s + SETTLED_S

    def deaths(
        self, before: MetadataImage, image: MetadataImage, incarnation_of: Callable[[int], str], now: float
    ) -> Iterator[str]:
        """Of each death in this commit: why it had no cause; empty: it may have had one. `incarnation_of`: of the process
        that runs."""
        for broker_id, broker in image.brokers.items():
            was = before.brokers.get(broker_id)
            if was is None or was.fenced or not broker.fenced or was.incarnation != broker.incarnation:
                continue
            since = self._quiet.since(self._nodes_of([broker_id]), now)
            if broker.incarnation == incarnation_of(broker_id) and now - since >= self._silent_s:
                yield f"broker {broker_id} is declared dead, and nothing was wrong since {since:.3f}"
            else:
                yield ""

    def departures(
        self, before: MetadataImage, image: MetadataImage, is_damaged: Callable[[int, PartitionKey], bool], now: float
    ) -> Iterator[str]:
        """The same of each replica that left an in-sync set for lagging."""
        for key, partition in image.partitions.items():
            was = before.partitions.get(key)
            if was is None or was is partition or was.leader < 0 or was.leader_epoch != partition.leader_epoch:
                continue
            for member in _left(was, partition):
                broker = image.brokers.get(member)
                if broker is None or broker.fenced or broker.shutting_down or is_damaged(member, key):
                    continue
                since = self._quiet.since(self._nodes_of([was.leader, member]), now)
                if now - since >= self._lagging_s:
                    yield f"{key} loses broker {member} from its in-sync set, and nothing was wrong since {since:.3f}"
                else:
                    yield ""


class Waits:
    """Looks at what records have waited for their fate, and for those who read."""

    def __init__(self, quiet: Quiet, nodes: Iterable[str]) -> None:
        """`nodes`: of all brokers, and of everything that decides."""
        self._quiet = quiet
        self._nodes = tuple(nodes)
        self._epochs: dict[PartitionKey, int] = {}
        self._impaired_at: dict[PartitionKey, float] = {}  # when it was last seen so
        self._committed: dict[
            PartitionKey, deque[int]
        ] = {}  # where what is committed ended, from MOST_WAIT_S ago until now

    def look(
        self,
        image: MetadataImage,
        damaged: Iterable[tuple[int, PartitionKey]],
        committed: Mapping[PartitionKey, int],
        now: float,
    ) -> None:
        """Call every `LOOKED_EVERY_S`. `committed`: where that ends."""
        impaired = {key for _, key in damaged}
        for key, partition in image.partitions.items():
            too_few = len(partition.isr) < image.topics[key[0]].config.min_insync_replicas
            if partition.leader < 0 or too_few or self._epochs.get(key) != partition.leader_epoch or key in impaired:
                self._impaired_at[key] = now
            self._epochs[key] = partition.leader_epoch
        self._committed = {key: ends for key, ends in self._committed.items() if key in committed}
        for key, end in committed.items():
            self._committed.setdefault(key, deque(maxlen=1 + int(MOST_WAIT_S / LOOKED_EVERY_S))).append(end)

    def _fine_since(self, client: str, key: PartitionKey, now: float) -> float:
        """Since when whatever was wrong before can be over."""
        return max(self._quiet.since((*self._nodes, client), now), self._impaired_at.get(key, now)) + SETTLED_S

    def judged(self, client: str, key: PartitionKey, sent_at: float, now: float) -> str:
        """Of a record whose fate is known now: why it has waited too long; empty: it has not, or it may have."""
        if now - sent_at <= MOST_WAIT_S:
            return ""
        since = self._fine_since(client, key, now)
        if since > sent_at:
            return ""
        return f"a record of {client} for {key} has waited since {sent_at:.3f}, and nothing was wrong since {since:.3f}"

    def reader_judged(self, client: str, key: PartitionKey, position: int, now: float) -> str:
        """Of a reader, and the next offset that it will read: why it is late; empty: it is not, or it may be."""
        ends = self._committed.get(key)
        if not ends or position >= ends[0] or len(ends) <= MOST_WAIT_S / LOOKED_EVERY_S:
            return ""
        since = self._fine_since(client, key, now)
        if since > now - MOST_WAIT_S:
            return ""
        return (
            f"{client} has read {key} up to {position}; {ends[0]} was the end {MOST_WAIT_S:g} s ago, and nothing was wrong "
            f"since {since:.3f}"
        )


def _left(before: Partition, partition: Partition) -> list[int]:
    """Replicas that are not in sync any more, and were not taken away."""
    gone = [member for member in before.isr if member not in partition.isr]
    return [member for member in gone if member in partition.replicas]
