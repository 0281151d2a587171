"""What a seed decides before its run begins: the cluster, its topics, who produces and how, the pace of the faults."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from unittest.mock import patch

from fencepost.producing import sequencer
from fencepost_controller.decisions import producers as controller_producers
from fencepost_node.producers import expiry, producer_state, refusals
from fencepost_proto.protocol import record_batch
from fencepost_proto.protocol.v1 import controller_pb2
from fencepost_testing.log_check import sequence_order
from tests.simulation.cluster import NEVER_MS, ClusterSettings
from tests.simulation.workload import ProducerSpec

SHORT_DELIVERY_TIMEOUT_MS = 3_000  # where there is room for few producers
EXPIRATION_MS = 6_000  # of idle producers, in some runs; in the others none is forgotten
SMALL_SEQUENCES = (
    512  # so many there are in some runs: still more than twice what a leader remembers and what is in flight
)
SMALL_MAX_EPOCH = 3
SMALL_REQUEST_BYTES = 1_024  # that brokers take in some runs; no metadata tells it, so producers split batches
SMALL_MESSAGE_BYTES = 400  # that topics take in some runs: producers cap batches


@dataclass(frozen=True, slots=True)
class TopicPlan:
    name: str
    partitions: int
    replication: int
    min_insync_replicas: int
    flush_always: bool
    segment_bytes: int
    retention_bytes: int
    max_message_bytes: int = 0  # 0: the default

    def request(self) -> controller_pb2.CreateTopicRequest:
        request = controller_pb2.CreateTopicRequest(
            name=self.name, partitions=self.partitions, replication_factor=self.replication
        )
        request.config.min_insync_replicas = self.min_insync_replicas
        request.config.flush_always = self.flush_always
        request.config.segment_bytes = self.segment_bytes
        request.config.retention_bytes = self.retention_bytes
        request.config.max_message_bytes = self.max_message_bytes
        return request


@dataclass(frozen=True, slots=True)
class Plan:
    """What a seed decides before the run begins."""

    seed: int
    settings: ClusterSettings
    topics: tuple[TopicPlan, ...]
    producers: tuple[ProducerSpec, ...]
    consumers: int
    faults_for_s: float
    mean_pause_s: float  # between faults
    thread_delay_s: float  # how long work in threads takes, at most: slow disks
    small_numbers: bool  # sequences and epochs are used up soon

    def __str__(self) -> str:
        topics = ", ".join(
            f"{t.name} ({t.partitions} partitions x {t.replication}, min in sync {t.min_insync_replicas}"
            f"{', flush' if t.flush_always else ''}{', small batches' if t.max_message_bytes else ''}"
            f"{f', retention {t.retention_bytes} B' if t.retention_bytes > 0 else ''})"
            for t in self.topics
        )
        return (
            f"seed {self.seed}: {len(self.settings.broker_ids)} brokers, {topics}, {len(self.producers)} producers, "
            f"{self.consumers} consumers, a fault every {self.mean_pause_s:.1f} s for {self.faults_for_s:.0f} s, "
            f"threads take up to {self.thread_delay_s * 1000:.0f} ms"
            f"{', small numbers' if self.small_numbers else ''}{', producers expire' if self.producers_expire else ''}"
            f"{', small requests' if self.settings.max_request_bytes == SMALL_REQUEST_BYTES else ''}"
        )

    def with_short_room(self) -> Plan:
        """With room for few producers in a partition, so that a flood of them is too many; no one retries for long."""
        settings = replace(self.settings, room_is_short=True, max_delivery_timeout_ms=SHORT_DELIVERY_TIMEOUT_MS)
        return replace(self, settings=settings)

    @property
    def producers_expire(self) -> bool:
        return self.settings.producer_expiration_ms < NEVER_MS


def plan(seed: int) -> Plan:
    chance = random.Random(f"{seed}/plan")
    ids = tuple(range(1, chance.choice((3, 3, 3, 4, 5)) + 1))
    expire = chance.random() < 0.15
    small_numbers = chance.random() < 0.2
    settings = ClusterSettings(
        broker_ids=ids,
        session_timeout_ms=chance.choice((1_000, 2_000, 3_000)),
        heartbeat_interval_ms=chance.choice((100, 300)),
        replica_lag_time_max_ms=chance.choice((1_000, 2_000, 5_000)),
        snapshot_interval_bytes=chance.choice((1_000, 4_000, 20_000)),
        tail_bytes=chance.choice((0, 2_000, 65_536)),
        replication_window_bytes=65_536,
        preferred_leader_interval_ms=chance.choice((1_000, 10_000)),
        producer_expiration_ms=EXPIRATION_MS if expire else NEVER_MS,
    )
    topics = tuple(
        TopicPlan(
            name=f"topic{number}",
            partitions=chance.randint(1, 3),
            replication=chance.choice((3, 3, 2)),
            min_insync_replicas=chance.choice((2, 2, 1)),
            flush_always=chance.random() < 0.3,
            segment_bytes=chance.choice((2_000, 8_000, 100_000)),
            retention_bytes=chance.choice((-1, -1, -1, 6_000)),
        )
        for number in range(chance.randint(1, 2))
    )
    limits = random.Random(f"{seed}/limits")  # of its own, so that the other draws stay what they were
    if limits.random() < 0.25:
        settings = replace(settings, max_request_bytes=SMALL_REQUEST_BYTES)
    topics = tuple(
        replace(topic, max_message_bytes=SMALL_MESSAGE_BYTES) if limits.random() < 0.15 else topic for topic in topics
    )
    names = {topic.name: topic.partitions for topic in topics}
    producers = tuple(
        _producer(number, names, chance, expire=expire, small_numbers=small_numbers)
        for number in range(chance.randint(2, 4))
    )
    return Plan(
        seed,
        settings,
        topics,
        producers,
        consumers=chance.randint(1, 2),
        faults_for_s=chance.choice((10.0, 20.0, 30.0)),
        mean_pause_s=chance.choice((0.5, 1.5, 4.0)),
        thread_delay_s=chance.choice((0.002, 0.002, 0.02, 0.2)),
        small_numbers=small_numbers,
    )


def _producer(
    number: int, topics: dict[str, int], chance: random.Random, *, expire: bool, small_numbers: bool
) -> ProducerSpec:
    options: dict[str, object] = {
        "batch_size": chance.choice((200, 1_000, 16_384)),
        "linger_ms": chance.choice((0, 5, 20)),
        "compression": chance.choice(("none", "none", "none", "lz4", "zstd", "gzip", "snappy")),
        "delivery_timeout_ms": chance.choice((3_000, 20_000, 60_000)),
        "request_timeout_ms": chance.choice((1_000, 5_000)),
    }
    drop_acks = chance.choice((0.0, 0.0, 0.02))
    if chance.random() < 0.5:
        options["name"] = f"name-{chance.randrange(2)}"  # two may share it, and fence each other
    elif chance.random() < 0.2:
        options["acks"] = chance.choice((1, 1, 0))
    if expire:
        options["delivery_timeout_ms"] = 3_000  # no one may retry for longer than brokers remember
    if small_numbers:
        options["batch_size"] = 200  # some ten records
    return ProducerSpec(
        node=f"producer-{number}",
        topics=topics,
        options=options,
        drop_acks=drop_acks,
        keys=chance.choice((0, 3, 20)),
        pause_s=chance.choice((0.02, 0.1, 0.3, 8.0) if expire and number else (0.02, 0.1, 0.3)),
        burst=chance.choice((1, 5, 20)),
    )


@contextmanager
def small_numbers() -> Iterator[None]:
    """A world with fewer sequence numbers and producer epochs, so that they wrap and run out within a run.

    The numbers are constants, and nothing else is changed: the rules at their ends are the same.
    """
    with ExitStack() as stack:
        for where, name, value in (
            (record_batch, "MAX_SEQUENCE", SMALL_SEQUENCES - 1),
            (producer_state, "MAX_SEQUENCE", SMALL_SEQUENCES - 1),
            (producer_state, "_SEQUENCES", SMALL_SEQUENCES),
            (producer_state, "_HALF_OF_SEQUENCES", SMALL_SEQUENCES // 2),
            (refusals, "MAX_SEQUENCE", SMALL_SEQUENCES - 1),
            (refusals, "_HALF_OF_SEQUENCES", SMALL_SEQUENCES // 2),
            (sequencer, "MAX_EPOCH", SMALL_MAX_EPOCH),
            (sequence_order, "_SEQUENCES", SMALL_SEQUENCES),
            (controller_producers, "MAX_EPOCH", SMALL_MAX_EPOCH),
        ):
            stack.enter_context(patch.object(where, name, value))
        yield


@contextmanager
def short_room() -> Iterator[None]:
    """A world in which a partition has room for few producers."""
    with (
        patch.object(producer_state, "MAX_PRODUCERS", 24),
        patch.object(producer_state, "ROOM_FOR_THE_YOUNG", 8),
        patch.object(expiry, "LATE_MS", 500),
    ):
        yield
