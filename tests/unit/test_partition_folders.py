"""The folders of partitions: whose log each holds, which are strangers, and how they leave."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fencepost_node.config import BrokerConfig
from fencepost_node.folders.partition_folders import DELETED_SUFFIX, MAX_FILE_NAME, PartitionFolders, aside_name
from fencepost_node.folders.replica_catalogue import CATALOGUE, ReplicaCatalogue
from fencepost_node.log.disk import RealDisk
from fencepost_node.log.log import Log
from fencepost_node.log.names import PARTITION_METADATA, PartitionIdentity
from fencepost_node.log.open_files import PooledFile
from fencepost_node.state_machines import STATE_MACHINES
from fencepost_proto.protocol.errors import StorageError
from fencepost_proto.protocol.metadata import MAX_TOPIC_NAME, Topic
from fencepost_proto.runtime.host import Host
from tests.unit import logs

ORDERS = Topic("T", "orders")
KEY = ("T", 0)
RECORDS = 6


def folders_in(path: Path) -> PartitionFolders:
    return PartitionFolders(Host(), RealDisk(), BrokerConfig(broker_id=1, data_dir=str(path), controller="localhost:1"))


def recovered_in(path: Path) -> PartitionFolders:
    folders = folders_in(path)
    asyncio.run(folders.recover(power_lost=False))
    return folders


def close(folders: PartitionFolders) -> None:
    asyncio.run(folders.close(False))


def make_log(path: Path, records: int = RECORDS, partition: int = 0, topic: Topic = ORDERS) -> Path:
    """A closed log. Returns its folder."""
    log = asyncio.run(folders_in(path).open(partition, topic))
    for _ in range(records):
        logs.produce(log)
    log.close(True)
    return Path(log.directory)


def as_version_0(folder: Path) -> None:
    (folder / PARTITION_METADATA).write_text("version=0\ntopic_id=T\n")


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    caplog.set_level(logging.WARNING)
    return lambda: caplog.text


# ---- Whose log it is ----


def test_a_new_log_says_whose_it_is(tmp_path: Path) -> None:
    folder = make_log(tmp_path, partition=7)
    told = (folder / PARTITION_METADATA).read_bytes()
    assert told == b"version=1\ntopic_id=T\ntopic=orders\npartition=7\n"
    assert PartitionIdentity.decode(told) == PartitionIdentity("T", "orders", 7)


@pytest.mark.parametrize(
    "told",
    [
        b"",
        b"\xff\xfe",
        b"version=1\ntopic_id=T\n",
        b"version=1\ntopic_id=T\ntopic=orders\npartition=-1\n",
        b"version=1\ntopic_id=T\ntopic=orders\npartition=01\n",
        b"version=1\ntopic_id=\ntopic=orders\npartition=1\n",
        b"version=2\ntopic_id=T\ntopic=orders\npartition=1\n",
        b"topic_id=T\n",
    ],
)
def test_what_cannot_be_understood_identifies_nothing(told: bytes) -> None:
    assert PartitionIdentity.decode(told) is None


def test_a_log_is_not_opened_as_another_partitions(tmp_path: Path) -> None:
    folder = make_log(tmp_path, partition=2)
    with pytest.raises(StorageError, match="holds the log of orders-2, not of orders-1"):
        Log.open(RealDisk(), str(folder), logs.settings(topic="orders", partition=1), logs.NOW_MS, STATE_MACHINES)
    with pytest.raises(StorageError, match="holds the log of orders-2, not of payments-2"):
        Log.open(RealDisk(), str(folder), logs.settings(topic="payments", partition=2), logs.NOW_MS, STATE_MACHINES)


def test_what_a_broker_writes_to_see_whether_there_is_room_does_not_outlive_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Nothing of the process runs after this."""

    def remove(disk: RealDisk, path: str) -> None:
        raise Killed

    folder = make_log(tmp_path)
    before = content(folder)
    with monkeypatch.context() as patches:
        patches.setattr(RealDisk, "remove", remove)
        with pytest.raises(Killed):
            asyncio.run(folders_in(tmp_path).reopen(0, ORDERS, probe=True))
    assert len(content(folder)) == len(before) + 1
    close(recovered_in(tmp_path))
    assert content(folder).keys() == before.keys()


# ---- Strangers ----


@pytest.mark.parametrize(
    "name", ["orders-copy-0", "orders-1", "orders-2-2026-12-01", "orders-0.bak", "orders-00", "orders-0 (copy)"]
)
def test_a_copy_is_left_alone_and_the_warning_names_both(
    tmp_path: Path, name: str, warnings: Callable[[], str]
) -> None:
    folder = make_log(tmp_path)
    copy = tmp_path / name
    shutil.copytree(folder, copy)
    held = content(copy)
    folders = recovered_in(tmp_path)
    assert list(folders.recovered) == [KEY]
    assert folders.recovered[KEY].directory == str(folder)
    assert content(copy) == held
    assert f"left alone folder={copy} because=it holds a copy of the log of {folder}" in warnings()
    close(folders)


def test_a_copy_that_is_in_the_partitions_place_is_not_opened_over(tmp_path: Path) -> None:
    copy = tmp_path / "orders-1"
    shutil.copytree(make_log(tmp_path), copy)
    held = content(copy)
    folders = recovered_in(tmp_path)
    with pytest.raises(StorageError, match="no log of topic id T could be read there"):
        asyncio.run(folders.open(1, ORDERS))
    assert content(copy) == held
    close(folders)


@pytest.mark.parametrize("kind", ["link to a log", "file", "folder of others", "link to nothing"])
def test_other_things_in_the_data_folder_are_left_alone(tmp_path: Path, kind: str, warnings: Callable[[], str]) -> None:
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    data.mkdir()
    elsewhere.mkdir()
    stranger = data / "payments-3"
    match kind:
        case "link to a log":
            stranger.symlink_to(make_log(elsewhere, partition=3, topic=Topic("P", "payments")))
        case "link to nothing":
            stranger.symlink_to(elsewhere / "gone")
        case "file":
            stranger.write_text("x")
        case _:
            stranger.mkdir()
            (stranger / "note").write_text("x")
    held = content(elsewhere)
    folders = recovered_in(data)
    assert (folders.recovered, folders.damaged) == ({}, {})
    assert f"{stranger} because=" in warnings()
    assert stranger.is_symlink() or stranger.exists()
    assert content(elsewhere) == held


# ---- Version 0: the topic id alone ----


def test_a_log_of_version_0_is_read_under_its_name(tmp_path: Path) -> None:
    as_version_0(make_log(tmp_path))
    folders = recovered_in(tmp_path)
    assert folders.take_recovered(KEY, ORDERS).log_end_offset == RECORDS
    close(folders)


def test_of_two_folders_for_one_partition_the_one_with_the_topics_name_is_opened(
    tmp_path: Path, warnings: Callable[[], str]
) -> None:
    folder = make_log(tmp_path)
    as_version_0(folder)
    copy = tmp_path / "orders-copy-0"
    shutil.copytree(folder, copy)
    held = content(copy)
    folders = recovered_in(tmp_path)
    assert (folders.recovered, folders.damaged) == ({}, {})
    assert f"several folders topic_id=T partition=0 folders={[str(folder), str(copy)]}" in warnings()
    opened = asyncio.run(folders.open(0, ORDERS))
    assert (opened.directory, opened.log_end_offset) == (str(folder), RECORDS)
    opened.close(False)
    assert content(copy) == held


def test_a_log_of_version_0_under_a_wrong_name_is_refused_and_no_empty_one_made_for_it(tmp_path: Path) -> None:
    folder = make_log(tmp_path)
    as_version_0(folder)
    folder.rename(tmp_path / "orders-old-0")
    folders = recovered_in(tmp_path)
    with pytest.raises(StorageError, match=r"the log of orders-0 is in .*orders-old-0, not in .*orders-0"):
        folders.take_recovered(KEY, ORDERS)
    assert not folder.exists()
    close(folders)


# ---- The way out ----


@pytest.mark.parametrize("length", [1, 243, 244, MAX_TOPIC_NAME])
@pytest.mark.parametrize("partition", [0, 999])
def test_every_topic_can_be_deleted_and_made_again(tmp_path: Path, length: int, partition: int) -> None:
    folders = folders_in(tmp_path)
    for topic_id in ("T", "T2"):
        opened = asyncio.run(folders.open(partition, Topic(topic_id, "n" * length)))
        asyncio.run(folders.delete(opened))
        assert list(tmp_path.iterdir()) == []


def test_names_of_folders_that_are_set_aside_differ_and_fit() -> None:
    folders = [f"{'n' * length}-{partition}" for length in (1, 243, 248, 249) for partition in (0, 1, 999)]
    names = {aside_name(name, number, ".deleted") for name in folders for number in (0, 1, 1_000_000)}
    assert len(names) == 3 * len(folders)
    assert max(len(name) for name in names) == MAX_FILE_NAME
    assert aside_name("orders-0", 3, ".deleted") == "orders-0.3.deleted"


@pytest.mark.parametrize("name", ["orders-0", "n" * MAX_TOPIC_NAME + "-0"])
def test_a_deletion_that_a_kill_interrupted_is_finished_by_the_next_start(tmp_path: Path, name: str) -> None:
    folder = make_log(tmp_path, topic=Topic("T", name.rpartition("-")[0]))
    assert folder.name == name
    folders = recovered_in(tmp_path)
    folders.set_aside(str(folder), DELETED_SUFFIX)
    close(folders)
    folders = recovered_in(tmp_path)
    assert (folders.recovered, list(tmp_path.iterdir())) == ({}, [])


@pytest.mark.parametrize("kind", ["link", "file", "folder that cannot be emptied"])
def test_a_leftover_that_cannot_be_removed_does_not_keep_a_broker_from_starting(
    tmp_path: Path, kind: str, warnings: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    folder = make_log(data)
    leftover = data / "payments-0.0.deleted"
    match kind:
        case "link":
            leftover.symlink_to(tmp_path)
        case "file":
            leftover.write_text("x")
        case _:
            leftover.mkdir()
            (leftover / "file").write_text("x")

            def refuse(self: RealDisk, path: str) -> None:
                raise PermissionError(13, "refused", path)

            monkeypatch.setattr(RealDisk, "remove_tree", refuse)
    folders = recovered_in(data)
    assert folders.recovered[KEY].directory == str(folder)
    assert leftover.is_symlink() or leftover.exists()
    assert str(leftover) in warnings()
    close(folders)


# ---- The catalogue: what has to be here ----


def ended(path: Path, *partitions: int, clean: bool = True, records: int = RECORDS) -> None:
    """A life of the folder in which these logs were made, or go on, up to its end."""

    async def life() -> None:
        folders = folders_in(path)
        await folders.recover(power_lost=False)
        opened = []
        for partition in partitions:
            key = ("T", partition)
            opened.append(
                folders.take_recovered(key, ORDERS)
                if key in folders.recovered
                else await folders.open(partition, ORDERS)
            )
            for _ in range(records):
                logs.produce(opened[-1])
        for log in opened:
            log.close(clean)
        await folders.close(clean, opened)

    asyncio.run(life())


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("gone", ["the folder", "partition.metadata", "what partition.metadata says"])
def test_a_log_that_is_gone_is_missed_and_its_place_made_free(
    tmp_path: Path, gone: str, clean: bool, warnings: Callable[[], str]
) -> None:
    ended(tmp_path, 0, 1, clean=clean)
    folder = tmp_path / "orders-0"
    match gone:
        case "the folder":
            shutil.rmtree(folder)
        case "partition.metadata":
            (folder / PARTITION_METADATA).unlink()
        case _:
            (folder / PARTITION_METADATA).write_bytes(bytes(20))
    held = content(folder) if folder.exists() else {}

    async def story() -> None:
        folders = folders_in(tmp_path)
        await folders.recover(power_lost=False, was_clean=clean)
        assert folders.damaged == {KEY: str(folder)}
        assert list(folders.unidentified) == ([KEY] if held else [])
        assert list(folders.recovered) == [("T", 1)]
        assert f"log is missing folder={folder} topic_id=T partition=0" in warnings()
        log = await folders.open(0, ORDERS)
        assert (log.directory, log.log_end_offset, folders.damaged, folders.unidentified) == (str(folder), 0, {}, {})
        log.close(False)
        await folders.close(False)

    asyncio.run(story())
    aside = tmp_path / "orders-0.0.damaged"
    assert (content(aside) if aside.exists() else {}) == held
    again = recovered_in(tmp_path)
    assert (sorted(again.recovered), again.damaged) == ([KEY, ("T", 1)], {})
    close(again)


def test_what_cannot_be_identified_as_the_log_is_kept_where_the_partition_leaves_the_broker(tmp_path: Path) -> None:
    ended(tmp_path, 0)
    folder = tmp_path / "orders-0"
    (folder / PARTITION_METADATA).unlink()
    held = content(folder)
    folders = recovered_in(tmp_path)
    asyncio.run(folders.remove(folders.damaged.pop(KEY)))
    assert not folder.exists()
    assert content(tmp_path / "orders-0.0.damaged") == held
    close(folders)
    again = recovered_in(tmp_path)
    assert (again.recovered, again.damaged) == ({}, {})


def test_what_cannot_be_identified_as_the_log_is_no_stray_log_of_it(tmp_path: Path) -> None:
    """Else it would be opened as that log when the metadata knows it again."""
    ended(tmp_path, 0, 1)
    (tmp_path / "orders-0" / PARTITION_METADATA).unlink()
    shutil.rmtree(tmp_path / "orders-1")

    async def story() -> None:
        folders = folders_in(tmp_path)
        await folders.recover(power_lost=False)
        for partition in (0, 1):
            await folders.keep_stray_folder(folders.damaged.pop(("T", partition)), ("T", partition))
        assert RealDisk().list(str(tmp_path)) == ["orders-0.0.damaged"]
        log = await folders.open(0, ORDERS)
        assert log.log_end_offset == 0
        log.close(False)

    asyncio.run(story())


def test_a_stray_log_that_comes_back_is_missed_when_it_goes(tmp_path: Path) -> None:
    ended(tmp_path, 0)

    async def story() -> None:
        folders = folders_in(tmp_path)
        await folders.recover(power_lost=False)
        await folders.keep_stray(folders.take_recovered(KEY, ORDERS), KEY)
        assert not (tmp_path / "orders-0").exists()
        log = await folders.open(0, ORDERS)
        assert log.log_end_offset == RECORDS
        log.close(False)

    asyncio.run(story())
    shutil.rmtree(tmp_path / "orders-0")
    assert list(recovered_in(tmp_path).damaged) == [KEY]


@pytest.mark.parametrize("later", [0, RECORDS])
def test_after_a_clean_end_a_log_that_ends_elsewhere_is_damaged(
    tmp_path: Path, later: int, warnings: Callable[[], str]
) -> None:
    """One partition's folder is put back from a backup; the copy of another one is as new as it."""
    ended(tmp_path, 0, 1)
    shutil.copytree(tmp_path / "orders-0", tmp_path.parent / "copy")
    ended(tmp_path, 0, 1, records=later)
    shutil.rmtree(tmp_path / "orders-0")
    shutil.move(tmp_path.parent / "copy", tmp_path / "orders-0")
    folders = folders_in(tmp_path)
    asyncio.run(folders.recover(power_lost=False, was_clean=True))
    assert folders.damaged == ({KEY: str(tmp_path / "orders-0")} if later else {})
    assert ("another than a clean shutdown left" in warnings()) == bool(later)
    assert ("T", 1) in folders.recovered
    close(folders)


def test_after_a_kill_a_log_may_end_anywhere(tmp_path: Path) -> None:
    ended(tmp_path, 0)
    ended(tmp_path, 0, clean=False)
    folders = recovered_in(tmp_path)
    assert folders.damaged == {}
    assert folders.recovered[KEY].log_end_offset == 2 * RECORDS
    close(folders)


def test_a_deleted_log_and_one_that_the_disk_would_not_show_are_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended(tmp_path, 0, 1)
    folders = recovered_in(tmp_path)
    asyncio.run(folders.delete(folders.take_recovered(("T", 1), ORDERS)))
    close(folders)
    read = RealDisk.read_bytes

    def refuse(self: RealDisk, path: str) -> bytes:
        if path.endswith(PARTITION_METADATA):
            raise OSError(5, "refused", path)
        return read(self, path)

    with monkeypatch.context() as patched:
        patched.setattr(RealDisk, "read_bytes", refuse)
        folders = recovered_in(tmp_path)
        assert (folders.recovered, folders.damaged) == ({}, {})
        close(folders)
    folders = recovered_in(tmp_path)
    assert (list(folders.recovered), folders.damaged) == ([KEY], {})
    close(folders)


def test_a_folder_of_before_the_catalogue_gets_one(tmp_path: Path) -> None:
    make_log(tmp_path)
    (tmp_path / CATALOGUE).unlink()
    close(recovered_in(tmp_path))
    shutil.rmtree(tmp_path / "orders-0")
    assert list(recovered_in(tmp_path).damaged) == [KEY]


def test_lines_that_make_no_sense_are_passed_over(tmp_path: Path, warnings: Callable[[], str]) -> None:
    ended(tmp_path, 0)
    with (tmp_path / CATALOGUE).open("ab") as file:
        file.write(b"\xff\n+ T x 0 0 orders-9\n- T\n+ T 1 -1 -1 orders-1\n+ T 2")
    folders = recovered_in(tmp_path)
    assert list(folders.damaged) == [("T", 1)]
    assert warnings().count("line is passed over") == 4
    close(folders)


def test_no_line_is_joined_to_a_torn_one(tmp_path: Path) -> None:
    """A power failure took the end of a line. What is made after the next start is missed at the one after that."""
    ended(tmp_path, 0)
    with (tmp_path / CATALOGUE).open("ab") as file:
        file.write(b"- OLD\0\0\0")
    close(recovered_in(tmp_path))
    folder = make_log(tmp_path, topic=Topic("U", "more"))
    shutil.rmtree(folder)
    assert list(recovered_in(tmp_path).damaged) == [("U", 0)]


def test_a_topic_whose_deletion_was_forgotten_does_not_take_the_next_ones_folder(
    tmp_path: Path, warnings: Callable[[], str]
) -> None:
    """A power failure took the line that says that the log of an older topic of that name has left."""
    folder = make_log(tmp_path)
    held = content(folder)
    with (tmp_path / CATALOGUE).open("ab") as file:
        file.write(b"+ OLD 0 -1 -1 orders-0\n")
    folders = recovered_in(tmp_path)
    assert (list(folders.recovered), folders.damaged, folders.unidentified) == ([KEY], {}, {})
    close(folders)
    assert content(folder) == held
    close(recovered_in(tmp_path))
    assert warnings().count("log has left its folder to another") == 1


def test_a_full_disk_leaves_the_catalogue_behind_and_the_next_start_adds_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: Callable[[], str]
) -> None:
    def refuse(self: PooledFile, data: bytes) -> None:
        raise OSError(28, "no space left")

    folders = folders_in(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(PooledFile, "append", refuse)
        log = asyncio.run(folders.open(0, ORDERS))
    assert "catalogue cannot be written" in warnings()
    log.close(False)
    close(folders)
    close(recovered_in(tmp_path))
    shutil.rmtree(tmp_path / "orders-0")
    assert list(recovered_in(tmp_path).damaged) == [KEY]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dies_between", [False, True])
def test_a_log_that_is_gone_is_missed_after_a_power_failure_too(seed: int, dies_between: bool) -> None:
    """Its line is on disk before it holds a record; also if the process died before it could sync that line."""
    machine = logs.Machine(seed)

    async def life() -> PartitionFolders:
        config = BrokerConfig(broker_id=1, data_dir="/data", controller="localhost:1")
        folders = PartitionFolders(Host(), machine.mount(), config)
        await folders.recover(power_lost=True)
        return folders

    async def first() -> None:
        folders = await life()
        with pytest.MonkeyPatch.context() as patched:
            if dies_between:
                patched.setattr(ReplicaCatalogue, "_sync", lambda self: None)
            log = await folders.open(0, ORDERS)
        if not dies_between:
            logs.produce(log)
            log.sync()

    machine.mount().make_directory("/data")
    asyncio.run(first())
    if dies_between:
        asyncio.run(life())
    disk = machine.mount()
    disk.remove_tree("/data/orders-0")
    disk.sync_directory("/data")
    machine.disk.lose_power()
    assert list(asyncio.run(life()).damaged) == [KEY]
