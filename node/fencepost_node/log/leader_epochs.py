"""Which leader epoch each offset was written under: the history by which two logs find where they part.

Theory of operation. The history is a list of (epoch, start offset), both rising. It follows from the batches alone: an
epoch begins at the first batch that carries it. An epoch without a batch is not in it, and needs not be: what it did not
write cannot differ. Two logs that both hold epoch e hold the same batches of it up to where the shorter e ends, since one
leader wrote them (KIP-101, KIP-279).

A log that starts above 0 also knows the epoch of the last batch before its start, though that batch is gone: retention keeps
the entry, and a snapshot carries it to a replica that starts over. So the *tip* of a log, (epoch of its last batch,
end offset), says for an empty log, too, which history it continues.

The file `leader-epoch-checkpoint` is text: a version, a count, one `epoch start_offset` a line, and the CRC-32C of all that
in hexadecimal: a digit that changes on the disk would make another history, by which two logs part at a wrong offset. It
is written before each snapshot, so it is right for all below the newest snapshot; what it says beyond is derived from the
batches.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import NamedTuple

from crc32c import crc32c

from fencepost_proto.protocol.errors import InvariantBroken

NO_EPOCH = -1
_VERSION = 1  # 0 had no CRC


class EpochStart(NamedTuple):
    epoch: int
    start_offset: int


class LeaderEpochs:
    """The history of one log. Entries rise in epoch and in start offset."""

    __slots__ = ("_entries",)

    def __init__(self, entries: tuple[EpochStart, ...] = ()) -> None:
        self._entries = entries

    def __repr__(self) -> str:
        return f"LeaderEpochs({self._entries!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LeaderEpochs) and self._entries == other._entries

    __hash__ = None  # type: ignore[assignment]

    @staticmethod
    def before(log_start_offset: int, epoch: int) -> LeaderEpochs:
        """The history of an empty log: `epoch` is that of the batch that ends at `log_start_offset`; -1: not known."""
        if epoch < 0 or log_start_offset <= 0:
            return LeaderEpochs()
        return LeaderEpochs((EpochStart(epoch, log_start_offset - 1),))

    @property
    def entries(self) -> tuple[EpochStart, ...]:
        return self._entries

    @property
    def last_epoch(self) -> int:
        """Of the last batch; -1 where there is none."""
        return self._entries[-1].epoch if self._entries else NO_EPOCH

    def copy(self) -> LeaderEpochs:
        return LeaderEpochs(self._entries)

    def record(self, epoch: int, base_offset: int) -> None:
        """A batch of `epoch` stands at `base_offset`, the log's end. Raises InvariantBroken for an older epoch."""
        last_epoch = self.last_epoch
        if epoch == last_epoch:
            return
        if epoch < last_epoch or epoch < 0:
            raise InvariantBroken(f"batch at offset {base_offset} has leader epoch {epoch} after {last_epoch}")
        self._entries = (*self._entries, EpochStart(epoch, base_offset))

    def epoch_before(self, offset: int) -> int:
        """Leader epoch of the batch that ends at `offset`; -1 where that is not known."""
        return next((entry.epoch for entry in reversed(self._entries) if entry.start_offset < offset), NO_EPOCH)

    def end_offset_for(self, epoch: int, log_end_offset: int) -> tuple[int, int]:
        """(the largest epoch <= `epoch` in this history, the offset where it ends); (-1, -1) where there is none."""
        end_offset = log_end_offset
        for entry in reversed(self._entries):
            if entry.epoch <= epoch:
                return entry.epoch, end_offset
            end_offset = entry.start_offset
        return NO_EPOCH, -1

    def epoch_at(self, offset: int) -> int:
        """The epoch of the batch at `offset`; -1 where the history does not reach down to it."""
        number = bisect_right(self._entries, offset, key=lambda entry: entry.start_offset)
        return self._entries[number - 1].epoch if number else NO_EPOCH

    def truncate_to(self, end_offset: int) -> None:
        """The log now ends at `end_offset`."""
        self._entries = tuple(entry for entry in self._entries if entry.start_offset < end_offset)

    def advance_to(self, log_start_offset: int) -> None:
        """The log now starts at `log_start_offset`: forget epochs that end below it.

        The epoch of the last batch that is gone stays: a log that is emptied, by retention or by a cut to its start, still
        knows under which epoch its end was written.
        """
        entries = self._entries
        while len(entries) > 1 and entries[1].start_offset < log_start_offset:
            entries = entries[1:]
        self._entries = entries

    def encode(self) -> bytes:
        lines = [str(_VERSION), str(len(self._entries))]
        lines += [f"{epoch} {start_offset}" for epoch, start_offset in self._entries]
        content = "".join(f"{line}\n" for line in lines).encode()
        return content + b"%08x\n" % crc32c(content)

    @staticmethod
    def decode(data: bytes) -> LeaderEpochs:
        """Raises ValueError where these are not the bytes of a checkpoint."""
        version, count, *lines = data.decode("ascii").splitlines()
        if int(version) == _VERSION:
            content, crc = data[:-9], data[-9:]
            if crc != b"%08x\n" % crc32c(content):
                raise ValueError(f"leader epoch checkpoint ends in {crc!r}, and its CRC is {crc32c(content):08x}")
            lines.pop()
        elif int(version) != 0:
            raise ValueError(f"leader epoch checkpoint has version {version}; this program knows {_VERSION}")
        if int(count) != len(lines):
            raise ValueError(f"leader epoch checkpoint with {len(lines)} lines, not {count}")
        entries = []
        for line in lines:
            epoch, start_offset = line.split()
            entries.append(EpochStart(int(epoch), int(start_offset)))
        if any(a.epoch >= b.epoch or a.start_offset >= b.start_offset for a, b in pairwise(entries)):
            raise ValueError(f"leader epoch checkpoint does not rise: {entries}")
        return LeaderEpochs(tuple(entries))
