"""randomized_svd against its peers at equal or better error, and against its own matrix products.

    python -m bench.low_rank                       # every size and rank; finished cells are kept, so it resumes
    python -m bench.low_rank --fresh --only 768x3072

Errors come first: each routine's Frobenius and spectral error over the optimum, on a matrix whose spectrum is known.
Then all of them are timed in one process, interleaved. For each peer the comparison is with the fastest setting of ours
whose errors are both no larger, within 0.1 % in the Frobenius and 2 % in the spectral norm: one sketch differs from the
next by as much. Exact peers are compared with our default, whose errors are stored beside:
an approximation never equals the optimum to the last digit.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

import numpy as np

import tensorfact
from bench import cases, timing

Routine = Callable[[], tuple[Any, Any, Any]]
EXACT = ("gesdd", "svds")


def our_settings(a: np.ndarray, rank: int) -> dict[str, Routine]:
    """Ours: the default and explicit numbers of power iterations."""
    settings: dict[str, dict[str, Any]] = {"default": {}}
    settings |= {f"n_iter={q}": {"n_iter": q} for q in (1, 2, 4)}
    settings |= {"shifted, n_iter=3": {"n_iter": 3, "method": "shifted"}}
    return {
        f"tensorfact {name}": lambda options=options: tuple(tensorfact.randomized_svd(a, rank=rank, rng=0, **options))
        for name, options in settings.items()
    }


def peer_settings(a: np.ndarray, rank: int) -> dict[str, Routine]:
    """Peers at their defaults and at settings that reach smaller errors; those that would take minutes are left out."""
    import fbpca
    import librla
    import torch
    from scipy.linalg import svd
    from scipy.sparse.linalg import svds
    from sklearn.utils.extmath import randomized_svd as sklearn_svd

    tensor, limit = torch.from_numpy(a), min(a.shape)
    width = min(limit, rank + 10)

    def torch_svd(niter: int, q: int) -> Any:
        u, s, v = torch.svd_lowrank(tensor, q=q, niter=niter)
        return u[:, :rank].numpy(), s[:rank].numpy(), v[:, :rank].T.numpy()

    def fbpca_svd(n_iter: int) -> Any:
        return fbpca.pca(a, k=rank, raw=True, n_iter=n_iter, l=width)

    def librla_svd(power_iter: int) -> Any:
        return librla.svd_sketch(a, rank, power_iter=power_iter, rng=np.random.default_rng(0))

    def lapack() -> Any:
        u, s, vh = svd(a, full_matrices=False, check_finite=False, lapack_driver="gesdd")
        return u[:, :rank], s[:rank], vh[:rank]

    def lanczos() -> Any:
        u, s, vh = svds(a, k=rank, rng=np.random.default_rng(0))
        return u[:, ::-1], s[::-1], vh[::-1]

    large = limit > 1536  # there the slow ones run at small ranks only
    found: dict[str, Routine] = {
        "scikit-learn default": lambda: sklearn_svd(a, rank, random_state=0),
        "torch.svd_lowrank niter=2": lambda: torch_svd(2, width),
    }
    if rank <= limit // 3 or not large:
        found["torch.svd_lowrank niter=7"] = lambda: torch_svd(7, width)
    if rank <= limit // 8 or not large:
        found["fbpca n_iter=2"] = lambda: fbpca_svd(2)
        found["librla power_iter=2"] = lambda: librla_svd(2)
    if not large:
        found["gesdd"] = lapack
        if rank <= limit // 4:
            found["svds"] = lanczos
    return found


def error_ratios(a: np.ndarray, s: np.ndarray, answer: tuple[Any, Any, Any], rank: int) -> tuple[float, float]:
    """Frobenius and spectral error over the optimum; the spectral norm by Lanczos iteration on the residual."""
    from scipy.sparse.linalg import svds

    u, values, vh = (np.asarray(part) for part in answer)
    residual = a - (u * values) @ vh
    frobenius = math.sqrt(float(np.vdot(residual, residual)) / float(np.sum(s[rank:] ** 2)))
    top = svds(residual, k=1, return_singular_vectors=False, rng=np.random.default_rng(0))[0]
    return frobenius, float(top) / float(s[rank])


def products_alone(a: np.ndarray, rank: int, path: str, n_iter: int) -> Callable[[], None]:
    """The matrix products of one call and nothing else, into memory that is already there."""
    m, n = sorted(a.shape, reverse=True)
    tall = a if a.shape[0] >= a.shape[1] else a.T
    width = rank + max(10, math.ceil(0.05 * rank))
    long, short = np.ones((m, width), np.float32), np.ones((n, width), np.float32)
    square = np.empty((n, n), np.float32)

    def direct() -> None:
        for _ in range(n_iter + 1):
            np.matmul(tall.T, long, out=short)
            np.matmul(tall, short, out=long)

    def through_gram() -> None:
        np.matmul(tall.T, tall, out=square)
        for _ in range(n_iter + 1):
            np.matmul(square, short)
        np.matmul(tall, short, out=long)

    return through_gram if path == "gram-subspace" else direct


def measure(m: int, n: int, share: float, rounds: int) -> dict[str, Any]:
    """One size and rank: errors, then interleaved times."""
    a, s = cases.power_law(m, n)
    rank = int(share * min(m, n))
    routines = our_settings(a, rank) | peer_settings(a, rank)
    rows: dict[str, Any] = {}
    for name, routine in routines.items():
        frobenius, spectral = error_ratios(a, s, routine(), rank)
        rows[name] = {"frobenius": frobenius, "spectral": spectral}
    info = tensorfact.randomized_svd(a, rank=rank, rng=0).info
    if info.path in ("shifted", "gram-subspace"):
        routines["products of default"] = products_alone(a, rank, info.path, info.n_iter)  # type: ignore[assignment]
    routines["products of n_iter=2"] = products_alone(a, rank, "subspace", 2)  # type: ignore[assignment]
    seconds = timing.interleaved(routines, rounds, budget=60.0)
    for name, times in seconds.items():
        rows.setdefault(name, {})["seconds"] = float(np.median(times))
        rows[name]["rounds"] = len(times)
    return {"shape": [m, n], "rank": rank, "share": share, "default_path": info.path, "rows": rows}


def compare(cell: dict[str, Any]) -> dict[str, Any]:
    """For each peer: our fastest setting of equal or better error, and how many times faster it is."""
    rows = cell["rows"]
    ours = {name: row for name, row in rows.items() if name.startswith("tensorfact")}
    answer = {}
    for name, row in rows.items():
        if name in ours or "frobenius" not in row:
            continue
        able = {
            key: mine["seconds"]
            for key, mine in ours.items()
            if (mine["frobenius"] <= 1.001 * row["frobenius"] and mine["spectral"] <= 1.02 * row["spectral"])
            or (name in EXACT and key == "tensorfact default")
        }
        if able:
            best = min(able, key=lambda key: able[key])
            answer[name] = {"setting": best, "times_faster": row["seconds"] / able[best]}
        else:
            answer[name] = {"setting": None, "times_faster": None}
    return answer


def real_weights() -> dict[str, Any]:
    """Our default on weights of a trained encoder: errors over the optimum at each rank."""
    answer: dict[str, Any] = {}
    for name, a in cases.real_weights():
        s = np.linalg.svd(a.astype(float), compute_uv=False)
        for share in cases.SHARES:
            rank = int(share * min(a.shape))
            result = tensorfact.randomized_svd(a, rank=rank, rng=0)
            frobenius, spectral = error_ratios(a, s, tuple(result), rank)
            answer[f"{name} {share:.0%}"] = {"frobenius": frobenius, "spectral": spectral, "path": result.info.path}
    return answer


def main() -> None:
    """Measure what is missing and write ``results/low_rank.json`` after each cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="forget stored cells")
    parser.add_argument("--only", action="append", default=[], metavar="MxN", help="only this size (repeatable)")
    parser.add_argument("--rounds", type=int, default=7, help="below 1000 rows; larger ones take two")
    args = parser.parse_args()
    result: dict[str, Any] = timing.load("low_rank")
    result.setdefault("cells", {})
    result["environment"] = timing.environment("torch", "scikit-learn", "fbpca", "librla")
    for m, n in cases.SHAPES:
        if args.only and f"{m}x{n}" not in args.only:
            continue
        for share in cases.SHARES:
            key = f"{m}x{n} {share:.0%}"
            if key in result["cells"] and not args.fresh:
                continue
            cell = measure(m, n, share, args.rounds if m < 1000 else 2)
            cell["faster"] = compare(cell)
            result["cells"][key] = cell
            timing.save("low_rank", result)
            brief = {k: v["times_faster"] and round(v["times_faster"], 2) for k, v in cell["faster"].items()}
            print(key, cell["default_path"], brief, flush=True)
    for cell in result["cells"].values():
        cell["faster"] = compare(cell)
    result["real_weights"] = real_weights()
    timing.save("low_rank", result)


if __name__ == "__main__":
    main()
