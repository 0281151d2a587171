"""The notation in which Kafka's messages are written down: dataclasses whose fields know their place on the wire.

::

    @message
    class ListOffsetsPartition:
        partition_index: int = int32()
        current_leader_epoch: int = int32(since=4, default=-1)
        timestamp: int = int64()

A field says its type and, by keyword:

- ``since`` and ``until``: the first and the last version that has it (both inclusive; without ``until`` it stays).
- ``nullable``: the first version in which it may be null. The attribute is then None.
- ``tag``: its number in the struct's tagged fields (KIP-482). Written only where it differs from its default.
- ``default``: what the attribute is where the version lacks the field, the tag is absent, or the caller gives none.

Fields stand in wire order. A message is built by keywords or positions, every field has a default, and a field that a
version lacks is left out when that version is written. Times stay milliseconds, topic ids 16 bytes; `records` is a
view of the frame that was read, and any bytes-like object when written.
"""

from __future__ import annotations

import dataclasses
from typing import Generic, NamedTuple, TypeVar, cast, dataclass_transform

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Buffer = bytes | bytearray | memoryview

LAST = 2**15 - 1  # "until" of a field that no version has dropped
ZERO_UUID = bytes(16)
UNKNOWN_OPERATIONS = -(2**31)  # a set of authorized operations that was not asked for
MAX_STRING_BYTES = 2**15 - 1  # of a string's UTF-8, compact or not

_KEY = "kafka"  # of the schema in a dataclass field's metadata


class Kind(NamedTuple, Generic[T_co]):
    """A primitive type; `code` is its letter for `struct` where its size is fixed."""

    name: str
    code: str = ""
    size: int = 0


BOOL: Kind[bool] = Kind("bool", "?", 1)
INT8: Kind[int] = Kind("int8", "b", 1)
INT16: Kind[int] = Kind("int16", "h", 2)
INT32: Kind[int] = Kind("int32", "i", 4)
INT64: Kind[int] = Kind("int64", "q", 8)
UUID: Kind[bytes] = Kind("uuid", "16s", 16)
STRING: Kind[str] = Kind("string")
BYTES: Kind[bytes] = Kind("bytes")
RECORDS: Kind[Buffer] = Kind("records")


class Field(NamedTuple):
    """One field of a message: `kind` is a primitive, or the class of a nested struct; `is_array` a list of either."""

    name: str
    kind: Kind[object] | type[object]
    is_array: bool
    since: int
    until: int
    nullable: int | None
    tag: int | None
    default: object  # of an array: None or (); of a struct: None or ()

    def is_in(self, version: int) -> bool:
        return self.since <= version <= self.until

    def is_nullable_in(self, version: int) -> bool:
        return self.nullable is not None and self.nullable <= version


@dataclass_transform()
def message(cls: type[T]) -> type[T]:
    """Make a class of annotated fields a slotted dataclass, each of whose fields came from a function below.

    All messages share one `__eq__` and one `__repr__`. To have them made for each of 200 classes takes a broker 0.1 s at its
    start.
    """
    made = dataclasses.dataclass(slots=True, eq=False, repr=False, match_args=False)(cls)
    made.__eq__ = _equal  # type: ignore[method-assign]
    made.__hash__ = None  # type: ignore[assignment]
    made.__repr__ = _shown  # type: ignore[method-assign]
    return made


def _equal(one: object, other: object) -> bool:
    names: tuple[str, ...] = type(one).__slots__  # type: ignore[attr-defined]
    return type(one) is type(other) and all(getattr(one, name) == getattr(other, name) for name in names)


def _shown(one: object) -> str:
    names: tuple[str, ...] = type(one).__slots__  # type: ignore[attr-defined]
    return f"{type(one).__qualname__}({', '.join(f'{name}={getattr(one, name)!r}' for name in names)})"


def fields_of(cls: type[object]) -> tuple[Field, ...]:
    """The fields of a message or nested struct, in wire order."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]  # made a dataclass by `message`
    return tuple(cast(Field, field.metadata[_KEY])._replace(name=field.name) for field in fields)


def _field(
    kind: Kind[object] | type[object],
    default: object,
    *,
    since: int,
    until: int,
    nullable: int | None = None,
    tag: int | None = None,
    is_array: bool = False,
) -> object:
    metadata = {_KEY: Field("", kind, is_array, since, until, nullable, tag, default)}
    if default != ():
        return dataclasses.field(default=default, metadata=metadata)
    made = list if is_array else cast("type[object]", kind)
    return dataclasses.field(default_factory=made, metadata=metadata)


def boolean(*, since: int = 0, until: int = LAST, tag: int | None = None, default: bool = False) -> bool:
    return cast(bool, _field(BOOL, default, since=since, until=until, tag=tag))


def int8(*, since: int = 0, until: int = LAST, tag: int | None = None, default: int = 0) -> int:
    return cast(int, _field(INT8, default, since=since, until=until, tag=tag))


def int16(*, since: int = 0, until: int = LAST, tag: int | None = None, default: int = 0) -> int:
    return cast(int, _field(INT16, default, since=since, until=until, tag=tag))


def int32(*, since: int = 0, until: int = LAST, tag: int | None = None, default: int = 0) -> int:
    return cast(int, _field(INT32, default, since=since, until=until, tag=tag))


def int64(*, since: int = 0, until: int = LAST, tag: int | None = None, default: int = 0) -> int:
    return cast(int, _field(INT64, default, since=since, until=until, tag=tag))


def uuid(*, since: int = 0, until: int = LAST, tag: int | None = None) -> bytes:
    """16 bytes; all zero where there is none."""
    return cast(bytes, _field(UUID, ZERO_UUID, since=since, until=until, tag=tag))


def string(
    *, since: int = 0, until: int = LAST, nullable: int | None = None, tag: int | None = None, default: str | None = ""
) -> str:
    return cast(str, _field(STRING, default, since=since, until=until, nullable=nullable, tag=tag))


def bytestring(*, since: int = 0, until: int = LAST, nullable: int | None = None, default: bytes | None = b"") -> bytes:
    """Opaque bytes, copied out of the frame: their reader may keep them longer than the frame."""
    return cast(bytes, _field(BYTES, default, since=since, until=until, nullable=nullable))


def record_batches(*, since: int = 0, nullable: int | None = None, default: bytes | None = b"") -> Buffer:
    """Record batches: a view of the frame when read, a chunk of its own when written."""
    return cast(Buffer, _field(RECORDS, default, since=since, until=LAST, nullable=nullable))


def array(
    of: Kind[T] | type[T],
    *,
    since: int = 0,
    until: int = LAST,
    nullable: int | None = None,
    tag: int | None = None,
    default: tuple[()] | None = (),
) -> list[T]:
    """A list of a primitive (`INT32`) or of a nested struct (its class); `default=None` where Kafka's default is
    null."""
    kind = cast("Kind[object] | type[object]", of)
    made = _field(kind, default, since=since, until=until, nullable=nullable, tag=tag, is_array=True)
    return cast("list[T]", made)


def struct(
    of: type[T],
    *,
    since: int = 0,
    until: int = LAST,
    nullable: int | None = None,
    tag: int | None = None,
    default: tuple[()] | None = (),
) -> T:
    """One nested struct. By default one whose fields have their defaults; with `default=None` None.

    None means null where the field is nullable, and absent where it is tagged.
    """
    return cast(T, _field(of, default, since=since, until=until, nullable=nullable, tag=tag))
