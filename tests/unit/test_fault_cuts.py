"""The cuts of a chaos run as faults of its cluster: which rules are posted for which links."""

from __future__ import annotations

from pathlib import Path

from fencepost_testing.chaos.fault_cuts import FaultCuts
from fencepost_testing.faults.board import FOLDER, Board
from fencepost_testing.faults.rules import LinkRule
from tests.asynchronous import asynchronous

THERE, BACK, BESIDE = ("broker-1", "broker-2"), ("broker-2", "broker-1"), ("producer-0", "broker-2")


@asynchronous
async def test_a_link_is_cut_until_every_cut_that_holds_it_is_mended(tmp_path: Path) -> None:
    board = Board.create(tmp_path / FOLDER)
    network = FaultCuts()
    network.attach(tmp_path)

    def cut(link: tuple[str, str]) -> bool:
        rules = [posted.rule for posted in board.posted()]
        return any(isinstance(rule, LinkRule) and rule.affects(*link) for rule in rules)

    await network.cut([THERE, BESIDE])
    assert (cut(THERE), cut(BACK), cut(BESIDE)) == (True, False, True)
    assert len(board.posted()) == 1, "senders with the same receivers share a rule"
    await network.cut([THERE])
    await network.mend([THERE, BESIDE])
    assert (cut(THERE), cut(BESIDE)) == (True, False)
    await network.mend([THERE])
    assert board.posted() == ()
    network.close()
