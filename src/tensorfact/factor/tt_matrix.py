"""TT-SVD of a matrix into an operator of small cores, for weights: direct SVDs, or sketches where a bond is small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tensorfact.factor._adaptive import smallest_tol
from tensorfact.factor._bonds import Request, request
from tensorfact.factor._input import Source, as_source
from tensorfact.factor._scale import normalised
from tensorfact.factor._train import TensorTrain
from tensorfact.factor._train_canonical import norm_of, restored, shifted
from tensorfact.factor._train_chain import TrainInfo
from tensorfact.factor._train_ops import copied, dot, identity, namespace, ops_of, peak, permute, scaled, working, zeros
from tensorfact.factor._tt_matrix import TTMatrix, factors
from tensorfact.factor.low_rank import randomized_svd

__all__ = ["tt_matrix_svd"]


def tt_matrix_svd(
    w: Any,
    row_shape: Sequence[int],
    col_shape: Sequence[int],
    /,
    *,
    rank: int | Sequence[int] | None = None,
    tol: float | None = None,
    max_rank: int | Sequence[int] | None = None,
    balance: bool = False,
    rng: Any = None,
) -> TTMatrix:
    """Matrix product operator near a matrix: TT-SVD after the row and column factors are interleaved.

    Parameters
    ----------
    w : array (out, in)
        What :func:`tensorfact.randomized_svd` takes, held in memory; a weight of a linear layer, for example.
    row_shape, col_shape : sequence of int
        Factors of out and of in, one of each a site; :func:`tensorfact.balanced_shape` finds good ones.
    rank : int or sequence of int, optional
        Bonds, one number or one an inner bond, clipped to the useful ones.
    tol : float, optional
        Relative Frobenius error that the result promises. Give ``rank`` or ``tol``.
    max_rank : int or sequence of int, optional
        Upper bound on the bonds with ``tol``; where it bites, ``info.converged`` is False and ``error`` is true.
    balance : bool
        Share the singular values of every bond between its two cores (:meth:`TTMatrix.balanced`), for training. By
        default all cores but the last are left-orthonormal.
    rng : None, int or numpy.random.Generator
        Source of the sketches, where one is drawn.

    Returns
    -------
    TTMatrix
        ``error`` is the true relative error: each cut's residual is formed, and is orthogonal to all that is kept, so
        ``sum(site_errors**2) = ||w - result||^2``.

    Raises
    ------
    ValueError
        Shapes that do not multiply to that of ``w``, neither or both of ``rank`` and ``tol``, values that are not
        finite.

    Notes
    -----
    One permuting copy of ``w``; every cut is a :func:`tensorfact.randomized_svd`, exact where that costs no more, one
    product for the rest and one for the residual.

    References
    ----------
    Oseledets (2011); Javanmard, Pandit, Mardani (2026), arXiv 2603.28534, Algorithm 1.

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> w = np.kron(np.arange(6.0).reshape(2, 3), np.ones((4, 5)))
    >>> tensorfact.tt_matrix_svd(w, (2, 4), (3, 5), tol=1e-10).ranks
    (1, 1, 1)
    """
    rows, cols = factors("row_shape", row_shape), factors("col_shape", col_shape)
    if len(rows) != len(cols):
        raise ValueError(f"row_shape and col_shape must have one length, got {rows} and {cols}")
    source = as_source(w)
    if (math.prod(rows), math.prod(cols)) != source.op.shape:
        raise ValueError(
            f"row_shape and col_shape must multiply to the shape of w, {source.op.shape}, got {rows}, {cols}"
        )
    if source.array is None:
        source = as_source(_held(w))
    sizes = [m * n for m, n in zip(rows, cols, strict=True)]
    lost = 0.0 if source.result_dtype is None else len(rows) * _half_step(source.result_dtype)
    floor = max(smallest_tol(source.op.ops.eps) * math.sqrt(max(1, len(rows) - 1)), 1.5 * lost)
    wanted = request(sizes, rank, tol, max_rank, smallest=floor)
    if wanted.tol is not None:
        wanted.tol = math.sqrt(wanted.tol**2 - lost**2)
    source, exponent = normalised(source, need_norm=True)
    norm2 = source.op.norm2()
    interleaved = _interleaved(source.array, rows, cols)
    if norm2 == 0.0:
        train = _zero_train(interleaved, sizes)
    else:
        train = _sweep(interleaved, sizes, wanted, norm2, exponent, np.random.default_rng(rng))
    result = TTMatrix.from_train(train, rows, cols)
    if balance:
        result = result.balanced()
    if source.result_dtype is not None:
        result = _halved(result, source, exponent)
    if wanted.tol is not None:
        result = replace(result, info=replace(result.info, converged=result.error <= float(tol)))  # type: ignore[arg-type]
    return result


def _sweep(
    a: Any, sizes: list[int], wanted: Request, norm2: float, exponent: int, rng: np.random.Generator
) -> TensorTrain:
    """Left-canonical train of the interleaved tensor ``a``, which has been divided by ``2**exponent``."""
    xp, bond_left = namespace(a), 1
    cores, errors, paths, notes, reads, rest = [], list[float](), list[str](), list[str](), 0.0, a
    for bond, size in enumerate(sizes[:-1]):
        matrix = xp.reshape(rest, (bond_left * size, -1))
        limit2 = wanted.limit2(bond, norm2, sum(e * e for e in errors))
        short = min(map(int, matrix.shape))
        cap = min(wanted.caps[bond], short)
        relative = 0.0 if limit2 is None else math.sqrt(limit2) / norm_of(matrix)
        if relative < smallest_tol(ops_of(matrix).eps):  # a rank decides, or a cap has used up the budget before
            found = randomized_svd(matrix, rank=cap, rng=rng)
        else:
            found = randomized_svd(matrix, tol=relative, max_rank=cap, rng=rng)
        ops = ops_of(matrix)
        # the rest of the sweep starts from the projection, not from the found s and vh: so the residual is orthogonal
        # to what is kept, however the basis was found
        rest = dot(ops.adjoint(found.u), matrix)
        ones = ops.from_numpy(np.ones(found.rank))
        errors.append(math.sqrt(as_source(matrix).op.residual2(found.u, ones, rest)))
        cores.append(xp.reshape(found.u, (bond_left, size, -1)))
        reads += (found.info.matrix_reads + 2) * math.prod(map(int, matrix.shape)) / math.prod(map(int, a.shape))
        paths.append(found.info.path)
        notes.extend(found.info.notes)
        bond_left = found.rank
    if not cores:
        rest = copied(rest)  # a single site is the matrix itself, in memory of its own
    cores.append(restored(xp.reshape(rest, (bond_left, sizes[-1], 1)), exponent, "w"))
    info = TrainInfo(
        path="+".join(dict.fromkeys(paths)) or "copy",
        site_errors=tuple(shifted(e, exponent) for e in errors),
        norm=shifted(math.sqrt(norm2), exponent),
        data_reads=reads + 1,
        notes=tuple(dict.fromkeys(notes)),
    )
    error = math.sqrt(sum(e * e for e in errors) / norm2)
    return TensorTrain(cores=tuple(cores), error=error, canonical="left", info=info)


def _interleaved(a: Any, rows: tuple[int, ...], cols: tuple[int, ...]) -> Any:
    """The tensor (m1 n1, m2 n2, ...): one permuting copy."""
    xp, order = namespace(a), len(rows)
    split = xp.reshape(a, (*rows, *cols))
    axes = [axis for k in range(order) for axis in (k, order + k)]
    return xp.reshape(permute(split, axes), tuple(m * n for m, n in zip(rows, cols, strict=True)))


def _held(w: Any) -> Any:
    """A matrix on disk, or a sparse one, in memory: weights fit, and the interleaving needs all of them at hand."""
    from scipy.sparse import issparse

    if issparse(w):
        return w.toarray()  # type: ignore[attr-defined]
    if hasattr(w, "get_shape") or isinstance(w, np.memmap):
        return np.array(w[:])
    raise ValueError(f"w must be an array or a file, got {type(w).__name__}: an operator has no entries to interleave")


def _half_step(dtype: Any) -> float:
    return 2.0**-8 if "bfloat16" in str(dtype) else 2.0**-11


def _halved(result: TTMatrix, source: Source, exponent: int) -> TTMatrix:
    """Cores in half precision, and the error of exactly these."""
    ops = ops_of(result.cores[0])
    cores = tuple(ops.to_half(core, source.result_dtype) for core in result.cores)
    stored = tuple(working(core) for core in cores)
    if not all(math.isfinite(peak(core)) for core in stored):
        raise ValueError(f"the cores overflow {source.result_dtype}")
    matrix = TTMatrix(cores=(*stored[:-1], scaled(stored[-1], -exponent))).reconstruct(max_bytes=None)
    difference = matrix - source.array
    norm = math.sqrt(source.op.norm2())
    error = norm_of(difference) / norm if norm else 0.0
    return replace(result, cores=cores, error=error, canonical="none")


def _zero_train(a: Any, sizes: list[int]) -> TensorTrain:
    """The zero matrix: unit vectors before a core of zeros."""
    cores = [identity(a, size, 1)[None] for size in sizes[:-1]]
    info = TrainInfo(path="zero", site_errors=(0.0,) * (len(sizes) - 1), norm=0.0, data_reads=1.0)
    return TensorTrain(cores=(*cores, zeros(a, (1, sizes[-1], 1))), error=0.0, canonical="left", info=info)
