"""Tensor-tensor product with any invertible transform (star-M, L-product), and the algebra that goes with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from tensorfact.factor._facewise import face_inverse, face_pinv, face_qr, fused, multiply
from tensorfact.factor._input import check_count
from tensorfact.factor._stack import NumpyStack, require_finite, same_kind, stack_for
from tensorfact.factor._transform import Transform, normal_axis
from tensorfact.factor._tubes import Tubes, plan_tubes

__all__ = ["LQR", "facewise", "lidentity", "linv", "lpinv", "lproduct", "lqr", "ltranspose"]

Axis = int | Sequence[int] | None


class LQR(NamedTuple):
    """Factors of :func:`lqr`: ``a = q * r`` with ``q^H * q`` the identity and upper triangular faces of ``r``."""

    q: Any
    r: Any


def lproduct(a: Any, b: Any, transform: Any = "dct", *, axis: Axis = None) -> Any:
    """L-product ``a * b``: transform the tubes, multiply face by face, transform back.

    Parameters
    ----------
    a : array (..., m, l, p)
        float16, bfloat16, float32, float64, complex64 or complex128, of NumPy, torch, CuPy, JAX or another array-API
        library (computed on its own device; for gradients see `tensorfact.torch.lproduct`). Axes in front are batch
        axes.
    b : array (..., l, n, p)
        Of the same library and dtype; its batch axes broadcast against those of ``a``.
    transform : str, Transform, array (p, p), or a sequence of these
        ``"identity"``, ``"dct"``, ``"dst"``, ``"dft"``, ``"haar"``, ``"hartley"``, a `Transform`, or an invertible
        matrix. A sequence has one for each tube axis of a tensor of order 4 and more.
    axis : int or sequence of int, optional
        Where the tubes are, in ``a``, ``b`` and the result; default the last axis, or the last as many as there are
        transforms. What remains are batch axes, rows and columns, in this order.

    Returns
    -------
    array (..., m, n, p)
        Real for real input under a real transform or the DFT.

    Raises
    ------
    ValueError
        Sizes that do not fit (the tube lengths of ``a``, ``b`` and the transform are named), NaN or infinity, integers,
        arrays of different dtypes, an empty array, a singular transform.
    TypeError
        Arrays of different libraries.

    Notes
    -----
    ``2 m l n p`` flop in faces and ``2 p^2 (m l + l n + m n)`` in transforms (half as many faces for real tubes under
    the DFT). The faces are stored first, so that each is one matrix product; for real NumPy arrays with tubes of up to
    16 numbers in one of the last two axes they are stored nowhere, some rows of ``a`` at a time go through transform,
    product and inverse while they are in the cache. Multiplying the transform by c multiplies
    the product by c: the unnormalised DFT gives the classical t-product.

    References
    ----------
    Kernfeld, Kilmer, Aeron (2015), Linear Algebra Appl. 485; Kilmer, Horesh, Avron, Newman (2021), PNAS 118 (28).

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> a, b = np.ones((2, 3, 4)), np.ones((3, 5, 4))
    >>> tensorfact.lproduct(a, b, "dct").shape
    (2, 5, 4)
    >>> tensorfact.lproduct(a, b, "dft")[0, 0]  # (1, 1, 1, 1) convolved with itself, three times
    array([12., 12., 12., 12.])
    """
    x, y, ops, tubes = _pair(a, b, transform, axis)
    whole = fused(x, y, ops, tubes)
    if whole is not None:
        return ops.finish(whole)
    for name, z in (("a", x), ("b", y)):
        require_finite(name, ops.all_finite(z))
    product = multiply(tubes.to_faces(x, ops), tubes.to_faces(y, ops), ops)
    return ops.finish(tubes.from_faces(product, ops))


def facewise(a: Any, b: Any, *, axis: Axis = None) -> Any:
    """Facewise product: ``c[:, :, k] = a[:, :, k] @ b[:, :, k]``, no transform.

    Parameters
    ----------
    a, b, axis
        As for :func:`lproduct`; ``axis`` also tells how many tube axes there are.

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> a = np.arange(8.0).reshape(2, 2, 2)
    >>> bool((tensorfact.facewise(a, a)[:, :, 1] == a[:, :, 1] @ a[:, :, 1]).all())
    True
    """
    count = len(axis) if isinstance(axis, list | tuple) else 1
    return lproduct(a, b, ["identity"] * count, axis=axis)


def ltranspose(a: Any, transform: Any = "dct", *, axis: Axis = None) -> Any:
    """Conjugate transpose: of every face in the transform domain.

    Parameters
    ----------
    a, transform, axis
        As for :func:`lproduct`.

    Returns
    -------
    array (..., l, m, p)
        For a real transform every face of ``a`` itself is transposed (a view, for real NumPy input); the DFT also
        reverses the faces 1 to p - 1.

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> tensorfact.ltranspose(np.ones((2, 3, 4))).shape
    (3, 2, 4)
    """
    x, ops, tubes = _single(a, transform, axis)
    places = [normal_axis("axis", one, x.ndim) for one in tubes.axes]
    if any(t.is_complex and t.name != "dft" for t in tubes.transforms):
        return ops.finish(tubes.from_faces(ops.adjoint(tubes.to_faces(x, ops)), ops))
    for t, place in zip(tubes.transforms, places, strict=True):
        if t.is_complex:
            x = ops.take(x, -np.arange(t.length) % t.length, axis=place)
    rows, cols = [k for k in range(x.ndim) if k not in places][-2:]
    return ops.finish(ops.conj(ops.moveaxis(x, (rows, cols), (cols, rows))))


def lidentity(n: int, transform: Any, *, axis: Axis = None, dtype: Any = np.float64, like: Any = None) -> Any:
    """Identity of the product: ``lproduct(a, lidentity(n, t), t) == a`` for ``a`` (m, n, p).

    Parameters
    ----------
    n : int
        Rows and columns.
    transform : Transform, or a sequence of them
        They know the length of the tubes.
    axis
        As for :func:`lproduct`.
    dtype : dtype
        Of the NumPy result.
    like : array, optional
        Take library, device and dtype of this array instead.

    Returns
    -------
    array (n, n, p)
        Its diagonal tubes are ``Z^-1 1``.

    Examples
    --------
    >>> import tensorfact
    >>> tensorfact.lidentity(2, tensorfact.Transform.identity(3))[0, 0]
    array([1., 1., 1.])
    """
    n = check_count("n", n, 1)
    modes = transform if isinstance(transform, list | tuple) else (transform,)
    if not all(isinstance(one, Transform) for one in modes):
        raise ValueError(f"transform must be a Transform, which knows the length of the tubes, got {transform!r}")
    _, ops = stack_for("like", like if like is not None else np.zeros(1, dtype=dtype))
    shape = (n, n, *(one.length for one in modes))
    places = axis if isinstance(axis, list | tuple) else None if axis is None else (axis,)
    if places is not None:
        shape = _placed(shape, places)
    tubes = plan_tubes(tuple(modes), places, shape, not ops.complex, "the identity")
    if tubes.complex_result and not ops.complex:
        raise ValueError(f"dtype must be complex for the identity of {transform!r}, got {ops.dtype}")
    faces = np.broadcast_to(np.eye(n), (len(tubes.kept), n, n))
    host = NumpyStack(ops.dtype)
    found = tubes.from_faces(host.to_complex(faces) if tubes.symmetric else faces.astype(ops.dtype), host)
    return ops.finish(ops.from_host(np.ascontiguousarray(found)))


def linv(a: Any, transform: Any = "dct", *, axis: Axis = None) -> Any:
    """Inverse of a tensor (..., n, n, p): of every face in the transform domain.

    Parameters
    ----------
    a, transform, axis
        As for :func:`lproduct`.

    Raises
    ------
    numpy.linalg.LinAlgError
        A face is singular to working precision; the message names its index. It is a ``ValueError``.
    ValueError
        As for :func:`lproduct`, or faces that are not square.

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> a = np.random.default_rng(0).standard_normal((3, 3, 4))
    >>> t = tensorfact.Transform.dct(4)
    >>> bool(np.allclose(tensorfact.lproduct(a, tensorfact.linv(a, t), t), tensorfact.lidentity(3, t)))
    True
    """
    x, ops, tubes = _single(a, transform, axis)
    faces = tubes.to_faces(x, ops)
    if faces.shape[-1] != faces.shape[-2]:
        raise ValueError(f"a must have square faces, got faces {tuple(faces.shape[-2:])}")
    return ops.finish(tubes.from_faces(face_inverse(faces, ops, tubes), ops))


def lpinv(a: Any, transform: Any = "dct", *, axis: Axis = None, rtol: float | None = None) -> Any:
    """Moore-Penrose inverse (..., l, m, p): of every face in the transform domain.

    Parameters
    ----------
    a, transform, axis
        As for :func:`lproduct`.
    rtol : float, optional
        Singular values up to ``rtol`` times the largest one of all faces count as zero; default ``max(m, l) eps``.

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> a = np.random.default_rng(0).standard_normal((5, 3, 4))
    >>> tensorfact.lpinv(a).shape
    (3, 5, 4)
    """
    x, ops, tubes = _single(a, transform, axis)
    return ops.finish(tubes.from_faces(face_pinv(tubes.to_faces(x, ops), ops, tubes, rtol), ops))


def lqr(a: Any, transform: Any = "dct", *, axis: Axis = None, mode: Literal["reduced", "complete"] = "reduced") -> LQR:
    """QR factorisation ``a = q * r`` face by face in the transform domain.

    Parameters
    ----------
    a, transform, axis
        As for :func:`lproduct`.
    mode : {"reduced", "complete"}
        ``q`` with ``min(m, l)`` or with ``m`` lateral slices.

    Returns
    -------
    LQR
        ``q`` (..., m, k, p) with ``lproduct(ltranspose(q), q)`` the identity, and ``r`` (..., k, l, p); unpacks.

    Examples
    --------
    >>> import numpy as np, tensorfact
    >>> a = np.random.default_rng(0).standard_normal((5, 3, 4))
    >>> q, r = tensorfact.lqr(a)
    >>> q.shape, r.shape, bool(np.allclose(tensorfact.lproduct(q, r), a))
    ((5, 3, 4), (3, 3, 4), True)
    """
    if mode not in ("reduced", "complete"):
        raise ValueError(f"mode must be 'reduced' or 'complete', got {mode!r}")
    x, ops, tubes = _single(a, transform, axis)
    q, r = face_qr(tubes.to_faces(x, ops), ops, tubes, mode)
    return LQR(ops.finish(tubes.from_faces(q, ops)), ops.finish(tubes.from_faces(r, ops)))


def _single(a: Any, transform: Any, axis: Axis) -> tuple[Any, NumpyStack, Tubes]:
    """Judge one tensor; its working array, primitives and plan."""
    x, ops = stack_for("a", a)
    return x, ops, plan_tubes(transform, axis, tuple(x.shape), not ops.complex)


def _pair(a: Any, b: Any, transform: Any, axis: Axis) -> tuple[Any, Any, NumpyStack, Tubes]:
    """Judge two tensors that are to be multiplied, but for whether they are finite."""
    (x, ops), (y, _) = stack_for("a", a, look=False), stack_for("b", b, look=False)
    same_kind(x, y, (a, b))
    tubes = plan_tubes(transform, axis, tuple(x.shape), not ops.complex)
    if y.ndim < len(tubes.axes) + 2:
        raise ValueError(f"b must have at least {len(tubes.axes) + 2} axes, got shape {tuple(y.shape)}")
    places = [[normal_axis("axis", one, z.ndim) for one in tubes.axes] for z in (x, y)]
    lengths = [tuple(int(z.shape[k]) for k in place) for z, place in zip((x, y), places, strict=True)]
    if lengths[0] != lengths[1]:
        raise ValueError(f"a and b must have tubes of one length, got {lengths[0]} and {lengths[1]}")
    left, right = (
        [int(n) for k, n in enumerate(z.shape) if k not in place] for z, place in zip((x, y), places, strict=True)
    )
    if left[-1] != right[-2]:
        raise ValueError(
            f"b must have as many rows as a has columns, {left[-1]}, got shapes {tuple(x.shape)}, {tuple(y.shape)}"
        )
    try:
        np.broadcast_shapes(tuple(left[:-2]), tuple(right[:-2]))
    except ValueError:
        raise ValueError(f"batch axes must broadcast, got {tuple(left[:-2])} and {tuple(right[:-2])}") from None
    return x, y, ops, tubes


def _placed(shape: tuple[int, ...], places: Sequence[int]) -> tuple[int, ...]:
    """The shape (n, n, *lengths) with the lengths where ``places`` says."""
    ndim = len(shape)
    where = [normal_axis("axis", one, ndim) for one in places]
    rest = iter(shape[:2])
    lengths = dict(zip(where, shape[2:], strict=False))
    if len(lengths) != ndim - 2 or math.prod(lengths.values()) != math.prod(shape[2:]):
        raise ValueError(f"axis must name {ndim - 2} different axes, got {tuple(places)}")
    return tuple(lengths[k] if k in lengths else next(rest) for k in range(ndim))
