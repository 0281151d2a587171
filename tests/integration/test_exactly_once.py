"""`check_exactly_once` on a cluster whose logs are right, and are then damaged behind the brokers' backs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import confluent_kafka
import confluent_kafka.admin
import pytest

from fencepost_proto.protocol.record_batch import iter_batches
from fencepost_testing import LocalCluster, NotExactlyOnce
from fencepost_testing.waiting import NotInTime


def produce(cluster: LocalCluster, topic: str, values: str) -> None:
    """Each letter in a batch of its own."""
    settings = {"bootstrap.servers": cluster.kafka_bootstrap, "enable.idempotence": True, "linger.ms": 0}
    producer = confluent_kafka.Producer(settings)
    for value in values:
        producer.produce(topic, value, partition=0)
        assert producer.flush(30) == 0


def follower(cluster: LocalCluster, topic: str) -> int:
    leader = cluster.leader(topic)
    return next(broker for broker in cluster.replicas(topic) if broker != leader)


def log_file(cluster: LocalCluster, broker: int, topic: str) -> Path:
    return cluster.aio.member(broker).directory / f"{topic}-0" / f"{0:020d}.log"


def first_two_and_the_rest(data: bytes) -> tuple[bytes, bytes, bytes]:
    _, second, third, *_ = [position for position, _ in iter_batches(data)]
    return data[:second], data[second:third], data[third:]


def a_flipped_byte(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes((data[middle] ^ 1,)) + data[middle + 1 :]


def a_hole(data: bytes) -> bytes:
    first, _, rest = first_two_and_the_rest(data)
    return first + rest


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "all zero": lambda data: bytes(len(data)),
    "a flipped byte": a_flipped_byte,
    "the first batch": lambda data: b"\x7f" + data[1:],
    "a hole": a_hole,
    "the file deleted": lambda data: None,
}


@contextmanager
def damaged(file: Path, damage: Callable[[bytes], bytes | None]) -> Iterator[None]:
    data = file.read_bytes()
    content = damage(data)
    if content is None:
        file.rename(aside := file.with_suffix(".aside"))
    else:
        file.write_bytes(content)
    yield
    if content is None:
        aside.rename(file)
    else:
        file.write_bytes(data)


@pytest.mark.parametrize("how", ["killed", "paused"])
def test_a_damaged_replica_whose_broker_does_not_run_is_found(fencepost: LocalCluster, how: str) -> None:
    topic = fencepost.create_topic()
    produce(fencepost, topic, "abcdef")
    fencepost.wait_in_sync(topic)
    broker = follower(fencepost, topic)
    if how == "killed":
        fencepost.kill(broker)
    else:
        fencepost.pause(broker)
    produce(fencepost, topic, "gh")  # once the broker is no longer in sync
    fencepost.check_exactly_once(topic, sent=list("abcdefgh"))
    file = log_file(fencepost, broker, topic)
    for damage in DAMAGE.values():
        with (
            damaged(file, damage),
            pytest.raises(NotExactlyOnce, match=f"corrupt: broker {broker} {topic}-0"),
        ):
            fencepost.check_exactly_once(topic)
    for size in (0, file.stat().st_size - 3):  # as far as it came, by all that can be known
        with damaged(file, lambda data, size=size: data[:size]):  # type: ignore[misc]
            fencepost.check_exactly_once(topic)
    fencepost.check_exactly_once(topic, sent=list("abcdefgh"))


def test_a_replica_that_does_not_run_and_is_counted_on_has_all_that_is_committed(fencepost: LocalCluster) -> None:
    topic = fencepost.create_topic(min_insync_replicas=3)
    produce(fencepost, topic, "abc")
    broker = follower(fencepost, topic)
    fencepost.kill(broker)  # with fewer in sync than are needed it stays eligible: nothing is committed without it
    fencepost.check_exactly_once(topic, sent=list("abc"))
    with (
        damaged(log_file(fencepost, broker, topic), lambda data: data[:-3]),
        pytest.raises(NotExactlyOnce, match=f"broker {broker} {topic}-0, which does not run, ends at 2, below"),
    ):
        fencepost.check_exactly_once(topic)


def test_a_log_of_a_stopped_broker_reaches_to_its_snapshot(fencepost: LocalCluster) -> None:
    topic = fencepost.create_topic()
    produce(fencepost, topic, "abc")
    fencepost.wait_in_sync(topic)
    broker = follower(fencepost, topic)
    fencepost.stop(broker)
    produce(fencepost, topic, "d")
    fencepost.check_exactly_once(topic)
    with (
        damaged(log_file(fencepost, broker, topic), lambda data: b""),
        pytest.raises(NotExactlyOnce, match=f"broker {broker} {topic}-0 ends at 0, and has a snapshot of all below 3"),
    ):
        fencepost.check_exactly_once(topic)


def test_a_stopped_broker_may_have_the_log_of_a_topic_that_was_deleted_since(fencepost: LocalCluster) -> None:
    topic = fencepost.create_topic()
    produce(fencepost, topic, "abc")
    fencepost.wait_in_sync(topic)
    broker = follower(fencepost, topic)
    fencepost.kill(broker)
    fencepost.delete_topic(topic)
    fencepost.create_topic(topic)
    produce(fencepost, topic, "xyz")
    assert log_file(fencepost, broker, topic).exists()
    fencepost.check_exactly_once(topic, sent=list("xyz"))


@pytest.mark.parametrize("damage", [a_flipped_byte, a_hole, DAMAGE["the file deleted"]])
def test_a_damaged_file_of_the_leader_is_an_assertion_error_also_with_what_was_sent(
    fencepost: LocalCluster, damage: Callable[[bytes], bytes | None]
) -> None:
    topic = fencepost.create_topic()
    produce(fencepost, topic, "abcdef")
    fencepost.wait_in_sync(topic)
    leader = fencepost.leader(topic)
    with (
        damaged(log_file(fencepost, leader, topic), damage),
        pytest.raises(NotExactlyOnce, match=f"broker {leader} {topic}-0") as raised,
    ):
        fencepost.check_exactly_once(topic, sent=list("abcdef"), read=list("abcdef"), timeout_s=2)
    message = str(raised.value)
    assert not [word for word in ("never read", "unseen") if word in message], "another replica has it all"


@pytest.mark.parametrize("left", [0, 2, None])
def test_a_live_replica_without_what_is_committed_differs(fencepost: LocalCluster, left: int | None) -> None:
    topic = fencepost.create_topic()
    produce(fencepost, topic, "abcdef")
    fencepost.wait_in_sync(topic)
    broker = follower(fencepost, topic)

    def cut(data: bytes) -> bytes | None:
        return None if left is None else data[: [position for position, _ in iter_batches(data)][left]]

    match = f"diverged: broker {broker} {topic}-0 ends at {left or 0}, below the high watermark 6: .*has offsets 0 to 5"
    with damaged(log_file(fencepost, broker, topic), cut), pytest.raises(NotExactlyOnce, match=match):
        fencepost.check_exactly_once(topic, timeout_s=2)
    fencepost.check_exactly_once(topic)


def test_a_live_replica_that_is_not_in_sync_is_late_and_not_wrong(fencepost: LocalCluster) -> None:
    topic = fencepost.create_topic()
    produce(fencepost, topic, "a")
    fencepost.wait_in_sync(topic)
    broker, leader = follower(fencepost, topic), fencepost.leader(topic)
    with fencepost.faults.cut(broker, leader):
        produce(fencepost, topic, "b")  # once the leader does not count on it any more
        with pytest.raises(NotInTime, match=f"last seen: .*broker {broker} ends at 1"):
            fencepost.check_exactly_once(topic, timeout_s=2)
    fencepost.check_exactly_once(topic, sent=["a", "b"])


def test_what_is_deleted_is_asked_of_no_one(fencepost: LocalCluster) -> None:
    topic = fencepost.create_topic()
    produce(fencepost, topic, "abcdef")
    admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": fencepost.kafka_bootstrap})
    (deleted,) = admin.delete_records([confluent_kafka.TopicPartition(topic, 0, 3)]).values()
    assert deleted.result().low_watermark == 3
    for told in ("def", "abcdef"):
        fencepost.check_exactly_once(topic, sent=list(told), read=list(told))
    with pytest.raises(NotExactlyOnce, match=r"1 record of .*-0 was never read, at offset 4"):
        fencepost.check_exactly_once(topic, read=list("df"))


def test_records_of_unknown_outcome_alone_are_judged(fencepost: LocalCluster) -> None:
    topic = fencepost.create_topic()
    produce(fencepost, topic, "abxbx")
    fencepost.check_exactly_once(topic, unacknowledged=["a", "z"])
    with pytest.raises(NotExactlyOnce, match="duplicate: 'x' is at"):
        fencepost.check_exactly_once(topic, unacknowledged=["x"])


def test_what_is_no_topic_and_no_list_of_records_is_refused(fencepost: LocalCluster) -> None:
    with pytest.raises(TypeError, match="topic None: the name of a topic is wanted"):
        fencepost.check_exactly_once(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unacknowledged=None: records are wanted"):
        fencepost.check_exactly_once("orders", unacknowledged=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="sent='text': this is one value"):
        fencepost.check_exactly_once("orders", sent="text")
