"""t-SVD and what follows from it: truncations of known error, ranks, norms and singular value thresholding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tensorfact.factor._adaptive import smallest_tol
from tensorfact.factor._facewise import face_svd, zero_below
from tensorfact.factor._input import check_count, check_fraction
from tensorfact.factor._lparts import all_faces
from tensorfact.factor._lresult import LSVD, TruncatedLSVD
from tensorfact.factor._ltruncate import by_rank, by_tolerance
from tensorfact.factor._stack import NumpyStack, stack_for
from tensorfact.factor._tubes import Tubes, plan_tubes

__all__ = ["implicit_rank", "lnorm", "lsvd", "lsvd_truncate", "multirank", "prox_nuclear", "tubal_rank"]

Axis = int | Sequence[int] | None


def lsvd(a: Any, transform: Any = "dct", *, full: bool = False, axis: Axis = None) -> LSVD:
    """t-SVD ``a = u * s * vh``: the SVD of every face in the transform domain.

    Parameters
    ----------
    a, transform, axis
        As for `lproduct`.
    full : bool
        Square ``u`` and ``vh``; thin (``k = min(m, l)``) by default.

    Returns
    -------
    LSVD
        Frozen result in ``a``'s library and device; unpacks as the tensors ``u, s, vh``.

    Raises
    ------
    ValueError
        As `lproduct`.

    Notes
    -----
    ``O(m l min(m, l))`` for each face. Faces of a real tensor that equal their own conjugates are factorised in real
    arithmetic, so that all three tensors are real.

    References
    ----------
    Kilmer, Horesh, Avron, Newman (2021), PNAS 118 (28).

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> u, s, vh = tensorfact.lsvd(np.random.default_rng(0).standard_normal((5, 3, 4)), "dft")
    >>> u.shape, s.shape, vh.shape
    ((5, 3, 4), (3, 3, 4), (3, 3, 4))
    """
    x, ops, tubes = _judged(a, transform, axis)
    u, s, vh = face_svd(tubes.to_faces(x, ops), ops, tubes, full)
    dtype = x.dtype if ops.result_dtype is None else ops.result_dtype
    if tubes.complex_result and tubes.real:
        dtype = ops.to_complex(x).dtype
    return LSVD(u_faces=u, s_faces=s, vh_faces=vh, tubes=tubes, dtype=dtype)


def lsvd_truncate(
    a: Any,
    transform: Any = "dct",
    *,
    rank: int | None = None,
    tol: float | None = None,
    max_rank: int | None = None,
    conservative: bool = False,
    axis: Axis = None,
) -> TruncatedLSVD:
    """Truncated t-SVD: one rank for all faces (t-SVDM), or the fewest triples that keep an error (t-SVDMII).

    Parameters
    ----------
    a : array (..., m, l, p), or LSVD
        As for `lproduct`; a t-SVD that was computed before brings its own transform and axis.
    transform, axis
        As for `lproduct`.
    rank : int, optional
        Keep this many triples of every face, 1 to min(m, l). No tensor of this tubal rank is nearer to ``a``.
    tol : float, optional
        Relative Frobenius error that the result promises. The singular values of all faces are pooled and the smallest
        dropped; faces may keep none. Values of conjugate faces go together. Every item of a batch keeps ``tol``.
    max_rank : int, optional
        Upper bound on the rank of a face with ``tol``; where it bites, ``info.converged`` is False.
    conservative : bool
        Under a transform that is no multiple of an orthogonal one, discarded values bound the error and do not equal
        it; ``tol`` is then refused unless ``conservative=True`` asks for the bound, which keeps more than needed.

    Returns
    -------
    TruncatedLSVD
        Frozen result with ``error`` (achieved: the discarded energy, or the residual where that is not exact).

    Raises
    ------
    ValueError
        As `lproduct`; neither or both of ``rank`` and ``tol``; a tolerance that the precision or the transform cannot
        keep.

    Notes
    -----
    Ties are cut by count after a stable sort: lower faces and lower indices stay.

    References
    ----------
    Kilmer, Horesh, Avron, Newman (2021), PNAS 118 (28), Algorithms 2 and 3.

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> a = np.random.default_rng(0).standard_normal((20, 10, 4)) + 5
    >>> found = tensorfact.lsvd_truncate(a, "dct", tol=0.3)
    >>> found.error <= 0.3, found.multirank.tolist()
    (True, [1, 0, 0, 0])
    """
    if (rank is None) == (tol is None):
        raise ValueError(f"give exactly one of rank and tol, got rank={rank!r}, tol={tol!r}")
    if rank is not None and max_rank is not None:
        raise ValueError(f"max_rank goes with tol, not with rank, got max_rank={max_rank!r}, rank={rank!r}")
    svd, dense = (a, None) if isinstance(a, LSVD) else (lsvd(a, transform, axis=axis), a)
    limit = int(svd.s_faces.shape[-1])
    if rank is not None:
        return by_rank(svd, dense, check_count("rank", rank, 1, limit))
    eps, name = stack_for("a", svd.u_faces)[1].eps, str(svd.dtype)
    lost = 2.0**-9 if "bfloat16" in name else 2.0**-12 if "float16" in name else 0.0
    asked = check_fraction("tol", tol, max(smallest_tol(eps), 1.5 * lost), 1.0)
    if svd.tubes.scale is None and not conservative:
        raise ValueError(
            f"tol needs a transform that is a multiple of an orthogonal one, got {svd.tubes.transforms}; "
            "conservative=True keeps tol by a bound"
        )
    cap = limit if max_rank is None else min(limit, check_count("max_rank", max_rank, 1))
    return by_tolerance(svd, dense, asked, cap, lost)


def multirank(a: Any, transform: Any = "dct", *, rtol: float | None = None, axis: Axis = None) -> np.ndarray:
    """Ranks of the faces in the transform domain.

    Parameters
    ----------
    a, transform, axis
        As for `lproduct`.
    rtol : float, optional
        Singular values up to ``rtol`` times the largest one of all faces count as zero; default ``max(m, l) eps``.

    Returns
    -------
    ndarray of int (..., p)

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> tensorfact.multirank(np.ones((3, 3, 4)), "dct").tolist()
    [1, 0, 0, 0]
    """
    x, ops, tubes = _judged(a, transform, axis)
    faces = tubes.to_faces(x, ops)
    s = ops.singular_values(faces)
    floor = zero_below(s, (int(faces.shape[-2]), int(faces.shape[-1])), ops.eps, rtol)
    return all_faces(np.sum(s > floor[None, ..., None], axis=-1), tubes)


def tubal_rank(a: Any, transform: Any = "dct", *, rtol: float | None = None, axis: Axis = None) -> Any:
    """Number of singular tubes that are not zero: the largest entry of `multirank`; an array for a batch.

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> tensorfact.tubal_rank(np.ones((3, 3, 4)))
    1
    """
    return _over_faces(multirank(a, transform, rtol=rtol, axis=axis), "max", transform, axis)


def implicit_rank(a: Any, transform: Any = "dct", *, rtol: float | None = None, axis: Axis = None) -> Any:
    """Sum of `multirank`: what storage grows with; an array for a batch.

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> tensorfact.implicit_rank(np.ones((3, 3, 4)), "identity")
    4
    """
    return _over_faces(multirank(a, transform, rtol=rtol, axis=axis), "sum", transform, axis)


def lnorm(
    a: Any,
    transform: Any = "dct",
    *,
    ord: Literal["spectral", "nuclear", "frobenius"] = "spectral",
    axis: Axis = None,
) -> Any:
    """Norm of a tensor under the product; a float64, or an array of them for a batch.

    Parameters
    ----------
    a, transform, axis
        As for `lproduct`.
    ord : {"spectral", "nuclear", "frobenius"}
        The largest singular value of all faces; the sum of all of them over ``c^2``, its dual; the Frobenius norm.

    Raises
    ------
    ValueError
        As `lproduct`, or a transform that is no multiple of an orthogonal one.

    Notes
    -----
    ``<a, b> <= spectral(a) nuclear(b)``. Multiplying the transform by c multiplies the spectral norm by c and divides
    the nuclear norm by c.

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> round(tensorfact.lnorm(np.ones((2, 2, 4)), "dct", ord="nuclear"), 12)
    4.0
    """
    if ord not in ("spectral", "nuclear", "frobenius"):
        raise ValueError(f"ord must be 'spectral', 'nuclear' or 'frobenius', got {ord!r}")
    x, ops, tubes = _judged(a, transform, axis)
    s, scale = ops.singular_values(tubes.to_faces(x, ops)), _scale(tubes)
    weights = tubes.weights.reshape((-1,) + (1,) * (s.ndim - 1))
    if ord == "spectral":
        found = s.max(axis=(0, -1))
    elif ord == "nuclear":
        found = np.sum(weights * s, axis=(0, -1)) / scale**2
    else:
        top = float(s.max(initial=0.0)) or 1.0
        found = np.sqrt(np.sum(weights * (s / top) ** 2, axis=(0, -1))) * (top / scale)
    return float(found) if found.ndim == 0 else found


def prox_nuclear(a: Any, tau: float, transform: Any = "dct", *, axis: Axis = None) -> Any:
    """Proximal operator of ``tau`` times the nuclear norm: singular value thresholding of every face.

    Parameters
    ----------
    a, transform, axis
        As for `lproduct`.
    tau : float
        Threshold, at least 0; the same for any multiple of an orthogonal transform.

    Returns
    -------
    array of the shape of ``a``
        The minimiser of ``tau ||x||_* + 1/2 ||x - a||_F^2``.

    Raises
    ------
    ValueError
        As `lproduct`; a negative or infinite ``tau``; a transform that is no multiple of an orthogonal one.

    References
    ----------
    Lu, Feng, Chen, Liu, Lin, Yan (2020), IEEE TPAMI 42 (4), Theorem 4.2.

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> tensorfact.prox_nuclear(np.full((1, 1, 4), 2.0), 1.0)[0, 0]  # one singular value 4, which becomes 3
    array([1.5, 1.5, 1.5, 1.5])
    """
    if isinstance(tau, bool) or not isinstance(tau, int | float | np.number) or not 0 <= float(tau) < math.inf:
        raise ValueError(f"tau must be a number of at least 0, got {tau!r}")
    x, ops, tubes = _judged(a, transform, axis)
    _scale(tubes)
    u, s, vh = face_svd(tubes.to_faces(x, ops), ops, tubes)
    less = ops.from_host(np.maximum(ops.to_host(s) - np.asarray(float(tau)), 0.0))
    return ops.finish(tubes.from_faces(ops.matmul(u * less[..., None, :], vh), ops))


def _judged(a: Any, transform: Any, axis: Axis) -> tuple[Any, NumpyStack, Tubes]:
    x, ops = stack_for("a", a)
    return x, ops, plan_tubes(transform, axis, tuple(x.shape), not ops.complex)


def _scale(tubes: Tubes) -> float:
    if tubes.scale is None:
        raise ValueError(f"transform must be a multiple of an orthogonal one, got {tubes.transforms}")
    return tubes.scale


def _over_faces(ranks: np.ndarray, how: Literal["max", "sum"], transform: Any, axis: Axis) -> Any:
    several = axis if isinstance(axis, list | tuple) else transform if isinstance(transform, list | tuple) else (0,)
    found = getattr(ranks, how)(axis=tuple(range(-len(several), 0)))
    return int(found) if found.ndim == 0 else found
