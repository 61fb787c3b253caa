"""B-spline basis and evaluation against the memory limit, SciPy and libraries for Kolmogorov-Arnold networks.

    python -m bench.splines --points 1000000
    python -m bench.splines --kan            # flashkan and inkan beside ours, those that are installed
    python -m bench.splines --fresh          # finished rows are kept else, so that a run resumes

Times are medians of interleaved rounds into arrays that are warm. The limit is the time to write the same output once,
values and first indices, by streaming stores of the same threads. Accuracy is asserted before anything is timed.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from scipy.interpolate import BSpline

from bench import timing
from tensorfact import _core, kernels


def knots_of(kind: str, intervals: int, degree: int = 3) -> np.ndarray:
    """Clamped knots on [0, 1], equally spaced or not."""
    share = np.linspace(0, 1, intervals + 1)
    return np.pad(share if kind == "uniform" else 0.5 * share + 0.5 * share**2, degree, mode="edge")


def measure(points: int, dtype: Any, kind: str, intervals: int, rounds: int, peers: bool) -> dict[str, float]:
    """Milliseconds: basis, fused evaluation, writing the output, and SciPy on a tenth of the points (times ten)."""
    t = knots_of(kind, intervals).astype(dtype)
    rng = np.random.default_rng(0)
    x, c = rng.uniform(0, 1, points).astype(dtype), rng.standard_normal(intervals + 3).astype(dtype)
    out = kernels.spline_basis(x, t, 3)
    flat = out[0].reshape(4, points)
    part, wide = x[:: max(1, points // 1000)].astype(float), t.astype(float)
    exact = BSpline(wide, c.astype(float), 3)(part)
    fused = kernels.spline_values(x, t, 3, c)[0, :: max(1, points // 1000)]
    assert np.abs(fused - exact).max() <= 100 * float(np.finfo(dtype).eps) * np.abs(c).max()
    tenth = np.ascontiguousarray(x[: points // 10], float)
    routines: dict[str, Any] = {
        "basis": lambda: kernels.spline_basis(x, t, 3, out=out),
        "evaluate": lambda: kernels.spline_values(x, t, 3, c),
        "write": lambda: _core.probe_write(flat, out[1], kernels.get_num_threads()),
    }
    if peers:
        routines["scipy design_matrix / 10"] = lambda: BSpline.design_matrix(tenth, wide, 3)
        routines["scipy call / 10"] = lambda: BSpline(wide, c.astype(float), 3)(tenth)
    seconds = timing.interleaved(routines, rounds, budget=20.0)
    found = {}
    for name, times in seconds.items():
        scale = 1e4 if name.endswith("/ 10") else 1e3
        found[name.removesuffix(" / 10")] = scale * float(np.median(times))
    found["basis / write"] = found["basis"] / found["write"]
    return found


def kan(points: int, intervals: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of the cubic float32 basis on equally spaced knots, two threads, and errors against SciPy.

    The libraries write all basis functions of each point, or (inkan's local values) the four that are not zero, as we
    do. Knots go on beyond both ends, which is what the libraries know.
    """
    import torch

    step = 2 / intervals
    t = (np.arange(-3, intervals + 4) * step - 1).astype(np.float32)
    x = np.random.default_rng(0).uniform(-1, 1, points).astype(np.float32)
    out = kernels.spline_basis(x, t, 3)
    starts = torch.from_numpy(t[: intervals + 3].copy())
    column, per_step = torch.from_numpy(x)[:, None], 1 / step
    routines: dict[str, Any] = {"ours": lambda: kernels.spline_basis(x, t, 3, out=out)}
    dense: dict[str, Any] = {}
    try:
        from flashkan import basis as flash

        dense["flashkan"] = lambda: flash.bspline_basis_eager(column, starts, per_step)
        dense["flashkan, compiled"] = lambda: flash.bspline_basis(column, starts, per_step)
    except ImportError:
        pass
    try:
        from inkan import basis

        dense["inkan, dense, compiled"] = lambda: basis.bspline_basis(column, starts, per_step, intervals + 3)
        routines["inkan, local values"] = lambda: basis.local_values(column, starts, per_step, intervals + 3)
        local = torch.compile(basis.local_values)
        routines["inkan, local values, compiled"] = lambda: local(column, starts, per_step, intervals + 3)
    except ImportError:
        pass
    part = slice(0, points, max(1, points // 2000))
    exact = BSpline.design_matrix(np.clip(x[part].astype(float), t[3], t[-4]), t.astype(float), 3).toarray()
    found: dict[str, Any] = {"error": {}}

    def spread(first: Any, values: Any) -> np.ndarray:
        table = np.zeros_like(exact)
        np.put_along_axis(table, np.asarray(first, int).reshape(-1, 1) + np.arange(4), np.asarray(values, float), 1)
        return table

    found["error"]["ours"] = float(np.abs(spread(out[1][0][part], out[0][0].T[part]) - exact).max())
    for name, run in dense.items():
        found["error"][name] = float(np.abs(run()[part, 0].numpy() - exact).max())
    for name in (name for name in routines if name != "ours"):
        first, values = routines[name]()
        table = spread(first[part, 0, 0], values[part, 0])
        found["error"][name] = float(np.abs(table - exact).max())
    for name, times in timing.interleaved({**routines, **dense}, rounds, budget=30.0).items():
        found[name] = 1e3 * float(np.median(times))
    found["times faster"] = {name: found[name] / found["ours"] for name in {**routines, **dense} if name != "ours"}
    return found


def main() -> None:
    """Fill ``results/splines.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--kan", action="store_true")
    parser.add_argument("--fresh", action="store_true")
    arguments = parser.parse_args()
    result: dict[str, Any] = {} if arguments.fresh else timing.load("splines")
    result["environment"] = timing.environment()
    if arguments.kan:
        table = result.setdefault("kan", {})
        for intervals, points in ((5, arguments.points), (200, arguments.points // 10)):
            name = f"{intervals} intervals, {points:g} points"
            if name not in table:
                table[name] = kan(points, intervals, arguments.rounds)
                timing.save("splines", result)
                print(name, table[name], flush=True)
        return
    rows = result.setdefault("rows", {})
    for kind in ("uniform", "general"):
        for intervals in (5, 16, 200):
            for dtype in (np.float64, np.float32):
                name = f"{kind}, {intervals} intervals, {np.dtype(dtype)}, {arguments.points:g} points"
                if name in rows:
                    continue
                peers = not arguments.no_peers and intervals == 16
                rows[name] = measure(arguments.points, dtype, kind, intervals, arguments.rounds, peers)
                print(name, {key: round(value, 2) for key, value in rows[name].items()}, flush=True)
                timing.save("splines", result)


if __name__ == "__main__":
    main()
