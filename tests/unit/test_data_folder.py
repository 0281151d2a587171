"""A broker's data folder: whose it is, and when its tail may be lost, whatever happened between two starts."""

from __future__ import annotations

from pathlib import Path

import logs
import pytest

from fencepost_node.data_folder import CLEAN_SHUTDOWN, META, DataFolder, DataFolderError
from fencepost_node.log.disk import RealDisk
from fencepost_proto.errors import InconsistentClusterId

CLUSTER = "cluster-a"


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
    folder.registered(CLUSTER)
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
    assert start(machine, tmp_path).may_have_lost_tail


def test_a_reboot_after_a_clean_shutdown_loses_nothing(machine: Machine, tmp_path: Path) -> None:
    settled(machine, tmp_path).mark_clean()
    machine.reboot()
    folder = start(machine, tmp_path)
    assert folder.was_clean
    assert not folder.may_have_lost_tail


def test_the_marker_is_gone_once_the_folder_is_open(machine: Machine, tmp_path: Path) -> None:
    settled(machine, tmp_path).mark_clean()
    assert (tmp_path / CLEAN_SHUTDOWN).read_text() == "boot-1\n"
    start(machine, tmp_path)
    assert not (tmp_path / CLEAN_SHUTDOWN).exists()


def test_a_loss_stays_open_until_the_controller_has_acknowledged_it(machine: Machine, tmp_path: Path) -> None:
    settled(machine, tmp_path)
    machine.reboot()
    assert start(machine, tmp_path).may_have_lost_tail  # and is killed before it can register
    folder = start(machine, tmp_path)
    assert folder.may_have_lost_tail
    folder.registered(CLUSTER)
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
        folder.registered("cluster-b")
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
    """Its removal was visible to the next start, and not on the medium."""

    def open_on(machine: logs.Machine) -> DataFolder:
        folder = DataFolder(machine.mount(), "/data", 1)
        folder.open()
        return folder

    for step in range(1, 40):
        for seed in range(5):
            machine = logs.Machine(seed)
            folder = open_on(machine)
            folder.registered(CLUSTER)
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
            open_on(machine).registered(CLUSTER)
            machine.disk.lose_power()
            assert open_on(machine).may_have_lost_tail
    pytest.fail("opening never ended")


def test_a_clean_end_does_not_hide_a_loss_that_the_controller_has_not_heard_of(
    machine: Machine, tmp_path: Path
) -> None:
    """The machine lost power, and the controller was away until the broker was stopped again."""
    settled(machine, tmp_path)
    machine.reboot()
    start(machine, tmp_path).mark_clean()
    folder = start(machine, tmp_path)
    assert folder.may_have_lost_tail
    folder.registered(CLUSTER)
    folder.mark_clean()
    assert not start(machine, tmp_path).may_have_lost_tail
