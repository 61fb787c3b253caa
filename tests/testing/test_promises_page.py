"""docs/promises.md is what bench/promises.py makes of its stored results: no number in it is typed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(ROOT))
    try:
        yield importlib.import_module("bench.promises")
    finally:
        sys.path.remove(str(ROOT))


def test_page_is_generated_from_the_results(bench):
    stored = bench.stored_results()
    assert list(stored) == list(bench.CONTRACTS)
    assert (ROOT / "docs" / "promises.md").read_text() == bench.render(stored)


@pytest.mark.parametrize("key", ["low-rank", "trains"])
def test_results_cover_the_promises_as_they_are_now(bench, key):
    data, contract = bench.stored_results()[key], bench.CONTRACTS[key]
    assert data["promises"] == [{"name": p.name, "text": p.text} for p in contract.promises]
    assert set(data["measured"]) <= {p.name for p in contract.promises}
    for routine in data["routines"].values():
        assert list(routine["results"]) == [p.name for p in contract.promises]


@pytest.mark.parametrize("key", ["low-rank", "trains"])
def test_table_rows_have_one_cell_a_routine(bench, key):
    stored, promises = bench.stored_results(), bench.CONTRACTS[key].promises
    table = [line for line in bench.render({key: stored[key]}).splitlines() if line.startswith("| ")]
    head, *rows = table[: 2 + len(promises)]
    assert {row.count("|") for row in rows} == {head.count("|")}
