"""What faults have to know of Kafka's requests: which topics they are about, and how one, or a part of it, is answered
with an error.

All of it follows the messages' own description, so it holds for every API: a response has the structure of its request,
with an `error_code` somewhere in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Final

from fencepost_proto.kafka.apis import APIS
from fencepost_proto.kafka.schema.fields import Field, Kind, fields_of
from fencepost_proto.protocol.topic_ids import from_wire

Place = tuple[str, int | None]
Meets = Callable[[str, int | None], bool]

API_KEYS: Final = {api.name: api.key for api in APIS.values()}
_TOPIC_NAMES: Final = ("name", "topic", "topic_name")  # as the messages call it
_PARTITIONS: Final = ("index", "partition", "partition_index", "partition_id")
_SAME: Final = ({*_TOPIC_NAMES, "resource_name"}, set(_PARTITIONS), {"key", "group_id", "group"}, {"topic_id"})
_KEYS: Final = {*_TOPIC_NAMES, "topic_id", "group_id"}  # of entries that have entries of their own
_NO_ID: Final = bytes(16)
_ERROR_CODE: Final = "error_code"
_NO_PLACES: Final = ("forgotten_topics_data", "cursor")  # topics there are named, and nothing is asked about them
_TOPIC_RESOURCE: Final = 2  # a resource of this type is a topic


def places_of(message: object, topic_name: Callable[[str], str]) -> Iterator[Place]:
    """Every topic that a request names, with each of its partitions, or None where it names none."""
    if not dataclasses.is_dataclass(message) or getattr(message, "resource_type", _TOPIC_RESOURCE) != _TOPIC_RESOURCE:
        return
    topic = _topic_of(message, topic_name)
    if topic is not None:
        partitions = list(_partitions_of(message))
        yield from ((topic, partition) for partition in partitions)
        if not partitions:
            yield topic, None
        return
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        if field.name in _NO_PLACES:
            continue
        for element in value if isinstance(value, list) else [value]:
            if isinstance(element, str) and "topic" in field.name:
                yield element, None
            else:
                yield from places_of(element, topic_name)


def _topic_of(message: object, topic_name: Callable[[str], str]) -> str | None:
    if hasattr(message, "resource_type"):
        return str(getattr(message, "resource_name", "")) if message.resource_type == _TOPIC_RESOURCE else None
    for name in _TOPIC_NAMES:
        value = getattr(message, name, None)
        if isinstance(value, str) and value:
            return value
    topic_id = getattr(message, "topic_id", _NO_ID)
    return topic_name(from_wire(topic_id)) if isinstance(topic_id, bytes) and topic_id != _NO_ID else None


def _partitions_of(message: object) -> Iterator[int]:
    """Directly below a topic."""
    assert dataclasses.is_dataclass(message)
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        for element in value if isinstance(value, list) else ():
            number = _partition_of(element, field.name)
            if number is not None:
                yield number


def _partition_of(element: object, array: str) -> int | None:
    """Which partition an entry of that array is, or is about."""
    if isinstance(element, int):
        return element if "partition" in array else None
    for name in _PARTITIONS:
        number = getattr(element, name, None)
        if isinstance(number, int):
            return number
    return None


# ---- Parts ----


def split(api_key: int, request: Any, topic_name: Callable[[str], str], meets: Meets) -> tuple[Any | None, Any | None]:
    """Those parts of a request that are met, and the others, as requests of their own; None: there are none.

    A part is a partition, where the API answers for each by itself, or else a topic. What names no topic is not met. A
    request that is answered as a whole is one part.
    """
    response = APIS[api_key].response
    if not any(element is not None and _has_error(element) for element in map(_element, fields_of(response))):
        return request, None
    by_partition = _answers_partitions(response)

    def parts(struct: Any) -> tuple[Any | None, Any | None]:
        topic = _topic_of(struct, topic_name)
        met: dict[str, list[Any]] = {}
        rest: dict[str, list[Any]] = {}
        for field in dataclasses.fields(struct):
            array = getattr(struct, field.name)
            if not isinstance(array, list) or not array or field.name in _NO_PLACES:
                continue
            divided = [part(element, field.name, topic) for element in array]
            if all(one is None for one in divided):
                continue
            both = [(None, element) if one is None else one for one, element in zip(divided, array, strict=True)]
            met[field.name] = [one for one, _ in both if one is not None]
            rest[field.name] = [other for _, other in both if other is not None]
        if topic is not None and not met:
            return (struct, None) if meets(topic, None) else (None, struct)
        return (
            dataclasses.replace(struct, **met) if any(met.values()) else None,
            dataclasses.replace(struct, **rest) if any(rest.values()) or not met else None,
        )

    def part(element: Any, array: str, topic: str | None) -> tuple[Any | None, Any | None] | None:
        """None: the entry is no part of anything."""
        if topic is not None:
            number = _partition_of(element, array) if by_partition else None
            if number is None:
                return None
            return (element, None) if meets(topic, number) else (None, element)
        if isinstance(element, str):
            if "topic" not in array:
                return None
            return (element, None) if meets(element, None) else (None, element)
        if not dataclasses.is_dataclass(element) or not any(True for _ in places_of(element, topic_name)):
            return None
        return parts(element)

    return parts(request)


def _answers_partitions(response: type[Any]) -> bool:
    """Whether an error of one partition has a place in it."""
    fields = fields_of(response)
    names = {field.name for field in fields}
    if _ERROR_CODE in names and names & set(_PARTITIONS):
        return True
    return any(element is not None and _answers_partitions(element) for element in map(_element, fields))


def join(response: Any, failed: Any) -> None:
    """Add to a response the entries of another one, for the other parts of the same request."""
    for field in fields_of(type(response)):
        element = _element(field)
        if element is None:
            continue
        ours, theirs = getattr(response, field.name), getattr(failed, field.name)
        keys = [each.name for each in fields_of(element) if each.name in _KEYS]
        known = {tuple(getattr(entry, name) for name in keys): entry for entry in ours or () if keys}
        for entry in theirs or ():
            same = known.get(tuple(getattr(entry, name) for name in keys))
            if same is not None:
                join(same, entry)
            elif ours is None:
                ours = [entry]
            else:
                ours.append(entry)
        setattr(response, field.name, ours)


_CLIENT_ID_AT: Final = 12  # behind a frame's length, the API, its version and the correlation id
MAX_HEAD_BYTES: Final = 1_024  # in which a client id is looked for


def client_id_at(head: bytes) -> str | None:
    """The client id in a request's first bytes, of any API and version; empty: it has none. None: it is to come yet."""
    start = _CLIENT_ID_AT + 2
    if len(head) < start:
        return None
    size = int.from_bytes(head[_CLIENT_ID_AT:start], "big", signed=True)
    if size <= 0 or start + size > MAX_HEAD_BYTES:
        return ""
    return head[start : start + size].decode("utf-8", "replace") if len(head) >= start + size else None


# ---- Answers ----


def can_fail(api_key: int) -> bool:
    """Whether the API's response has a place for an error."""
    return _has_error(APIS[api_key].response)


def error_response(api_key: int, request: object, error: int) -> object:
    """The response that answers all of a request with an error."""
    return _failed(APIS[api_key].response, request, error)


def _failed(response: type[Any], request: object, error: int) -> Any:
    """One struct of a response, for the struct of the request that it answers."""
    answer = response()
    for field in fields_of(response):
        if field.name == _ERROR_CODE:
            setattr(answer, field.name, error)
        elif (element := _element(field)) is not None:
            if _has_error(element):
                entries = [_failed(element, asked, error) for asked in _asked_for(element, request)]
                setattr(answer, field.name, entries)
        elif not field.is_array and isinstance(field.kind, Kind):
            counterpart = _counterpart(field.name, request)
            if counterpart is not None and type(counterpart) is type(getattr(answer, field.name, counterpart)):
                setattr(answer, field.name, counterpart)
    return answer


def _counterpart(name: str, request: object) -> object:
    """What the request has under that name, or another one of the same meaning."""
    if not dataclasses.is_dataclass(request):  # an entry that is a plain value: a topic, a group, a partition
        return request
    for candidate in (name, *sorted(_names_of(name))):
        value = getattr(request, candidate, None)
        if value is not None:
            return value
    return None


def _asked_for(element: type[Any], request: object) -> list[Any]:
    """The array of the request whose entries an array of the response answers, one by one."""
    if not dataclasses.is_dataclass(request):
        return []
    arrays = [value for field in fields_of(type(request)) if isinstance(value := getattr(request, field.name), list)]
    wanted = {field.name for field in fields_of(element)}

    def likeness(array: list[Any]) -> int:
        if not array or not dataclasses.is_dataclass(array[0]):
            return 1 if array else 0
        return 1 + sum(bool(_names_of(field.name) & wanted) for field in fields_of(type(array[0])))

    return max(arrays, key=likeness, default=[])


def _names_of(name: str) -> set[str]:
    return next((same for same in _SAME if name in same), {name})


def _has_error(message: type[Any]) -> bool:
    for field in fields_of(message):
        element = _element(field)
        if field.name == _ERROR_CODE or (element is not None and _has_error(element)):
            return True
    return False


def _element(field: Field) -> type[Any] | None:
    """Of what structs an array is; None where it is none of structs."""
    return field.kind if field.is_array and not isinstance(field.kind, Kind) else None
