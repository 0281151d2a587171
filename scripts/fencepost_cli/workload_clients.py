"""Whose clients a workload runs with: Fencepost's own, or those of Kafka, which are told the brokers' other addresses."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fencepost_testing.failures import CommandFailed
from fencepost_testing.kafka_clients import FENCEPOST

if TYPE_CHECKING:
    from fencepost import AdminClient, History
    from fencepost.history import PolledRecord

COMMIT_MS = 500
_POLL_MS = 200

StartPolicy = Literal["earliest", "latest"]
Poll = Callable[[int], "Awaitable[Sequence[PolledRecord]]"]  # so many records at most, as far as the client can be told


@dataclass(frozen=True, slots=True)
class ReaderSpec:
    client: str
    brokers: str  # for gRPC
    topic: str
    group: str  # empty: none
    start: StartPolicy = "earliest"


async def kafka_bootstrap(brokers: str) -> str:
    """The addresses at which the brokers of that cluster listen for Kafka's clients. Raises CommandFailed."""
    from fencepost import AdminClient

    async with AdminClient(brokers) as admin:
        described = (await admin.describe_cluster()).brokers
    addresses = [broker.kafka_address for broker in described if broker.kafka_address and not broker.fenced]
    if not addresses:
        raise CommandFailed(f"no live broker of the cluster at {brokers} listens for Kafka's clients (kafka_listen)")
    return ",".join(addresses)


@contextlib.asynccontextmanager
async def open_reader(spec: ReaderSpec, history: History | None) -> AsyncIterator[Poll]:
    if spec.client != FENCEPOST:
        from fencepost_testing.kafka_clients.factory import kafka_reader

        bootstrap, is_latest = await kafka_bootstrap(spec.brokers), spec.start == "latest"
        async with kafka_reader(spec.client, bootstrap, spec.topic, spec.group, history, latest=is_latest) as reader:
            yield lambda _: reader.poll()
        return
    from fencepost import Consumer

    async with Consumer(
        spec.brokers,
        spec.topic,
        start=spec.start,
        history=history,
        group=spec.group or None,
        auto_commit_ms=COMMIT_MS,
        client_id="workload",
    ) as consumer:
        yield lambda max_records: consumer.poll(max_records, _POLL_MS)


class EndOfTopic:
    """The end of each partition as it was at the start: `left` has those to which nobody has come yet."""

    def __init__(self, spec: ReaderSpec, admin: AdminClient, left: dict[int, int]) -> None:
        self.left = left
        self._spec = spec
        self._admin = admin

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, spec: ReaderSpec) -> AsyncIterator[EndOfTopic]:
        from fencepost import AdminClient, Consumer

        async with AdminClient(spec.brokers) as admin, Consumer(spec.brokers, spec.topic) as consumer:
            starts = await consumer.beginning_offsets(consumer.assignment)
            ends = await consumer.end_offsets(consumer.assignment)
            await consumer.close()
            there = {tp.partition: end for tp, end in ends.items() if end > starts[tp]}
            yield cls(spec, admin, there if spec.start == "earliest" else {})

    def read(self, records: Sequence[PolledRecord]) -> None:
        for record in records:
            self._past(record.partition, record.offset + 1)

    async def look_at_group(self) -> None:
        """What its members have committed counts too."""
        for tp, committed in (await self._admin.list_group_offsets(self._spec.group)).items():
            if tp.topic == self._spec.topic:
                self._past(tp.partition, committed.offset)

    def _past(self, partition: int, offset: int) -> None:
        if offset >= self.left.get(partition, offset + 1):
            del self.left[partition]
