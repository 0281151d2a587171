"""Compiles a message's writer.

A writer returns the message as byte chunks: everything but record batches is joined, every batch that is not empty is
a chunk of its own and never copied. Values that a field cannot hold raise ValueError, TypeError, AttributeError or
struct.error; the codec names message and version.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable
from typing import cast

from fencepost_proto.kafka.schema import primitives
from fencepost_proto.kafka.schema.compiling import Source, element_of, is_fixed
from fencepost_proto.kafka.schema.fields import MAX_STRING_BYTES, RECORDS, STRING, Buffer, Field, Kind, fields_of

_NO_TAGGED_FIELDS = b"\0"
_SHORT_ARRAYS = 16

Writer = Callable[[object], list[Buffer]]


def compile_writer(cls: type[object], version: int, flexible: bool) -> Writer:
    """The writer of one message in one version."""
    builder = _WriterBuilder(version, flexible)
    source = builder.source
    source.add("chunks = []")
    source.add("parts = []")
    source.add("add = parts.append")
    builder.write_struct(cls, "message")
    builder.flush_run()
    source.add("chunks.append(join(parts))")
    source.add("return chunks")
    return cast(Writer, source.compile(f"writer of {cls.__name__} v{version}", "message"))


@functools.cache
def _short_arrays(code: str) -> list[Callable[..., bytes]]:
    """By number of elements: packs a compact array of them, its length first."""
    return [struct.Struct(">B" + code * count).pack for count in range(_SHORT_ARRAYS)]


class _WriterBuilder:
    def __init__(self, version: int, flexible: bool) -> None:
        self.source = Source()
        self._version = version
        self._flexible = flexible
        self._add = "add"  # where parts go: of the message, or of a tagged field
        self._run: list[tuple[str, str]] = []  # struct letters and expression of fixed fields not written yet
        self.source.names.update(
            join=b"".join,
            pack=struct.pack,
            uvarint=primitives.uvarint,
            UVARINTS=primitives.SHORT_UVARINTS,
            too_long_to_write=primitives.too_long_to_write,
        )

    # ---- Structs ----

    def write_struct(self, cls: type[object], expression: str) -> None:
        """Emit the writing of a struct. What is of fixed size at its end stays in the run."""
        tagged: list[Field] = []
        for field in fields_of(cls):
            if not field.is_in(self._version):
                continue
            if field.tag is not None:
                tagged.append(field)
            else:
                self._write_field(field, f"{expression}.{field.name}")
        if not self._flexible:
            return
        if tagged:
            self._write_tagged_fields(sorted(tagged, key=lambda field: field.tag or 0), expression)
        else:
            self._run.append(("B", "0"))

    def _write_tagged_fields(self, tagged: list[Field], expression: str) -> None:
        """Those that differ from their defaults, each with its tag and length, after their number."""
        source = self.source
        self.flush_run()
        outer, fields = self._add, source.name("tagged")
        source.add(f"{fields} = []")
        for field in tagged:
            value, inner = source.name("v"), source.name("inner")
            source.add(f"{value} = {expression}.{field.name}")
            given = f"{value} is not None and " if field.default is None else ""
            source.open(f"if {given}{value} != {self._default(field)}:")
            source.add(f"{inner} = []")
            source.add(f"{inner}_add = {inner}.append")
            self._add = f"{inner}_add"
            self._write_field(field, value)
            self.flush_run()
            self._add = outer
            source.add(f"{inner} = join({inner})")
            source.add(f"{fields} += ({primitives.uvarint(field.tag or 0)!r}, uvarint(len({inner})), {inner})")
            source.close()
        source.open(f"if {fields}:")
        source.add(f"{outer}(uvarint(len({fields}) // 3))")
        source.add(f"{outer}(join({fields}))")
        source.close()
        source.add(f"else: {outer}({_NO_TAGGED_FIELDS!r})")

    def _default(self, field: Field) -> str:
        if field.is_array:
            return "[]"
        default = field.kind() if isinstance(field.kind, type) else field.default
        return self.source.bind("default", default) if isinstance(field.kind, type) else repr(default)

    # ---- Fields ----

    def _write_field(self, field: Field, expression: str) -> None:
        if field.is_array:
            self._write_array(field, expression)
        elif not isinstance(field.kind, Kind):
            self._write_nested(field, field.kind, expression)
        elif field.kind.code:
            self._run.append((field.kind.code, expression))
        else:
            self._write_bytes(field, expression)

    def _write_nested(self, field: Field, cls: type[object], expression: str) -> None:
        if not field.is_nullable_in(self._version):
            self.write_struct(cls, expression)
            return
        source = self.source
        value = source.name("v")
        self.flush_run()
        source.add(f"{value} = {expression}")
        source.open(f"if {value} is None:")
        self._run.append(("b", "-1" if field.tag is None else "0"))  # Kafka writes null so in the one, so in the other
        self.flush_run()
        source.close()
        source.open("else:")
        self._run.append(("b", "1"))
        self.write_struct(cls, value)
        self.flush_run()
        source.close()

    def _write_bytes(self, field: Field, expression: str) -> None:
        source = self.source
        value, length = source.name("v"), source.name("n")
        is_string = field.kind is STRING
        nullable = field.is_nullable_in(self._version)
        source.add(f"{value} = {expression}")
        if nullable:
            self.flush_run()
            source.open(f"if {value} is None:")
            self._write_null("h" if is_string else "i")
            source.close()
            source.open("else:")
        if is_string:
            source.add(f"{value} = {value}.encode()")
        source.add(f"{length} = len({value})")
        if is_string:
            source.add(f"if {length} > {MAX_STRING_BYTES}: raise too_long_to_write({field.name!r}, {length})")
        self._write_length("h" if is_string else "i", length)
        if field.kind is RECORDS:
            source.open(f"if {length}:")
            source.add("chunks.append(join(parts))")
            source.add("parts.clear()")
            source.add(f"chunks.append({value})")
            source.close()
        else:
            source.add(f"{self._add}({value})")
        if nullable:
            source.close()

    def _write_array(self, field: Field, expression: str) -> None:
        source = self.source
        value, count = source.name("v"), source.name("n")
        nullable = field.is_nullable_in(self._version)
        source.add(f"{value} = {expression}")
        if nullable:
            self.flush_run()
            source.open(f"if {value} is None:")
            self._write_null("i")
            source.close()
            source.open("else:")
        source.add(f"{count} = len({value})")
        if isinstance(field.kind, Kind) and is_fixed(field.kind):
            self._write_fixed_elements(field.kind, value, count)
        else:
            self._write_length("i", count)
            element = source.name("e")
            source.open(f"for {element} in {value}:")
            self._write_field(element_of(field), element)
            self.flush_run()
            source.close()
        if nullable:
            source.close()

    def _write_fixed_elements(self, kind: Kind[object], value: str, count: str) -> None:
        """The number and the elements at once: arrays of replicas are short and many."""
        source = self.source
        code = f"f'>{{{count}}}{kind.code}'" if kind.size < 16 else f"'>' + '16s' * {count}"
        if not self._flexible:
            self._write_length("i", count)
            source.add(f"if {count}: {self._add}(pack({code}, *{value}))")
            return
        self.flush_run()
        short = source.bind("short_arrays", _short_arrays(kind.code))
        source.open(f"if {count} < {_SHORT_ARRAYS}:")
        source.add(f"{self._add}({short}[{count}]({count} + 1, *{value}))")
        source.close()
        source.open("else:")
        self._write_length("i", count)
        source.add(f"{self._add}(pack({code}, *{value}))")
        source.close()

    # ---- Lengths, and runs of fields of fixed size ----

    def _write_null(self, code: str) -> None:
        self._run.append(("B", "0") if self._flexible else (code, "-1"))
        self.flush_run()

    def _write_length(self, code: str, length: str) -> None:
        """The length that comes before bytes or elements, together with the fixed fields before it."""
        if self._flexible:
            self.flush_run()
            self.source.add(f"{self._add}(UVARINTS[{length} + 1] if {length} < 127 else uvarint({length} + 1))")
        else:
            self._run.append((code, length))
            self.flush_run()

    def flush_run(self) -> None:
        """Emit one call of `struct` for the fixed fields so far."""
        if not self._run:
            return
        letters = "".join(code for code, _ in self._run)
        if all(expression.lstrip("-").isdigit() for _, expression in self._run):
            value = struct.pack(f">{letters}", *(int(expression) for _, expression in self._run))
            self.source.add(f"{self._add}({value!r})")
        else:
            pack = self.source.bind_struct("pack", letters)
            self.source.add(f"{self._add}({pack}({', '.join(expression for _, expression in self._run)}))")
        self._run.clear()
