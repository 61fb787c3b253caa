"""tt_svd against the time of reading its input once, and against other libraries.

    python -m bench.tensor_train                          # every cell that is not stored yet
    python -m bench.tensor_train --only "float64 2^27"    # cells whose name starts so
    python -m bench.tensor_train --only peers --fresh

One read is our own sum of squares over the same array in the same run, on all threads, the least of several. Errors
come first: the sketch's over the deterministic one's. Results are appended cell by cell, so a run that is cut off goes
on where it was. Peers run at 2^24 numbers, because they take hundreds to thousands of reads.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import numpy as np

import tensorfact
from bench import timing
from tensorfact import kernels
from tensorfact.factor._tt_sweep import _Step

RANKS = (5, 20, 50)
SHAPES = {"2^27": (2,) * 27, "10^8": (10,) * 8}
BARS = {"sketch": {5: 6, 20: 8, 50: 12}, "tsqr": {5: 12, 20: 20, 50: 35}}  # reads
METHODS = ("tsqr", "reflections", "sketch")
PEERS_SHAPE, PEERS_RANK = (2,) * 24, 20


def data(shape: tuple[int, ...], dtype: Any, noise: float = 1e-3) -> np.ndarray:
    """A train of rank 64 whose singular values fall by 0.8 at the middle bond, plus noise: both halves as matrices."""
    rng = np.random.default_rng(0)
    half = len(shape) // 2
    left, right = _chain(shape[:half], rng), _chain(shape[half:], rng)
    width = min(left.shape[1], right.shape[1])
    weights = 0.8 ** np.arange(width)
    a = np.empty((left.shape[0], right.shape[0]), dtype)
    np.matmul((left[:, :width] * weights).astype(dtype), right[:, :width].T.astype(dtype), out=a)
    flat = a.reshape(-1)
    flat /= np.sqrt(kernels.sum_squares(flat[None])).astype(dtype)
    grain = rng.standard_normal(1 << 20) * (noise / np.sqrt(flat.size))
    for lo in range(0, flat.size, grain.size):
        part = flat[lo : lo + grain.size]
        shift = int(rng.integers(grain.size))
        part += np.roll(grain, shift)[: part.size].astype(dtype)
    return a.reshape(shape)


def _chain(modes: tuple[int, ...], rng: np.random.Generator, rank: int = 64) -> np.ndarray:
    """Orthonormal columns (product of modes, at most rank) of a random train."""
    out = np.ones((1, 1))
    for n in modes:
        width = min(rank, out.shape[1] * n)
        core = np.linalg.qr(rng.standard_normal((out.shape[1] * n, width)))[0]
        out = (out @ core.reshape(out.shape[1], n * width)).reshape(-1, width)
    return out


def least(run: Callable[[], Any], rounds: int) -> float:
    """Least seconds of several runs."""
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def ours(a: np.ndarray, rank: int, rounds: int = 5) -> dict[str, Any]:
    """Both methods, and "tsqr" by reflections only, at one rank: seconds, reads, errors; a read timed next to each."""
    flat = a.reshape(1, -1)
    cell: dict[str, Any] = {"rank": rank, "dtype": str(a.dtype), "numbers": a.size}
    reads = []
    for name in METHODS:
        method = "sketch" if name == "sketch" else "tsqr"
        with patch.object(_Step, "_squares_may_do", lambda _: False) if name == "reflections" else nullcontext():
            train = tensorfact.tt_svd(a, rank=rank, method=method, rng=0)  # type: ignore[arg-type]
            reads.append(least(lambda: kernels.sum_squares(flat), 5))
            seconds = least(lambda m=method: tensorfact.tt_svd(a, rank=rank, method=m, rng=0), rounds)  # type: ignore[misc]
        cell[name] = {"seconds": seconds, "error": train.error, "path": train.info.path, "notes": train.info.notes}
    cell["read_seconds"] = min(reads)
    cell["read_gb_s"] = a.nbytes / cell["read_seconds"] / 1e9
    for name in METHODS:
        cell[name]["reads"] = cell[name]["seconds"] / cell["read_seconds"]
        cell[name]["bar"] = BARS["sketch" if name == "sketch" else "tsqr"].get(rank)
    cell["error_ratio"] = cell["sketch"]["error"] / cell["tsqr"]["error"]
    return cell


def classical(a: np.ndarray, rank: int) -> list[np.ndarray]:
    """The textbook: one full SVD a bond, by NumPy."""
    cores, rest, r = [], a, 1
    for n in a.shape[:-1]:
        u, s, vh = np.linalg.svd(rest.reshape(r * n, -1), full_matrices=False)
        q = min(rank, len(s))
        cores.append(u[:, :q].reshape(r, n, q))
        rest, r = s[:q, None] * vh[:q], q
    return [*cores, rest.reshape(r, a.shape[-1], 1)]


def peer_routines(a: np.ndarray, rank: int) -> dict[str, Callable[[], Any]]:
    """Each returns cores (r, n, r') or what `peer_cores` knows."""
    import teneva
    import tensorly
    import torch
    import torchtt
    from tensorly.decomposition import tensor_train

    ranks = [1, *[min(rank, 2 ** min(k, a.ndim - k)) for k in range(1, a.ndim)], 1]
    return {
        "numpy svd": lambda: classical(a, rank),
        "TensorLy": lambda: tensor_train(tensorly.tensor(a), rank=ranks).factors,
        "torchTT": lambda: torchtt.TT(torch.from_numpy(a), eps=1e-14, rmax=rank).cores,
        "teneva": lambda: teneva.svd(a, e=1e-14, r=rank),
        "quimb": lambda: matrix_product_state(a, rank),
    }


def matrix_product_state(a: np.ndarray, rank: int) -> list[np.ndarray]:
    """quimb's cores, outer bonds left out."""
    from quimb.tensor import MatrixProductState

    train = MatrixProductState.from_dense(a, dims=a.shape, max_bond=rank, cutoff=0.0)
    train.permute_arrays("lpr")
    return list(train.arrays)


def error_of(a: np.ndarray, cores: Any) -> float:
    """Relative error of cores, one slab at a time."""
    dense = np.ones((1, 1))
    for core in cores:
        wide = np.asarray(core, dtype=np.float64)
        if wide.ndim == 2:  # quimb leaves out the outer bonds
            wide = wide[None] if dense.shape == (1, 1) else wide[:, :, None]
        if wide.shape[0] != dense.shape[1]:
            wide = wide.transpose(0, 2, 1)
        dense = (dense @ wide.reshape(wide.shape[0], -1)).reshape(-1, wide.shape[2])
    flat = dense.reshape(-1)
    flat -= a.reshape(-1)
    return float(np.linalg.norm(flat) / np.linalg.norm(a))


def peer_cell(a: np.ndarray, name: str, rank: int) -> dict[str, Any]:
    """One run of a peer beside one read and both of ours on the same array."""
    mine = ours(a, rank)
    run = peer_routines(a, rank)[name]
    begin = time.perf_counter()
    cores = run()
    seconds = time.perf_counter() - begin
    cell = {"seconds": seconds, "reads": seconds / mine["read_seconds"], "error": error_of(a, cores), "ours": mine}
    cell["times_faster"] = {method: seconds / mine[method]["seconds"] for method in ("tsqr", "sketch")}
    return cell


def main() -> None:
    """Measure what is missing and store each cell at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="measure stored cells again")
    parser.add_argument("--only", action="append", default=[], metavar="PREFIX", help="only these cells (repeatable)")
    args = parser.parse_args()
    result: dict[str, Any] = timing.load("tensor_train")
    cells = result.setdefault("cells", {})

    def wanted(name: str) -> bool:
        chosen = not args.only or any(name.startswith(prefix) for prefix in args.only)
        return chosen and (args.fresh or name not in cells)

    def store(name: str, cell: dict[str, Any]) -> None:
        cells[name] = cell
        result["environment"] = timing.environment("tensorly", "torchtt", "teneva", "quimb", "torch")
        timing.save("tensor_train", result)

    for dtype in ("float64", "float32"):
        for label, shape in SHAPES.items():
            names = {f"{dtype} {label} rank {rank}": rank for rank in RANKS}
            if not any(map(wanted, names)):
                continue
            a = data(shape, dtype)
            for name, rank in names.items():
                if wanted(name):
                    cell = ours(a, rank)
                    store(name, cell)
                    reads = {method: round(cell[method]["reads"], 2) for method in METHODS}
                    print(name, reads, f"error ratio {cell['error_ratio']:.4f}", flush=True)
            del a
    peers = ["numpy svd", "TensorLy", "torchTT", "teneva", "quimb"]
    if any(wanted(f"peers {name}") for name in peers):
        a = data(PEERS_SHAPE, "float64")
        for peer in peers:
            if wanted(f"peers {peer}"):
                cell = peer_cell(a, peer, PEERS_RANK)
                store(f"peers {peer}", cell)
                print(
                    peer, f"{cell['reads']:.0f} reads", cell["times_faster"], f"error {cell['error']:.3g}", flush=True
                )


if __name__ == "__main__":
    main()
