"""Dense times sparse: `sparse_product` against the dense GEMM, torch CSR and SciPy CSR.

    python -m bench.sparse                    # every cell; finished ones are kept, so it resumes
    python -m bench.sparse --fresh --only "float32 4096 x 768 x 3072" --seconds 140

A cell is one dtype, number of tokens, shape of V and density: y = x V for x (tokens, k), V (k, n) packed before the
clock starts. The dense time is that of the faster of two BLAS. All routines of a cell run in one process, interleaved,
and each ratio is of medians. Values are compared with the dense product before anything is timed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse
import torch

from bench import timing
from tensorfact import kernels

SHAPES = ((768, 3072), (3072, 768), (1117, 3072), (384, 1536), (192, 768))
PATTERNS = ("0.5", "0.35", "0.25", "0.1", "0.05", "2:4", "1:4")
TOKENS = (4096, 512, 64, 16, 1)
Cell = tuple[str, int, int, int, str]


def weights(k: int, n: int, pattern: str, rng: np.random.Generator) -> Any:
    """V (k, n): a share of entries anywhere, or so many of each four neighbours in a row."""
    v = rng.standard_normal((k, n))
    if ":" not in pattern:
        return v * (rng.random((k, n)) < float(pattern))
    kept = int(pattern[0])
    order = rng.random((k, n // 4, 4)).argsort(axis=2)
    return v * (order < kept).reshape(k, n)


def routines(x: Any, v: Any, plan: kernels.SparsePlan, peers: bool) -> dict[str, Callable[[], Any]]:
    """What is timed: each returns x V, as (tokens, n) or as (n, tokens) where a peer wants it so."""
    out = np.empty((x.shape[0], v.shape[1]), x.dtype)
    tx, tv, tout = torch.from_numpy(x), torch.from_numpy(v), torch.empty(out.shape, dtype=torch.from_numpy(x).dtype)
    found: dict[str, Callable[[], Any]] = {
        "dense": lambda: kernels.matmul(x, v, out=out),
        "dense torch": lambda: torch.mm(tx, tv, out=tout).numpy(),
        "sparse": lambda: kernels.sparse_product(x, plan, path="sparse", out=out),
        "auto": lambda: kernels.sparse_product(x, plan, out=out),
    }
    if peers:
        turned = torch.from_numpy(np.ascontiguousarray(v.T)).to_sparse_csr()
        columns = torch.from_numpy(np.ascontiguousarray(x.T))
        csr, right = scipy.sparse.csr_array(np.ascontiguousarray(v.T)), np.ascontiguousarray(x.T)
        found["torch CSR"] = lambda: (turned @ columns).numpy().T
        found["scipy CSR"] = lambda: (csr @ right).T
    return found


def measure(dtype: str, tokens: int, k: int, n: int, pattern: str, rounds: int, budget: float) -> dict[str, Any]:
    """One cell: medians in seconds and ratios to the dense product."""
    rng = np.random.default_rng(0)
    v = weights(k, n, pattern, rng).astype(dtype)
    x = rng.standard_normal((tokens, k)).astype(dtype)
    begin = time.perf_counter()
    plan = kernels.pack_sparse(v)
    packing = time.perf_counter() - begin
    expected = x.astype(np.float64) @ v.astype(np.float64)
    rivals = routines(x, v, plan, tokens >= 512 and pattern not in ("0.35", "0.05"))
    for name, run in rivals.items():
        error = np.linalg.norm(run() - expected) / np.linalg.norm(expected)
        assert error < 100 * np.finfo(dtype).eps, f"{name}: {error}"
    del expected
    seconds = timing.interleaved(rivals, rounds, budget)
    medians = {name: float(np.median(times)) for name, times in seconds.items()}
    dense = min(medians["dense"], medians["dense torch"])
    return {
        "path": kernels.sparse_path(tokens, plan),
        "bytes_of_dense": plan.nbytes / v.nbytes,
        "pack_seconds": packing,
        "seconds": medians,
        "of_dense": {name: value / dense for name, value in medians.items()},
        "gflops": 2e-9 * plan.nnz * tokens / medians["sparse"],
        "rounds": len(seconds["dense"]),
    }


def cells() -> Iterator[tuple[str, Cell]]:
    """Names and sizes, the cells of the bars first."""
    for tokens in TOKENS:
        for dtype in ("float32", "float64"):
            for k, n in SHAPES:
                for pattern in PATTERNS:
                    yield f"{dtype} {tokens} x {k} x {n} {pattern}", (dtype, tokens, k, n, pattern)


def main() -> None:
    """Measure what is missing and write ``results/sparse.json`` after each cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="measure again what is stored")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="cells whose name has this")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long, to be resumed")
    args = parser.parse_args()
    result: dict[str, Any] = timing.load("sparse")
    result.setdefault("cells", {})
    result["environment"] = timing.environment("torch")
    started = time.perf_counter()
    for name, cell in cells():
        if args.only and not any(text in name for text in args.only):
            continue
        if name in result["cells"] and not args.fresh:
            continue
        if time.perf_counter() - started > args.seconds:
            break
        result["cells"][name] = found = measure(*cell, args.rounds, 6.0)
        timing.save("sparse", result)
        shown = {k: round(v, 2) for k, v in found["of_dense"].items()}
        print(f"{name}: {found['path']}: {shown}, {found['gflops']:.0f} GFLOP/s", flush=True)


if __name__ == "__main__":
    main()
