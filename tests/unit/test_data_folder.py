"""A broker's data folder: whose it is, and when its tail may be lost, whatever happened between two starts."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from fencepost_node.folders.data_folder import (
    CLEAN_SHUTDOWN,
    META,
    ORIGIN_MARK,
    SYNCED_MARK,
    DataFolder,
    DataFolderError,
)
from fencepost_node.log import origin_mark
from fencepost_node.log.disk import RealDisk
from fencepost_proto.protocol.errors import InconsistentClusterId
from tests.simulation.disk import MountedDisk
from tests.unit import logs

CLUSTER = "cluster-a"
EPOCH = 5
MARK_TOLERANCE_S = 2 * origin_mark.TOLERANCE_NS / 1e9


class Machine(RealDisk):
    """A disk whose machine can be rebooted."""

    def __init__(self) -> None:
        self.boot = 1

    def boot_id(self) -> str:
        return f"boot-{self.boot}"

    def reboot(self) -> None:
        self.boot += 1


@pytest.fixture
def machine() -> Machine:
    return Machine()


def start(machine: Machine, path: Path, broker_id: int = 1) -> DataFolder:
    folder = DataFolder(machine, str(path), broker_id)
    folder.open()
    return folder


def settled(machine: Machine, path: Path) -> DataFolder:
    """A folder whose broker has registered."""
    folder = start(machine, path)
    folder.registered(CLUSTER, EPOCH)
    return folder


def test_an_empty_folder_counts_as_having_lost_everything(machine: Machine, tmp_path: Path) -> None:
    folder = start(machine, tmp_path / "new")
    assert folder.may_have_lost_tail
    assert folder.cluster_id == ""


def test_a_killed_process_loses_nothing(machine: Machine, tmp_path: Path) -> None:
    settled(machine, tmp_path)
    folder = start(machine, tmp_path)
    assert not folder.may_have_lost_tail
    assert folder.cluster_id == CLUSTER


def test_a_reboot_without_a_clean_shutdown_may_have_lost_the_tail(machine: Machine, tmp_path: Path) -> None:
    settled(machine, tmp_path)
    machine.reboot()
    folder = start(machine, tmp_path)
    assert (folder.may_have_lost_tail, folder.is_copy) == (True, False)


def test_a_power_failure_makes_no_copy_of_the_folder_whatever_it_takes() -> None:
    """What topics sync before they acknowledge is still there, and only a copy would lack it."""
    for seed in range(20):
        machine = logs.Machine(seed)
        for epoch in (5, 7, 9):
            folder = DataFolder(machine.mount(), "/data", 1)
            folder.open()
            assert not folder.is_copy
            assert folder.may_have_lost_tail
            folder.registered(CLUSTER, epoch)
            folder.renew_mark()
            machine.disk.lose_power()


def test_a_reboot_after_a_clean_shutdown_loses_nothing(machine: Machine, tmp_path: Path) -> None:
    settled(machine, tmp_path).mark_clean()
    machine.reboot()
    folder = start(machine, tmp_path)
    assert folder.was_clean
    assert not folder.may_have_lost_tail


def test_the_marker_is_gone_once_the_folder_is_open(machine: Machine, tmp_path: Path) -> None:
    settled(machine, tmp_path).mark_clean()
    assert (tmp_path / CLEAN_SHUTDOWN).read_bytes() == b"boot-1\n" + (tmp_path / ORIGIN_MARK).read_bytes()
    start(machine, tmp_path)
    assert not (tmp_path / CLEAN_SHUTDOWN).exists()


def test_a_loss_stays_open_until_the_controller_has_acknowledged_it(machine: Machine, tmp_path: Path) -> None:
    settled(machine, tmp_path)
    machine.reboot()
    assert start(machine, tmp_path).may_have_lost_tail  # and is killed before it can register
    folder = start(machine, tmp_path)
    assert folder.may_have_lost_tail
    folder.registered(CLUSTER, EPOCH)
    assert not folder.may_have_lost_tail
    assert not start(machine, tmp_path).may_have_lost_tail


def test_a_clean_folder_is_not_suspected_because_its_next_start_was_killed_early(
    machine: Machine, tmp_path: Path
) -> None:
    settled(machine, tmp_path).mark_clean()
    machine.reboot()
    start(machine, tmp_path)  # and is killed before it can register
    folder = start(machine, tmp_path)
    assert not folder.was_clean
    assert not folder.may_have_lost_tail
    machine.reboot()
    assert start(machine, tmp_path).may_have_lost_tail  # but that boot has ended too


def test_a_folder_of_another_broker_is_refused_naming_both(machine: Machine, tmp_path: Path) -> None:
    settled(machine, tmp_path).mark_clean()
    with pytest.raises(DataFolderError, match="belongs to broker 1; the configuration says broker_id = 2"):
        start(machine, tmp_path, broker_id=2)
    assert (tmp_path / CLEAN_SHUTDOWN).exists()


def test_a_folder_of_another_cluster_is_refused_naming_both(machine: Machine, tmp_path: Path) -> None:
    settled(machine, tmp_path)
    folder = start(machine, tmp_path)
    with pytest.raises(InconsistentClusterId, match="belongs to cluster cluster-a; the controller's is cluster-b"):
        folder.registered("cluster-b", EPOCH)
    assert f"cluster.id={CLUSTER}\n" in (tmp_path / META).read_text()


@pytest.mark.parametrize("content", ["", "broker.id=1\n", "broker.id=one\ncluster.id=\nboot.id=\n", "nonsense\n"])
def test_meta_properties_that_cannot_be_read_are_named_not_replaced(
    machine: Machine, tmp_path: Path, content: str
) -> None:
    (tmp_path / META).write_text(content)
    with pytest.raises(DataFolderError, match=META):
        start(machine, tmp_path)
    assert (tmp_path / META).read_text() == content


def test_a_marker_does_not_come_back_after_a_start_that_was_killed() -> None:
    """Its removal was visible to the next start, and not on disk."""

    def open_on(machine: logs.Machine) -> DataFolder:
        folder = DataFolder(machine.mount(), "/data", 1)
        folder.open()
        return folder

    for step in range(1, 40):
        for seed in range(5):
            machine = logs.Machine(seed)
            folder = open_on(machine)
            folder.registered(CLUSTER, EPOCH)
            folder.mark_clean()
            disk = machine.mount()
            machine.die_at(step)
            try:
                DataFolder(disk, "/data", 1).open()
            except logs.PowerCut:
                pass
            else:
                assert step > 5
                return
            open_on(machine).registered(CLUSTER, EPOCH)
            machine.disk.lose_power()
            assert open_on(machine).may_have_lost_tail
    pytest.fail("opening never ended")


def test_a_clean_end_does_not_hide_a_loss_that_the_controller_does_not_know(machine: Machine, tmp_path: Path) -> None:
    """The machine lost power, and the controller was away until the broker was stopped again."""
    settled(machine, tmp_path)
    machine.reboot()
    start(machine, tmp_path).mark_clean()
    folder = start(machine, tmp_path)
    assert folder.may_have_lost_tail
    folder.registered(CLUSTER, EPOCH)
    folder.mark_clean()
    assert not start(machine, tmp_path).may_have_lost_tail


# ---- Older copies, put back ----


def copied(path: Path, to: Path) -> Path:
    """As `cp -a`: with the times of modification."""
    shutil.copytree(path, to)
    return to


def put_back(copy: Path, path: Path, how: str) -> None:
    """A copy in the place of what is there, by one of the tools that people use."""
    match how:
        case "removed, then copied":
            shutil.rmtree(path)
            shutil.copytree(copy, path)
        case "written over":
            for file in copy.iterdir():
                (path / file.name).write_bytes(file.read_bytes())
                os.utime(path / file.name, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
        case "only what differs":
            for file in copy.iterdir():
                there = path / file.name
                if not there.exists() or there.read_bytes() != file.read_bytes():
                    shutil.copy2(file, path / "new")
                    (path / "new").rename(there)
        case _:
            raise AssertionError(how)


TOOLS = ["removed, then copied", "written over", "only what differs"]


def test_the_folder_has_the_epoch_of_its_last_registration(machine: Machine, tmp_path: Path) -> None:
    folder = start(machine, tmp_path)
    assert folder.broker_epoch == 0
    folder.registered(CLUSTER, 7)
    assert start(machine, tmp_path).broker_epoch == 7
    start(machine, tmp_path).registered(CLUSTER, 9)
    assert start(machine, tmp_path).broker_epoch == 9


def test_a_folder_of_before_epochs_were_written_is_none_that_lost_anything(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / META).write_text(f"broker.id=1\ncluster.id={CLUSTER}\nboot.id=boot-1\n")
    folder = start(machine, tmp_path)
    assert (folder.broker_epoch, folder.is_copy, folder.may_have_lost_tail) == (0, False, False)
    (tmp_path / CLEAN_SHUTDOWN).write_text("boot-1\n")
    machine.reboot()
    folder = start(machine, tmp_path)
    assert (folder.was_clean, folder.is_copy, folder.may_have_lost_tail) == (True, False, False)


@pytest.mark.parametrize("how", TOOLS)
def test_a_copy_of_a_running_brokers_folder_is_seen_when_it_is_put_back(
    machine: Machine, tmp_path: Path, how: str
) -> None:
    """The broker went on under the same epoch, and was killed."""
    running = settled(machine, tmp_path / "data")
    copy = copied(tmp_path / "data", tmp_path / "copy")
    time.sleep(MARK_TOLERANCE_S)
    running.renew_mark()
    running.close()
    put_back(copy, tmp_path / "data", how)
    time.sleep(MARK_TOLERANCE_S)
    folder = start(machine, tmp_path / "data")
    assert (folder.broker_epoch, folder.is_copy, folder.may_have_lost_tail) == (EPOCH, True, True)
    assert start(machine, tmp_path / "data").is_copy  # that start was killed before it could tell
    folder.registered(CLUSTER, EPOCH + 1)
    assert (folder.is_copy, folder.may_have_lost_tail) == (False, False)
    again = start(machine, tmp_path / "data")
    assert (again.is_copy, again.may_have_lost_tail) == (False, False)


def test_a_copy_is_seen_after_a_reboot_too(machine: Machine, tmp_path: Path) -> None:
    """A broken machine's folder is put back from a backup that was made while its broker ran, long ago."""
    settled(machine, tmp_path / "data").renew_mark()
    copied(tmp_path / "data", tmp_path / "copy")
    machine.reboot()
    time.sleep(MARK_TOLERANCE_S)
    put_back(tmp_path / "copy", tmp_path / "data", "removed, then copied")
    time.sleep(MARK_TOLERANCE_S)
    folder = start(machine, tmp_path / "data")
    assert (folder.broker_epoch, folder.is_copy, folder.may_have_lost_tail) == (EPOCH, True, True)


@pytest.mark.parametrize("how", TOOLS)
def test_a_clean_shutdown_does_not_vouch_for_files_of_before(machine: Machine, tmp_path: Path, how: str) -> None:
    """What is put back has no marker of its own, and the tool leaves the one that is there."""
    running = settled(machine, tmp_path / "data")
    copy = copied(tmp_path / "data", tmp_path / "copy")
    time.sleep(MARK_TOLERANCE_S)
    running.renew_mark()
    running.mark_clean()
    marker = (tmp_path / "data" / CLEAN_SHUTDOWN).read_bytes()
    put_back(copy, tmp_path / "data", how)
    (tmp_path / "data" / CLEAN_SHUTDOWN).write_bytes(marker)
    folder = start(machine, tmp_path / "data")
    assert (folder.was_clean, folder.is_copy, folder.may_have_lost_tail) == (False, True, True)


def test_a_clean_folder_may_be_copied_and_moved(machine: Machine, tmp_path: Path) -> None:
    settled(machine, tmp_path / "data").mark_clean()
    moved = copied(tmp_path / "data", tmp_path / "moved")
    time.sleep(MARK_TOLERANCE_S)
    folder = start(machine, moved)
    assert (folder.was_clean, folder.is_copy, folder.may_have_lost_tail) == (True, False, False)
    folder = start(machine, moved)  # the start before it was killed early
    assert (folder.was_clean, folder.is_copy, folder.may_have_lost_tail) == (False, False, False)


def test_a_folder_with_an_epoch_and_without_a_mark_is_a_copy(machine: Machine, tmp_path: Path) -> None:
    settled(machine, tmp_path)
    (tmp_path / ORIGIN_MARK).unlink()
    assert start(machine, tmp_path).is_copy


def test_a_renewed_mark_passes_after_its_owner_was_changed(machine: Machine, tmp_path: Path) -> None:
    """Whatever an operator does to the files of a running broker, the next renewal makes good."""
    running = settled(machine, tmp_path)
    time.sleep(MARK_TOLERANCE_S)
    for mark in (ORIGIN_MARK, SYNCED_MARK):
        (tmp_path / mark).chmod(0o644)
    assert start(machine, tmp_path).is_copy
    running.renew_mark()
    assert not start(machine, tmp_path).is_copy
    machine.reboot()
    assert not start(machine, tmp_path).is_copy


def test_a_file_system_with_another_clock_makes_no_folder_suspect(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    an_hour_ns = 3_600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: time.monotonic_ns() + an_hour_ns)
    settled(machine, tmp_path)
    assert "copies of the data folder are not seen" in caplog.text
    assert not start(machine, tmp_path).is_copy


def test_a_kill_at_any_moment_makes_no_folder_suspect_and_hides_no_copy() -> None:
    """Starts, registrations and ends, each killed in the middle of any of its operations on the disk."""

    def live(disk: MountedDisk, broker_epoch: int, end: bool) -> None:
        folder = DataFolder(disk, "/data", 1)
        folder.open()
        folder.registered(CLUSTER, broker_epoch)
        folder.renew_mark()
        if end:
            folder.mark_clean()

    for first_ends in (False, True):
        for step in range(1, 60):
            machine = logs.Machine()
            live(machine.mount(), 5, first_ends)
            disk = machine.mount()
            machine.die_at(step)
            died = False
            try:
                live(disk, 9, True)
            except logs.PowerCut:
                died = True
            machine.survive()
            copy = DataFolder(machine.mount(), "/data", 1)
            copy.open()
            assert not copy.is_copy, step
            assert not copy.may_have_lost_tail, step
            assert copy.broker_epoch in (5, 9)
            if not died:
                assert step > 15
                break
        else:
            pytest.fail("it never ended")
