"""What faults have to know of the requests of Fencepost's protocol: which APIs there are, and which topics one is about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from fencepost_proto.protocol.v1 import broker_pb2, common_pb2, controller_pb2, groups_pb2, replication_pb2

Place = tuple[str, int | None]

SERVICES: Final = tuple(
    service
    for file in (broker_pb2, controller_pb2, groups_pb2, replication_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
)
# What clients call at a broker. The other services are between the cluster's own processes.
CLIENT_SERVICES: Final = frozenset({"fencepost.v1.Broker", "fencepost.v1.Groups", "fencepost.v1.Admin"})
API_NAMES: Final = frozenset(
    method.name for service in SERVICES if service.full_name in CLIENT_SERVICES for method in service.methods
)
_NAMES: Final = ("topic_name", "topic")


def places_of(message: Message, topic_name: Callable[[str], str]) -> Iterator[Place]:
    """Every topic that a request names, with its partition, or None where it names none."""
    names = message.DESCRIPTOR.fields_by_name
    topic = topic_name(message.topic_id) if "topic_id" in names and message.topic_id else ""  # type: ignore[attr-defined]
    for name in _NAMES:
        if not topic and name in names and names[name].type == FieldDescriptor.TYPE_STRING:
            topic = getattr(message, name)
    if topic:
        yield topic, getattr(message, "partition", None)
        return
    for field, value in message.ListFields():
        for element in value if field.is_repeated else (value,):
            if isinstance(element, Message):
                yield from places_of(element, topic_name)
            elif isinstance(element, str) and (field.name in ("topic_names", "name")):
                yield element, None


def refusal_type(method: MethodDescriptor) -> Callable[..., Any] | None:
    """The method's response, where it has an `error` field."""
    field = method.output_type.fields_by_name.get("error")
    if field is None or field.message_type is not common_pb2.Error.DESCRIPTOR:
        return None
    return GetMessageClass(method.output_type)


def can_fail(api: str) -> bool:
    """Whether a request of that name can be answered with an error code."""
    methods = (service.methods_by_name.get(api) for service in SERVICES if service.full_name in CLIENT_SERVICES)
    return api in ("Produce", "Fetch") or any(
        method is not None and refusal_type(method) is not None for method in methods
    )
