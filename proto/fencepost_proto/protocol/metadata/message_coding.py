"""A dataclass from and to a protobuf message that has the same fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

T = TypeVar("T")
M = TypeVar("M", bound=Message)
Converter = Callable[[Any], Any]


class MessageCoding(Generic[T, M]):
    """Codes each field of the dataclass as the message's field of that name.

    `names`: of the fields that the message calls otherwise. `write`, `read`: how a field's value is converted, if it is.
    Raises ValueError where the message lacks a field.
    """

    def __init__(
        self,
        value: type[T],
        message: type[M],
        *,
        names: Mapping[str, str] | None = None,
        write: Mapping[str, Converter] | None = None,
        read: Mapping[str, Converter] | None = None,
    ) -> None:
        self._value: Callable[..., T] = value
        self._message: Callable[..., M] = message
        own = [field.name for field in fields(value)]  # type: ignore[arg-type]  # a type of dataclasses has no name
        pairs = [(name, (names or {}).get(name, name)) for name in own]
        if missing := [name for _, name in pairs if name not in message.DESCRIPTOR.fields_by_name]:
            raise ValueError(f"{message.DESCRIPTOR.name} has no field {', '.join(missing)}")
        self._write = [(ours, theirs, (write or {}).get(ours)) for ours, theirs in pairs]
        self._read = [(theirs, (read or {}).get(ours)) for ours, theirs in pairs]

    def encode(self, value: T) -> M:
        given = {}
        for ours, theirs, convert in self._write:
            field = getattr(value, ours)
            given[theirs] = field if convert is None else convert(field)
        return self._message(**given)

    def decode(self, message: M) -> T:
        found = []
        for theirs, convert in self._read:
            field = getattr(message, theirs)
            found.append(field if convert is None else convert(field))
        return self._value(*found)
