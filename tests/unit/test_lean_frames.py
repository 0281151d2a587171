"""The frames of the lean carrier: bytes from anywhere, in whatever pieces, are read or refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencepost_proto.transport.lean import frames
from fencepost_proto.transport.lean.frames import EndOfCall, Frame, FrameReader, Hello, MalformedFrame, Start

NUMBERS = st.integers(0, 2**32 - 1)
KINDS = st.sampled_from([frames.MESSAGE, frames.PART, frames.START, frames.STATUS, frames.GOODBYE])
FRAMES = st.builds(Frame, KINDS, NUMBERS, st.binary(max_size=60))
KEYS = st.text("abc-_", min_size=1, max_size=20).filter(lambda key: not key.endswith("-bin"))
METADATA = st.lists(
    st.one_of(
        st.tuples(KEYS, st.text(max_size=20).filter(lambda text: text.isprintable())),
        st.tuples(KEYS.map(lambda key: key + "-bin"), st.binary(max_size=20)),
    ),
    max_size=5,
).map(tuple)


def read_all(data: bytes, cuts: list[int], most: int = 3) -> list[Frame]:
    """What a reader makes of the bytes that come in those pieces."""
    reader, found, position = FrameReader(), [], 0
    for cut in [*sorted({min(cut, len(data)) for cut in cuts}), len(data)]:
        reader.feed(data[position:cut])
        position = cut
        while taken := reader.take(most):
            found += taken
    return found


@given(st.lists(FRAMES, max_size=8), st.lists(st.integers(0, 400), max_size=6))
def test_frames_come_out_as_they_went_in_whatever_the_pieces(sent: list[Frame], cuts: list[int]) -> None:
    assert read_all(b"".join(frames.frame(*frame) for frame in sent), cuts) == sent


@given(st.lists(FRAMES, max_size=4), st.integers(0, 300))
def test_a_frame_that_is_cut_off_waits_and_holds_what_has_come(sent: list[Frame], size: int) -> None:
    data = b"".join(frames.frame(*frame) for frame in sent)[:size]
    reader = FrameReader()
    reader.feed(data)
    whole = reader.take(100)
    assert whole == sent[: len(whole)]
    assert reader.held_bytes == len(data) - sum(frames.HEADER_BYTES + len(frame.payload) for frame in whole)


def test_a_large_frame_that_comes_byte_by_byte_takes_little_more_than_its_bytes() -> None:
    sent = Frame(frames.MESSAGE, 1, bytes(range(256)) * 400)
    reader = FrameReader()
    for number in (data := frames.frame(*sent))[:-1]:
        reader.feed(bytes([number]))
        assert not reader.take(1)
    assert len(reader._pieces) <= len(data) // frames.SMALL_PIECE_BYTES + 1
    reader.feed(data[-1:])
    assert reader.take(2) == [sent]


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=4))
def test_any_bytes_are_frames_or_refused(data: bytes, cuts: list[int]) -> None:
    try:
        found = read_all(data, cuts)
    except MalformedFrame:
        return
    assert sum(frames.HEADER_BYTES + len(frame.payload) for frame in found) <= len(data)


@given(st.binary(max_size=120))
def test_any_payload_is_read_or_refused(payload: bytes) -> None:
    for read in (frames.read_hello, frames.read_start, frames.read_status, frames.read_window):
        try:
            read(payload)
        except MalformedFrame:
            continue


@pytest.mark.parametrize("kind", sorted(frames.MAX_PAYLOAD_BYTES))
def test_a_payload_above_the_bound_of_its_kind_is_refused_by_its_header_alone(kind: int) -> None:
    bound = frames.MAX_PAYLOAD_BYTES[kind]
    reader = FrameReader()
    reader.feed(frames.header(kind, 1, bound))
    assert len(reader.take(1)) == (0 if bound else 1)
    reader = FrameReader()
    reader.feed(frames.header(kind, 1, bound + 1))
    with pytest.raises(MalformedFrame, match=f"{bound + 1} bytes; at most {bound} are taken"):
        reader.take(1)


@pytest.mark.parametrize("kind", [0, 12, 255])
def test_a_kind_that_there_is_not_is_refused(kind: int) -> None:
    reader = FrameReader()
    reader.feed(frames.header(kind, 0, 0))
    with pytest.raises(MalformedFrame, match=f"of kind {kind}"):
        reader.take(1)


@given(st.text(min_size=1, max_size=60), st.none() | st.integers(0, frames.MAX_TIMEOUT_MS), METADATA)
def test_a_start_is_read_as_it_was_written(method: str, timeout_ms: int | None, metadata: frames.Metadata) -> None:
    said = Start(method, timeout_ms, metadata)
    (frame,) = read_all(frames.start(7, said), [])
    assert (frame.kind, frame.call, frames.read_start(frame.payload)) == (frames.START, 7, said)


@given(st.integers(0, 16), st.text(max_size=60), METADATA)
def test_a_status_is_read_as_it_was_written(code: int, details: str, metadata: frames.Metadata) -> None:
    said = EndOfCall(code, details, metadata)
    (frame,) = read_all(frames.status(7, said), [])
    assert (frame.kind, frames.read_status(frame.payload)) == (frames.STATUS, said)


@pytest.mark.parametrize("size", [0, 1, frames.PART_BYTES, frames.PART_BYTES + 1, 2 * frames.PART_BYTES + 5])
def test_a_large_message_goes_in_parts(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    found = read_all(b"".join(frames.message(3, data[:size])), [])
    assert [frame.kind for frame in found] == [frames.PART] * (len(found) - 1) + [frames.MESSAGE]
    assert b"".join(frame.payload for frame in found) == data[:size]


def test_metadata_and_details_have_bounds() -> None:
    with pytest.raises(ValueError, match="65 entries of metadata; at most 64 are sent"):
        frames.check_metadata([("key", "value")] * 65)
    with pytest.raises(ValueError, match="more than 8192 bytes"):
        frames.check_metadata([("key", "v" * 9_000)])
    with pytest.raises(ValueError, match="a method's name of 300 bytes; at most 256 are sent"):
        frames.start(1, Start("m" * 300, None, ()))
    (frame,) = read_all(frames.status(1, EndOfCall(5, "d" * 10_000)), [])
    assert frames.read_status(frame.payload).details == "d" * frames.MAX_DETAILS_BYTES


def test_a_hello_of_a_later_version_may_say_more() -> None:
    data = frames.hello(Hello(10, 20))
    assert data.startswith(frames.MAGIC)
    (frame,) = read_all(data[len(frames.MAGIC) :], [])
    assert frames.read_hello(frame.payload + b"more") == Hello(10, 20)
