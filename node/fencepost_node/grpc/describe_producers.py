"""DescribeProducers: what a partition knows of its producers (KIP-664): epoch and up to five last batches each.

Supports: one producer id, or all (-1). With `commit_timeout_ms` the answer is final: it describes the log as it stood when
the request came, and is given only once all of that is committed under one leadership that every in-sync replica has
joined. After a named producer has been fenced, that is all its predecessors ever got into the log. Without it: the state
as it is, committed or not.

A list of many producers takes a second to make and megabytes to hold. It is made on the event loop, a few producers at a
time, from the state as it was when the request came; requests that come meanwhile for the same state share it.

With `producer_epoch`, of a named producer, only a broker answers that has applied the fence of this epoch: from then on it
lets no older one in. A leader that was deposed and does not know it yet cannot answer so.

Errors: UNKNOWN_TOPIC_ID, UNKNOWN_TOPIC_OR_PARTITION, NOT_LEADER_OR_FOLLOWER, COORDINATOR_NOT_AVAILABLE (the fence is not
known here yet; ask again), INVALID_PRODUCER_EPOCH (with `producer_epoch`: no name has this id any more),
REQUEST_TIMED_OUT (not committed in time, or the leadership ended before, or too many long lists
are asked for; ask again), INVALID_REQUEST (a negative timeout, a producer id below -1).
Limits: waits at most 60 s. MAX_LISTS long ones are made at a time, and they wait, at most 30 s, until the answers that
clients have not taken leave room. An id that the partition does not know is left out of the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from fencepost_node.client_limits import AnswerBudget
from fencepost_node.producers import producer_state
from fencepost_node.producers.identities import check_fence_stands
from fencepost_node.producers.producer_state import ProducerEntry, ProducerState
from fencepost_node.producers.producer_state_machine import PRODUCERS
from fencepost_node.replica_manager import ReplicaManager
from fencepost_node.replication.leadership import Leadership
from fencepost_proto.protocol.errors import InvalidRequest, RequestTimedOut
from fencepost_proto.protocol.v1 import broker_pb2
from fencepost_proto.runtime.tasks import Tasks
from fencepost_proto.transport.answering import Context

ALL = -1
MAX_COMMIT_TIMEOUT_MS = 60_000
MAX_PRODUCERS = producer_state.MAX_PRODUCERS + producer_state.ROOM_FOR_THE_YOUNG  # in one answer: 12 MB
PRODUCERS_IN_A_TURN = 200  # described before others get a turn on the loop: a millisecond or two
MAX_LISTS = 8  # of many producers, being made
MAX_WAIT_FOR_MEMORY_S = 30.0


class ProducerLists:
    """The long lists that are being made on one broker. `tasks` owns what makes them."""

    def __init__(self, tasks: Tasks, answers: AnswerBudget) -> None:
        self.answers = answers
        self._tasks = tasks
        self._turn = asyncio.Lock()  # one is made at a time
        self._making: dict[tuple[Leadership, int, int], asyncio.Future[bytes]] = {}

    def of(self, leadership: Leadership) -> Awaitable[bytes]:
        """The producers as they are now, encoded as the field `producers`. Raises RequestTimedOut."""
        state = leadership.log.states[PRODUCERS]
        key = (leadership, leadership.log.log_end_offset, len(state))
        if (made := self._making.get(key)) is None:
            if len(self._making) >= MAX_LISTS:
                raise RequestTimedOut(f"{MAX_LISTS} lists of many producers are being made; ask again")
            made = self._making[key] = asyncio.get_running_loop().create_future()
            self._tasks.spawn(self._make(key, state.copy(), made), f"list-producers-{leadership.key}")
        return asyncio.shield(made)

    async def _make(self, key: tuple[Leadership, int, int], state: ProducerState, made: asyncio.Future[bytes]) -> None:
        parts = []
        try:
            async with self._turn:
                ids = sorted(state.ids())
                for start in range(0, len(ids), PRODUCERS_IN_A_TURN):
                    described = []
                    for producer_id in ids[start : start + PRODUCERS_IN_A_TURN]:
                        if (entry := state.get(producer_id)) is not None:
                            described.append(describe_entry(producer_id, entry))
                    parts.append(broker_pb2.DescribeProducersResponse(producers=described).SerializeToString())
                    await asyncio.sleep(0)
            made.set_result(b"".join(parts))
        finally:
            del self._making[key]
            made.cancel()


async def describe_producers(
    manager: ReplicaManager,
    request: broker_pb2.DescribeProducersRequest,
    context: Context,
    lists: ProducerLists,
) -> broker_pb2.DescribeProducersResponse | bytes:
    """The answer, or where it is long its encoding."""
    if request.producer_id < ALL:
        raise InvalidRequest(f"producer id {request.producer_id}: -1 (all) or an id")
    if request.commit_timeout_ms < 0:
        raise InvalidRequest(f"commit_timeout_ms {request.commit_timeout_ms} is negative")
    leadership = manager.leader(request.topic_id, request.partition, -1)
    if request.HasField("producer_epoch"):
        check_fence_stands(request.producer_id, request.producer_epoch, manager.image)
    known = leadership.log.states[PRODUCERS]
    is_long = request.producer_id == ALL and len(known) > PRODUCERS_IN_A_TURN
    if request.producer_id == ALL and len(known) > MAX_PRODUCERS:
        raise InvalidRequest(f"{len(known)} producers are more than {MAX_PRODUCERS}: ask for one producer id")
    answer = broker_pb2.DescribeProducersResponse(
        log_end_offset=leadership.log.log_end_offset,
        high_watermark=leadership.high_watermark,
        leader_epoch=leadership.epoch,
    )
    if not is_long:
        answer.producers.extend(describe(known, request.producer_id))
        await _commit(leadership, answer, request.commit_timeout_ms)
        return answer
    encoded = lists.of(leadership)  # begins with the state as it is now
    await _commit(leadership, answer, request.commit_timeout_ms)
    return await _with_room(await encoded, answer, context, lists.answers)


def describe(state: ProducerState, producer_id: int) -> list[broker_pb2.ProducerStateInfo]:
    """That producer, where it is known; ALL: every one, by id."""
    if producer_id == ALL:
        return [describe_entry(each_id, entry) for each_id, entry in sorted(state.items())]
    entry = state.get(producer_id)
    return [] if entry is None else [describe_entry(producer_id, entry)]


def describe_entry(producer_id: int, entry: ProducerEntry) -> broker_pb2.ProducerStateInfo:
    """The answer's description of one producer."""
    return broker_pb2.ProducerStateInfo(
        producer_id=producer_id,
        producer_epoch=entry.epoch,
        batches=[
            broker_pb2.BatchState(
                first_sequence=batch.first_sequence,
                last_sequence=batch.last_sequence,
                base_offset=batch.base_offset,
                timestamp_ms=batch.timestamp_ms,
            )
            for batch in entry.batches
        ],
    )


async def _with_room(
    encoded: bytes, answer: broker_pb2.DescribeProducersResponse, context: Context, answers: AnswerBudget
) -> bytes:
    """The whole answer, once there is memory for it. It is given back when the call is over."""
    try:
        async with asyncio.timeout(MAX_WAIT_FOR_MEMORY_S):
            await answers.wait_for_all(len(encoded))
    except TimeoutError:
        raise RequestTimedOut(
            f"no room for a list of {len(encoded)} bytes within {MAX_WAIT_FOR_MEMORY_S:g} s"
        ) from None
    peer = context.peer()
    answers.take(peer, len(encoded))
    given_back: Any = lambda _: answers.release(peer, len(encoded))  # noqa: E731  # the stubs want two arguments
    context.add_done_callback(given_back)
    return encoded + answer.SerializeToString()  # two encodings of one message, one after the other, are one


async def _commit(leadership: Leadership, answer: broker_pb2.DescribeProducersResponse, commit_timeout_ms: int) -> None:
    """Return once the answer is final, where that is asked for. Raises RequestTimedOut."""
    if not commit_timeout_ms:
        return
    timeout_ms = min(commit_timeout_ms, MAX_COMMIT_TIMEOUT_MS)
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            await leadership.wait_final(answer.log_end_offset)
    except TimeoutError:
        raise RequestTimedOut(
            f"offsets below {answer.log_end_offset} were not committed within {timeout_ms} ms; "
            f"the high watermark is {leadership.high_watermark}"
        ) from None
    if leadership.is_over:
        raise RequestTimedOut(f"the leadership of epoch {answer.leader_epoch} ended before the answer")
    answer.high_watermark = leadership.high_watermark
