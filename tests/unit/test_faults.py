"""The parts of faults: rules that count in all processes together, and what they know of both protocols' messages."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fencepost_proto.kafka.apis import APIS, Api
from fencepost_proto.kafka.codec import decode_response, encode_response
from fencepost_proto.kafka.messages.create_topics import (
    CreatableReplicaAssignment,
    CreatableTopic,
    CreateTopicsRequest,
)
from fencepost_proto.kafka.messages.fetch import FetchPartition, FetchRequest, FetchTopic
from fencepost_proto.kafka.messages.metadata import MetadataRequest, MetadataRequestTopic
from fencepost_proto.kafka.schema.fields import fields_of
from fencepost_proto.protocol.topic_ids import from_wire
from fencepost_proto.protocol.v1 import broker_pb2 as pb
from fencepost_testing.faults import fencepost_messages, kafka_messages
from fencepost_testing.faults.board import MAX_RULES, Board
from fencepost_testing.faults.inside import FaultsInside
from fencepost_testing.faults.kafka_stream import FrameCounter
from fencepost_testing.faults.refused_batches import RefusedBatches
from fencepost_testing.faults.rules import (
    DiskAction,
    DiskRule,
    FaultError,
    Limits,
    LinkAction,
    LinkRule,
    Posted,
    RequestAction,
    RequestRule,
)
from tests.asynchronous import asynchronous
from tests.unit.batches import batch
from tests.unit.kafka_messages import random_message

NOT_LEADER = 6
PLACE = ("orders", 0)


def drop(**limits: float) -> RequestRule:
    return RequestRule(RequestAction.DROP_ANSWER, "Produce", limits=Limits(**limits))  # type: ignore[arg-type]


# ---- The board ----


def test_a_rule_is_seen_by_every_process_and_fires_as_often_as_it_may_in_all_together(tmp_path: Path) -> None:
    poster, one, other = Board.create(tmp_path / "faults"), Board(tmp_path / "faults"), Board(tmp_path / "faults")
    posted = poster.post(drop(times=100))
    assert one.posted() == other.posted() == (posted,)
    fired = [0, 0]

    def fire(number: int, board: Board) -> None:
        for _ in range(80):
            fired[number] += bool(board.fire(posted))

    threads = [threading.Thread(target=fire, args=pair) for pair in ((0, one), (1, other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sum(fired), poster.count(posted.id), one.is_spent(posted)) == (100, 100, True)


@asynchronous
async def test_what_waits_is_woken_by_a_change_and_by_plain_files_alone(tmp_path: Path) -> None:
    poster, inside = Board.create(tmp_path / "faults"), FaultsInside(Board(tmp_path / "faults"), "broker-1")
    inside.listen()
    for change in (lambda: poster.post(drop()), poster.clear):
        waiting = asyncio.create_task(inside.changed())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        change()
        async with asyncio.timeout(5):
            await waiting
    shutil.copytree(tmp_path / "faults", tmp_path / "copy")  # refuses sockets and FIFOs


def test_what_was_removed_fires_no_more_and_its_place_begins_at_nought(tmp_path: Path) -> None:
    board, other = Board.create(tmp_path / "faults"), Board(tmp_path / "faults")
    first = board.post(drop())
    assert other.fire(first)
    assert board.remove(first.id) == 1
    second = board.post(drop())
    assert second.slot == first.slot
    assert not other.fire(first)
    assert (other.count(first.id), other.count(second.id)) == (1, 0)


def test_firings_keep_their_distance(tmp_path: Path) -> None:
    board = Board.create(tmp_path / "faults")
    posted = board.post(drop(every_ms=60_000))
    assert [board.fire(posted) for _ in range(3)] == [1, 0, 0]


def test_there_is_a_bound_on_rules_and_a_clear_takes_all_back(tmp_path: Path) -> None:
    board = Board.create(tmp_path / "faults")
    for _ in range(MAX_RULES):
        board.post(drop())
    with pytest.raises(FaultError, match=f"{MAX_RULES} faults are set"):
        board.post(drop())
    board.clear()
    assert board.posted() == ()


def test_a_folder_that_is_open_to_others_is_refused(tmp_path: Path) -> None:
    Board.create(tmp_path / "faults").close()
    assert (tmp_path / "faults" / "board").stat().st_mode & 0o077 == 0
    (tmp_path / "faults").chmod(0o755)
    with pytest.raises(FaultError, match="open to others"):
        Board(tmp_path / "faults")


def test_a_rule_is_the_same_after_it_was_written_down() -> None:
    rule = RequestRule(RequestAction.FAIL, "Fetch", "orders", 3, 1, "me", "kafka", 6, limits=Limits(2, 0.5, 10))
    assert Posted.from_json(Posted("fail-requests-1", 7, rule).to_json()) == Posted("fail-requests-1", 7, rule)
    assert rule.describe() == (
        "fail-requests api=Fetch topic=orders partition=3 broker=1 client_id=me protocol=kafka error=6 times=2 "
        "probability=0.5 every_ms=10"
    )


def test_links_have_two_sides_and_a_direction() -> None:
    cut = LinkRule(LinkAction.CUT, ("broker-1",), ("broker-2", "controller"))
    assert cut.affects("broker-1", "controller")
    assert cut.affects("broker-2", "broker-1")
    assert not cut.affects("broker-2", "controller")
    one_way = replace(cut, both_ways=False)
    assert one_way.affects("broker-1", "broker-2")
    assert not one_way.affects("broker-2", "broker-1")
    isolated = replace(cut, b=())
    assert isolated.affects("clients", "broker-1")
    assert not isolated.affects("clients", "broker-2")
    one_client = replace(cut, a=("client:slow",), b=("broker-1",))
    assert one_client.affects("client:slow", "broker-1")
    assert not one_client.affects("client:fast", "broker-1")
    assert not one_client.affects("clients", "broker-1")  # one that says no id
    all_of_them = replace(cut, a=("clients",), b=("broker-1",))
    assert all_of_them.affects("client:slow", "broker-1")
    assert all_of_them.affects("broker-1", "clients")
    assert not replace(cut, a=("clients",), b=()).affects("clients", "client:slow")
    posted = Posted("cut-1", 0, isolated)
    assert Posted.from_json(json.loads(json.dumps(posted.to_json()))) == posted


def test_a_rule_about_a_disk_knows_a_topic_whose_name_has_hyphens() -> None:
    rule = DiskRule(DiskAction.FULL, topic="my-orders", partition=12)
    assert rule.meets_folder("my-orders-12")
    assert not any(rule.meets_folder(name) for name in ("my-orders-1", "orders-12", "broker-1"))


# ---- Messages ----


@pytest.mark.parametrize("api", APIS.values(), ids=lambda api: api.name)
def test_every_request_of_kafka_can_be_answered_with_an_error(api: Api) -> None:
    chance = random.Random(api.key)
    errors = 0
    for version in range(api.min_version, api.max_version + 1):
        for _ in range(2):
            request = random_message(api.request, version, chance)
            response = kafka_messages.error_response(api.key, request, NOT_LEADER)
            codes = error_codes(sent_as(api, version, response))
            assert set(codes) <= {NOT_LEADER}
            errors += len(codes)
    assert errors


@pytest.mark.parametrize("api", APIS.values(), ids=lambda api: api.name)
def test_the_parts_of_a_request_are_all_of_it_and_so_are_their_answers(api: Api) -> None:
    """Met or not by chance: each place is in the one part or in the other, and joined answers are those of the whole."""
    chance = random.Random(api.key)
    for version in range(api.min_version, api.max_version + 1):
        request = random_message(api.request, version, chance)
        places = Counter(kafka_messages.places_of(request, str))
        marks = {place: chance.random() < 0.5 for place in places}

        def is_met(topic: str, partition: int | None, marks: dict[kafka_messages.Place, bool] = marks) -> bool:
            return marks.get((topic, partition), True)

        met, rest = kafka_messages.split(api.key, request, str, is_met)
        both = Counter(
            place for part in (met, rest) if part is not None for place in kafka_messages.places_of(part, str)
        )
        assert both == places
        assert rest is not None or met == request
        if met is not None and rest is not None and not has_twins(request):
            answer, failed, whole = (
                sent_as(api, version, kafka_messages.error_response(api.key, part, NOT_LEADER))
                for part in (rest, met, request)
            )
            kafka_messages.join(answer, failed)
            assert sorted(error_codes(answer)) == sorted(error_codes(whole))


def test_a_partition_is_a_part_only_where_it_has_an_answer_of_its_own() -> None:
    def first(topic: str, partition: int | None) -> bool:
        return (topic, partition) in {("a", None), ("a", 0)}

    fetch = FetchRequest(topics=[
        FetchTopic(topic="a", partitions=[FetchPartition(partition=0), FetchPartition(partition=1)]),
        FetchTopic(topic="b", partitions=[FetchPartition(partition=0)]),
    ])  # fmt: skip
    met, rest = kafka_messages.split(1, fetch, str, first)
    assert list(kafka_messages.places_of(met, str)) == [("a", 0)]
    assert list(kafka_messages.places_of(rest, str)) == [("a", 1), ("b", 0)]
    placed = [CreatableReplicaAssignment(partition_index=index, broker_ids=[1]) for index in (0, 1)]
    create = CreateTopicsRequest(topics=[CreatableTopic(name=name, assignments=placed) for name in ("a", "b")])
    met, rest = kafka_messages.split(19, create, str, first)
    found: list[Any] = [topic for part in (met, rest) if part is not None for topic in part.topics]
    assert [(topic.name, len(topic.assignments)) for topic in found] == [("a", 2), ("b", 2)]


def sent_as(api: Api, version: int, response: object) -> object:
    """The response as a client of that version reads it."""
    frame = memoryview(b"".join(encode_response(api.key, version, 1, response)))[4:]
    return decode_response(api.key, version, frame)[1]


def has_twins(message: object) -> bool:
    """Whether a request names a topic or a group twice, as only random ones do."""
    for field in fields_of(type(message)):
        entries = getattr(message, field.name)
        if field.is_array and isinstance(field.kind, type):
            keys = [
                tuple(getattr(entry, name, None) for name in ("topic", "name", "topic_id", "group_id"))
                for entry in entries or ()
            ]
            if len(set(keys)) < len(keys) or any(map(has_twins, entries or ())):
                return True
    return False


def error_codes(message: object) -> list[int]:
    """All that are in a response."""
    found: list[int] = []
    for field in fields_of(type(message)):
        value = getattr(message, field.name)
        if field.name == "error_code":
            found.append(value)
        elif field.is_array and isinstance(field.kind, type):
            found += [code for element in value or () for code in error_codes(element)]
    return [code for code in found if code]


def test_topics_and_partitions_of_requests_are_found() -> None:
    raw = bytes(range(16))
    topic_id = from_wire(raw)

    def name(found: str) -> str:
        return "orders" if found == topic_id else found

    partitions = [FetchPartition(partition=0), FetchPartition(partition=4)]
    by_id = FetchRequest(topics=[FetchTopic(topic_id=raw, partitions=partitions)])
    assert list(kafka_messages.places_of(by_id, name)) == [("orders", 0), ("orders", 4)]
    by_name = FetchRequest(topics=[FetchTopic(topic="orders", partitions=partitions)])
    assert list(kafka_messages.places_of(by_name, name)) == [("orders", 0), ("orders", 4)]
    metadata = MetadataRequest(topics=[MetadataRequestTopic(name="orders")])
    assert list(kafka_messages.places_of(metadata, name)) == [("orders", None)]
    own = pb.FetchRequest(partitions=[pb.FetchPartition(topic_id=topic_id, partition=4)])
    assert list(fencepost_messages.places_of(own, name)) == [("orders", 4)]
    assert list(fencepost_messages.places_of(pb.MetadataRequest(topic_names=["orders"]), name)) == [("orders", None)]


@pytest.mark.parametrize(
    ("head", "client_id"),
    [
        (b"", None),
        (b"\0\0\0\x1e\0\x12\0\x03\0\0\0\1\0", None),
        (b"\0\0\0\x1e\0\x12\0\x03\0\0\0\1\0\4slo", None),
        (b"\0\0\0\x1e\0\x12\0\x03\0\0\0\1\0\4slow\0", "slow"),
        (b"\0\0\0\x1e\0\x12\0\x03\0\0\0\1\xff\xff", ""),
        (b"\0\0\0\x1e\0\x12\0\x03\0\0\0\1\0\0", ""),
        (b"\0\0\0\x1e\0\x12\0\x03\0\0\0\1\x7f\xff", ""),  # larger than what is looked at
    ],
)
def test_a_client_s_id_is_in_the_first_bytes_that_it_sends(head: bytes, client_id: str | None) -> None:
    assert kafka_messages.client_id_at(head) == client_id


def test_the_beginnings_of_frames_are_found_however_the_bytes_come() -> None:
    sizes = [0, 1, 300, 7]
    stream = b"".join(size.to_bytes(4, "big") + bytes(size) for size in sizes)
    for step in (1, 3, 5, 1000):
        counter = FrameCounter()
        for start in range(0, len(stream), step):
            assert counter.advance(stream[start : start + step]) == len(stream[start : start + step])
        assert counter.between_frames
    counter = FrameCounter()
    counter.advance(stream[:20])  # 11 bytes into the third frame, whose length ends at byte 13
    assert counter.advance(stream[20:], stop_at_boundary=True) == 13 + 300 - 20
    counter = FrameCounter()
    counter.advance(b"\xff\xff\xff\xff are no frames")
    assert counter.left == -1


# ---- Batches that were refused ----


def test_batches_behind_a_refused_one_are_refused_until_it_has_come_back() -> None:
    refused = RefusedBatches()
    first, second, third = (batch(producer_id=7, epoch=0, sequence=number) for number in range(3))
    assert refused.error_for(PLACE, first) == 0
    refused.refuse(PLACE, first, NOT_LEADER)
    assert [refused.error_for(PLACE, one) for one in (second, third)] == [NOT_LEADER] * 2
    assert refused.error_for(("orders", 1), second) == 0
    assert [refused.error_for(PLACE, one) for one in (first, second, third)] == [0, 0, 0]
    assert len(refused) == 0
