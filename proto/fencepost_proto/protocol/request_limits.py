"""The bounds of every request of every service: one table, and the functions that check a request against it.

A request is checked twice, before a service sees it:

- `check_encoded` looks at the bytes before they are parsed: the size that the method allows, and in larger requests how
  many fields there are. An empty entry costs two bytes on the wire and a hundred in memory, so a request that is within
  the wire's bound can still hold millions of them. The count stops at the bound.
- `check_message` looks at the parsed request: the length of every repeated field, string and bytes field, and that no
  string holds a control character. Names, ids and addresses go into log lines and into the terminals of operators; a line
  feed there forges a line. A request so small that none of its fields can be too long has only its strings looked at.

Both work for any message type: they follow its descriptor, with one plan for each type, made at its first use. A test
walks the descriptors of all services, and fails for a repeated, map or bytes field that `FIELD_LIMITS` does not name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from typing import Final, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pool import Default as default_pool
from google.protobuf.message import DecodeError, Message

from fencepost_proto.protocol.control_characters import control_character

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024  # of one gRPC message, either way
DEFAULT_REQUEST_BYTES: Final = 1024 * 1024  # of one request, where REQUEST_BYTES does not name its method
MAX_STRING_BYTES: Final = 1_024  # of a string field; rules that are stricter and know the field's meaning come later
MAX_ENTRIES: Final = 10_000  # of one repeated field in one message, where nothing else is said
MAX_REPLICAS_OF_A_BROKER: Final = 20_000  # that one message of a broker may list; a cluster has 10,000 partitions
MAX_REPLICAS_OF_A_PARTITION: Final = 1_000
MAX_SETTINGS: Final = 100  # of a topic, in one change
MAX_PROPOSALS: Final = 1_000  # of in-sync sets, or of deletions, in one request
COUNTED_ABOVE_BYTES: Final = 32 * 1024  # what is smaller is parsed in a millisecond, whatever it holds

REQUEST_BYTES: Final[Mapping[str, int]] = {
    "fencepost.v1.Broker.Produce": MAX_MESSAGE_BYTES,  # the setting max_request_bytes bounds the records in it
    "fencepost.v1.Replication.Replicate": 4 * 1024 * 1024,
    "fencepost.v1.Controller.Session": MAX_MESSAGE_BYTES,
    "fencepost.v1.Groups.CommitOffsets": 4 * 1024 * 1024,  # 10,000 offsets with some metadata each
}

# Of a repeated field: entries in one message. Of a bytes field: bytes.
FIELD_LIMITS: Final[Mapping[str, int]] = {
    "fencepost.v1.ProduceRequest.batches": MAX_ENTRIES,
    "fencepost.v1.ProduceBatch.records": MAX_MESSAGE_BYTES,
    "fencepost.v1.FetchRequest.partitions": MAX_ENTRIES,
    "fencepost.v1.MetadataRequest.topic_names": MAX_ENTRIES,
    "fencepost.v1.ReplicateRequest.subscribe": MAX_ENTRIES,
    "fencepost.v1.ReplicateRequest.acks": MAX_ENTRIES,
    "fencepost.v1.ReplicateRequest.unsubscribe": MAX_ENTRIES,
    "fencepost.v1.Register.damaged_replicas": MAX_REPLICAS_OF_A_BROKER,
    "fencepost.v1.Heartbeat.failed_replicas": MAX_REPLICAS_OF_A_BROKER,
    "fencepost.v1.AlterPartitionRequest.proposals": MAX_PROPOSALS,
    "fencepost.v1.DeletedRecordsRequest.deletions": MAX_PROPOSALS,
    "fencepost.v1.IsrProposal.new_isr": MAX_REPLICAS_OF_A_PARTITION,
    "fencepost.v1.CreateTopicRequest.assignments": MAX_ENTRIES,
    "fencepost.v1.CreatePartitionsRequest.assignments": MAX_ENTRIES,
    "fencepost.v1.AlterTopicConfigRequest.set": MAX_SETTINGS,
    "fencepost.v1.AlterTopicConfigRequest.reset": MAX_SETTINGS,
    "fencepost.v1.ReplicaAssignment.replicas": MAX_REPLICAS_OF_A_PARTITION,
    "fencepost.v1.AlterPartitionReassignmentsRequest.reassignments": MAX_ENTRIES,
    "fencepost.v1.PartitionReassignment.replicas": MAX_REPLICAS_OF_A_PARTITION,
    "fencepost.v1.GroupHeartbeatRequest.Topics.names": MAX_ENTRIES,
    "fencepost.v1.GroupHeartbeatRequest.Partitions.partitions": MAX_ENTRIES,
    "fencepost.v1.CommitOffsetsRequest.offsets": MAX_ENTRIES,
    "fencepost.v1.FetchOffsetsRequest.partitions": MAX_ENTRIES,
}

_SHORT = MAX_STRING_BYTES // 4  # characters: no longer than MAX_STRING_BYTES, whichever they are
_SPARE_FIELDS = 64  # more fields than a message type has: of a later version of this protocol, or repeated by mistake
_MAX_VARINT_BYTES = 10
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5  # wire types


M = TypeVar("M", bound=Message)


class RequestRefused(DecodeError):
    """A request outside of its bounds. To gRPC it is like one that cannot be parsed."""


_Check = Callable[[Message], None]


# ---- One plan for each message type ----


@dataclass(slots=True)
class _Plan:
    """What to check of one message type."""

    name: str
    strings: list[str]
    bytes_fields: list[tuple[str, int]]  # (name, bound)
    repeated: list[tuple[str, int]]  # (name, bound)
    repeated_strings: list[str]
    messages: list[tuple[str, _Plan]]  # one, or none
    repeated_messages: list[tuple[str, _Plan]]
    max_fields: int  # on the wire, at this level
    nested: dict[int, _Plan]  # by field number: those that hold repeated fields themselves
    packed: dict[int, int]  # by field number: repeated numbers, and how many
    has_one_string: bool = False  # and nothing else to check
    safe_bytes: int = MAX_MESSAGE_BYTES  # encoded in no more than these, no field in it but a string can be too long
    string_checks: Sequence[_Check] = ()  # of the strings in it, and in the messages in it

    @property
    def is_empty(self) -> bool:
        return not (self.strings or self.bytes_fields or self.repeated or self.messages)


@cache
def _plan(descriptor: Descriptor) -> _Plan:
    plan = _Plan(descriptor.name, [], [], [], [], [], [], len(descriptor.fields) + _SPARE_FIELDS, {}, {})
    for each in descriptor.fields:
        _add(plan, each)
    plan.has_one_string = len(plan.strings) == 1 and not (plan.bytes_fields or plan.repeated or plan.messages)
    inner = [message for _, message in (*plan.messages, *plan.repeated_messages)]
    bounds = [bound for _, bound in (*plan.bytes_fields, *plan.repeated)]  # an entry takes a byte at least
    plan.safe_bytes = min([MAX_MESSAGE_BYTES, *bounds, *(message.safe_bytes for message in inner)])
    plan.string_checks = _string_checks(plan)
    return plan


@cache
def _bounds(method: MethodDescriptor) -> tuple[int, _Plan]:
    return REQUEST_BYTES.get(method.full_name, DEFAULT_REQUEST_BYTES), _plan(method.input_type)


def _add(plan: _Plan, field: FieldDescriptor) -> None:
    is_repeated = field.is_repeated
    bound = FIELD_LIMITS.get(field.full_name, MAX_ENTRIES)
    if is_repeated:
        plan.repeated.append((field.name, bound))
        plan.max_fields += bound
    match field.type:
        case FieldDescriptor.TYPE_MESSAGE:
            assert field.message_type is not None  # of every field of that type
            inner = _plan(field.message_type)
            assert not field.message_type.GetOptions().map_entry, f"{field.full_name}: no check of maps is written"
            if not inner.is_empty:
                (plan.repeated_messages if is_repeated else plan.messages).append((field.name, inner))
            if inner.repeated or inner.nested:
                plan.nested[field.number] = inner
        case FieldDescriptor.TYPE_STRING:
            (plan.repeated_strings if is_repeated else plan.strings).append(field.name)
        case FieldDescriptor.TYPE_BYTES if not is_repeated:
            bound = FIELD_LIMITS.get(field.full_name, DEFAULT_REQUEST_BYTES)
            if bound < MAX_MESSAGE_BYTES:  # else the request's own size bounds it, and a look at it would copy it
                plan.bytes_fields.append((field.name, bound))
        case _ if is_repeated:
            plan.packed[field.number] = bound


# ---- Before parsing ----


def check_encoded(data: bytes, method: MethodDescriptor) -> None:
    """Raises RequestRefused for a request that is too large, or holds too many fields to be parsed."""
    limit, plan = _bounds(method)
    if len(data) > limit:
        raise RequestRefused(f"a request of {len(data)} bytes; {method.name} takes at most {limit}")
    if len(data) > COUNTED_ABOVE_BYTES:
        _count(data, 0, len(data), plan)


def _count(data: bytes, position: int, end: int, plan: _Plan) -> None:
    """Go through the fields of one message. Raises RequestRefused where there are more than can be."""
    left = plan.max_fields
    try:
        while position < end:
            left -= 1
            if left < 0:
                raise RequestRefused(f"a {plan.name} with more than {plan.max_fields} fields")
            tag = data[position]
            position += 1
            if tag >= 0x80:
                tag, position = _varint(data, position - 1)
            kind = tag & 7
            if kind == _LENGTH_DELIMITED:
                size = data[position]
                position += 1
                if size >= 0x80:
                    size, position = _varint(data, position - 1)
                if plan.nested or plan.packed:
                    _count_inside(data, position, min(size, end - position), plan, tag >> 3)
                position += size
            elif kind == _VARINT:
                _, position = _varint(data, position)
            elif kind in (_FIXED64, _FIXED32):
                position += 8 if kind == _FIXED64 else 4
            else:
                raise RequestRefused(f"field {tag >> 3} of a {plan.name} has wire type {kind}")
    except IndexError:
        raise RequestRefused(f"a {plan.name} that ends within a field") from None


def _count_inside(data: bytes, position: int, size: int, plan: _Plan, number: int) -> None:
    """One length-delimited field of `size` bytes: a message, or numbers."""
    inner = plan.nested.get(number)
    if inner is not None:
        _count(data, position, position + size, inner)
    elif size > plan.packed.get(number, size) * _MAX_VARINT_BYTES:
        raise RequestRefused(f"field {number} of a {plan.name} has {size} bytes of numbers")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """(the number at `position`, where it ends). Raises IndexError at the end of the data."""
    value = data[position]
    position += 1
    if value < 0x80:
        return value, position
    value &= 0x7F
    for shift in range(7, 7 * _MAX_VARINT_BYTES, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise RequestRefused("a number of more than ten bytes")


# ---- After parsing ----


def check_message(message: Message, size_bytes: int = MAX_MESSAGE_BYTES) -> None:
    """Raises RequestRefused for a field that is too long, or a string with a control character.

    `size_bytes`: of its encoding.
    """
    _check_by(_plan(message.DESCRIPTOR), message, size_bytes)


def _check_by(plan: _Plan, message: Message, size_bytes: int) -> None:
    if size_bytes > plan.safe_bytes:
        _check_lengths(message, plan)
    for check in plan.string_checks:
        check(message)


def _check_lengths(message: Message, plan: _Plan) -> None:
    """Of what is no string."""
    for name, bound in plan.bytes_fields:
        if (size := len(getattr(message, name))) > bound:
            raise RequestRefused(f"{plan.name}.{name} has {size} bytes; at most {bound} are taken")
    for name, bound in plan.repeated:
        if (count := len(getattr(message, name))) > bound:
            raise RequestRefused(f"{plan.name}.{name} has {count} entries; at most {bound} are taken")
    for name, inner in plan.messages:
        if inner.safe_bytes < MAX_MESSAGE_BYTES and message.HasField(name):
            _check_lengths(getattr(message, name), inner)
    for name, inner in plan.repeated_messages:
        if inner.safe_bytes < MAX_MESSAGE_BYTES:
            for entry in getattr(message, name):
                _check_lengths(entry, inner)


def _string_checks(plan: _Plan) -> Sequence[_Check]:
    """Functions for the fields in which there are strings. Made once for each type: a request runs through them."""
    checks: list[_Check] = []
    lists = [(name, inner) for name, inner in plan.repeated_messages if inner.has_one_string]
    if plan.strings or lists:
        checks.append(_check_of_texts(plan, lists))
    checks += [_check_of_strings(plan, name) for name in plan.repeated_strings]
    checks += [_check_of_message(name, inner) for name, inner in plan.messages if inner.string_checks]
    others = [each for each in plan.repeated_messages if each not in lists]
    checks += [_check_of_messages(name, inner) for name, inner in others if inner.string_checks]
    return checks


def _check_of_texts(plan: _Plan, lists: Sequence[tuple[str, _Plan]]) -> _Check:
    """Of single strings, and of the one in each entry of the lists: so it is with requests that are long, or come often."""
    strings = [(attrgetter(name), name) for name in plan.strings]
    texts = [(attrgetter(name), attrgetter(inner.strings[0]), inner) for name, inner in lists]

    def check(message: Message) -> None:
        for text_of, name in strings:
            text = text_of(message)
            if len(text) > _SHORT or not text.isprintable():
                _check_string(plan, name, text)
        for entries_of, text_of, inner in texts:
            for text in map(text_of, entries_of(message)):
                if len(text) > _SHORT or not text.isprintable():
                    _check_string(inner, inner.strings[0], text)

    return check


def _check_of_strings(plan: _Plan, name: str) -> _Check:
    texts_of = attrgetter(name)

    def check(message: Message) -> None:
        for text in texts_of(message):
            _check_string(plan, name, text)

    return check


def _check_of_message(name: str, inner: _Plan) -> _Check:
    inner_of = attrgetter(name)

    def check(message: Message) -> None:
        if message.HasField(name):
            entry = inner_of(message)
            for check_field in inner.string_checks:
                check_field(entry)

    return check


def _check_of_messages(name: str, inner: _Plan) -> _Check:
    entries_of = attrgetter(name)

    def check(message: Message) -> None:
        for entry in entries_of(message):
            for check_field in inner.string_checks:
                check_field(entry)

    return check


def _check_string(plan: _Plan, name: str, text: str) -> None:
    if (size := len(text.encode())) > MAX_STRING_BYTES:
        raise RequestRefused(f"{plan.name}.{name} has {size} bytes; at most {MAX_STRING_BYTES} are taken")
    if found := control_character(text):
        raise RequestRefused(f"{plan.name}.{name} = {text!r} holds the control character {found!r}")


# ---- Both, for one method ----


def bounded(method: MethodDescriptor, deserialize: Callable[[bytes], M]) -> Callable[[bytes], M]:
    """`deserialize` for what lies within the bounds of the method's requests; it raises RequestRefused otherwise.

    What both checks need is looked up here, once: small requests come often.
    """
    limit, plan = _bounds(method)
    counted_above = min(limit, COUNTED_ABOVE_BYTES)

    def read(data: bytes) -> M:
        size = len(data)
        if size > counted_above:
            check_encoded(data, method)
        message = deserialize(data)
        _check_by(plan, message, size)
        return message

    return read


# ---- By method ----


def method_of(path: str) -> MethodDescriptor | None:
    """The method with this gRPC path (`/package.Service/Method`); None where no .proto file of this process has it."""
    service, _, name = path.removeprefix("/").partition("/")
    try:
        return default_pool().FindServiceByName(service).methods_by_name.get(name)
    except KeyError:
        return None
