"""A stream of bytes as frames, however the network cuts it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencepost_node.kafka.frames import LEAST_BYTES, FrameReader, NotAFrame

MAX = 1_000


def framed(*contents: bytes) -> bytes:
    return b"".join(len(content).to_bytes(4, "big") + content for content in contents)


@given(st.lists(st.binary(min_size=LEAST_BYTES, max_size=40), max_size=8), st.data())
def test_frames_come_out_as_they_went_in_whatever_the_pieces(contents: list[bytes], data: st.DataObject) -> None:
    stream, reader, found = framed(*contents), FrameReader(MAX), []
    position = 0
    while position < len(stream):
        size = data.draw(st.integers(1, max(1, min(60, len(stream) - position))))
        found += [bytes(frame) for frame in reader.feed(stream[position : position + size])]
        position += size
        assert reader.held_bytes == position - len(framed(*found))
    assert found == contents


def test_a_frame_of_the_largest_size_is_taken() -> None:
    assert len(FrameReader(MAX).feed(framed(bytes(MAX)))[0]) == MAX


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (bytes.fromhex("1603010200010001"), "TLS"),
        (b"GET / HTTP/1.1\r\n", "HTTP"),
        (b"PRI * HTTP/2.0\r\n", "gRPC"),
        (b"\xff\xff\xff\xff", "frame of -1 bytes"),
        (b"\x00\x00\x00\x00", "frame of 0 bytes"),
        (b"\x00\x00\x00\x07", "frame of 7 bytes"),
        ((MAX + 1).to_bytes(4, "big"), "at most 1000 are taken"),
        (b"\x7f\xff\xff\xff", "at most 1000 are taken"),
    ],
)
def test_what_cannot_be_a_frame_is_told_by_what_it_looks_like(start: bytes, words: str) -> None:
    with pytest.raises(NotAFrame, match=words):
        FrameReader(MAX).feed(start)
    reader = FrameReader(MAX)
    assert reader.feed(framed(bytes(8)) + start[:2])[0] == bytes(8)
    with pytest.raises(NotAFrame, match=words):
        reader.feed(start[2:])
