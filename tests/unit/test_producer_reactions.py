"""The table of the sequencer's reactions stands in its docstring as the data has it."""

from __future__ import annotations

from fencepost.producing import sequencer
from fencepost.producing.reactions import table


def test_the_sequencers_docstring_has_the_table_of_reactions() -> None:
    assert table() in str(sequencer.__doc__), f"put this into the docstring of sequencer.py:\n\n{table()}"
