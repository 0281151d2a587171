"""Compiles a message's reader.

A reader checks every length and count against what is left of the frame before it allocates anything for it, counts
the elements of all arrays against a budget (an element of two bytes becomes an object of a hundred), and skips the
tagged fields that it does not know. Beyond MalformedFrame it raises struct.error, IndexError and UnicodeDecodeError
where the frame ends early or a string is no UTF-8; the codec turns those into MalformedFrame.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import cast

from fencepost_proto.kafka.schema import primitives
from fencepost_proto.kafka.schema.compiling import Source, is_fixed, least_element_bytes
from fencepost_proto.kafka.schema.fields import (
    BYTES,
    MAX_STRING_BYTES,
    RECORDS,
    STRING,
    ZERO_UUID,
    Field,
    Kind,
    fields_of,
)

Reader = Callable[[memoryview, int, int, int], tuple[object, int]]
"""(frame, position, size of the frame, element budget) → (message, its end)"""


def compile_reader(cls: type[object], version: int, flexible: bool) -> Reader:
    """The reader of one message in one version; it takes milliseconds to make, microseconds to run."""
    builder = _ReaderBuilder(version, flexible)
    message = builder.read_struct(cls)
    builder.source.add(f"return {message}, position")
    title = f"reader of {cls.__name__} v{version}"
    return cast(Reader, builder.source.compile(title, "data, position, size, budget"))


class _ReaderBuilder:
    def __init__(self, version: int, flexible: bool) -> None:
        self.source = Source()
        self._version = version
        self._flexible = flexible
        self._run: list[tuple[str, str, int]] = []  # variable, struct letters and size of fixed fields not read yet
        self.source.names["new"] = object.__new__  # all fields follow: __init__ would only take time
        for helper in (
            primitives.beyond_frame,
            primitives.too_many,
            primitives.too_long_to_read,
            primitives.wrong_tag_length,
            primitives.skip_tagged_fields,
            primitives.read_uvarint,
            primitives.read_long_uvarint,
        ):
            self.source.names[helper.__name__] = helper

    # ---- Structs ----

    def read_struct(self, cls: type[object]) -> str:
        """Emit the reading of a struct; the expression that builds it."""
        values: dict[str, str] = {}
        tagged: list[Field] = []
        fields = fields_of(cls)
        for field in fields:
            if not field.is_in(self._version):
                values[field.name] = self._default(field)
            elif field.tag is not None:
                tagged.append(field)
            else:
                values[field.name] = self._read_field(field)
        if self._flexible:
            self._read_tagged_fields(tagged, values)
        else:
            self._flush_run()
        made = self.source.name("made")
        self.source.add(f"{made} = new({self.source.bind(cls.__name__, cls)})")
        for field in fields:
            self.source.add(f"{made}.{field.name} = {values[field.name]}")
        return made

    def _read_tagged_fields(self, tagged: list[Field], values: dict[str, str]) -> None:
        source = self.source
        count = self._read_compact_length()
        for field in tagged:
            values[field.name] = source.name("v")
            source.add(f"{values[field.name]} = {self._default(field)}")
        source.open(f"if {count}:")
        if not tagged:
            source.add(f"position = skip_tagged_fields(data, position, {count}, size)")
            source.close()
            return
        tag, length, end = source.name("tag"), source.name("length"), source.name("end")
        source.open(f"for _ in range({count}):")
        source.add(f"{tag}, position = read_uvarint(data, position)")
        source.add(f"{length}, position = read_uvarint(data, position)")
        source.add(f"{end} = position + {length}")
        source.add(f"if {end} > size: raise beyond_frame(f'tagged field {{{tag}}}', {length}, size - position)")
        for index, field in enumerate(tagged):
            source.open(f"{'el' if index else ''}if {tag} == {field.tag}:")
            value = self._read_field(field)
            self._flush_run()
            source.add(f"{values[field.name]} = {value}")
            source.add(f"if position != {end}: raise wrong_tag_length({field.name!r}, position - {end})")
            source.close()
        source.add(f"else: position = {end}")
        source.close()
        source.close()

    def _default(self, field: Field) -> str:
        if field.default is None:
            return "None"
        if field.is_array:
            return "[]"
        if isinstance(field.kind, type):
            return f"{self.source.bind(field.kind.__name__, field.kind)}()"
        return self.source.bind("ZERO_UUID", ZERO_UUID) if field.default == ZERO_UUID else repr(field.default)

    # ---- Fields ----

    def _read_field(self, field: Field) -> str:
        """Emit the reading of a field; the expression for its value."""
        if field.is_array:
            return self._read_array(field)
        if not isinstance(field.kind, Kind):
            return self._read_nested(field, field.kind)
        if field.kind.code:
            variable = self.source.name("v")
            self._run.append((variable, field.kind.code, field.kind.size))
            return variable
        return self._read_bytes(field)

    def _read_nested(self, field: Field, cls: type[object]) -> str:
        if not field.is_nullable_in(self._version):
            return self.read_struct(cls)
        source = self.source
        value, presence = source.name("v"), source.name("presence")
        self._run.append((presence, "b", 1))
        self._flush_run()
        source.add(f"{value} = None")
        source.open(f"if {presence} >= 0:" if field.tag is None else f"if {presence} > 0:")
        source.add(f"{value} = {self.read_struct(cls)}")
        source.close()
        return value

    def _read_bytes(self, field: Field) -> str:
        """Strings, bytes and records: a length, and as many bytes."""
        source = self.source
        is_string = field.kind is STRING
        length, surplus = self._read_length("h" if is_string else "i", field.name if is_string else "")
        value, end = source.name("v"), source.name("end")
        nullable = field.is_nullable_in(self._version)
        if nullable:
            source.open(f"if {length} == {surplus - 1}:")
            source.add(f"{value} = None")
            source.close()
            source.open("else:")
        source.add(f"{end} = position + {length} - {surplus}" if surplus else f"{end} = position + {length}")
        negative = "" if surplus and nullable else f"{length} < {surplus} or "
        error = f"beyond_frame({field.name!r}, {length} - {surplus}, size - position)"
        source.add(f"if {negative}{end} > size: raise {error}")
        if is_string:
            source.add(f"{value} = data[position:{end}].tobytes().decode()")
        elif field.kind is BYTES:
            source.add(f"{value} = bytes(data[position:{end}])")
        else:
            assert field.kind is RECORDS, field
            source.add(f"{value} = data[position:{end}]")
        source.add(f"position = {end}")
        if nullable:
            source.close()
        return value

    def _read_array(self, field: Field) -> str:
        source = self.source
        count, surplus = self._read_length("i")
        value = source.name("v")
        if surplus:
            source.add(f"{count} -= {surplus}")
        if field.is_nullable_in(self._version):
            source.open(f"if {count} == -1:")
            source.add(f"{value} = None")
            source.close()
            source.open("else:")
        least = least_element_bytes(field, self._version, self._flexible)
        source.open(f"if {count} < 0 or {count} * {least} > size - position:")
        source.add(f"raise beyond_frame({field.name!r}, {count}, size - position)")
        source.close()
        source.add(f"budget -= {count}")
        source.add(f"if budget < 0: raise too_many({field.name!r}, {count})")
        self._read_elements(field, count, value)
        if field.is_nullable_in(self._version):
            source.close()
        return value

    def _read_elements(self, field: Field, count: str, value: str) -> None:
        source = self.source
        kind = field.kind
        if isinstance(kind, Kind) and is_fixed(kind):
            code = f"f'>{{{count}}}{kind.code}'" if kind.size < 16 else f"'>' + '{kind.code}' * {count}"
            source.names["unpack_from"] = struct.unpack_from
            source.add(f"{value} = list(unpack_from({code}, data, position)) if {count} else []")
            source.add(f"position += {kind.size} * {count}")
            return
        source.add(f"{value} = []")
        source.open(f"for _ in range({count}):")
        element = self._read_field(field._replace(is_array=False, nullable=None))
        self._flush_run()
        source.add(f"{value}.append({element})")
        source.close()

    # ---- Lengths, and runs of fields of fixed size ----

    def _read_length(self, code: str, bounded: str = "") -> tuple[str, int]:
        """Emit the reading of a length; the variable that holds it, and by how much that is more than the length.

        `bounded` is the name of a string, whose length has a bound of its own (old layouts cannot state a greater one).
        """
        if self._flexible:
            return self._read_compact_length(bounded), 1
        length = self.source.name("n")
        self._run.append((length, code, 2 if code == "h" else 4))
        self._flush_run()
        return length, 0

    def _read_compact_length(self, bounded: str = "") -> str:
        source = self.source
        length = source.name("n")
        self._run.append((length, "B", 1))
        self._flush_run()
        if not bounded:
            source.add(f"if {length} > 127: {length}, position = read_long_uvarint(data, position, {length})")
            return length
        source.open(f"if {length} > 127:")
        source.add(f"{length}, position = read_long_uvarint(data, position, {length})")
        source.add(f"if {length} > {MAX_STRING_BYTES + 1}: raise too_long_to_read({bounded!r}, {length} - 1)")
        source.close()
        return length

    def _flush_run(self) -> None:
        """Emit one call of `struct` for the fixed fields so far."""
        if not self._run:
            return
        variables = "".join(f"{variable}, " for variable, _, _ in self._run)
        letters = "".join(code for _, code, _ in self._run)
        size = sum(size for _, _, size in self._run)
        if letters == "B":
            self.source.add(f"{self._run[0][0]} = data[position]")
        else:
            unpack = self.source.bind_struct("unpack_from", letters)
            self.source.add(f"{variables}= {unpack}(data, position)")
        self.source.add(f"position += {size}")
        self._run.clear()
