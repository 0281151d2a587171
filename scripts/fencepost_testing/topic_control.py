"""Topics of a local cluster: make, delete and look at them, and wait until all their replicas are in sync.

All that runs and is not paused is asked. Of what the brokers say of a partition the view under the highest leader epoch
counts: the others have not received the newest metadata yet.
"""

from __future__ import annotations

import asyncio
import operator
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fencepost_proto.kafka.messages.create_topics import CreatableTopic, CreatableTopicConfig, CreateTopicsRequest
from fencepost_proto.kafka.messages.delete_groups import DeleteGroupsRequest
from fencepost_proto.kafka.messages.delete_topics import DeleteTopicsRequest, DeleteTopicState
from fencepost_proto.kafka.messages.describe_cluster import DescribeClusterRequest
from fencepost_proto.kafka.messages.describe_producers import DescribeProducersRequest
from fencepost_proto.kafka.messages.describe_producers import TopicRequest as ProducersOfTopic
from fencepost_proto.kafka.messages.describe_topic_partitions import (
    Cursor,
    DescribeTopicPartitionsRequest,
    TopicRequest,
)
from fencepost_proto.kafka.messages.list_groups import ListGroupsRequest
from fencepost_proto.kafka.messages.list_offsets import ListOffsetsPartition, ListOffsetsRequest, ListOffsetsTopic
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_testing.cluster_folder import ClusterFolder
from fencepost_testing.kafka_request import NoAnswer, ask_broker, prepare
from fencepost_testing.member import (
    ACTIVE_CONTROLLER,
    ETCD_LEADER,
    ClusterError,
    Node,
    checked_target,
    name_of,
)
from fencepost_testing.waiting import NotInTime, until

Target = Node | tuple[str, int]  # as `member.TARGETS` has it, or the leader of (topic, partition)
Setting = str | int | float | bool

DEFAULT_REPLICATION_FACTOR = 3
MAX_COUNT = 32_767  # of partitions and replicas; brokers refuse far less
LOOK_TIMEOUT_S = 1.0
POLL_S = 0.01
_ANSWER_OF_A_CHANGE_S = 10.0
_LATEST = -1
_RETRIABLE = {ErrorCode.NOT_CONTROLLER, ErrorCode.REQUEST_TIMED_OUT, ErrorCode.LEADER_NOT_AVAILABLE}
_MOVING = {ErrorCode.NOT_LEADER_OR_FOLLOWER, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, ErrorCode.LEADER_NOT_AVAILABLE}


@dataclass(frozen=True, slots=True)
class PartitionState:
    """One partition, as a broker knows it."""

    topic: str
    partition: int
    leader: int  # -1: none
    leader_epoch: int
    replicas: tuple[int, ...]
    isr: tuple[int, ...]

    def __str__(self) -> str:
        leader = f"led by broker {self.leader}" if self.leader >= 0 else "without a leader"
        in_sync = f"in sync {list(self.isr)} of {list(self.replicas)}"
        return f"{self.topic}-{self.partition} {leader} in epoch {self.leader_epoch}, {in_sync}"


@dataclass(frozen=True, slots=True)
class ProducerState:
    """What a partition's leader knows of one producer."""

    topic: str
    partition: int
    producer_id: int
    producer_epoch: int
    last_sequence: int  # of the last record that was appended
    last_timestamp_ms: int  # of the Unix epoch


def new_topic_name(prefix: str = "topic") -> str:
    return f"{prefix}-{secrets.token_hex(4)}"


def prepare_requests() -> None:
    """Do what the first requests of a cluster's life need, while its processes start."""
    prepare(CreateTopicsRequest(), DescribeTopicPartitionsRequest(), DescribeClusterRequest())


# ---- Looking ----


def _asked(cluster: ClusterFolder) -> list[int]:
    return [broker for broker in cluster.broker_ids if cluster.running(broker) and not cluster.paused(broker)]


async def _ask_all(cluster: ClusterFolder, request: object) -> dict[int, Any]:
    """The answers of all brokers that give one in time."""

    async def ask(broker: int) -> Any:
        try:
            return await ask_broker(cluster.member(broker).kafka_address, request, LOOK_TIMEOUT_S)
        except NoAnswer:
            return None

    brokers = _asked(cluster)
    answers = await asyncio.gather(*(ask(broker) for broker in brokers))
    return {broker: answer for broker, answer in zip(brokers, answers, strict=True) if answer is not None}


async def _ask_any(cluster: ClusterFolder, request: object) -> Any:
    """The answer of the first broker that gives one; None where none does."""
    for broker in _asked(cluster):
        try:
            return await ask_broker(cluster.member(broker).kafka_address, request, _ANSWER_OF_A_CHANGE_S)
        except NoAnswer:
            continue
    return None


Views = dict[int, dict[tuple[str, int], PartitionState]]  # by broker that was asked


async def _views(cluster: ClusterFolder, topic: str | None) -> Views:
    """What each broker knows of the partitions; of all topics, internal ones aside, where none is named."""
    names = [] if topic is None else [TopicRequest(name=topic)]
    views: Views = {}
    cursors: dict[int, Cursor | None] = dict.fromkeys(_asked(cluster))
    while cursors:
        asked = list(cursors.items())
        answers = await asyncio.gather(*(_page(cluster, broker, names, cursor) for broker, cursor in asked))
        cursors = {}
        for (broker, _), answer in zip(asked, answers, strict=True):
            if answer is None:
                views.pop(broker, None)
                continue
            view = views.setdefault(broker, {})
            for found in answer.topics:
                if topic is None and found.is_internal:
                    continue
                for p in found.partitions:
                    view[found.name, p.partition_index] = PartitionState(
                        found.name,
                        p.partition_index,
                        p.leader_id,
                        p.leader_epoch,
                        tuple(p.replica_nodes),
                        tuple(p.isr_nodes),
                    )
            if answer.next_cursor is not None:
                cursors[broker] = answer.next_cursor
    return views


async def _page(cluster: ClusterFolder, broker: int, names: list[TopicRequest], cursor: Cursor | None) -> Any:
    request = DescribeTopicPartitionsRequest(topics=names, cursor=cursor)
    try:
        return await ask_broker(cluster.member(broker).kafka_address, request, LOOK_TIMEOUT_S)
    except NoAnswer:
        return None


async def topics(cluster: ClusterFolder, timeout_s: float) -> list[str]:
    """All topics that any broker knows, internal ones aside. Raises NotInTime where no broker answers."""

    async def look() -> list[str] | None:
        views = await _views(cluster, None)
        return sorted({name for view in views.values() for name, _ in view}) if views else None

    found: list[str] = await until(
        look,
        "a broker tells of its topics",
        timeout_s,
        holds=lambda _: True,
        poll_s=POLL_S,
        error=_explained(cluster),
    )
    return found


async def partitions(cluster: ClusterFolder, topic: str, timeout_s: float) -> list[PartitionState]:
    """Raises ClusterError for a topic that no broker knows, NotInTime where no broker answers."""

    async def look() -> list[PartitionState] | None:
        views = await _views(cluster, topic)
        if not views:
            return None
        newest: dict[int, PartitionState] = {}
        for view in views.values():
            for (_, index), state in view.items():
                if index not in newest or state.leader_epoch > newest[index].leader_epoch:
                    newest[index] = state
        return [newest[index] for index in sorted(newest)]

    found: list[PartitionState] = await until(
        look,
        f"a broker tells of topic {topic!r}",
        timeout_s,
        holds=lambda _: True,
        poll_s=POLL_S,
        error=_explained(cluster),
    )
    if not found:
        raise ClusterError(f"topic {topic!r} does not exist")
    return found


async def partition(cluster: ClusterFolder, topic: str, index: int, timeout_s: float) -> PartitionState:
    """Raises ClusterError for a partition that does not exist."""
    found = await partitions(cluster, topic, timeout_s)
    if not 0 <= index < len(found):
        raise ClusterError(f"topic {topic!r} has no partition {index}: it has {len(found)}, numbered from 0")
    return found[index]


async def leader(cluster: ClusterFolder, topic: str, index: int, timeout_s: float) -> int:
    """A broker that runs, and that others say leads: once there is one."""
    deadline = time.monotonic() + timeout_s

    async def led() -> PartitionState | None:
        state = await partition(cluster, topic, index, max(0.0, deadline - time.monotonic()))
        return state if state.leader in cluster.members and cluster.running(state.leader) else None

    what = f"a broker that runs leads {topic}-{index}"
    return (await until(led, what, timeout_s, poll_s=POLL_S, error=_explained(cluster))).leader


async def resolve(cluster: ClusterFolder, target: Target, timeout_s: float) -> Node:
    """The node that a target names now. Raises ClusterError."""
    target = checked_target(target)
    if isinstance(target, tuple):
        return await leader(cluster, *target, timeout_s)
    if target in (ACTIVE_CONTROLLER, ETCD_LEADER):
        from fencepost_testing.etcd_state import wait_decides

        settings = cluster.controller_overrides
        return await wait_decides(cluster.members, settings, str(target), timeout_s, _explained(cluster))
    return cluster.member(target).node


async def wait_in_sync(cluster: ClusterFolder, topic: str | None, timeout_s: float) -> None:
    """Until each broker that runs says of every partition that it has a leader and all its replicas in sync."""

    async def late() -> list[str] | None:
        views = await _views(cluster, topic)
        if not views:
            return None
        if topic is not None and not any(views.values()):
            raise ClusterError(f"topic {topic!r} does not exist")
        return sorted(
            {
                f"{state} (as broker {broker} knows it)"
                for broker, view in views.items()
                for state in view.values()
                if state.leader < 0 or set(state.isr) != set(state.replicas)
            }
        )

    what = f"all replicas of {topic or 'all topics'} in sync"
    await until(late, what, timeout_s, holds=operator.not_, poll_s=POLL_S, error=_explained(cluster))


def _explained(cluster: ClusterFolder) -> Callable[[str], NotInTime]:
    """The message of a wait that ended at its deadline names processes that do not serve."""

    def explain(message: str) -> NotInTime:
        absent = [f"{name_of(node)} is down" for node in cluster.nodes if not cluster.running(node)]
        absent += [f"{name_of(node)} is paused" for node in cluster.nodes if cluster.paused(node)]
        return NotInTime(f"{message} ({', '.join(absent)})" if absent else message)

    return explain


# ---- Changing ----


async def create_topic(
    cluster: ClusterFolder,
    name: str | None,
    partition_count: int,
    replication_factor: int | None,
    *,
    min_insync_replicas: int | None,
    config: Mapping[str, Setting],
    timeout_s: float,
) -> str:
    """Its name, once every broker that runs knows its leaders. Raises ClusterError with what a broker answers."""
    topic = new_topic_name() if name is None else name
    if not isinstance(topic, str):
        raise ClusterError(f"name={name!r}: a topic's name is a text")
    _check_count("partitions", partition_count)
    factor = replication_factor
    if factor is None:
        factor = min(DEFAULT_REPLICATION_FACTOR, len(cluster.broker_ids))
    _check_count("replication_factor", factor)
    settings = {"min.insync.replicas": str(max(1, factor - 1)), **dict(_in_kafkas_words(config))}
    if min_insync_replicas is not None:
        settings["min.insync.replicas"] = str(min_insync_replicas)
    asked = CreatableTopic(
        name=topic,
        num_partitions=partition_count,
        replication_factor=factor,
        configs=[CreatableTopicConfig(name=key, value=value) for key, value in settings.items()],
    )
    deadline = time.monotonic() + timeout_s
    request = CreateTopicsRequest(topics=[asked], timeout_ms=int(_ANSWER_OF_A_CHANGE_S * 1000))
    retried = False

    async def created() -> str | None:
        nonlocal retried
        answer = await _ask_any(cluster, request)
        if answer is None:
            return None
        result = answer.topics[0]
        if result.error_code in _RETRIABLE:
            retried = True
            return None
        if result.error_code == ErrorCode.TOPIC_ALREADY_EXISTS and retried:
            return topic  # by the request before, whose answer came too late
        if result.error_code:
            raise ClusterError(f"topic {topic!r} is not created: {_error(result)}")
        return topic

    await until(created, f"topic {topic!r} is created", timeout_s, poll_s=0.1, error=_explained(cluster))
    await _known_to_all(cluster, topic, partition_count, deadline - time.monotonic())
    return topic


def _check_count(name: str, value: object) -> None:
    """Raises ClusterError for what Kafka's protocol would take as "the broker's default" (-1), or cannot say."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_COUNT:
        raise ClusterError(f"{name}={value!r}: must be a whole number from 1 to {MAX_COUNT}")


async def _known_to_all(cluster: ClusterFolder, topic: str, partition_count: int, timeout_s: float) -> None:
    async def without() -> list[str] | None:
        views = await _views(cluster, topic)
        if not views:
            return None
        return [
            f"broker {broker} knows of {sum(state.leader >= 0 for state in view.values())} leaders"
            for broker, view in views.items()
            if sum(state.leader >= 0 for state in view.values()) < partition_count
        ]

    what = f"every broker knows the leaders of the {partition_count} partitions of topic {topic!r}"
    await until(without, what, timeout_s, holds=operator.not_, poll_s=POLL_S, error=_explained(cluster))


async def delete_topics(cluster: ClusterFolder, names: Iterable[str], timeout_s: float, *, missing_ok: bool) -> None:
    """Once no broker that runs knows them. Raises ClusterError with what a broker answers."""
    left = sorted(set(names))
    if not left:
        return
    retried = False

    async def deleted() -> bool:
        nonlocal retried
        request = DeleteTopicsRequest(
            topics=[DeleteTopicState(name=name) for name in left], timeout_ms=int(_ANSWER_OF_A_CHANGE_S * 1000)
        )
        answer = await _ask_any(cluster, request)
        if answer is None:
            return False
        again = []
        for result in answer.responses:
            gone = result.error_code == ErrorCode.UNKNOWN_TOPIC_OR_PARTITION and (retried or missing_ok)
            if result.error_code in _RETRIABLE:
                again.append(result.name)
            elif result.error_code and not gone:
                raise ClusterError(f"topic {result.name!r} is not deleted: {_error(result)}")
        left[:] = again
        retried = retried or bool(again)
        return not again

    what = f"topic {', '.join(map(repr, left))} is deleted"
    await until(deleted, what, timeout_s, poll_s=0.1, error=_explained(cluster))


async def delete_groups(cluster: ClusterFolder) -> None:
    """Forget every group without members; the others end with their members."""
    for broker, answer in (await _ask_all(cluster, ListGroupsRequest())).items():
        names = [group.group_id for group in answer.groups]
        if names:
            await ask_broker(cluster.member(broker).kafka_address, DeleteGroupsRequest(groups_names=names))


async def producers(cluster: ClusterFolder, topic: str, index: int | None, timeout_s: float) -> list[ProducerState]:
    """As the leaders of the partitions know them."""
    deadline = time.monotonic() + timeout_s
    indexes = [index] if index is not None else [p.partition for p in await partitions(cluster, topic, timeout_s)]
    found: list[ProducerState] = []
    for number in indexes:

        async def of_one(number: int = number) -> list[ProducerState] | None:
            result = await _ask_leader(
                cluster,
                topic,
                number,
                DescribeProducersRequest(topics=[ProducersOfTopic(name=topic, partition_indexes=[number])]),
                deadline,
            )
            if result is None or result.error_code in _MOVING:
                return None
            if result.error_code:
                raise ClusterError(f"producers of {topic}-{number}: {_error(result)}")
            return [
                ProducerState(topic, number, p.producer_id, p.producer_epoch, p.last_sequence, p.last_timestamp)
                for p in result.active_producers
            ]

        what = f"the leader of {topic}-{number} tells of its producers"
        left = max(0.0, deadline - time.monotonic())
        found += await until(of_one, what, left, holds=lambda _: True, poll_s=POLL_S, error=_explained(cluster))
    return found


async def high_watermark(cluster: ClusterFolder, topic: str, index: int, timeout_s: float) -> int:
    """The end of what is committed, as the leader knows it."""
    deadline = time.monotonic() + timeout_s
    part = ListOffsetsPartition(partition_index=index, timestamp=_LATEST)
    request = ListOffsetsRequest(replica_id=-1, topics=[ListOffsetsTopic(name=topic, partitions=[part])])

    async def told() -> int | None:
        result = await _ask_leader(cluster, topic, index, request, deadline)
        return None if result is None or result.error_code else result.offset

    what = f"the leader of {topic}-{index} tells its high watermark"
    return await until(told, what, timeout_s, holds=lambda _: True, poll_s=POLL_S, error=_explained(cluster))


async def _ask_leader(cluster: ClusterFolder, topic: str, index: int, request: object, deadline: float) -> Any:
    """What the leader answers of its one partition; None where it does not."""
    broker = await leader(cluster, topic, index, max(0.0, deadline - time.monotonic()))
    try:
        answer = await ask_broker(cluster.member(broker).kafka_address, request, LOOK_TIMEOUT_S)
    except NoAnswer:
        return None
    return answer.topics[0].partitions[0]


def _in_kafkas_words(config: Mapping[str, Setting]) -> Iterator[tuple[str, str]]:
    """Settings by Kafka's names, of which some may be given by ours (`flush_always`)."""
    from fencepost_node.kafka.topic_settings import SETTINGS

    names = {setting.ours: name for name, setting in SETTINGS.items()}
    for name, value in config.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if name not in names:
            yield name, text
            continue
        try:
            yield names[name], SETTINGS[names[name]].show(text)
        except KeyError:
            raise ClusterError(f"{name}={value!r}: this is none of its values") from None


def _error(result: Any) -> str:
    return f"{ErrorCode(result.error_code).name}: {result.error_message or ''}".rstrip(": ")
