"""A picture of the benchmark of many partitions: what grows with their number. Needs matplotlib, a tool of development.

`python -m fencepost_cli.scale_plot OUT.svg OUTPUT...` draws what several runs of `bench --scale --json` have printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fencepost_cli.plotting import label, save, side_by_side
from fencepost_cli.scale import ScaleResult

_ACROSS = "partitions, three replicas each"


def draw(results: Sequence[ScaleResult], file: Path) -> None:
    """Raises CommandFailed where it cannot."""
    figure, (times, writes) = side_by_side(2)
    sizes = [result.partitions for result in results]
    for number, what in enumerate(one.what for one in results[0].disturbances):
        of_it = [result.disturbances[number] for result in results]
        times.plot(sizes, [one.in_sync_s for one in of_it], marker="o", label=f"in sync: {what}")
        writes.plot(sizes, [one.slowest_write_s for one in of_it], marker="o", label=what)
    killed = [result.disturbances[0].leaders_s for result in results]
    times.plot(sizes, killed, marker="s", linestyle="--", label="all led after a kill")
    times.plot(sizes, [result.up_s for result in results], marker="^", linestyle=":", label="cluster up")
    label(times, _ACROSS, "seconds until all is well")
    label(writes, _ACROSS, "slowest write to a partition with a leader, s")
    save(figure, file)


def _read(file: Path) -> list[ScaleResult]:
    """The results in the last line of a run's output."""
    return [ScaleResult.from_json(one) for one in json.loads(file.read_text().splitlines()[-1])["scale"]]


if __name__ == "__main__":
    runs = [result for name in sys.argv[2:] for result in _read(Path(name))]
    draw(sorted(runs, key=lambda result: result.partitions), Path(sys.argv[1]))
