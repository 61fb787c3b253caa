"""Arithmetic on the cores of trains: sums, products, contractions. Tuples of cores in, tuples of cores out.

Nothing here truncates: bonds add in a sum and multiply in a product, and rounding is the caller's decision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tensorfact.factor._train_ops import (
    concat,
    dot,
    exponent_of,
    is_complex,
    namespace,
    peak,
    permute,
    scaled,
    wide,
    working,
    zeros,
)

__all__ = ["absorb", "add", "constant", "dense", "gather", "hadamard", "inner", "promoted", "scale"]

Cores = tuple[Any, ...]
_GATHER_ENTRIES = 1 << 22  # gathered core slices of one block of points


def promoted(a: Sequence[Any], b: Sequence[Any]) -> tuple[Cores, Cores]:
    """Both trains in their common type; ``TypeError`` where their libraries differ."""
    if isinstance(a[0], np.ndarray) != isinstance(b[0], np.ndarray):
        raise TypeError(f"both trains must be of one array library, got {type(a[0])} and {type(b[0])}")
    if a[0].dtype == b[0].dtype:
        return tuple(a), tuple(b)
    xp = namespace(a[0])
    dtype = xp.result_type(a[0].dtype, b[0].dtype)
    return tuple(_cast(xp, core, dtype) for core in a), tuple(_cast(xp, core, dtype) for core in b)


def _cast(xp: Any, core: Any, dtype: Any) -> Any:
    return core.astype(dtype, copy=False) if xp is np else xp.astype(core, dtype, copy=False)


def scale(cores: Sequence[Any], factor: complex, at: int) -> Cores:
    """The train times a number, which goes into the core at position ``at``; a complex one makes all cores complex."""
    if isinstance(factor, complex):
        xp = namespace(cores[0])
        unit = xp.zeros(1, dtype=xp.complex64)
        dtype = xp.result_type(cores[0].dtype, unit.dtype)
        cores = [_cast(xp, core, dtype) for core in cores]
    cores = list(cores)
    cores[at] = cores[at] * factor
    return tuple(cores)


def constant(like: Sequence[Any], value: complex) -> Cores:
    """The train of a constant tensor with the mode sizes of ``like``."""
    ones = [zeros(core, (1, int(core.shape[1]), 1)) + 1 for core in like]
    return scale(ones, value, 0)


def add(a: Sequence[Any], b: Sequence[Any]) -> Cores:
    """The sum: first cores side by side, last cores stacked, the others block-diagonal."""
    a, b = promoted(a, b)
    if len(a) == 1:
        return (a[0] + b[0],)
    out = [concat([a[0], b[0]], 2)]
    for x, y in zip(a[1:-1], b[1:-1], strict=True):
        (r, n, s), (p, _, q) = x.shape, y.shape
        top = concat([x, zeros(x, (int(r), int(n), int(q)))], 2)
        bottom = concat([zeros(y, (int(p), int(n), int(s))), y], 2)
        out.append(concat([top, bottom], 0))
    return (*out, concat([a[-1], b[-1]], 0))


def hadamard(a: Sequence[Any], b: Sequence[Any]) -> Cores:
    """The entrywise product: each slice is a Kronecker product of slices."""
    a, b = promoted(a, b)
    xp, out = namespace(a[0]), []
    for x, y in zip(a, b, strict=True):
        (r, n, s), (p, _, q) = x.shape, y.shape
        product = x[:, None, :, :, None] * y[None, :, :, None, :]
        out.append(xp.reshape(product, (int(r * p), int(n), int(s * q))))
    return tuple(out)


def inner(a: Sequence[Any], b: Sequence[Any]) -> complex:
    """``sum conj(a) b`` by one sweep, accumulated in double precision; no intermediate result leaves the range.

    Cost: ``2 n r s (r + s)`` flop a mode for bonds r and s.
    """
    a, b = promoted(a, b)
    xp, exponent = namespace(a[0]), 0
    gram: Any = None
    for x, y in zip(a, b, strict=True):
        shifts = [exponent_of(peak(core)) for core in (x, y)]
        x, y = (wide(scaled(working(core), -e)) for core, e in zip((x, y), shifts, strict=True))
        exponent += sum(shifts)
        (r, n, s), (p, _, q) = (tuple(map(int, core.shape)) for core in (x, y))
        flat = xp.reshape(y, (p, n * q))
        right = flat if gram is None else dot(gram, flat)
        left = permute(xp.reshape(xp.conj(x), (r * n, s)), (1, 0))
        gram = dot(left, xp.reshape(right, (r * n, q)))
        shift = exponent_of(peak(gram))
        gram, exponent = scaled(gram, -shift), exponent + shift
    value = complex(gram[0, 0])
    parts = [_ldexp(part, exponent) for part in (value.real, value.imag)]
    return complex(*parts) if is_complex(gram) else parts[0]


def _ldexp(value: float, exponent: int) -> float:
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.copysign(math.inf, value)


def absorb(parts: Sequence[Any]) -> Cores | Any:
    """A chain of cores and matrices with the matrices multiplied into their neighbours; a number if no core is left.

    An index or a vector turns the core of its mode into a matrix (r, r').
    """
    xp = namespace(parts[0])
    out: list[Any] = []
    pending = None
    for part in parts:
        if part.ndim == 2:
            pending = part if pending is None else dot(pending, part)
            continue
        r, n, s = (int(size) for size in part.shape)
        if pending is not None:
            part = xp.reshape(dot(pending, xp.reshape(part, (r, n * s))), (-1, n, s))
            pending = None
        out.append(part)
    if not out:
        return pending[0, 0]  # type: ignore[index]
    if pending is not None:
        r, n, s = (int(size) for size in out[-1].shape)
        out[-1] = xp.reshape(dot(xp.reshape(out[-1], (r * n, s)), pending), (r, n, -1))
    return tuple(out)


def gather(cores: Sequence[Any], points: np.ndarray) -> Any:
    """Values at the index tuples ``points`` (B, d), in range; ``2 B r r'`` flop a mode."""
    xp = namespace(cores[0])
    if points.shape[0] == 0:
        return zeros(cores[0], (0,))
    if xp is np:
        rows = np.ones((points.shape[0], 1), dtype=cores[0].dtype)
        for core, index in zip(cores, points.T, strict=True):
            rows = _gather_sorted(rows, core, index)
        return rows[:, 0]
    from array_api_compat import device

    width = max(int(core.shape[0]) * int(core.shape[2]) for core in cores)
    step = max(1, _GATHER_ENTRIES // width)
    blocks = []
    for lo in range(0, points.shape[0], step):
        index = xp.asarray(points[lo : lo + step].T.copy(), device=device(cores[0]))
        rows = xp.take(cores[0], index[0], axis=1)[0][:, None, :]
        for core, at in zip(cores[1:], index[1:, :], strict=True):
            rows = rows @ permute(xp.take(core, at, axis=1), (1, 0, 2))
        blocks.append(rows[:, 0, 0])
    return concat(blocks, 0)


def _gather_sorted(rows: np.ndarray, core: np.ndarray, index: np.ndarray) -> np.ndarray:
    """``rows[b] @ core[:, index[b]]``: points that share an index share one product."""
    out = np.empty((rows.shape[0], core.shape[2]), dtype=core.dtype)
    order = np.argsort(index, kind="stable")
    found, starts = np.unique(index[order], return_index=True)
    for value, lo, hi in zip(found, starts, [*starts[1:], index.size], strict=True):
        chosen = order[lo:hi]
        out[chosen] = dot(rows[chosen], core[:, value])
    return out


def dense(cores: Sequence[Any]) -> Any:
    """The dense tensor, as a matrix chain in the cheapest order: about ``2 N r`` flop for the smallest bond r."""
    xp = namespace(cores[0])
    shape = tuple(int(core.shape[1]) for core in cores)
    plan = _chain_order(shape, (*(int(core.shape[0]) for core in cores), 1))

    def build(lo: int, hi: int) -> Any:  # (r_lo, n_lo .. n_hi-1, r_hi) as a core with one merged mode
        if hi - lo == 1:
            return cores[lo]
        mid = plan[lo, hi]
        left, right = build(lo, mid), build(mid, hi)
        (r, n, s), (_, m, q) = left.shape, right.shape
        product = dot(xp.reshape(left, (int(r * n), int(s))), xp.reshape(right, (int(s), int(m * q))))
        return xp.reshape(product, (int(r), int(n * m), int(q)))

    return xp.reshape(build(0, len(cores)), shape)


def _chain_order(shape: tuple[int, ...], ranks: tuple[int, ...]) -> dict[tuple[int, int], int]:
    """Where to split each stretch of the chain: dynamic programming over stretches, ``d^3`` steps."""
    d = len(shape)
    sizes = np.cumprod((1, *shape), dtype=np.float64)
    cost: dict[tuple[int, int], float] = {(i, i + 1): 0.0 for i in range(d)}
    plan: dict[tuple[int, int], int] = {}
    for length in range(2, d + 1):
        for lo in range(d - length + 1):
            hi = lo + length
            outer = float(sizes[hi] / sizes[lo]) * ranks[lo] * ranks[hi]
            cost[lo, hi], plan[lo, hi] = min(
                (cost[lo, mid] + cost[mid, hi] + outer * ranks[mid], mid) for mid in range(lo + 1, hi)
            )
    return plan
