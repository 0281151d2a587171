"""What metrics and the page cost is known as closely as the pairs of bursts let it be."""

from __future__ import annotations

import pytest

from fencepost_cli.watched_bench import half_width_of_median


@pytest.mark.parametrize(
    ("values", "half_width"),
    [([1.0], 0.0), ([1.0, 3.0], 1.0), ([5.0] * 40, 0.0), ([*range(100)], 10.0), ([0.0] * 15 + [100.0], 0.0)],
)
def test_the_median_lies_between_two_order_statistics(values: list[float], half_width: float) -> None:
    """Of 100 values with 95 %: between the 40th and the 60th, as in any table of the sign test; one wild value is none."""
    assert half_width_of_median(values) == pytest.approx(half_width, abs=0.5)
