"""Compiles one straight-line reader or writer per (message, version): what both directions share.

Nothing is interpreted at run time. A compiled function has a loop per array and otherwise only local variables;
neighbouring fields of fixed size, and the length that follows them, are one call of `struct`.
"""

from __future__ import annotations

import struct

from fencepost_proto.kafka.schema.fields import BYTES, RECORDS, STRING, Field, Kind, fields_of


class Source:
    """Python source in the making, and the names that it uses."""

    def __init__(self) -> None:
        self.names: dict[str, object] = {}
        self._lines: list[str] = []
        self._depth = 1
        self._count = 0

    def add(self, line: str) -> None:
        self._lines.append("    " * self._depth + line)

    def open(self, line: str) -> None:
        """Add a line that begins a block."""
        self.add(line)
        self._depth += 1

    def close(self) -> None:
        self._depth -= 1

    def name(self, stem: str) -> str:
        """A local variable that nothing else has."""
        self._count += 1
        return f"{stem}{self._count}"

    def bind(self, stem: str, value: object) -> str:
        """A global name for a value."""
        for name, bound in self.names.items():
            if bound is value:
                return name
        name = f"{stem}_{len(self.names)}"
        self.names[name] = value
        return name

    def bind_struct(self, method: str, letters: str) -> str:
        """A global name for `pack` or `unpack_from` of a big-endian struct."""
        name = f"{method}_{letters.replace('?', 'o')}"
        self.names[name] = getattr(struct.Struct(f">{letters}"), method)
        return name

    def compile(self, title: str, signature: str) -> object:
        """The function of these lines; `title` stands in tracebacks in place of a file."""
        text = "\n".join([f"def compiled({signature}):", *self._lines])
        exec(compile(text, f"<{title}>", "exec"), self.names)
        return self.names["compiled"]


def element_of(field: Field) -> Field:
    """The field that one element of an array is."""
    return field._replace(is_array=False, nullable=None, default=() if isinstance(field.kind, type) else field.default)


def least_bytes(cls: type[object], version: int, flexible: bool) -> int:
    """The fewest bytes that an instance can take on the wire: no count above (bytes left / this) can be true."""
    least = 1 if flexible else 0  # the number of tagged fields
    for field in fields_of(cls):
        if field.is_in(version) and field.tag is None:
            least += _least_bytes_of(field, version, flexible)
    return least


def _least_bytes_of(field: Field, version: int, flexible: bool) -> int:
    if field.is_array:
        return 1 if flexible else 4
    if not isinstance(field.kind, Kind):
        return 1 if field.is_nullable_in(version) else least_bytes(field.kind, version, flexible)
    if field.kind in (STRING, BYTES, RECORDS):
        return 1 if flexible else 2 if field.kind is STRING else 4
    return field.kind.size


def least_element_bytes(field: Field, version: int, flexible: bool) -> int:
    return _least_bytes_of(element_of(field), version, flexible)


def is_fixed(kind: Kind[object] | type[object]) -> bool:
    return isinstance(kind, Kind) and bool(kind.code)
