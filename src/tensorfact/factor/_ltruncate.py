"""Which singular triples of a t-SVD to keep, and what the rest amounts to."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from tensorfact.factor._lresult import LSVD, LSVDInfo, TruncatedLSVD
from tensorfact.factor._stack import NumpyStack, stack_for

__all__ = ["by_rank", "by_tolerance"]

# Below this many eps the rounding of the factors shows beside what was discarded: the residual is formed instead.
_VISIBLE = 1000.0
# Rounding of a facewise SVD and two transforms, in eps; it adds to the discarded energy.
_ROUNDING = 16.0


def by_rank(svd: LSVD, dense: Any, rank: int) -> TruncatedLSVD:
    """t-SVDM: the ``rank`` leading triples of every face."""
    ranks = np.full(tuple(map(int, svd.s_faces.shape[:-1])), rank)
    return _kept(svd, dense, ranks, "t-svdm")


def by_tolerance(svd: LSVD, dense: Any, tol: float, cap: int, lost: float) -> TruncatedLSVD:
    """t-SVDMII: of all faces together drop the smallest values that keep the error of each item at ``tol``.

    ``lost`` is what casting the result to half precision adds.
    """
    ops = stack_for("factors", svd.u_faces)[1]
    orthogonal = svd.tubes.scale is not None
    budget = math.sqrt(tol**2 - (_ROUNDING * ops.eps) ** 2 - lost**2)
    k = int(svd.s_faces.shape[-1])
    values, weights = _items(svd, ops), np.repeat(svd.tubes.weights, k)
    if orthogonal:
        total = np.sqrt(np.sum(weights * values**2, axis=1))
    else:
        total = _norms(svd.reconstruct() if dense is None else dense, svd) / svd.tubes.inverse_norm / _tops(svd, ops)
    ranks, kept = _fewest(values, weights, total, budget, cap, k)
    shape = tuple(map(int, svd.s_faces.shape[:-1]))
    ranks = np.moveaxis(ranks.reshape((*shape[1:], shape[0])), -1, 0)
    return _kept(svd, dense, ranks, "t-svdmii" if orthogonal else "t-svdmii-bound", tol if kept else None, kept)


def _fewest(
    values: np.ndarray, weights: np.ndarray, total: np.ndarray, budget: float, cap: int, per_face: int
) -> tuple[np.ndarray, bool]:
    """How many values each face of each item keeps, (items, faces), and whether ``budget`` is kept in spite of ``cap``.

    ``values`` is (items, faces * per_face); a face's values never increase, so what a stable sort keeps of it is its
    beginning.
    """
    items, count = values.shape
    beyond = np.arange(count) % per_face >= cap
    order = np.argsort(np.where(beyond, np.inf, -values), axis=1, kind="stable")
    energies = np.take_along_axis(weights * values**2, order, axis=1)
    # dropped[i, n]: error over the norm if the last n of the order go
    dropped = np.sqrt(np.cumsum(np.pad(energies[:, ::-1], ((0, 0), (1, 0))), axis=1))
    dropped /= np.where(total > 0, total, 1.0)[:, None]
    allowed = np.sum(dropped <= budget, axis=1) - 1
    forced = int(np.count_nonzero(beyond))
    gone = np.maximum(allowed, forced)
    keep = np.empty((items, count), dtype=bool)
    np.put_along_axis(keep, order, np.arange(count)[None, :] < (count - gone)[:, None], axis=1)
    return keep.reshape(items, -1, per_face).sum(axis=2), bool((allowed >= forced).all())


def _kept(
    svd: LSVD, dense: Any, ranks: np.ndarray, path: str, promised: float | None = None, converged: bool = True
) -> TruncatedLSVD:
    """Pack the leading ``ranks`` triples of every face, and tell the error that this makes."""
    ops = stack_for("factors", svd.u_faces)[1]
    k, m, l = int(svd.s_faces.shape[-1]), int(svd.u_faces.shape[-2]), int(svd.vh_faces.shape[-1])
    inside = np.arange(k) < ranks[..., None]
    index = np.flatnonzero(inside.ravel())
    found = TruncatedLSVD(
        u=ops.take(ops.reshape(ops.moveaxis(svd.u_faces[..., :k], -2, 0), (m, -1)), index, axis=1),
        s=ops.take(ops.reshape(svd.s_faces, (-1,)), index),
        vh=ops.take(ops.reshape(svd.vh_faces[..., :k, :], (-1, l)), index),
        ranks=ranks,
        tubes=svd.tubes,
        dtype=svd.dtype,
        error=_discarded(svd, ops, ~inside),
        info=LSVDInfo(path=path, converged=converged),
    )
    if found.error >= _VISIBLE * ops.eps:
        return found
    error, worst = _residual(svd, dense, found)
    if promised is not None and worst > promised:
        raise ValueError(f"tol={promised:.3g} cannot be kept in the precision of a: the factors reach {worst:.3g}")
    return replace(found, error=error, info=replace(found.info, notes=("residual",)))


def _discarded(svd: LSVD, ops: NumpyStack, gone: np.ndarray) -> float:
    """Relative error from the energy of what is ``gone``; 0.0 where the transform is not orthogonal: not known so."""
    values = ops.to_host(svd.s_faces).astype(np.float64)
    values /= float(values.max(initial=0.0)) or 1.0
    energies = svd.tubes.weights.reshape((-1,) + (1,) * (values.ndim - 1)) * values**2
    whole = float(energies.sum())
    return math.sqrt(float(energies[gone].sum()) / whole) if whole > 0 and svd.tubes.scale is not None else 0.0


def _items(svd: LSVD, ops: NumpyStack) -> np.ndarray:
    """Singular values over the largest of each item, one row an item: (items, faces * k)."""
    s = ops.to_host(svd.s_faces).astype(np.float64)
    flat = np.moveaxis(s.reshape(s.shape[0], -1, s.shape[-1]), 0, 1).reshape(-1, s.shape[0] * s.shape[-1])
    return np.asarray(flat / _tops(svd, ops)[:, None])


def _tops(svd: LSVD, ops: NumpyStack) -> np.ndarray:
    s = ops.to_host(svd.s_faces).astype(np.float64)
    top = s.max(axis=(0, -1), initial=0.0).ravel()
    return np.where(top > 0, top, 1.0)


def _norms(x: Any, svd: LSVD) -> np.ndarray:
    """Frobenius norm of each item of a batch, in float64."""
    host = stack_for("a", x)[1].to_host(x)
    host = host.astype(np.complex128 if host.dtype.kind == "c" else np.float64)
    places = [axis % host.ndim for axis in svd.tubes.axes]
    inner = [k for k in range(host.ndim) if k not in places][-2:] + places
    top = float(np.abs(host).max(initial=0.0)) or 1.0
    return np.asarray(np.sqrt(np.sum(np.abs(host / top) ** 2, axis=tuple(inner))) * top).ravel()


def _residual(svd: LSVD, dense: Any, found: TruncatedLSVD) -> tuple[float, float]:
    """Relative error of the whole, and the largest one of an item, from the difference itself."""
    full, kept = (stack_for("a", x)[0] for x in (svd.reconstruct() if dense is None else dense, found.reconstruct()))
    missed, norms = _norms(full - kept, svd), _norms(full, svd)
    whole = float(np.linalg.norm(norms))
    each = missed / np.where(norms > 0, norms, 1.0)
    return (float(np.linalg.norm(missed)) / whole if whole > 0 else 0.0), float(each.max(initial=0.0))
