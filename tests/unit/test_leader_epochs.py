"""The leader-epoch history, and that two logs find the offset where they part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencepost_node.log.leader_epochs import EpochStart, LeaderEpochs
from fencepost_proto.protocol.errors import InvariantBroken


def history(*epochs: int) -> LeaderEpochs:
    """Of a log whose record at offset n was written under epochs[n]."""
    found = LeaderEpochs()
    for offset, epoch in enumerate(epochs):
        found.record(epoch, offset)
    return found


def test_an_epoch_ends_where_the_next_begins_and_the_last_at_the_logs_end() -> None:
    epochs = history(1, 1, 3, 3, 3, 6)
    assert epochs.entries == (EpochStart(1, 0), EpochStart(3, 2), EpochStart(6, 5))
    assert epochs.last_epoch == 6
    told = {epoch: epochs.end_offset_for(epoch, 9) for epoch in range(8)}
    assert told == {0: (-1, -1), 1: (1, 2), 2: (1, 2), 3: (3, 5), 4: (3, 5), 5: (3, 5), 6: (6, 9), 7: (6, 9)}


def test_an_empty_history_knows_no_epoch() -> None:
    assert LeaderEpochs().last_epoch == -1
    assert LeaderEpochs().end_offset_for(5, 7) == (-1, -1)


def test_an_older_epoch_breaks_an_invariant() -> None:
    with pytest.raises(InvariantBroken, match="leader epoch 2 after 3"):
        history(1, 3).record(2, 2)


def test_a_cut_forgets_epochs_that_begin_at_or_after_it() -> None:
    for end, last in ((6, 6), (5, 3), (3, 3), (2, 1), (1, 1), (0, -1)):
        epochs = history(1, 1, 3, 3, 3, 6)
        epochs.truncate_to(end)
        assert epochs.last_epoch == last


def test_a_start_that_moves_on_forgets_epochs_that_ended_below_it_but_not_that_of_the_batch_before_it() -> None:
    for start, first in ((0, 1), (1, 1), (2, 1), (3, 3), (5, 3), (6, 6), (99, 6)):
        epochs = history(1, 1, 3, 3, 3, 6)
        epochs.advance_to(start)
        assert epochs.entries[0].epoch == first
        assert epochs.last_epoch == 6


def test_a_copy_does_not_change_with_its_original() -> None:
    epochs = history(1)
    copied = epochs.copy()
    epochs.record(2, 1)
    assert copied == history(1)


@given(st.lists(st.integers(0, 5), max_size=12).map(sorted))
def test_a_checkpoint_holds_the_history(epochs: list[int]) -> None:
    assert LeaderEpochs.decode(history(*epochs).encode()) == history(*epochs)


def test_a_checkpoint_is_readable_text() -> None:
    assert history(1, 1, 3).encode() == b"1\n2\n1 0\n3 2\n5fa8ed7c\n"


def test_a_checkpoint_of_an_earlier_version_is_read() -> None:
    assert LeaderEpochs.decode(b"0\n2\n1 0\n3 2\n") == history(1, 1, 3)


@pytest.mark.parametrize("bits", [1 << bit for bit in range(8)] + [0xFF])
def test_a_checkpoint_in_which_a_byte_has_changed_is_none(bits: int) -> None:
    data = history(1, 1, 3, 7, 7, 12).encode()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= bits
        with pytest.raises(ValueError, match=r".+"):
            LeaderEpochs.decode(bytes(changed))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"0\n",
        b"1\n0\n",
        b"0\n2\n1 0\n",
        b"0\n1\n1\n",
        b"0\n1\nx y\n",
        b"0\n2\n2 0\n1 5\n",
        b"0\n2\n1 5\n2 5\n",
        b"2\n0\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        LeaderEpochs.decode(data)


@given(common=st.lists(st.integers(0, 3), max_size=5), first=st.lists(st.integers(0, 3), max_size=5), data=st.data())
def test_two_logs_agree_below_the_offset_that_their_histories_name(
    common: list[int], first: list[int], data: st.DataObject
) -> None:
    """KIP-279: asking for one's last epoch, then for the epoch answered, ends at the last offset where both agree.

    Each epoch has one leader, so after the common part the two logs never write under the same epoch.
    """
    common = sorted(common)
    base = common[-1] if common else 0
    follower = common + [base + 1 + 2 * epoch for epoch in sorted(first)]
    second = data.draw(st.lists(st.integers(0, 3), max_size=5))
    leader = common + [base + 2 + 2 * epoch for epoch in sorted(second)]
    for _ in range(20):
        own, theirs = history(*follower), history(*leader)
        if own.last_epoch < 0:
            break
        epoch, end = theirs.end_offset_for(own.last_epoch, len(leader))
        if epoch == own.last_epoch and end >= len(follower):
            break
        own_epoch, own_end = own.end_offset_for(epoch, len(follower))
        follower = follower[: min(end, own_end) if epoch >= 0 and own_epoch >= 0 else 0]
    assert follower == leader[: len(follower)]
    assert len(follower) >= len(common)
