"""Refuse what is not finite; bring what is extremely large or small into the range where squares of squares exist."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from tensorfact.factor._input import Source
from tensorfact.factor._operand import Dense, Operand, Portable, Scaled, Streamed

__all__ = ["normalised"]


def normalised(source: Source, *, need_norm: bool) -> tuple[Source, float]:
    """``source`` with a norm in the safe range, and the factor that its singular values must be multiplied by.

    A matrix-free operator is probed with one vector unless its norm is needed, which costs min(m, n) products.
    """
    op = source.op
    # Cholesky QR of A^H A X squares twice: norm^4 and the small directions' share of it must stay representable
    low, high = (1e-60, 1e60) if op.ops.eps < 1e-10 else (1e-8, 1e12)
    if not (need_norm or op.in_memory or isinstance(op, Streamed) or op.known_norm2 is not None):
        guess = op.ops.sum2(op.apply(op.ops.draw(op.shape[1], 1, np.random.default_rng(0))))  # its mean is ||A||^2
        return (source, 1.0) if low < guess < high or guess == 0.0 else _scaled(source, math.sqrt(guess))
    norm2 = op.norm2()
    if low < norm2 < high:
        return source, 1.0
    if source.array is None:
        if not math.isfinite(norm2):
            raise ValueError("a must be finite, got NaN, infinity or a norm beyond float64")
        return (source, 1.0) if norm2 == 0.0 else _scaled(source, math.sqrt(norm2))
    peak = _peak(source.array)
    if not math.isfinite(peak):
        raise ValueError(f"a must be finite, got NaN or infinity{_where(source.array)}")
    return (source, 1.0) if peak == 0.0 else _scaled(source, peak)


def _scaled(source: Source, size: float) -> tuple[Source, float]:
    op = source.op
    factor = 2.0 ** math.floor(math.log2(size))  # a power of two: no digit is lost
    op.ops.notes.append("scaled")
    other: Operand
    if source.array is None:
        other = Scaled(op, 1.0 / factor)
        return dataclasses.replace(source, op=other), factor
    array = source.array / factor if factor > 1e-300 else source.array * (1.0 / factor)
    if isinstance(op, Dense):
        array = np.asarray(array, dtype=op.ops.dtype)
        other = Dense(array, op.ops)
    else:
        other = Portable(array, op.ops)
    other.norm2()
    return dataclasses.replace(source, op=other, array=array), factor


def _peak(array: Any) -> float:
    if isinstance(array, np.ndarray):
        return float(np.max(np.abs(array)))
    from array_api_compat import array_namespace

    xp = array_namespace(array)
    return float(xp.max(xp.abs(array)))


def _where(array: Any) -> str:
    if not isinstance(array, np.ndarray):
        return ""
    row, col = np.argwhere(~np.isfinite(array))[0]
    return f", first at index ({row}, {col})"
