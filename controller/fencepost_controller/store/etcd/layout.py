"""Keys and values in etcd. Pure: bytes from values, and back. Who writes what, and when: this package's docstring.

A log entry is a header and a `MetadataDelta`. The header has the version that the entry follows, with its lineage, so
that a reader knows whether the entry continues what it has. The delta is in the entry itself, or, where it is large,
in pieces of which the header has the number, the size and the CRC-32; so is an image.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass
from typing import NamedTuple

from fencepost_controller.store import StoreError
from fencepost_proto.protocol.lineage import UNKNOWN_LINEAGE

FORMAT = 1
MAX_INLINE_BYTES = 128 * 1024  # of a delta within its log entry: pages of the log stay small
PIECE_BYTES = 512 * 1024  # etcd refuses a request above 1.5 MB by default
MAX_PREFIX_LENGTH = 200
MAX_PIECES = 4_096  # of one image or delta: 2 GB

_HEADER = struct.Struct(">BqQIIQI")  # format, version before, its lineage, try, pieces, size, CRC-32


class Version(NamedTuple):
    """A metadata version and the lineage that committed it."""

    number: int = 0
    lineage_id: int = UNKNOWN_LINEAGE


@dataclass(frozen=True, slots=True)
class Leader:
    """Who is active, as the key `leader` says."""

    controller_id: int
    address: str  # host:port
    incarnation: str
    revision: int = 0  # of the key's creation
    lease_id: int = 0

    def encode(self) -> bytes:
        fields = {"controller": self.controller_id, "address": self.address, "incarnation": self.incarnation}
        return json.dumps(fields).encode()


def decode_leader(value: bytes, revision: int, lease_id: int) -> Leader:
    """Raises StoreError."""
    try:
        fields = json.loads(value)
        return Leader(int(fields["controller"]), str(fields["address"]), str(fields["incarnation"]), revision, lease_id)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"etcd: the key 'leader' holds {value[:80]!r}, which is no controller") from error


@dataclass(frozen=True, slots=True)
class Content:
    """What a log entry or the snapshot's key says: the data itself, or where its pieces are."""

    before: Version  # of a log entry: what it follows; of a snapshot: the image's own version
    attempt: int  # a random number: which attempt to write it this was
    pieces: int  # 0: `data` is all
    size_bytes: int
    crc: int
    data: bytes = b""

    def encode(self) -> bytes:
        header = (FORMAT, *self.before, self.attempt, self.pieces, self.size_bytes, self.crc)
        return _HEADER.pack(*header) + self.data

    def check(self, data: bytes, what: str) -> None:
        """Raises StoreError where these are not the bytes that were written."""
        if len(data) != self.size_bytes or zlib.crc32(data) != self.crc:
            raise StoreError(f"etcd: {what} has {len(data)} bytes of {self.size_bytes}, or a wrong checksum")


def content(before: Version, attempt: int, data: bytes, *, inline: bool) -> Content:
    """For `data`; with `inline`, within the entry itself if it is small enough."""
    within = inline and len(data) <= MAX_INLINE_BYTES
    count = 0 if within else max(1, -(-len(data) // PIECE_BYTES))
    if count > MAX_PIECES:
        raise StoreError(f"etcd: {len(data)} bytes are more than {MAX_PIECES} pieces of {PIECE_BYTES}")
    return Content(before, attempt, count, len(data), zlib.crc32(data), data if within else b"")


def decode_content(value: bytes, what: str) -> Content:
    """Raises StoreError naming `what` the value is of."""
    if len(value) < _HEADER.size:
        raise StoreError(f"etcd: {what} has {len(value)} bytes, and a header alone has {_HEADER.size}")
    found, number, lineage_id, attempt, pieces, size_bytes, crc = _HEADER.unpack_from(value)
    if found != FORMAT:
        raise StoreError(f"etcd: {what} has format {found}; this program knows {FORMAT}")
    if pieces > MAX_PIECES:
        raise StoreError(f"etcd: {what} has {pieces} pieces; at most {MAX_PIECES} are possible")
    decoded = Content(Version(number, lineage_id), attempt, pieces, size_bytes, crc, value[_HEADER.size :])
    if not pieces:
        decoded.check(decoded.data, what)
    return decoded


def split(data: bytes) -> list[bytes]:
    """Into pieces; of nothing, one that is empty."""
    return [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)] or [b""]


def encode_version(version: Version) -> bytes:
    return f"{version.number} {version.lineage_id:016x}".encode()


def decode_version(value: bytes) -> Version:
    """Raises StoreError."""
    try:
        number, lineage_id = value.decode().split(" ")
        return Version(int(number), int(lineage_id, 16))
    except ValueError as error:
        raise StoreError(f"etcd: the key 'version' holds {value[:80]!r}, which is no metadata version") from error


def decode_number(value: bytes) -> int:
    """Raises StoreError."""
    if not (value.isdigit() and len(value) < 20):
        raise StoreError(f"etcd: the key 'epoch-base' holds {value[:80]!r}, which is no number")
    return int(value)


@dataclass(frozen=True, slots=True)
class Keys:
    """Every key of one cluster; `prefix` ends with a slash."""

    prefix: bytes

    @property
    def leader(self) -> bytes:
        return self.prefix + b"leader"

    @property
    def version(self) -> bytes:
        return self.prefix + b"version"

    @property
    def snapshot(self) -> bytes:
        return self.prefix + b"snapshot"

    @property
    def epoch_base(self) -> bytes:
        return self.prefix + b"epoch-base"

    def log(self, version: int) -> bytes:
        return self.prefix + b"log/%020d" % version

    @property
    def log_end(self) -> bytes:
        return self.prefix + b"log0"  # '0' follows '/'

    def version_of(self, log_key: bytes) -> int | None:
        """None: it is no key of the log."""
        head, _, number = log_key.rpartition(b"/")
        return int(number) if head == self.prefix + b"log" and number.isdigit() else None

    @property
    def watched(self) -> tuple[bytes, bytes]:
        """From the first key to before the second: `leader` and the log, and nothing else."""
        return self.leader, self.log_end

    def pieces(self, kind: bytes, version: int, attempt: int) -> tuple[bytes, bytes]:
        """Of one image or delta: from the first key to before the second. `kind`: `image` or `parts`."""
        folder = self.prefix + kind + b"/%020d/%010d" % (version, attempt)
        return folder + b"/", folder + b"0"

    def piece(self, kind: bytes, version: int, attempt: int, index: int) -> bytes:
        return self.pieces(kind, version, attempt)[0] + b"%06d" % index

    def pieces_below(self, kind: bytes, version: int) -> tuple[bytes, bytes]:
        folder = self.prefix + kind + b"/"
        return folder, folder + b"%020d" % version
