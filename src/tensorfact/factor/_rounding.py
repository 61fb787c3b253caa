"""Rounding of trains: smaller bonds to an error or a rank, the error known exactly from what was cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from tensorfact.factor import _train_canonical as forms
from tensorfact.factor._adaptive import smallest_tol
from tensorfact.factor._bonds import Request, request
from tensorfact.factor._train import TensorTrain
from tensorfact.factor._train_chain import TrainInfo
from tensorfact.factor._train_ops import (
    cast_like,
    dot,
    exponent_of,
    identity,
    namespace,
    ops_of,
    peak,
    permute,
    qr,
    scaled,
    svd,
    triangle,
    working,
    zeros,
)

__all__ = ["kept_rank", "tt_round"]

Method = Literal["svd", "random"]
_OVERSAMPLES = 10
_FIRST_WIDTH = 24  # columns of the first sketch where a tolerance decides; doubled until it is kept
_DIRECT_SHARE = 0.4  # a sketch of this share of the short side costs as much as the SVD


def tt_round(
    tt: TensorTrain,
    /,
    *,
    rank: int | Sequence[int] | None = None,
    tol: float | None = None,
    max_rank: int | Sequence[int] | None = None,
    method: Method = "svd",
    rng: Any = None,
) -> TensorTrain:
    """A train with smaller bonds, near the given one: its rounding.

    Parameters
    ----------
    tt : TensorTrain
        Arrays of any library; never changed.
    rank : int or sequence of int, optional
        Bonds of the result, one number or one an inner bond; a bond that is already smaller stays.
    tol : float, optional
        Relative Frobenius error of this rounding that the result promises. Give ``rank`` or ``tol``.
    max_rank : int or sequence of int, optional
        Upper bound on the bonds with ``tol``; where it bites, ``info.converged`` is False and ``error`` is true.
    method : {"svd", "random"}
        ``"svd"``: orthogonalise one way, cut by singular values the other way, within ``sqrt(d - 1)`` of the best.
        ``"random"``: triangular factors of the tails without their orthonormal ones, and Gaussian sketches in place
        of the SVDs, after the randomize-then-orthogonalize idea; for bonds that shrink a lot.
    rng : None, int or numpy.random.Generator
        Source of the sketches of ``"random"``.

    Returns
    -------
    TensorTrain
        Left-canonical. ``error`` is ``||tt - result|| / ||tt||`` of this rounding alone: every cut is orthogonal to
        all that is kept, so the squares of ``info.site_errors`` add up to it exactly. If ``tt`` itself stands for a
        tensor with error ``e``, the result does so within ``e + error (1 + e)``.

    Raises
    ------
    ValueError
        Neither or both of ``rank`` and ``tol``, values out of range, cores that are not finite.

    Notes
    -----
    Cost for bonds r, results q and modes n: ``"svd"`` about ``8 n r^3`` flop a mode for the orthogonalisation and
    ``6 n q r^2`` for the cuts; none of the former for a train that is canonical. ``"random"`` ``4 n r^3``, at the
    speed of products and of QR without its orthonormal factor, and ``8 n q^2 r``.

    References
    ----------
    Oseledets (2011), Algorithm 2; Al Daas, Ballard, Cazeaux, Hallman, Miedlar, Pasha, Reid, Saibaba (2023),
    Randomized algorithms for rounding in the tensor-train format.

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> tt = tensorfact.TensorTrain(cores=[np.ones((1, 4, 1)), np.ones((1, 5, 1)), np.ones((1, 6, 1))])
    >>> tensorfact.tt_round(tt + tt, tol=1e-10).ranks
    (1, 1, 1, 1)
    """
    if not isinstance(tt, TensorTrain):
        raise TypeError(f"tt must be a TensorTrain, got {type(tt).__name__}")
    if method not in ("svd", "random"):
        raise ValueError(f"method must be 'svd' or 'random', got {method!r}")
    cores = tuple(working(core) for core in tt.cores)
    wanted = request(tt.shape, rank, tol, max_rank, smallest=smallest_tol(ops_of(cores[0]).eps))
    generator = np.random.default_rng(rng)
    if method == "random":
        done, exponent, site_errors, norm = _random(cores, tt.canonical, wanted, generator)
    else:
        done, exponent, site_errors, norm = _by_svd(cores, tt.canonical, wanted)
    if norm == 0.0:
        return _zero(tt)
    done = (*done[:-1], forms.restored(done[-1], exponent))
    error = math.sqrt(sum(e * e for e in site_errors)) / norm
    info = TrainInfo(
        path=method,
        site_errors=tuple(forms.shifted(e, exponent) for e in site_errors),
        norm=forms.shifted(norm, exponent),
        converged=wanted.tol is None or error <= wanted.tol,
    )
    result = TensorTrain(cores=cast_like(done, tt.dtype), error=error, canonical="left", info=info)
    if result.dtype != done[0].dtype:  # half precision: what the caller gets is what the error is about
        wide = TensorTrain(cores=tuple(working(core) for core in result.cores))
        lost = (TensorTrain(cores=cores) - wide).norm() / info.norm if info.norm else 0.0
        info = replace(info, converged=wanted.tol is None or lost <= wanted.tol)
        result = replace(result, error=lost, canonical="none", info=info)
    return result


def kept_rank(s: np.ndarray, limit2: float | None, cap: float, rest2: float = 0.0) -> tuple[int, float]:
    """How many of the singular values ``s`` stay, at least one, and the norm of what goes, ``rest2`` included.

    Sums run from the small end, where nothing is lost.
    """
    tails = np.append(np.cumsum(s[::-1] ** 2)[::-1][1:], 0.0) + rest2
    keep = int(s.size)
    if limit2 is not None:
        below = np.flatnonzero(tails <= limit2)
        keep = int(below[0]) + 1 if below.size else keep
    keep = int(min(keep, max(1, cap)))
    return keep, math.sqrt(float(tails[keep - 1]))


def _by_svd(
    cores: tuple[Any, ...], side: str, wanted: Request
) -> tuple[tuple[Any, ...], int, tuple[float, ...], float]:
    if side == "left" and len(cores) > 1:  # cut from the right, where no sweep is needed first, and turn the result
        turned = Request(wanted.caps[::-1], wanted.tol)
        done, first, found, norm = _by_svd(forms.reversed_train(cores), "right", turned)
        done, second = forms.left_orthogonal(forms.reversed_train(done)) if norm > 0 else (done, 0)
        return done, first + second, tuple(math.ldexp(e, -second) for e in found[::-1]), math.ldexp(norm, -second)
    if side == "right":
        size = exponent_of(peak(_finite(cores)[0]))
        cores, exponent = (scaled(cores[0], -size), *cores[1:]), size
    else:
        cores, exponent = forms.right_orthogonal(cores)
    norm = forms.norm_of(cores[0])
    if norm == 0.0:
        return cores, 0, (), 0.0
    out, errors = list(cores), list[float]()
    xp = namespace(cores[0])
    for bond in range(len(cores) - 1):
        r, n, s = (int(size) for size in out[bond].shape)
        u, values, vh = svd(xp.reshape(out[bond], (r * n, s)))
        spent2 = sum(e * e for e in errors)
        keep, lost = kept_rank(values, wanted.limit2(bond, norm * norm, spent2), wanted.caps[bond])
        errors.append(lost)
        rest = ops_of(vh).from_numpy(values[:keep])[:, None] * vh[:keep, :]
        out[bond] = xp.reshape(u[:, :keep], (r, n, keep))
        out[bond + 1] = _times_core(rest, out[bond + 1])
    return tuple(out), exponent, tuple(errors), norm


def _random(
    cores: tuple[Any, ...], side: str, wanted: Request, rng: np.random.Generator
) -> tuple[tuple[Any, ...], int, tuple[float, ...], float]:
    """Cuts by sketches of ``core @ tail``, where a tail is the triangular factor of all that comes after.

    Multiplying by the orthonormal factors would change no norm and no singular value, so they are never formed; the
    residual of every cut is formed, and its norm is the error.
    """
    xp = namespace(cores[0])
    cores, exponent, tails = _tails(cores, side)
    norm = forms.norm_of(dot(xp.reshape(cores[0], (-1, int(cores[0].shape[2]))), tails[0]))
    if norm == 0.0:
        return cores, 0, (), 0.0
    out, errors = list(cores), list[float]()
    for bond in range(len(cores) - 1):
        r, n, s = (int(size) for size in out[bond].shape)
        flat = xp.reshape(out[bond], (r * n, s))
        spent2 = sum(e * e for e in errors)
        limit2 = wanted.limit2(bond, norm * norm, spent2)
        basis, lost = _cut(dot(flat, tails[bond]), limit2, wanted.caps[bond], rng)
        errors.append(lost)
        out[bond] = xp.reshape(basis, (r, n, -1))
        out[bond + 1] = _times_core(dot(ops_of(basis).adjoint(basis), flat), out[bond + 1])
    return tuple(out), exponent, tuple(errors), norm


def _tails(cores: tuple[Any, ...], side: str) -> tuple[tuple[Any, ...], int, list[Any]]:
    """Cores scaled so that every tail has entries of about 1, the power of two taken out, and the tails by bond."""
    xp = namespace(cores[0])
    if side == "right":
        size = exponent_of(peak(_finite(cores)[0]))
        return (scaled(cores[0], -size), *cores[1:]), size, [identity(cores[0], int(c.shape[2])) for c in cores]
    done, exponent = forms.balanced_scale(cores)
    out, tails = list(done), [identity(done[0], 1)] * len(done)
    for k in range(len(out) - 1, 0, -1):
        r, n, s = (int(size) for size in out[k].shape)
        flat = xp.reshape(dot(xp.reshape(out[k], (r * n, s)), tails[k]), (r, -1))
        tail = permute(triangle(permute(flat, (1, 0))), (1, 0))
        shift = exponent_of(peak(tail))
        out[k], tails[k - 1], exponent = scaled(out[k], -shift), scaled(tail, -shift), exponent + shift
    return tuple(out), exponent, tails


def _cut(h: Any, limit2: float | None, cap: float, rng: np.random.Generator) -> tuple[Any, float]:
    """Orthonormal basis of the leading left singular space of ``h``, by a sketch, and the norm of the rest."""
    ops = ops_of(h)
    rows, cols = (int(size) for size in h.shape)
    short = min(rows, cols)
    width = _FIRST_WIDTH if limit2 is not None else int(min(cap, short)) + _OVERSAMPLES
    width = int(min(width, cap + _OVERSAMPLES))
    while width < _DIRECT_SHARE * short:
        block = dot(h, ops.draw(cols, width, rng))
        block = dot(h, dot(ops.adjoint(h), qr(block)[0]))  # one power step: the error of a sketch alone varies
        q = qr(block)[0]
        b = dot(ops.adjoint(q), h)
        u, values, _ = svd(b)
        rest2 = forms.norm_of(h - dot(q, b)) ** 2
        keep, lost = kept_rank(values, limit2, cap, rest2)
        # where the budget is not met with a few columns to spare, the values near the edge are not settled either
        if limit2 is None or keep >= cap or (lost * lost <= limit2 and keep <= width - min(_OVERSAMPLES, width // 2)):
            return dot(q, u[:, :keep]), lost
        width = int(min(2 * width, cap + _OVERSAMPLES)) if 2 * width < _DIRECT_SHARE * short else short
    u, values, _ = svd(h)
    keep, lost = kept_rank(values, limit2, cap)
    return u[:, :keep], lost


def _times_core(matrix: Any, core: Any) -> Any:
    r, n, s = (int(size) for size in core.shape)
    return namespace(core).reshape(dot(matrix, namespace(core).reshape(core, (r, n * s))), (-1, n, s))


def _finite(cores: tuple[Any, ...]) -> tuple[Any, ...]:
    for k, core in enumerate(cores):
        if not math.isfinite(peak(core)):
            raise ValueError(f"cores must be finite, got NaN or infinity in core {k}")
    return cores


def _zero(tt: TensorTrain) -> TensorTrain:
    """The zero tensor: unit vectors before a core of zeros."""
    cores = [identity(core, int(core.shape[1]), 1)[None] for core in tt.cores]
    cores[-1] = zeros(cores[-1], (1, int(cores[-1].shape[1]), 1))
    info = TrainInfo(path="zero", site_errors=(0.0,) * (tt.order - 1), norm=0.0)
    return TensorTrain(cores=tuple(cores), error=0.0, canonical="left", info=info)
