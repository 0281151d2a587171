"""What the benchmark through the Kafka port does with librdkafka: send as fast as it goes, send at a rate, read."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from fencepost_cli.bench import KEYS, PARTITIONS, RATE, RECORD_BYTES
from fencepost_cli.small_batches import value_of
from fencepost_testing.failures import CommandFailed

CLOSED_LOOP_PRODUCERS = 64
CLOSED_LOOP_S = 5.0
FLUSH_TIMEOUT_S = 60.0
RESUME_TIMEOUT_S = 60.0
READ_AT_ONCE = 10_000
QUEUE_BACKOFF_MS = (
    5  # librdkafka's default is 1,000: a reader that takes a full queue in 0.2 s then waits 0.8 s for more
)
_SENDS_BETWEEN_POLLS = 500


@dataclass(slots=True)
class Counts:
    acked: int = 0
    failed: int = 0

    def __call__(self, error: object, _: object) -> None:
        if error is None:
            self.acked += 1
        else:
            self.failed += 1


def producer_of(bootstrap: str, linger_ms: int | None = None) -> Producer:
    linger = {} if linger_ms is None else {"linger.ms": linger_ms}
    return Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True, **linger})


def _consumer(bootstrap: str) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "bench",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": QUEUE_BACKOFF_MS,
        }
    )


def ends_of(bootstrap: str, topic: str) -> dict[int, int]:
    consumer = _consumer(bootstrap)
    try:
        return {
            partition: consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=RESUME_TIMEOUT_S)[1]
            for partition in range(PARTITIONS)
        }
    finally:
        consumer.close()


def read_all(bootstrap: str, topic: str) -> float:
    """Records a second of one consumer that reads a topic from its beginning to its end."""
    ends = ends_of(bootstrap, topic)
    consumer = _consumer(bootstrap)
    consumer.assign([TopicPartition(topic, partition, 0) for partition in ends])
    wanted, read, started = sum(ends.values()), 0, time.monotonic()
    while read < wanted:
        messages = consumer.consume(min(READ_AT_ONCE, wanted - read), RESUME_TIMEOUT_S)  # it waits for so many
        if not messages or any(message.error() for message in messages):
            raise CommandFailed(f"{topic}: {read} of {wanted} records were read, then {messages[:1] or 'nothing'}")
        read += len(messages)
    elapsed_s = time.monotonic() - started
    consumer.close()
    return read / elapsed_s


def send_for(producer: Producer, topic: str, value: bytes, counts: Counts, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(_SENDS_BETWEEN_POLLS):
            while True:
                try:
                    producer.produce(topic, value, on_delivery=counts)
                    break
                except BufferError:  # its queue is full
                    producer.poll(0.01)
        producer.poll(0)


class AtARate:
    """Sends single records, each when it is due."""

    def __init__(self, producer: Producer, topic: str) -> None:
        self.sent = 0
        self.failed = 0
        self.latencies_s: list[float] = []
        self.reached = threading.Event()
        self.reached_at = 0.0
        self._producer = producer
        self._topic = topic
        self._watched = (-1, 0.0)  # partition, and since when

    def watch(self, partition: int, since: float) -> None:
        """`reached` is set by the first acknowledgement of a record that was sent to the partition after that."""
        self.reached.clear()
        self._watched = (partition, since)

    def run(self, seconds: float, stop: threading.Event | None = None) -> None:
        done = threading.Event()
        serving = threading.Thread(target=self._serve, args=(done,), daemon=True)
        serving.start()
        value, started = value_of(RECORD_BYTES), time.monotonic()
        while (now := time.monotonic()) - started < seconds and not (stop and stop.is_set()):
            while started + self.sent / RATE <= now:
                key = b"key-%d" % (self.sent * 7 % KEYS)
                self._producer.produce(
                    self._topic, value, key=key, on_delivery=partial(self._delivered, time.monotonic())
                )
                self.sent += 1
            time.sleep(max(0.0, started + self.sent / RATE - time.monotonic()))
        done.set()
        serving.join()
        self._producer.flush(FLUSH_TIMEOUT_S)

    def _serve(self, done: threading.Event) -> None:
        while not done.is_set():
            self._producer.poll(0.1)

    def _delivered(self, sent_at: float, error: object, message: Any) -> None:
        now = time.monotonic()
        if error is not None:
            self.failed += 1
            return
        self.latencies_s.append(now - sent_at)
        partition, since = self._watched
        if message.partition() == partition and sent_at > since and not self.reached.is_set():
            self.reached_at = now
            self.reached.set()


def closed_loop(bootstrap: str) -> float:
    """Acknowledgements a second of so many producers, each of which waits for one before it sends the next record."""
    producers = [producer_of(bootstrap, linger_ms=0) for _ in range(CLOSED_LOOP_PRODUCERS)]
    value, counts = value_of(RECORD_BYTES), Counts()
    begun, end = threading.Barrier(len(producers) + 1), 0.0

    def loop(producer: Producer) -> None:
        producer.produce("closed-loop", value)
        producer.flush(FLUSH_TIMEOUT_S)  # connected, with an id
        begun.wait()
        begun.wait()
        while time.monotonic() < end:
            producer.produce("closed-loop", value, on_delivery=counts)
            producer.flush(FLUSH_TIMEOUT_S)

    threads = [threading.Thread(target=loop, args=(producer,)) for producer in producers]
    for thread in threads:
        thread.start()
    begun.wait()
    started = time.monotonic()
    end = started + CLOSED_LOOP_S
    begun.wait()
    for thread in threads:
        thread.join()
    if counts.failed:
        raise CommandFailed(f"closed loop: {counts.failed} records failed")
    return counts.acked / (time.monotonic() - started)
