"""What is on the disks, read without a line of the broker's own code but the batch header's layout.

A `LogView` follows the segment files of one replica as they grow and are cut. Views never ask the process that owns
the files: they see its page cache, dead or alive, faults or none.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from typing import NamedTuple

from fencepost_proto.protocol.errors import FencepostError
from fencepost_proto.protocol.record_batch import BatchHeader, add_sequence, check_batch
from tests.simulation.disk import FileNode, FolderNode, SimDisk

REMEMBERED_BATCHES = 5


class Batch(NamedTuple):
    """One batch, as far as it matters. Two batches are the same bytes exactly if these are equal (the CRC covers the
    rest; offset and epoch are outside of it)."""

    base_offset: int
    end_offset: int
    leader_epoch: int
    size_bytes: int
    crc: int
    producer_id: int
    producer_epoch: int
    base_sequence: int
    record_count: int

    @staticmethod
    def of(header: BatchHeader) -> Batch:
        return Batch(
            header.base_offset,
            header.end_offset,
            header.leader_epoch,
            header.size_bytes,
            header.crc,
            header.producer_id,
            header.producer_epoch,
            header.base_sequence,
            header.record_count,
        )

    @property
    def last_sequence(self) -> int:
        return add_sequence(self.base_sequence, self.record_count - 1)

    def __str__(self) -> str:
        return (
            f"[{self.base_offset}..{self.end_offset - 1} leader epoch {self.leader_epoch}, producer "
            f"{self.producer_id}/{self.producer_epoch} sequence {self.base_sequence}+{self.record_count}, "
            f"crc {self.crc:08x}]"
        )


class LogView:
    """The batches of one replica's log, oldest first. `refresh` before use.

    A folder that another topic of the same name left behind is not this log's.
    """

    def __init__(
        self, disk: SimDisk, folder: str, topic_id: str, on_batch: Callable[[Batch], None] = lambda _: None
    ) -> None:
        self.disk = disk
        self.folder = folder
        self.topic_id = topic_id
        self.batches: list[Batch] = []
        self.start_offset = 0
        self.before: Batch | None = None  # the one that ended where the log starts, where it was seen
        self.rebuilds = 0
        self.damage = ""  # why the last bytes are no batch; empty: they are
        self._on_batch = on_batch
        self._folder: FileNode | FolderNode | None = None
        self._version = -1
        self._read: list[tuple[str, FileNode, int, int]] = []  # (name, file, cuts, bytes read) of each segment

    @property
    def end_offset(self) -> int:
        return self.batches[-1].end_offset if self.batches else self.start_offset

    def refresh(self) -> LogView:
        """Take what has changed on the disk. Only the newest segment changes without a change of the folder's entries."""
        folder = self.disk.find(self.folder)
        if folder is self._folder and isinstance(folder, FolderNode) and folder.version == self._version and self._read:
            name, node, cuts, done = self._read[-1]
            if node.cuts == cuts:
                if done < len(node.content):
                    self._read[-1] = (name, node, cuts, self._parse(node.content, done))
                return self
        self._refresh_all(folder)
        return self

    def _refresh_all(self, folder: FileNode | FolderNode | None) -> None:
        self._folder, self._version = folder, folder.version if isinstance(folder, FolderNode) else -1
        entries = folder.entries if isinstance(folder, FolderNode) and self._is_ours(folder) else {}
        names = sorted(name for name in entries if name.endswith(".log"))
        nodes = [entries[name] for name in names]
        read = self._read
        same = len(names) >= len(read) and all(
            name == seen
            and node is file
            and file.cuts == cuts
            and (index == len(read) - 1 or len(file.content) == done)
            for index, ((seen, file, cuts, done), name, node) in enumerate(zip(read, names, nodes, strict=False))
        )
        known = self.batches
        if not same:
            self.batches = []
            self._read = read = []
            self.rebuilds += 1
            self.damage = ""  # an empty log that took a damaged one's place has none
        if not read:
            self.start_offset = int(names[0].removesuffix(".log")) if names else 0
            ended = [batch for batch in (*known, self.before) if batch and batch.end_offset == self.start_offset]
            self.before = ended[0] if ended else None
        for index, (name, node) in enumerate(zip(names, nodes, strict=True)):
            assert isinstance(node, FileNode)
            position = read[index][3] if index < len(read) else 0
            if position < len(node.content):
                position = self._parse(node.content, position)
            entry = (name, node, node.cuts, position)
            if index < len(read):
                read[index] = entry
            else:
                read.append(entry)

    def _is_ours(self, folder: FolderNode) -> bool:
        metadata = folder.entries.get("partition.metadata")
        partition = self.folder.rpartition("-")[2]
        said = metadata.content.decode(errors="replace").splitlines() if isinstance(metadata, FileNode) else []
        return f"topic_id={self.topic_id}" in said and f"partition={partition}" in said

    def _parse(self, content: bytearray, position: int) -> int:
        self.damage = ""
        while position < len(content):
            try:
                header = check_batch(content, position)
            except FencepostError as error:
                self.damage = str(error)
                break
            batch = Batch.of(header)
            if self.batches and batch.base_offset != self.batches[-1].end_offset:
                self.damage = f"offset {batch.base_offset} follows {self.batches[-1].end_offset - 1}"
                break
            self.batches.append(batch)
            self._on_batch(batch)
            position += header.size_bytes
        return position

    def contents(self) -> list[bytes]:
        """Of the segment files, oldest first."""
        return [bytes(node.content) for _, node, _, _ in self._read]

    def at(self, base_offset: int) -> Batch | None:
        """The batch that begins there."""
        index = bisect_left(self.batches, base_offset, key=lambda batch: batch.base_offset)
        if index < len(self.batches) and self.batches[index].base_offset == base_offset:
            return self.batches[index]
        return None

    def place_of(self, batch: Batch | None) -> tuple[str, int, int] | None:
        """(path, position, size) of a batch's bytes."""
        if batch is None:
            return None
        name = max(name for name, *_ in self._read if int(name.removesuffix(".log")) <= batch.base_offset)
        base = int(name.removesuffix(".log"))
        before = sum(b.size_bytes for b in self.batches if base <= b.base_offset < batch.base_offset)
        return f"{self.folder}/{name}", before, batch.size_bytes

    def since(self, offset: int) -> list[Batch]:
        """Batches that begin at `offset` or later."""
        return self.batches[bisect_left(self.batches, offset, key=lambda batch: batch.base_offset) :]


class ProducerFold:
    """Producer state as the design defines it, folded from batches: (epoch, last five) of each producer id."""

    __slots__ = ("producers",)

    def __init__(self, producers: dict[int, tuple[int, tuple[Batch, ...]]] | None = None) -> None:
        self.producers = dict(producers or {})

    def add(self, batch: Batch) -> str:
        """Fold one more batch in. Answers what is wrong with it (G2, G3), empty: nothing."""
        if batch.producer_id < 0:
            return ""
        known = self.producers.get(batch.producer_id)
        problem = ""
        if known is None or batch.producer_epoch > known[0]:
            if batch.base_sequence != 0 and known is not None:
                problem = f"first batch of epoch {batch.producer_epoch} has sequence {batch.base_sequence}"
            self.producers[batch.producer_id] = (batch.producer_epoch, (batch,))
            return problem
        epoch, batches = known
        if batch.producer_epoch < epoch:
            return f"epoch {batch.producer_epoch} after epoch {epoch}"
        expected = add_sequence(batches[-1].last_sequence, 1)
        if batch.base_sequence != expected:
            repeated = any(b.base_sequence == batch.base_sequence for b in batches)
            problem = f"sequence {batch.base_sequence} where {expected} follows" + (" (a repeat)" if repeated else "")
        self.producers[batch.producer_id] = (epoch, (*batches, batch)[-REMEMBERED_BATCHES:])
        return problem

    def add_all(self, batches: Iterable[Batch]) -> ProducerFold:
        for batch in batches:
            self.add(batch)
        return self

    def copy(self) -> ProducerFold:
        return ProducerFold(self.producers)
