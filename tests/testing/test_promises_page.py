"""docs/promises.md is what bench/promises.py makes of its stored results: no number in it is typed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tensorfact.testing import LOW_RANK_PROMISES

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_promises", ROOT / "bench" / "promises.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_generated_from_the_results(bench):
    data = json.loads((ROOT / "bench" / "results" / "promises.json").read_text())
    assert (ROOT / "docs" / "promises.md").read_text() == bench.render(data)


def test_results_cover_the_promises_as_they_are_now():
    data = json.loads((ROOT / "bench" / "results" / "promises.json").read_text())
    assert data["promises"] == [{"name": p.name, "text": p.text} for p in LOW_RANK_PROMISES]
    for routine in data["routines"].values():
        assert list(routine["results"]) == [p.name for p in LOW_RANK_PROMISES]


def test_table_rows_have_one_cell_a_routine(bench):
    data = json.loads((ROOT / "bench" / "results" / "promises.json").read_text())
    table = [line for line in bench.render(data).splitlines() if line.startswith("| ")]
    head, *rows = table[: 2 + len(LOW_RANK_PROMISES)]
    assert {row.count("|") for row in rows} == {head.count("|")}
