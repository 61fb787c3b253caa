"""Truncated singular value decomposition: randomized, with an exact route where that costs no more."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from tensorfact.factor._adaptive import achieved_error, smallest_tol, to_tolerance
from tensorfact.factor._fixed import Triplets, fixed_rank, oriented
from tensorfact.factor._input import Source, as_source, check_count, check_fraction
from tensorfact.factor._operand import Linear, Streamed, scaled_by
from tensorfact.factor._result import LowRank, LowRankInfo
from tensorfact.factor._scale import normalised
from tensorfact.factor.certificate import residual_certificate

__all__ = ["randomized_svd", "singular_values"]

Method = Literal["subspace", "krylov", "shifted"]


def randomized_svd(
    a: Any,
    /,
    *,
    rank: int | None = None,
    tol: float | None = None,
    max_rank: int | None = None,
    n_oversamples: int | Literal["auto"] = "auto",
    n_iter: int | Literal["auto"] = "auto",
    method: Method = "subspace",
    certify: bool = False,
    rng: Any = None,
) -> LowRank:
    """Truncated SVD ``a ~ u diag(s) vh`` to a rank or to an error, by randomized subspace iteration.

    Parameters
    ----------
    a : array (m, n), operator, or file-backed matrix
        NumPy array of float16, bfloat16, float32, float64, complex64, complex128 or integers (any layout, never
        changed); torch, CuPy, JAX or other array-API array (computed on its own device); ``scipy.sparse`` matrix;
        ``scipy.sparse.linalg.LinearOperator``; ``np.memmap`` or safetensors slice, which is read in row blocks and
        never held whole.
    rank : int, optional
        Exact number of triplets, 1 to min(m, n).
    tol : float, optional
        Relative Frobenius error that the result promises: ``error <= tol``. Give ``rank`` or ``tol``. ``method`` is for
        a fixed rank: a tolerance takes blocks of plain subspace iteration, or an exact route.
    max_rank : int, optional
        Upper bound on the rank with ``tol``; where it bites, ``info.converged`` is False and ``error`` tells the truth.
    n_oversamples : int or "auto"
        Sketch columns beyond the rank; "auto" is ``max(10, ceil(0.05 rank))``.
    n_iter : int or "auto"
        Power iterations after the sketch, as in scikit-learn; the RSI paper's ``q`` is ``n_iter + 1``. An integer is
        obeyed. "auto" reaches 1.05 times the optimal spectral error (1.02 where min(m, n) <= 1536) on slowly decaying
        spectra, by shifted iteration, on the Gram matrix where that is cheaper, or exactly; see ``info.path``.
    method : {"subspace", "krylov", "shifted"}
        Subspace iteration; block Krylov (same products, larger space, best error per read of the matrix); shifted
        subspace iteration (dashSVD). Where a Gram matrix of the short side makes the iterations cheaper, they run on
        it (``info.path == "gram-subspace"``), and on the matrix itself where its round-off would show.
    certify : bool
        Also bound the spectral norm of the residual: ``spectral_bound`` holds with probability 1 - 1e-6.
    rng : None, int, SeedSequence or numpy.random.Generator
        Randomness, through ``numpy.random.default_rng``. The same seed gives the same sketch on every device and any
        number of threads.

    Returns
    -------
    LowRank
        Frozen result in ``a``'s library, dtype and device, with ``error`` (achieved, relative Frobenius) and ``info``.

    Raises
    ------
    ValueError
        Empty input, NaN or infinity, an unsupported dtype, a rank, tolerance or option out of range, or a ``tol`` that
        the precision cannot keep.

    Notes
    -----
    With l = rank + oversamples: ``(2 n_iter + 2) * 2 m n l`` flop in matrix products, ``O((m + n) l^2)`` around them;
    ``n_iter + 2`` reads of ``a``. Memory: about ``3 (m + n) l`` numbers beside ``a``. The error comes from
    ``||A||^2 - sum s_i^2`` and, where that cancels, from the residual itself.

    References
    ----------
    Halko, Martinsson, Tropp (2011), Algorithms 4.4 and 5.1; Pourkamali-Anaraki (2026), arXiv 2604.02659 (RSI);
    Musco and Musco (2015) (block Krylov); Feng and Yu (2024), ACM TOMS (shifted iteration).

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> a = np.random.default_rng(0).standard_normal((60, 8)) @ np.ones((8, 40))
    >>> u, s, vh = tensorfact.randomized_svd(a, tol=1e-8, rng=0)
    >>> s.shape
    (1,)
    """
    source = as_source(a)
    op, limit = source.op, min(source.op.shape)
    if (rank is None) == (tol is None):
        raise ValueError(f"give exactly one of rank and tol, got rank={rank!r}, tol={tol!r}")
    if rank is not None and max_rank is not None:
        raise ValueError(f"max_rank goes with tol, not with rank, got max_rank={max_rank!r}, rank={rank!r}")
    if method not in ("subspace", "krylov", "shifted"):
        raise ValueError(f"method must be 'subspace', 'krylov' or 'shifted', got {method!r}")
    k = None if rank is None else check_count("rank", rank, 1, limit)
    cap = None if max_rank is None else min(limit, check_count("max_rank", max_rank, 1))
    extra = None if n_oversamples == "auto" else check_count("n_oversamples", n_oversamples, 0)
    steps = None if n_iter == "auto" else check_count("n_iter", n_iter, 0)
    inner = None
    if tol is not None:
        lost = rounding_error(source)  # factors in half precision are rounded once more at the end
        tol = check_fraction("tol", tol, max(smallest_tol(op.ops.eps), 1.5 * lost), 1.0)
        inner = math.sqrt(tol**2 - lost**2)
    generator = np.random.default_rng(rng)

    source, exponent = normalised(source, need_norm=tol is not None)
    if source.op.known_norm2 == 0.0:
        found = _zero(source, k or 1)
    elif k is not None:
        found = fixed_rank(source, k, extra, steps, method, generator)
    else:
        assert inner is not None
        found = to_tolerance(source, inner, cap, extra, steps, generator)
    return _finish(source, found, exponent, tol, inner, generator if certify else None)


def singular_values(a: Any, /) -> np.ndarray:
    """All min(m, n) singular values of ``a`` in float64, non-increasing.

    Parameters
    ----------
    a : array (m, n)
        As for :func:`randomized_svd`; a file-backed matrix is read once.

    Returns
    -------
    numpy.ndarray
        Through the Gram matrix of the short side, accumulated in float64, for half and single precision (absolute
        accuracy 1e-8 of the largest); by a full SVD for double precision in memory.

    Raises
    ------
    ValueError
        As :func:`randomized_svd`; a matrix-free operator has no Gram matrix.

    Notes
    -----
    Cost: ``m n min(m, n)`` flop and a symmetric eigenproblem of the short side.

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> tensorfact.singular_values(np.diag([1.0, 3.0])).tolist()
    [3.0, 1.0]
    """
    source = as_source(a)
    if isinstance(source.op, Linear):
        raise ValueError("a must be an array or a file: a matrix-free operator has no Gram matrix")
    source, exponent = normalised(source, need_norm=True)
    ops = source.op.ops
    if source.array is not None and ops.eps < 1e-10:
        values = ops.singular_values(source.array)
    else:
        op, _ = oriented(source.op)
        wide_file = isinstance(op, Streamed) and op.shape[0] < op.shape[1]
        gram = op.outer_gram() if wide_file else ops.to_numpy(op.gram(double=True))  # type: ignore[attr-defined]
        values = np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0.0))
    return np.asarray(np.ldexp(values, exponent))


def _zero(source: Source, rank: int) -> Triplets:
    """The zero matrix: unit vectors and zero singular values."""
    ops, (m, n) = source.op.ops, source.op.shape
    left, right = (ops.from_numpy(np.eye(size, rank, dtype=ops.dtype)) for size in (m, n))
    return Triplets(left, np.zeros(rank), right, path="zero")


def _finish(
    source: Source, found: Triplets, exponent: int, tol: float | None, inner: float | None, rng: Any
) -> LowRank:
    """Signs, precision, error and certificate: from triplets of the working matrix to the user's result.

    ``rng`` is None where no certificate is wanted.
    """
    op, ops = source.op, source.op.ops
    reads = ops.reads
    signs = ops.from_numpy(ops.signs(found.left))[None, :]
    left, right = found.left * signs, found.right * signs
    vh, s = ops.adjoint(right), ops.from_numpy(found.s)
    stored = (left, ops.from_numpy(np.ldexp(found.s, exponent)), vh)
    if source.result_dtype is not None:
        stored = tuple(ops.to_half(part, source.result_dtype) for part in stored)
        if not math.isfinite(ops.sum2(ops.cast(stored[1])[None, :])):
            raise ValueError(f"the singular values overflow {source.result_dtype}: the largest is {found.s[0]:.3g}")
        # what the user gets is what error and certificate are about
        left, s, vh = (ops.cast(part) for part in stored)
        s = scaled_by(s, -exponent)
        error = math.sqrt(op.residual2(left, s, vh) / op.norm2()) if op.norm2() > 0 else 0.0
    elif op.known_norm2 is None:
        error = math.nan
    else:
        error = achieved_error(op, left, found.s, right, math.inf if inner is None else inner)
    if tol is not None and found.converged and error > tol:
        raise ValueError(f"tol={tol:.3g} cannot be kept in the precision of a: the factors reach {error:.3g}")
    bound = None if rng is None else math.ldexp(residual_certificate(op, left, s, vh, rng), exponent)
    info = LowRankInfo(
        path=found.path,
        n_iter=found.n_iter,
        n_oversamples=found.n_oversamples,
        matrix_reads=reads,
        converged=found.converged,
        notes=tuple(dict.fromkeys(ops.notes)),
    )
    return LowRank(u=stored[0], s=stored[1], vh=stored[2], error=error, spectral_bound=bound, info=info)


def rounding_error(source: Source) -> float:
    """Bound, in practice, on the relative error that rounding three half-precision factors adds; 0 otherwise."""
    if source.result_dtype is None:
        return 0.0
    return 3 * (2.0**-8 if "bfloat16" in str(source.result_dtype) else 2.0**-11)
