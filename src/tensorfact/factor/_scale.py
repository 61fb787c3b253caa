"""Refuse what is not finite; bring what is extremely large or small into the range where squares of squares exist."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from tensorfact.factor._input import Source
from tensorfact.factor._operand import Dense, Linear, Operand, Portable, Scaled, Streamed, scaled_by

__all__ = ["normalised"]


def normalised(source: Source, *, need_norm: bool) -> tuple[Source, int]:
    """``source`` with a norm in the safe range, and the power of two that its singular values must be multiplied by.

    A matrix-free operator is probed with one vector unless its norm is needed, which costs min(m, n) products.
    """
    op = source.op
    # Cholesky QR of A^H A X squares twice: norm^4 and the small directions' share of it must stay representable
    low, high = (1e-60, 1e60) if op.ops.eps < 1e-10 else (1e-8, 1e12)
    if isinstance(op, Linear):
        size = _probe(op)
        if not low < size * size < high and size > 0:
            source, exponent = _scaled(source, size)
            if need_norm or op.known_norm2 is not None:
                source.op.norm2()
            return source, exponent
    if not (need_norm or op.in_memory or isinstance(op, Streamed) or op.known_norm2 is not None):
        return source, 0
    norm2 = op.norm2()
    if low < norm2 < high:
        return source, 0
    if source.array is not None:
        peak = _peak(source.array)
        if not math.isfinite(peak):
            raise ValueError(f"a must be finite, got NaN or infinity{_where(source.array)}")
    elif isinstance(op, Streamed):
        peak = max(_peak(block) for _, _, block in op.blocks())
    else:
        peak = 0.0 if norm2 == 0.0 else math.sqrt(norm2)
    if not math.isfinite(peak):
        raise ValueError("a must be finite, got NaN or infinity")
    return (source, 0) if peak == 0.0 else _scaled(source, peak)


def _scaled(source: Source, size: float) -> tuple[Source, int]:
    op, exponent = source.op, math.frexp(size)[1]
    op.ops.notes.append("scaled")
    other: Operand
    array = None
    if isinstance(op, Streamed):
        other = op.scaled(-exponent)
    elif source.array is None:
        other = Scaled(op, -exponent)
    elif isinstance(op, Dense):
        array = np.asarray(scaled_by(source.array, -exponent), dtype=op.ops.dtype)
        other = Dense(array, op.ops)
    else:
        array = scaled_by(source.array, -exponent)
        other = Portable(array, op.ops)
    if array is not None or isinstance(op, Streamed):
        other.norm2()
    return dataclasses.replace(source, op=other, array=array), exponent


def _probe(op: Linear) -> float:
    """Length of the image of one Gaussian vector; its mean square is the squared norm."""
    ops = op.ops
    vector = ops.draw(op.shape[1], 1, np.random.default_rng(0))
    for exponent in (0, -60):  # the second one for operators whose image would overflow
        try:
            image = op.apply(vector * ops.dtype.type(2.0**exponent))
        except ValueError:
            if exponent:
                raise
            continue
        peak = _peak(image)
        return peak * math.sqrt(ops.sum2(image / ops.dtype.type(peak))) * 2.0**-exponent if peak > 0 else 0.0
    raise AssertionError("unreachable")


def _peak(array: Any) -> float:
    """Largest magnitude of a real or imaginary part: finite exactly when the entries are."""
    if isinstance(array, np.ndarray):
        parts = array.view(array.real.dtype) if array.dtype.kind == "c" and array.flags.c_contiguous else array
        if parts.dtype.kind == "c":
            return max(_peak(array.real), _peak(array.imag))
        return float(np.max(np.abs(parts)))
    from array_api_compat import array_namespace

    xp = array_namespace(array)
    if xp.isdtype(array.dtype, "complex floating"):
        return max(_peak(xp.real(array)), _peak(xp.imag(array)))
    return float(xp.max(xp.abs(array)))


def _where(array: Any) -> str:
    if not isinstance(array, np.ndarray):
        return ""
    row, col = np.argwhere(~np.isfinite(array))[0]
    return f", first at index ({row}, {col})"
