"""What faults have to know of Kafka's requests: which topics they are about, and how one is answered with an error.

Both follow the messages' own description, so they hold for every API: a response has the structure of its request, with an
`error_code` somewhere in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Final

from fencepost_proto.kafka.apis import APIS
from fencepost_proto.kafka.schema.fields import Field, Kind, fields_of
from fencepost_proto.protocol.topic_ids import from_wire

Place = tuple[str, int | None]

API_KEYS: Final = {api.name: api.key for api in APIS.values()}
_TOPIC_NAMES: Final = ("name", "topic", "topic_name")  # as the messages call it
_PARTITIONS: Final = ("index", "partition", "partition_index", "partition_id")
_SAME: Final = ({*_TOPIC_NAMES, "resource_name"}, set(_PARTITIONS), {"key", "group_id", "group"}, {"topic_id"})
_NO_ID: Final = bytes(16)
_ERROR_CODE: Final = "error_code"


def places_of(message: object, topic_name: Callable[[str], str]) -> Iterator[Place]:
    """Every topic that a request names, with each of its partitions, or None where it names none."""
    if not dataclasses.is_dataclass(message):
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
        for element in value if isinstance(value, list) else [value]:
            if isinstance(element, str) and "topic" in field.name:
                yield element, None
            else:
                yield from places_of(element, topic_name)


def _topic_of(message: object, topic_name: Callable[[str], str]) -> str | None:
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
            if isinstance(element, int) and "partition" in field.name:
                yield element
            for name in _PARTITIONS:
                number = getattr(element, name, None)
                if isinstance(number, int):
                    yield number
                    break


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
