"""Records inside batches: whatever bytes a producer has sent, a reader gets records or CorruptMessage, in bounded memory."""

from __future__ import annotations

import gzip
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import cramjam
import pytest

from fencepost.producing.accumulator import size_of_headers
from fencepost_proto.protocol.decompression import DecompressedTooLarge, decompress
from fencepost_proto.protocol.errors import CorruptMessage, InvalidRecord
from fencepost_proto.protocol.record_batch import (
    HEADER_BYTES,
    MAX_RECORDS_RATIO,
    MIN_RECORD_BYTES,
    check_produced,
)
from fencepost_proto.protocol.records import MAX_DECOMPRESSED_BYTES, BatchBuilder, Compression, Headers, read_records
from tests.unit.batches import batch, with_field

COMPRESSED = [codec for codec in Compression if codec is not Compression.NONE]
BOMB_BYTES = 100_000_000


def holding(content: bytes, codec: Compression, count: int = 3) -> bytes:
    """A batch whose header and CRC are right, and whose content is whatever is given."""
    data = bytearray(batch(count)[:HEADER_BYTES] + content)
    struct.pack_into(">i", data, 8, len(data) - 12)
    return with_field(bytes(data), 21, ">h", int(codec))


def claiming(count: int, content: bytes, codec: Compression = Compression.NONE) -> bytes:
    changed = with_field(holding(content, codec), 23, ">i", count - 1)
    return with_field(changed, 57, ">i", count)


def xerial(blocks: list[bytes]) -> bytes:
    return b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1) + b"".join(struct.pack(">i", len(b)) + b for b in blocks)


def zeros(codec: Compression, size: int) -> bytes:
    """So many zeros, compressed in pieces: the test itself does not hold them."""
    piece = bytes(1_000_000)
    match codec:
        case Compression.GZIP:
            packer = zlib.compressobj(1, zlib.DEFLATED, 31)
            return b"".join(packer.compress(piece) for _ in range(size // len(piece))) + packer.flush()
        case Compression.SNAPPY:
            return xerial([bytes(cramjam.snappy.compress_raw(piece))] * (size // len(piece)))
        case Compression.LZ4:
            return bytes(cramjam.lz4.compress(piece)) * (size // len(piece))
        case _:
            return bytes(cramjam.zstd.compress(piece)) * (size // len(piece))


CODECS: list[tuple[Compression, Callable[[bytes], bytes]]] = [
    (Compression.GZIP, gzip.compress),
    (Compression.SNAPPY, lambda data: bytes(cramjam.snappy.compress_raw(data))),
    (Compression.SNAPPY, lambda data: xerial([bytes(cramjam.snappy.compress_raw(data[i : i + 999]))
                                              for i in range(0, len(data), 999)])),
    (Compression.LZ4, lambda data: bytes(cramjam.lz4.compress(data))),
    (Compression.ZSTD, lambda data: bytes(cramjam.zstd.compress(data))),
]  # fmt: skip


@pytest.mark.parametrize(("codec", "compress"), CODECS)
def test_content_opens_up_to_its_limit_and_not_a_byte_further(
    codec: Compression, compress: Callable[[bytes], bytes]
) -> None:
    for content in (b"x", random.Random(1).randbytes(5_000), b"ab" * 500_000):
        packed = memoryview(compress(content))
        assert decompress(codec, packed, len(content), behind=b"header") == b"header" + content
        assert decompress(codec, packed, 2 * len(content)) == content
        with pytest.raises(DecompressedTooLarge, match=f"the limit of {len(content) - 1}"):
            decompress(codec, packed, len(content) - 1)


def test_gzip_members_and_the_zeros_behind_them_are_read_as_gzip_does() -> None:
    packed = gzip.compress(b"one") + gzip.compress(b"") + gzip.compress(b"two") + bytes(7)
    assert decompress(Compression.GZIP, memoryview(packed), 6) == b"onetwo"
    with pytest.raises(DecompressedTooLarge):
        decompress(Compression.GZIP, memoryview(packed), 5)


def test_gzip_members_longer_than_a_piece_are_read_whole() -> None:
    """Of the content and of what it opens to; a member may end in the middle of one, and zeros go on in the next."""
    parts = [random.Random(1).randbytes(600_000), b"ab" * 500_000, b"c", random.Random(2).randbytes(300_000)]
    packed = b"".join(gzip.compress(part, 1) for part in parts) + bytes(300_000)
    assert decompress(Compression.GZIP, memoryview(packed), 3_000_000, behind=b"h") == b"h" + b"".join(parts)
    for end in (0, 5, 400_000, len(gzip.compress(parts[0], 1)) - 1):
        with pytest.raises(CorruptMessage, match="end within a member"):
            decompress(Compression.GZIP, memoryview(packed)[:end], 3_000_000)


@pytest.mark.parametrize("codec", COMPRESSED)
def test_what_opens_to_much_takes_no_more_than_its_limit_of_memory(codec: Compression) -> None:
    bomb = memoryview(zeros(codec, BOMB_BYTES))
    tracemalloc.start()
    try:
        with pytest.raises(DecompressedTooLarge):
            decompress(codec, bomb, MAX_DECOMPRESSED_BYTES)
        assert tracemalloc.get_traced_memory()[1] < 1.3 * MAX_DECOMPRESSED_BYTES + len(bomb)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("codec", COMPRESSED)
def test_a_bomb_is_not_opened(codec: Compression) -> None:
    bomb = holding(zeros(codec, BOMB_BYTES), codec)
    with pytest.raises(DecompressedTooLarge, match=f"more than the limit of {MAX_DECOMPRESSED_BYTES}"):
        next(read_records(bomb))
    with pytest.raises(DecompressedTooLarge, match="more than the limit of 1000"):
        next(read_records(bomb, 1_000))


@pytest.mark.parametrize("codec", list(Compression))
@pytest.mark.parametrize("damage", ["garbage", "cut", "empty", "flipped", "sevens"])
def test_what_is_no_content_is_a_corrupt_message_and_nothing_else(codec: Compression, damage: str) -> None:
    whole = batch(3, value=bytes(range(100)), compression=codec)[HEADER_BYTES:]
    flipped = bytearray(whole)
    flipped[len(flipped) // 2] ^= 0x40
    content = {
        "garbage": b"\x01\x02garbage" * 5,
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "flipped": bytes(flipped),
        "sevens": b"\x07" * 100_000,
    }[damage]
    try:
        values = [record.value for record in read_records(holding(content, codec))]
    except CorruptMessage:
        return
    assert damage == "flipped"  # within a value of an uncompressed batch: its CRC is made right again
    assert len(values) == 3


@pytest.mark.parametrize("codec", list(Compression))
def test_random_damage_never_raises_anything_else(codec: Compression) -> None:
    chance = random.Random(f"damage {codec}")
    whole = batch(3, value=bytes(range(100)), compression=codec)[HEADER_BYTES:]
    refused = 0
    for _ in range(700):
        content = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(content) + 1)
            content[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        try:
            list(read_records(holding(bytes(content), codec)))
        except CorruptMessage:
            refused += 1
    assert refused > 300


@pytest.mark.parametrize("codec", list(Compression))
def test_a_batch_of_more_records_than_its_bytes_can_hold_is_corrupt(codec: Compression) -> None:
    whole = batch(3, compression=codec)[HEADER_BYTES:]
    opened = batch(3)[HEADER_BYTES:]
    with pytest.raises(CorruptMessage, match=f"2147483647 records, in {len(opened)} bytes"):
        next(read_records(claiming(2**31 - 1, whole, codec)))


def test_a_leader_refuses_a_count_that_the_bytes_cannot_hold() -> None:
    with pytest.raises(InvalidRecord, match="record count 2147483647: more than 0 bytes"):
        check_produced(claiming(2**31 - 1, b""))
    with pytest.raises(InvalidRecord, match="record count 1: more than 0 bytes"):
        check_produced(claiming(1, b"", Compression.ZSTD))
    most = 10 * MAX_RECORDS_RATIO // MIN_RECORD_BYTES
    check_produced(claiming(most, bytes(10), Compression.ZSTD))
    with pytest.raises(InvalidRecord, match=f"record count {most + 1}: more than 10 bytes"):
        check_produced(claiming(most + 1, bytes(10), Compression.ZSTD))


@pytest.mark.parametrize("codec", list(Compression))
@pytest.mark.parametrize("count", [1, 2, 20_000])
def test_the_smallest_records_there_are_pass(codec: Compression, count: int) -> None:
    builder = BatchBuilder(codec, 1 << 30)
    for _ in range(count):
        assert builder.append(0, None, None, [])
    built = builder.build(-1, -1, -1)
    assert check_produced(built).record_count == count
    assert sum(1 for _ in read_records(built)) == count


@pytest.mark.parametrize("name", ["", "ascii", "ключ" * 40, "字" * 5_000, "🚀" * 3])
@pytest.mark.parametrize("value", [None, b"", b"v", b"v" * 63, b"v" * 64, b"v" * 9_000])
def test_headers_are_counted_as_they_are_sent(name: str, value: bytes | None) -> None:
    def size(headers: Headers) -> int:
        builder = BatchBuilder(Compression.NONE, 1 << 30)
        builder.append(0, None, bytes(100_000), headers)  # so long that its length's own size does not change
        return builder.size_bytes()

    assert size_of_headers([(name, value)] * 2) == size([(name, value)] * 2) - size([])
