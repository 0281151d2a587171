"""Where the judge listens to the Kafka edge: the bytes of a broker's connections, as it reads and writes them.

It frames and decodes both directions by itself, so that it sees what any client sees, and matches each response with its
request: they come in the order in which they were asked (promise `order`).
"""

from __future__ import annotations

import contextlib
from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fencepost_node.kafka.frames import FrameReader
from fencepost_proto.kafka.codec import decode_request, decode_response
from fencepost_proto.kafka.messages.fetch import FetchRequest
from fencepost_proto.kafka.messages.produce import ProduceRequest
from fencepost_proto.protocol.errors import ErrorCode
from fencepost_proto.protocol.metadata import PartitionKey
from fencepost_proto.protocol.record_batch import BatchHeader, read_header
from fencepost_proto.protocol.records import read_records
from tests.simulation.process import SimProcess

if TYPE_CHECKING:
    from tests.simulation.judge import Judge

MAX_FRAME_BYTES = 1 << 30
OUT_OF_ORDER = ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER


class KafkaTap:
    """Of one connection. Made by the transport of the broker's end."""

    def __init__(self, judge: Judge, server: SimProcess, client: SimProcess) -> None:
        self._judge = judge
        self._server = server
        self._client = client
        self._requests = FrameReader(MAX_FRAME_BYTES)
        self._responses = FrameReader(MAX_FRAME_BYTES)
        self._asked: deque[tuple[Any, Any]] = deque()  # header and request, without an answer yet

    def read(self, data: bytes) -> None:
        """The broker has read this."""
        for frame in self._requests.feed(data):
            header, request = decode_request(frame)
            if not (isinstance(request, ProduceRequest) and request.acks == 0):
                self._asked.append((header, request))

    def written(self, data: bytes) -> None:
        """The broker has written this."""
        for frame in self._responses.feed(data):
            if not self._asked:
                self._judge.fail("order", f"{self._server!r} answered {self._client!r}, which had asked nothing")
            header, request = self._asked.popleft()
            correlation_id = int.from_bytes(frame[:4], "big", signed=True)
            if correlation_id != header.correlation_id:
                self._judge.fail(
                    "order",
                    f"{self._server!r} answered {self._client!r} correlation id {correlation_id}, not "
                    f"{header.correlation_id}",
                )
            self._judge.count("Kafka requests answered")
            _, response = decode_response(header.api_key, header.api_version, frame)
            if isinstance(request, ProduceRequest):
                self._produced(request, response)
            elif isinstance(request, FetchRequest):
                self._fetched(response)

    def _key(self, topic: str, partition: int) -> PartitionKey:
        return (self._judge.image.topic_ids.get(topic, ""), partition)

    def _produced(self, request: ProduceRequest, response: Any) -> None:
        for topic, answers in zip(request.topic_data, response.responses, strict=True):
            for data, answer in zip(topic.partition_data, answers.partition_responses, strict=True):
                header: BatchHeader | None = None
                batch = bytes(data.records or b"")
                with contextlib.suppress(Exception):  # what is no batch is to be refused
                    header = read_header(batch)
                if answer.error_code:
                    self._judge.count(f"refused on the Kafka edge: {ErrorCode(answer.error_code).name.lower()}")
                elif header is None:
                    self._judge.fail("G6", f"{self._server!r} acknowledged what is no batch, for {topic.name}")
                else:
                    result = SimpleNamespace(base_offset=answer.base_offset, duplicate=False)
                    key = self._key(topic.name, data.index)
                    self._judge.acknowledged(self._server, key, request.acks, header, result)
                    self._stamp(header, batch)

    def _stamp(self, header: BatchHeader, batch: bytes) -> None:
        """Keep each record's numbers: Kafka's clients do not tell them, and an unclean election may take the record."""
        for number, record in enumerate(read_records(batch)):
            stamp = (header.producer_id, header.producer_epoch, header.base_sequence + number)
            self._judge.kafka_stamps[record.value or b""] = stamp

    def _fetched(self, response: Any) -> None:
        for topic in response.responses:
            for answer in topic.partitions:
                parted = answer.diverging_epoch
                if answer.error_code or (parted is not None and parted.end_offset >= 0):
                    continue
                records = bytes(answer.records or b"")
                key = self._key(topic.topic, answer.partition_index)
                found = SimpleNamespace(
                    topic_id=key[0], partition=key[1], high_watermark=answer.high_watermark, records=records
                )
                self._judge.fetched(self._server, self._client, found, by_kafka=True)
