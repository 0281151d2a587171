"""Opens a batch's compressed records without ever holding more than a bound of them.

The compressed bytes come from any producer: a batch of a few KB may claim, and be, gigabytes. So nothing here asks a codec
for "all of it". Every codec writes into a buffer of limited size and stops where that is full; the buffer begins at what
the content says of its own length, or at a guess, and grows up to the limit.

Whatever a codec raises becomes CorruptMessage: no exception of another library reaches the application.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from enum import IntEnum

import cramjam

from fencepost_proto.protocol.errors import CorruptMessage

GUESSED_RATIO = 4  # of the first buffer where the content does not say its length, and of each larger one
MIN_BUFFER_BYTES = 64 * 1024
_GZIP_OR_ZLIB_WINDOW = 31  # zlib's way to say: a gzip header, the largest window
_GZIP_PIECE_BYTES = 256 * 1024  # fed to zlib at a time, and taken from it
_XERIAL_MAGIC = b"\x82SNAPPY\x00"
_XERIAL_HEADER_BYTES = 16
_BLOCK_LENGTH = struct.Struct(">i")
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_BUFFER_FULL = "failed to write whole buffer"  # what cramjam says where the output does not fit
_CODEC_ERRORS = (cramjam.DecompressionError, zlib.error, ValueError, OverflowError, MemoryError, OSError, EOFError)


class Compression(IntEnum):
    """Codec numbers of the batch's attributes."""

    NONE = 0
    GZIP = 1
    SNAPPY = 2
    LZ4 = 3
    ZSTD = 4


class DecompressedTooLarge(CorruptMessage):
    """The content is larger than the reader allows."""

    def __init__(self, compressed_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"{compressed_bytes} compressed bytes open to more than the limit of {limit_bytes}")


def decompress(codec: Compression, content: memoryview, limit_bytes: int, *, behind: bytes = b"") -> bytearray:
    """`behind`, followed by what `content` opens to, which is at most `limit_bytes`.

    Raises DecompressedTooLarge, and CorruptMessage for what the codec cannot read.
    """
    try:
        if codec is Compression.GZIP:
            return _gzip(content, limit_bytes, behind)
        if codec is Compression.SNAPPY:
            return _snappy(content, limit_bytes, behind)
        if codec is Compression.LZ4:
            guess = len(content) * GUESSED_RATIO
            return _growing(cramjam.lz4.decompress_into, content, guess, limit_bytes, behind)
        if codec is Compression.ZSTD:
            guess = _zstd_content_bytes(content) or len(content) * GUESSED_RATIO
            return _growing(cramjam.zstd.decompress_into, content, guess, limit_bytes, behind)
    except _CODEC_ERRORS as error:
        raise CorruptMessage(f"{len(content)} bytes are not {codec.name.lower()} content: {error}") from error
    return bytearray(behind + content)


def _growing(
    into: Callable[[memoryview, memoryview], int], content: memoryview, guess: int, limit: int, behind: bytes
) -> bytearray:
    """Decompress into a buffer of `guess` bytes, and again into larger ones while the content does not fit."""
    room = min(max(guess, MIN_BUFFER_BYTES), limit)
    while True:
        out = bytearray(len(behind) + room)
        out[: len(behind)] = behind
        try:
            with memoryview(out)[len(behind) :] as free:
                size = into(content, free)
        except cramjam.DecompressionError as error:
            if _BUFFER_FULL not in str(error):
                raise
        else:
            del out[len(behind) + size :]
            return out
        del out  # before a larger one is made, and not kept alive by an error
        if room >= limit:
            raise DecompressedTooLarge(len(content), limit)
        room = min(room * GUESSED_RATIO, limit)


def _zstd_content_bytes(content: memoryview) -> int:
    """What the first frame's header says of its content's size; 0: nothing (RFC 8878, section 3.1.1.1)."""
    if len(content) < 6 or content[:4] != _ZSTD_MAGIC:
        return 0
    descriptor = content[4]
    flag, single_segment = descriptor >> 6, bool(descriptor & 0x20)
    size = (1 if single_segment else 0, 2, 4, 8)[flag]
    at = 5 + (0 if single_segment else 1) + (0, 1, 2, 4)[descriptor & 3]
    value = int.from_bytes(content[at : at + size], "little")
    return value + 256 if flag == 1 else value


def _gzip(content: memoryview, limit: int, behind: bytes) -> bytearray:
    """All members, one behind the other; zeros may follow the last one, as gzip allows.

    A piece at a time: asked for all of it, zlib makes its answer out of blocks, and so holds it twice beside `out`.
    """
    out = bytearray(behind)
    most = limit + len(behind)
    member = zlib.decompressobj(_GZIP_OR_ZLIB_WINDOW)
    rest, at = b"", 0
    while True:
        if not rest and at < len(content):
            rest, at = bytes(content[at : at + _GZIP_PIECE_BYTES]), at + _GZIP_PIECE_BYTES
        if member.eof:
            rest = rest.lstrip(b"\0")
            if not rest:
                if at >= len(content):
                    return out
                continue
            member = zlib.decompressobj(_GZIP_OR_ZLIB_WINDOW)
        piece = member.decompress(rest, min(_GZIP_PIECE_BYTES, most - len(out) + 1))
        out += piece
        if len(out) > most:
            raise DecompressedTooLarge(len(content), limit)
        if not (rest or piece or member.eof):
            raise CorruptMessage(f"{len(content)} bytes of gzip content end within a member")
        rest = member.unused_data if member.eof else member.unconsumed_tail


def _snappy(content: memoryview, limit: int, behind: bytes) -> bytearray:
    """Raw snappy, or blocks of it in the frame that the xerial library writes (as Java's producers do)."""
    if content[: len(_XERIAL_MAGIC)] != _XERIAL_MAGIC:
        return _snappy_blocks([content], len(content), limit, behind)
    blocks = []
    at = _XERIAL_HEADER_BYTES
    while at < len(content):
        length = _BLOCK_LENGTH.unpack(content[at : at + 4])[0] if at + 4 <= len(content) else -1
        at += 4
        if length <= 0 or at + length > len(content):
            raise CorruptMessage(f"a snappy block of {length} bytes at byte {at}; the content has {len(content)}")
        blocks.append(content[at : at + length])
        at += length
    return _snappy_blocks(blocks, len(content), limit, behind)


def _snappy_blocks(blocks: list[memoryview], compressed_bytes: int, limit: int, behind: bytes) -> bytearray:
    """Each block says its length in front: together they are known before anything is opened."""
    sizes = [cramjam.snappy.decompress_raw_len(block) for block in blocks]
    if sum(sizes) > limit:
        raise DecompressedTooLarge(compressed_bytes, limit)
    out = bytearray(len(behind) + sum(sizes))
    out[: len(behind)] = behind
    at = len(behind)
    with memoryview(out) as whole:
        for block, size in zip(blocks, sizes, strict=True):
            written = cramjam.snappy.decompress_raw_into(block, whole[at : at + size])
            if written != size:
                raise CorruptMessage(f"a snappy block opens to {written} bytes, and says {size}")
            at += size
    return out
