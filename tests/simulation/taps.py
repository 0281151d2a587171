"""Where the judge listens: what brokers are asked and what they answer, matched with each other."""

from __future__ import annotations

import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.protocol.record_batch import BatchHeader, read_header
from tests.simulation.network import Tap
from tests.simulation.process import SimProcess

if TYPE_CHECKING:
    from tests.simulation.judge import Judge


class ProduceTap(Tap):
    """Matches each result with its batch."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._sent: dict[object, dict[int, tuple[PartitionKey, int, BatchHeader | None]]] = {}

    def request(self, server: SimProcess, client: SimProcess, call: object, message: Any) -> None:
        sent = self._sent.setdefault(call, {})
        for batch in message.batches:
            header: BatchHeader | None = None
            with contextlib.suppress(Exception):  # what is no batch is to be refused
                header = read_header(batch.records)
            sent[batch.correlation_id] = ((batch.topic_id, batch.partition), batch.acks, header)

    def response(self, server: SimProcess, client: SimProcess, call: object, message: Any) -> None:
        sent = self._sent.get(call, {})
        for result in message.results:
            asked = sent.pop(result.correlation_id, None)
            if asked is None:
                self._judge.fail(
                    "G6", f"{server!r} answered correlation id {result.correlation_id}, never asked or twice"
                )
                return
            key, acks, header = asked
            if result.error.code == 0 and header is None:
                self._judge.fail("G6", f"{server!r} acknowledged what is no batch, for {key}")
            elif result.error.code == 0 and header is not None:
                self._judge.acknowledged(server, key, acks, header, result)
            else:
                self._judge.count(f"refused: {ErrorCode(result.error.code).name.lower()}")


class FetchTap(Tap):
    """Matches each answer with what it answers: on one stream, one after another."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._asked: dict[object, deque[dict[PartitionKey, tuple[int, int]]]] = {}
        self._deleted: dict[object, deque[dict[PartitionKey, int]]] = {}

    def request(self, server: SimProcess, client: SimProcess, call: object, message: Any) -> None:
        keys = [(partition.topic_id, partition.partition) for partition in message.partitions]
        self._deleted.setdefault(call, deque()).append({key: self._judge.deleted_for(server, key) for key in keys})
        asked = {
            (partition.topic_id, partition.partition): (partition.fetch_offset, partition.last_epoch)
            for partition in message.partitions
            if partition.HasField("last_epoch")
        }
        self._asked.setdefault(call, deque()).append(asked)

    def response(self, server: SimProcess, client: SimProcess, call: object, message: Any) -> None:
        waiting = self._asked.get(call)
        asked = waiting.popleft() if waiting else {}
        deleted = self._deleted[call].popleft() if waiting is not None else {}
        for answer in message.partitions:
            if answer.error.code == 0:
                key = (answer.topic_id, answer.partition)
                self._judge.shows(server, key, answer.log_start_offset, answer.records, deleted.get(key, 0))
                position = asked.get((answer.topic_id, answer.partition))
                if position is not None:
                    self._judge.continued(server, client, (answer.topic_id, answer.partition), *position)
                self._judge.fetched(server, client, answer)


class DeleteRecordsTap(Tap):
    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._asked: dict[object, PartitionKey] = {}

    def request(self, server: SimProcess, client: SimProcess, call: object, message: Any) -> None:
        self._asked[call] = (message.topic_id, message.partition)

    def response(self, server: SimProcess, client: SimProcess, call: object, message: Any) -> None:
        key = self._asked.pop(call)
        if message.error.code == 0:
            self._judge.records_deleted(server, key, message.log_start_offset)


class ReplicateTap(Tap):
    """A follower subscribes also after each cut."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge

    def request(self, server: SimProcess, client: SimProcess, call: object, message: Any) -> None:
        for subscribe in message.subscribe:
            self._judge.subscribes(client, (subscribe.topic_id, subscribe.partition))


class InitTap(Tap):
    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._asked: dict[object, Any] = {}

    def request(self, server: SimProcess, client: SimProcess, call: object, message: Any) -> None:
        self._asked[call] = message

    def response(self, server: SimProcess, client: SimProcess, call: object, message: Any) -> None:
        asked = self._asked.pop(call)
        if message.error.code == 0:
            self._judge.producer_initialised(client, asked, message)
