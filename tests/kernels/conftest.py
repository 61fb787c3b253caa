"""Every kernel test runs on each rung of the ladder and, for C++, on each instruction set that this CPU has."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from tensorfact import _cpu
from tensorfact.kernels import _dispatch

LEVEL = _cpu.level()
BUILDS = [f"cpp-v{isa}" for isa in (2, 3, 4) if isa <= LEVEL] if LEVEL else ["cpp-base"]


@pytest.fixture(params=["python", "numba", *BUILDS])
def rung(request, monkeypatch):
    name, _, build = request.param.partition("-")
    if name == "numba":
        pytest.importorskip("numba")
    if build:
        monkeypatch.setattr(_dispatch, "_core", import_module(f"tensorfact._core._core_{build}"))
    with _dispatch.use(name):
        yield name


def pytest_collection_modifyitems(items):
    """Numba takes seconds to compile a body for one dtype: the ordinary run takes the two extremes."""
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if params.get("rung") == "numba" and params.get("dtype") in (np.float64, np.complex64):
            item.add_marker("slow")
