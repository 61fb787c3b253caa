"""Names, units and axes of the reports."""

from __future__ import annotations

import pytest

from tensorfact.compress._charts import linear_ticks, log_ticks
from tensorfact.compress._grouping import common_prefix, format_bytes, format_speed
from tensorfact.compress.report import shorten


@pytest.mark.parametrize(
    ("names", "prefix"),
    [(["a.b.c", "a.b.d"], "a.b."), (["a.b.c"], "a.b."), (["a", "a.b"], ""), (["ab.c", "ac.c"], ""), ([], "")],
)
def test_common_prefix_ends_at_a_dot(names: list[str], prefix: str) -> None:
    assert common_prefix(names) == prefix


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.98 KiB"),
        (1023.6 * 1024, "1.00 MiB"),
        (90868376, "86.7 MiB"),
        (3 << 40, "3.00 TiB"),
    ],
)
def test_format_bytes_has_three_digits(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [(2.0, 1.0, "2.00x faster"), (1.0, 2.0, "2.00x slower"), (1.0, 1.01, "no change"), (0.0, 1.0, "not measured")],
)
def test_format_speed_says_which_way(before: float, after: float, text: str) -> None:
    assert format_speed(before, after) == text


@pytest.mark.parametrize("top", [1e-9, 0.003, 0.24, 1.0, 7.0, 999.0, 3.2e7])
def test_linear_ticks_cover_the_data_with_few_steps(top: float) -> None:
    ticks = linear_ticks(top)
    assert ticks[0] == 0.0
    assert ticks[-1] >= top * (1 - 1e-9)
    assert 2 <= len(ticks) <= 6


@pytest.mark.parametrize("low", [1e-6, 3e-3, 0.04, 0.5, 0.99])
def test_log_ticks_end_at_one_and_start_at_or_below_the_data(low: float) -> None:
    ticks = log_ticks(low)
    assert ticks[-1] == pytest.approx(1.0)
    assert ticks[0] <= low * 1.001
    assert len(ticks) <= 7


def test_shorten_keeps_the_block_and_the_role() -> None:
    assert shorten("self_attn.q_proj (30)", 13) == "..q_proj (30)"
    assert len(shorten("0.a_very_long_name", 5)) == 5
    short = shorten("11.attention.output.dense", 16)
    assert len(short) == 16
    assert short.startswith("11.")
    assert short.endswith("dense")
