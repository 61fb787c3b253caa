"""decouple on the synthetic problems: exact recovery, spline floors, starts that die, seconds a sweep; a large MLP.

    python -m bench.decoupling                     # every table; finished rows are kept, so it resumes
    python -m bench.decoupling --fresh --seeds 5

Errors are relative and unsquared, of Jacobians (eJ) and of values (eF), on the samples. A row is one problem; it
counts the seeds that meet the bar and keeps the worst errors and the seconds of a whole fit (five starts, sweeps and
polish).
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from typing import Any

import numpy as np

import tensorfact
from bench import timing

PROBLEMS = {
    "poly (3,3,3)": ("poly", 3, 3, 3, 10),
    "poly (4,5,6)": ("poly", 4, 5, 6, 12),
    "trig (3,3,3)": ("trig", 3, 3, 3, 10),
    "trig (4,5,6)": ("trig", 4, 5, 6, 10),
    "tanh (3,3,3)": ("tanh", 3, 3, 3, 10),
}
RIDGES = (1e-8, 1e-4, 1e-3, 1e-2, 1e-1)


def problem(kind: str, n: int, m: int, r: int, seed: int, count: int = 150) -> tuple[Any, ...]:
    """Inputs, values, Jacobians and the true weights; the order of the draws is part of the definition."""
    rng = np.random.default_rng(1000 + seed)
    w, v = rng.standard_normal((n, r)), rng.standard_normal((m, r))
    v /= np.linalg.norm(v, axis=0)
    x = rng.uniform(-1, 1, (m, count))
    z = v.T @ x
    if kind == "poly":
        c = rng.standard_normal((r, 4))
        g = np.array([np.polyval(row, at) for row, at in zip(c, z, strict=True)])
        h = np.array([np.polyval(np.polyder(row), at) for row, at in zip(c, z, strict=True)])
    elif kind == "trig":
        omega = rng.uniform(1, 3, r)[:, None]
        g, h = np.sin(omega * z), omega * np.cos(omega * z)
    else:
        g, h = np.tanh(2 * z), 2 / np.cosh(2 * z) ** 2
    return x.T, (w @ g).T, np.einsum("ni,is,mi->snm", w, h, v), w, v


def floor(x: Any, f: Any, jac: Any, w: Any, v: Any, n_basis: int, weight: float = 0.1) -> tuple[float, float]:
    """Errors (eJ, eF) of cubic splines on quantile knots at the true weights, all coefficients by least squares."""
    design_jac, design_f = [], []
    for a, b in zip(w.T, v.T, strict=True):
        basis = tensorfact.BSplineBasis(tensorfact.quantile_knots(x @ b, n_basis, blend=1.0))
        plain, slope = (basis.design_matrix(x @ b, nu).toarray() for nu in (0, 1))
        design_jac.append(np.einsum("n,sk,m->snmk", a, slope, b).reshape(jac.size, -1))
        design_f.append(np.einsum("n,sk->snk", a, plain).reshape(f.size, -1))
    first, second = np.hstack(design_jac), np.hstack(design_f)
    root = np.sqrt(weight)
    rows, target = np.vstack([first, root * second]), np.concatenate([jac.ravel(), root * f.ravel()])
    c = np.linalg.lstsq(rows, target, rcond=1e-13)[0]
    errors = first @ c - jac.ravel(), second @ c - f.ravel()
    return tuple(float(np.linalg.norm(e) / np.linalg.norm(a)) for e, a in zip(errors, (jac, f), strict=True))  # type: ignore[return-value]


def recover(name: str, seeds: int) -> dict[str, Any]:
    """One problem over all seeds: how many meet the bar, worst errors, seconds."""
    kind, n, m, r, n_basis = PROBLEMS[name]
    rows = []
    for seed in range(seeds):
        x, f, jac, w, v = problem(kind, n, m, r, seed)
        begin = time.perf_counter()
        found = tensorfact.decouple(x, f, jac, rank=r, n_basis=n_basis, rng=seed)
        seconds = time.perf_counter() - begin
        best = (5e-13, 5e-13) if kind == "poly" else floor(x, f, jac, w, v, n_basis)
        met = found.jacobian_error <= 2 * best[0] and found.error <= 2 * best[1]
        errors = found.jacobian_error, found.error
        rows.append((*errors, errors[0] / best[0], errors[1] / best[1], seconds, met))
    table = np.array(rows, float)
    return {
        "seeds": seeds,
        "met": int(table[:, 5].sum()),
        "worst_jacobian_error": table[:, 0].max(),
        "worst_error": table[:, 1].max(),
        "worst_over_floor": None if kind == "poly" else [table[:, 2].max(), table[:, 3].max()],
        "seconds_median": float(np.median(table[:, 4])),
        "seconds_worst": table[:, 4].max(),
    }


def starts(regularization: str, ridge: float) -> dict[str, Any]:
    """Above the uniqueness bound: 3 data seeds, 6 starts each; starts without a finite fit or with a dead branch."""
    failed, errors = 0, []
    for seed in range(3):
        x, f, jac, _, _ = problem("tanh", 2, 2, 3, seed)
        for start in range(6):
            found = tensorfact.decouple(
                x, f, jac, rank=3, n_basis=10, ridge=ridge, regularization=regularization, max_iter=80,  # type: ignore[arg-type]
                n_restarts=1, polish=False, rng=start,
            )  # fmt: skip
            dead = any("carry nothing" in note for note in found.info.notes)
            failed += int(dead or not np.isfinite(found.jacobian_error))
            errors.append(found.jacobian_error)
    return {"failed_of_18": failed, "median_jacobian_error": float(np.median(errors)), "worst": float(np.max(errors))}


def sweep_seconds(n: int, m: int, r: int, count: int = 1000) -> dict[str, float]:
    """Milliseconds of a sweep of one start, and of five in one batch."""
    x, f, jac, _, _ = problem("tanh", n, m, r, 0, count)
    found = {}
    for restarts in (1, 5):

        def fit(max_iter: int, restarts: int = restarts) -> Any:
            return tensorfact.decouple(
                x, f, jac, rank=r, n_restarts=restarts, stop_tol=0.0, polish=False, rng=0, max_iter=max_iter
            )

        short, long = (min(_timed(lambda k=k, fit=fit: fit(k)) for _ in range(3)) for k in (5, 45))
        found[f"{restarts} starts"] = 1e3 * (long - short) / 40
    return found


def mlp_block(m: int, h: int, rank: int, count: int, *, max_iter: int = 50, polish_iter: int = 100) -> dict[str, Any]:
    """`decouple_mlp` of a GELU block of given size: seconds, memory, objective after every sweep, errors.

    Weights and inputs are random with singular values that fall like ``1 / (1 + 8 i / m)``. The objective told is that
    of the best iterate, which is what a fit returns; `polished` is the one after L-BFGS.
    """
    rng = np.random.default_rng(0)
    decay = 1 / (1 + 8 * np.arange(m) / m)

    def weight(rows: int, cols: int) -> Any:
        u, v = (np.linalg.qr(rng.standard_normal((size, m)))[0] for size in (rows, cols))
        return (u * decay) @ v.T * np.sqrt(rows * cols / m) / np.sqrt(cols)

    w1, w2 = weight(h, m), weight(m, h)
    x = (rng.standard_normal((count, m)) * decay) @ np.linalg.qr(rng.standard_normal((m, m)))[0]
    b1, b2 = 0.1 * rng.standard_normal(h), 0.1 * rng.standard_normal(m)
    best: list[float] = []
    begin = time.perf_counter()
    found = tensorfact.decouple_mlp(
        w1, b1, w2, b2, "gelu", x, rank=rank, max_iter=max_iter, polish_iter=polish_iter, rng=0,
        progress=lambda at: best.append(float(at.objective[0])),
    )  # fmt: skip
    return {
        "seconds": time.perf_counter() - begin,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "sweeps": found.info.sweeps,
        "polish_iterations": found.info.polish_iterations,
        "best_objective": best[: found.info.sweeps],
        "objective_of_each_sweep": list(found.info.history),
        "polished": found.info.restarts[0],
        "monotone": bool(np.all(np.diff(best) <= 0)),
        "error": found.error,
        "jacobian_error": found.jacobian_error,
        "load": os.getloadavg()[0],
    }


def _timed(call: Any) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> None:
    """Fill ``results/decoupling.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", action="append", default=[], choices=["recovery", "starts", "sweeps", "mlp"])
    arguments = parser.parse_args()
    result: dict[str, Any] = {} if arguments.fresh else timing.load("decoupling")
    result["environment"] = timing.environment()
    jobs: list[tuple[str, str, Any]] = []
    jobs += [("recovery", name, lambda name=name: recover(name, arguments.seeds)) for name in PROBLEMS]
    jobs += [
        ("starts", f"{kind} {ridge:g}", lambda kind=kind, ridge=ridge: starts(kind, ridge))
        for kind in ("proximal", "ridge")
        for ridge in RIDGES
    ]
    jobs += [
        ("sweeps", f"N=1000 ({n},{n},{r})", lambda n=n, r=r: sweep_seconds(n, n, r)) for n, r in ((10, 10), (32, 16))
    ]
    jobs.append(("mlp", "(768, 3072), rank 256, N=2000", lambda: mlp_block(768, 3072, 256, 2000)))
    for table, name, job in jobs:
        if arguments.only and table not in arguments.only:
            continue
        rows = result.setdefault(table, {})
        if name not in rows:
            rows[name] = job()
            timing.save("decoupling", result)
            print(table, name, rows[name], flush=True)


if __name__ == "__main__":
    main()
