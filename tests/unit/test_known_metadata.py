"""What a broker keeps of the metadata that it was told of."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from fencepost_node.folders.known_metadata import IMAGE_FILE, JOURNAL_FILES, VERSION_FILE, KnownMetadata, KnownVersion
from fencepost_node.log.disk import RealDisk
from fencepost_proto.protocol.errors import StorageError
from fencepost_proto.protocol.lineage import Lineage, LineageStart
from fencepost_proto.protocol.metadata import (
    ClusterIdentity,
    MetadataImage,
    NamedProducer,
    NextProducerId,
    Topic,
    delta_to_proto,
)
from fencepost_proto.protocol.v1.common_pb2 import MetadataDelta
from fencepost_testing.waiting import until
from tests.asynchronous import asynchronous
from tests.simulation.disk import SimDisk


def opened(folder: Path) -> KnownMetadata:
    known = KnownMetadata(RealDisk(), str(folder))
    known.open()
    return known


def image_of(version: int) -> MetadataImage:
    entities = (
        ClusterIdentity("one"),
        Lineage((LineageStart(7, 1),)),
        NextProducerId(3_000),
        Topic("t", "orders"),
        NamedProducer("loader", 5, epoch=2),
    )
    return MetadataImage().with_changes(version, {entity.key: entity for entity in entities})


def whole(image: MetadataImage) -> MetadataDelta:
    return delta_to_proto(image.version, image.entities(), image=True)


def test_a_new_folder_knows_nothing(tmp_path: Path) -> None:
    known = opened(tmp_path)
    assert known.newest == KnownVersion(0, 0)
    assert known.image == MetadataImage()


def test_what_was_learned_is_there_for_the_next_process_however_the_last_one_ended(tmp_path: Path) -> None:
    known = opened(tmp_path)
    for version in range(1, 6):
        known.learn(version, 2**63 + version)
        assert opened(tmp_path).newest == KnownVersion(version, 2**63 + version)
    known.learn(4, 1)  # older: nothing new
    assert opened(tmp_path).newest == KnownVersion(5, 2**63 + 5)
    again = opened(tmp_path)
    again.learn(6, 9)  # not over the newest one
    assert opened(tmp_path).newest == KnownVersion(6, 9)


@pytest.mark.parametrize("at", range(0, 64, 4))
def test_a_torn_slot_leaves_the_version_before(tmp_path: Path, at: int) -> None:
    known = opened(tmp_path)
    known.learn(1, 7)
    known.learn(2, 7)
    path = tmp_path / VERSION_FILE
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)
    assert opened(tmp_path).newest.version in (1, 2)


def test_a_file_of_another_size_is_begun_anew_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / VERSION_FILE).write_bytes(b"x")
    known = opened(tmp_path)
    assert known.newest == KnownVersion(0, 0)
    assert "has 1 bytes instead of 64" in caplog.text
    known.learn(3, 7)
    assert opened(tmp_path).newest == KnownVersion(3, 7)


def test_what_cannot_be_written_is_not_known(tmp_path: Path) -> None:
    known = opened(tmp_path)
    known.close()
    with pytest.raises(StorageError, match=VERSION_FILE):
        known.learn(1, 7)
    assert known.newest == KnownVersion(0, 0)


def test_the_image_is_kept_with_everything_in_it_and_counts_as_known(tmp_path: Path) -> None:
    known = opened(tmp_path)
    known.applies(image_of(9), whole(image_of(9)))
    known.write(known.turn())
    known.close()
    (tmp_path / VERSION_FILE).unlink()
    again = opened(tmp_path)
    assert again.image == image_of(9)
    assert again.newest == KnownVersion(9, 7)


def test_a_damaged_image_is_not_used_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    known = opened(tmp_path)
    known.applies(image_of(9), whole(image_of(9)))
    known.write(known.turn())
    known.close()
    path = tmp_path / IMAGE_FILE
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    again = opened(tmp_path)
    assert again.image == MetadataImage()
    assert again.newest == KnownVersion(9, 7)
    assert "checksum" in caplog.text


def kept(folder: Path) -> MetadataImage:
    """What is in the image file."""
    path = folder / IMAGE_FILE
    return MetadataImage().apply(MetadataDelta.FromString(path.read_bytes()[4:])) if path.exists() else MetadataImage()


@asynchronous
async def test_the_image_follows_in_the_background(tmp_path: Path) -> None:
    known = opened(tmp_path)
    task = asyncio.create_task(known.persist())
    known.applies(image_of(4), whole(image_of(4)))
    await until(lambda: kept(tmp_path) == image_of(4), "the image on disk")
    task.cancel()


def test_every_change_is_there_after_a_kill_wherever_the_image_was_written_meanwhile(tmp_path: Path) -> None:
    for written in range(6):
        folder = tmp_path / str(written)
        folder.mkdir()
        known = opened(folder)
        image = image_of(4)
        known.applies(image, whole(image))
        for number in range(5):
            if number == written:
                known.write(known.turn())
            topic = Topic(f"t{number}", f"topic{number}")
            change = delta_to_proto(image.version + 1, [topic])
            image = image.apply(change)
            known.applies(image, change)
        assert opened(folder).image == image
        assert kept(folder) == image  # the start has put it all together
        assert all((folder / journal).stat().st_size == 0 for journal in JOURNAL_FILES)


def test_a_journal_is_read_to_its_first_change_that_is_not_whole_and_not_beyond_a_gap(tmp_path: Path) -> None:
    known = opened(tmp_path)
    image = image_of(4)
    known.applies(image, whole(image))
    missing, behind = Topic("t1", "one"), Topic("t2", "two")
    known.applies(image.apply(delta_to_proto(6, [behind])), delta_to_proto(6, [behind]))
    with (tmp_path / JOURNAL_FILES[0]).open("ab") as journal:
        journal.write(b"torn")
    assert missing.topic_id not in image.topics
    again = opened(tmp_path)
    assert again.image == image
    assert again.newest.version == 6


def test_a_full_disk_does_not_keep_a_broker_from_acknowledging(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world_disk = SimDisk("disk", random.Random(1))
    process = SimpleNamespace(check_alive=lambda: None)
    disk = world_disk.mount(process)  # type: ignore[arg-type]
    disk.make_directory("/data")
    known = KnownMetadata(disk, "/data")
    known.open()
    world_disk.capacity_bytes = world_disk.used_bytes()
    known.applies(image_of(4), whole(image_of(4)))
    assert known.newest == KnownVersion(4, 7)
    known.write(known.turn())
    assert "metadata could not be kept" in caplog.text
    world_disk.capacity_bytes = None
    known.write(known.turn())
    again = KnownMetadata(disk, "/data")
    again.open()
    assert again.image == image_of(4)
