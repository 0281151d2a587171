"""The producing workload over a stand-in for the producer: what it sends, when, and how it books the outcomes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from fencepost import Producer, RecordMetadata
from fencepost.history_format import RecordStamp
from fencepost_proto.protocol.errors import FencepostError, MessageTooLarge, ProducerFenced, RequestTimedOut
from fencepost_testing.failover import AckWatch
from fencepost_testing.log_check.ledger import Ledger
from fencepost_testing.log_check.outcomes import Outcome
from fencepost_testing.record_check import RecordCheck
from fencepost_testing.workload import Acked, Workload, WorkloadSpec, percentile
from tests.asynchronous import asynchronous

DEADLINE_S = 20.0


@dataclass
class StandInDelivery:
    outcome: asyncio.Future[RecordMetadata]
    stamp: RecordStamp | None = None

    def __await__(self) -> Generator[Any, None, RecordMetadata]:
        return self.outcome.__await__()


@dataclass
class StandInProducer:
    """Two partitions, by the key's parity; a record is acknowledged as soon as `flush` or `tick` comes."""

    refuse: Callable[[int], FencepostError | None] = lambda _: None
    fail: Callable[[int], FencepostError | None] = lambda _: None
    rows: list[tuple[int, int, bytes | None, bytes | None]] = field(default_factory=list)
    sent: int = 0
    ends: list[int] = field(default_factory=lambda: [0, 0])

    async def send(self, topic: str, value: bytes, *, key: bytes | None = None) -> StandInDelivery:
        number, self.sent = self.sent, self.sent + 1
        error = self.refuse(number)
        if error is not None:
            raise error
        outcome: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        error = self.fail(number)
        if error is not None:
            asyncio.get_running_loop().call_soon(outcome.set_exception, error)
            return StandInDelivery(outcome)
        partition = (key or b"0")[-1] % 2
        offset, self.ends[partition] = self.ends[partition], self.ends[partition] + 1
        self.rows.append((partition, offset, key, value))
        asyncio.get_running_loop().call_soon(outcome.set_result, RecordMetadata(topic, partition, offset, 0))
        return StandInDelivery(outcome)

    async def flush(self) -> None:
        await asyncio.sleep(0)


def workload_of(producer: StandInProducer, spec: WorkloadSpec, **options: Any) -> Workload[Producer]:
    return Workload(cast(Producer, producer), spec, Ledger("run00001"), **options)


@pytest.mark.parametrize("keys", [0, 7])
@asynchronous
async def test_a_counted_workload_sends_exactly_so_many_and_its_log_checks_out(keys: int) -> None:
    producer = StandInProducer()
    workload = workload_of(producer, WorkloadSpec("t", keys=keys, count=1_000, record_size_bytes=64))
    await workload.run(asyncio.Event())
    assert workload.ledger.sent == workload.ledger.acked == workload.acked == len(workload.latencies_s) == 1_000
    check = RecordCheck("t", [workload.ledger])
    for row in producer.rows:
        assert len(row[3] or b"") == 64
        check.add(*row)
    assert check.finish().clean
    assert len({row[2] for row in producer.rows}) == max(1, keys)


@asynchronous
async def test_outcomes_are_booked_as_the_errors_say() -> None:
    errors: dict[int, FencepostError] = {3: RequestTimedOut("late"), 5: MessageTooLarge("big")}

    producer = StandInProducer(fail=errors.get, refuse=lambda n: MessageTooLarge("big") if n == 8 else None)
    workload = workload_of(producer, WorkloadSpec("t", count=20))
    await workload.run(asyncio.Event())
    ledger = workload.ledger
    assert ledger.outcomes[3] == Outcome.UNKNOWN
    assert ledger.outcomes[5] == ledger.outcomes[8] == Outcome.REFUSED
    assert (ledger.acked, ledger.refused) == (17, 2)
    assert workload.failed == {"REQUEST_TIMED_OUT": 1, "MESSAGE_TOO_LARGE": 2}


@asynchronous
async def test_a_fenced_producer_ends_the_run() -> None:
    producer = StandInProducer(fail=lambda n: ProducerFenced("a newer instance") if n >= 10 else None)
    workload = workload_of(producer, WorkloadSpec("t"))
    await workload.run(asyncio.Event())
    assert isinstance(workload.fatal, ProducerFenced)
    assert workload.ledger.acked == 10


@asynchronous
async def test_a_rate_is_kept() -> None:
    workload = workload_of(StandInProducer(), WorkloadSpec("t", rate=400, duration_s=0.5))
    started = time.monotonic()
    await workload.run(asyncio.Event())
    elapsed_s = time.monotonic() - started
    assert 0.5 <= elapsed_s < 5
    assert workload.ledger.sent <= 400 * 0.5 + 1
    assert workload.ledger.sent >= 100  # half of it, on a machine that is busy with other things


@asynchronous
async def test_stopping_waits_for_every_outcome() -> None:
    stop = asyncio.Event()
    workload = workload_of(StandInProducer(), WorkloadSpec("t"), on_acked=lambda _: stop.set())
    await workload.run(stop)
    assert workload.ledger.acked == workload.ledger.sent > 0


@asynchronous
async def test_a_held_workload_goes_on_when_more_is_allowed_without_a_burst() -> None:
    producer = StandInProducer()
    workload = workload_of(producer, WorkloadSpec("t", rate=100, count=35))
    workload.allow(10)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(workload.run(asyncio.Event()))
        await workload.wait_sent(10)
        await asyncio.sleep(0.3)  # held: this is how long nothing may be sent
        assert producer.sent == 10
        workload.allow(35)
        released_at = time.monotonic()
        await running
        # A burst would take no time. Half: what a busy machine held up before may be made good.
        assert time.monotonic() - released_at >= 0.5 * 24 / 100


@asynchronous
async def test_an_ack_counts_only_for_a_record_sent_after_the_moment_and_to_the_partition() -> None:
    acks = AckWatch()
    waiting = asyncio.create_task(acks.first_after(1, 10.0, DEADLINE_S))
    await asyncio.sleep(0)
    for partition, sent_at, acked_at in ((1, 9.9, 10.1), (0, 10.2, 10.3), (1, 10.4, 11.0), (1, 10.5, 12.0)):
        acks(Acked(0, RecordMetadata("t", partition, 0, 0), sent_at, acked_at))
    assert await waiting == 11.0
    with pytest.raises(TimeoutError):
        await acks.first_after(1, 10.0, 0.01)
    acks(Acked(0, RecordMetadata("t", 1, 0, 0), 20.0, 21.0))  # no one waits any more


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(number) for number in range(1, 101)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 1.0)] == [1, 50, 99, 100]
    assert percentile([7.0], 0.99) == 7
    assert percentile([], 0.5) != percentile([], 0.5)  # NaN
