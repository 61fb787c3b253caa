"""Canonical forms and the norm of a train, by Householder QR of the cores: stable, and safe for every scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tensorfact.factor._train_ops import dot, exponent_of, namespace, ops_of, peak, permute, qr, scaled, working

__all__ = [
    "balanced_scale",
    "centred",
    "left_orthogonal",
    "norm",
    "norm_of",
    "restored",
    "reversed_train",
    "right_orthogonal",
]

Cores = tuple[Any, ...]


def reversed_train(cores: Sequence[Any]) -> Cores:
    """The train of the tensor with its modes in reverse order: left and right change places."""
    return tuple(permute(core, (2, 1, 0)) for core in reversed(cores))


def balanced_scale(cores: Sequence[Any]) -> tuple[Cores, int]:
    """Cores with entries of about 1 at most, and the power of two that the tensor must be multiplied by.

    Raises ``ValueError`` where a core is not finite.
    """
    out, total = [], 0
    for k, core in enumerate(cores):
        size = peak(core)
        if not math.isfinite(size):
            raise ValueError(f"cores must be finite, got NaN or infinity in core {k}")
        shift = exponent_of(size)
        out.append(scaled(working(core), -shift))
        total += shift
    return tuple(out), total


def left_orthogonal(cores: Sequence[Any], stop: int | None = None) -> tuple[Cores, int]:
    """Make all cores before ``stop`` (default: the last) left-orthonormal; cores of unit scale and a power of two."""
    xp = namespace(cores[0])
    done, total = balanced_scale(cores)
    out = list(done)
    for k in range(len(out) - 1 if stop is None else stop):
        r, n, s = (int(size) for size in out[k].shape)
        q, rest = qr(xp.reshape(out[k], (r * n, s)))
        out[k] = xp.reshape(q, (r, n, -1))
        _, m, t = (int(size) for size in out[k + 1].shape)
        follower = xp.reshape(dot(rest, xp.reshape(out[k + 1], (s, m * t))), (-1, m, t))
        shift = exponent_of(peak(follower))
        out[k + 1], total = scaled(follower, -shift), total + shift
    return tuple(out), total


def right_orthogonal(cores: Sequence[Any]) -> tuple[Cores, int]:
    """Make all cores but the first right-orthonormal; cores of unit scale and a power of two."""
    turned, total = left_orthogonal(reversed_train(cores))
    return reversed_train(turned), total


def centred(cores: Sequence[Any], at: int) -> tuple[Cores, int]:
    """Left-orthonormal cores before position ``at`` and right-orthonormal ones after it."""
    out, first = left_orthogonal(cores, at)
    tail, second = right_orthogonal(out[at:])  # the cores before stay as they are
    return (*out[:at], *tail), first + second


def norm_of(core: Any) -> float:
    """Frobenius norm of one core, accumulated in float64, whatever the scale."""
    core = working(core)
    size = peak(core)
    if not 0.0 < size < math.inf:
        return size
    shift = exponent_of(size)
    flat = namespace(core).reshape(scaled(core, -shift), (int(core.shape[0]), -1))
    return shifted(math.sqrt(ops_of(core).sum2(flat)), shift)


def norm(cores: Sequence[Any], canonical: str) -> float:
    """Frobenius norm of the tensor; infinity where it exceeds float64.

    An orthonormal side reduces it to one core. Otherwise one QR sweep: squaring would lose the norm of a difference
    of close trains below ``sqrt(eps)``.
    """
    if canonical == "left":
        return norm_of(cores[-1])
    if canonical == "right":
        return norm_of(cores[0])
    turned, total = left_orthogonal(cores)
    return shifted(norm_of(turned[-1]), total)


def shifted(value: float, exponent: int) -> float:
    """``value * 2**exponent``, infinity where that is out of range."""
    try:
        return math.ldexp(value, exponent)
    except OverflowError:
        return math.inf


def restored(core: Any, exponent: int, name: str = "the train") -> Any:
    """A core of unit scale times ``2**exponent``; ``ValueError`` where its type cannot hold the result."""
    with np.errstate(over="ignore"):
        out = scaled(core, exponent)
    if exponent > 0 and not math.isfinite(peak(out)):
        raise ValueError(f"the norm of {name} must fit {core.dtype}, got about 2^{exponent}")
    return out
