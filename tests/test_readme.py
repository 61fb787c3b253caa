"""No number in the README is typed by hand, and its code runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import tables  # noqa: E402


def test_tables_are_what_the_stored_results_say():
    text = (ROOT / "README.md").read_text()
    assert tables.rendered(text) == text
    assert set(re.findall(r"<!-- table: (\w+) -->", text)) == set(tables.TABLES)


def test_the_array_half_of_the_example_runs(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    array_part = code[1].partition("from tensorfact.compress")[0]
    np.save(tmp_path / "weights.npy", np.random.default_rng(0).standard_normal((300, 280)))
    x = np.linspace(0, 1, 20)
    np.save(tmp_path / "field.npy", np.sin(x[:, None, None] + 2 * x[:, None] * x))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(array_part, names)
    assert names["result"].error <= 0.05
    assert np.allclose(names["left"] @ names["right"], names["result"].reconstruct())
    assert names["u"].shape == (300, 256)
    assert names["train"].error <= 1e-3
    assert names["smaller"].ranks == names["train"].ranks
