"""Products and factorisations of stacks of faces ``(faces, *batch, m, l)``."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from tensorfact.factor._stack import NumpyStack, require_finite
from tensorfact.factor._tubes import Tubes
from tensorfact.kernels.facewise import MAX_TUBE, facewise_product, tube_faces

__all__ = ["face_inverse", "face_pinv", "face_qr", "face_svd", "fused", "multiply", "zero_below"]

_LONGEST = 4096  # terms of a sum: the fused kernel does not cut them, so a strip of a weight must fit the cache


def fused(x: Any, y: Any, ops: NumpyStack, tubes: Tubes) -> Any:
    """The whole product in one pass over ``x``, transforms included; None where the kernel does not serve it.

    It takes real NumPy arrays ``x (..., m, l, p)``, ``y (l, n, p)`` with short tubes in the last axis, or in the one
    before. It looks for numbers that are not finite itself.
    """
    if type(ops) is not NumpyStack or ops.complex or len(tubes.axes) != 1:
        return None
    transform, p = tubes.transforms[0], tubes.lengths[0]
    behind = {(z.ndim - 1 - tubes.axes[0] % z.ndim) for z in (x, y)}
    if transform.is_complex or p > MAX_TUBE or behind not in ({0}, {1}) or y.ndim > x.ndim:
        return None
    if math.prod(y.shape[:-3]) != 1 or not (x.flags.c_contiguous and y.flags.c_contiguous):
        return None
    last = behind == {0}
    l, n = (int(y.shape[-3]), int(y.shape[-2 if last else -1]))
    if l > _LONGEST:
        return None
    forward, inverse = ops.host(transform.matrix), ops.host(transform.inverse_matrix)
    weights, finite = tube_faces(y.reshape(l, n * p), forward, last=last)
    require_finite("b", finite)
    product, finite = facewise_product(x.reshape(-1, l * p), weights, forward, inverse, last=last)
    require_finite("a", finite)
    return product.reshape(*x.shape[:-2], *((n, p) if last else (p, n)))


def multiply(x: Any, y: Any, ops: NumpyStack) -> Any:
    """Product of every face; where only ``x`` has batch axes, these join its rows and every face is one product."""
    batch = max(x.ndim, y.ndim) - 3
    if batch and math.prod(y.shape[1:-2]) == 1:
        y = ops.reshape(y, (y.shape[0], *y.shape[-2:]))
        rows = ops.reshape(x, (x.shape[0], -1, x.shape[-1]))
        front = (1,) * (batch + 3 - x.ndim) + tuple(x.shape[1:-1])
        return ops.reshape(ops.matmul(rows, y), (x.shape[0], *front, y.shape[-1]))
    x, y = (ops.reshape(z, (z.shape[0], *(1,) * (batch + 3 - z.ndim), *z.shape[1:])) for z in (x, y))
    return ops.matmul(x, y)


def face_qr(x: Any, ops: NumpyStack, tubes: Tubes, mode: Literal["reduced", "complete"]) -> tuple[Any, Any]:
    """QR of every face."""
    q, r = _real_and_paired(x, ops, tubes, lambda faces: ops.qr(faces, mode))
    return q, r


def face_svd(x: Any, ops: NumpyStack, tubes: Tubes, full: bool = False) -> tuple[Any, Any, Any]:
    """SVD of every face."""
    u, s, vh = _real_and_paired(x, ops, tubes, lambda faces: ops.svd(faces, full), real_part=1)
    return u, s, vh


def _real_and_paired(x: Any, ops: NumpyStack, tubes: Tubes, factorise: Any, real_part: int | None = None) -> Any:
    """Factorise the faces that are their own conjugates in real arithmetic: factors of real tensors must be real.

    ``real_part`` is the position of what is real for complex faces too.
    """
    alone = tubes.weights == 1
    if not tubes.symmetric:
        return factorise(x)
    first, second = np.flatnonzero(alone), np.flatnonzero(~alone)
    parts = [factorise(ops.real(ops.take(x, first)))]
    if second.size:
        parts.append(factorise(ops.take(x, second)))
    order = np.argsort(np.concatenate([first, second]))
    found = []
    for position, pieces in enumerate(zip(*parts, strict=True)):
        like = list(pieces) if position == real_part else [ops.to_complex(piece) for piece in pieces]
        found.append(ops.take(ops.concat(like), order))
    return tuple(found)


def face_inverse(x: Any, ops: NumpyStack, tubes: Tubes) -> Any:
    """Inverse of every face; ``LinAlgError`` names the first that is singular to working precision."""
    try:
        inverse = ops.inv(x)
    except Exception:  # every library has a class of its own for it
        _name_singular(x, ops, tubes)
        raise
    peak = float(abs(x).max())  # not zero: there is an inverse; without it squares would leave the range
    conditions = np.sqrt(ops.energies(x / peak)) * np.sqrt(ops.energies(inverse * peak))
    if not (conditions < 1 / ops.eps).all():
        _name_singular(x, ops, tubes)
    return inverse


def _name_singular(x: Any, ops: NumpyStack, tubes: Tubes) -> None:
    s = ops.singular_values(x).reshape(x.shape[0], -1, x.shape[-1])
    ratios = np.min(s[..., -1] / np.where(s[..., 0] > 0, s[..., 0], 1), axis=1)
    worst = int(np.argmax(ratios <= ops.eps * x.shape[-1])) if (ratios <= ops.eps).any() else int(np.argmin(ratios))
    raise np.linalg.LinAlgError(
        f"a must have invertible faces, face {tubes.face_name(worst)} in the transform domain is singular "
        f"(smallest over largest singular value {ratios[worst]:.3g}); lpinv serves such tensors"
    )


def zero_below(s: np.ndarray, shape: tuple[int, int], eps: float, rtol: float | None) -> np.ndarray:
    """For each item of a batch the size up to which its singular values ``s (faces, *batch, k)`` count as zero."""
    if rtol is not None and not 0 <= rtol < math.inf:
        raise ValueError(f"rtol must be a number of at least 0, got {rtol!r}")
    share = max(shape) * eps if rtol is None else float(rtol)
    return np.asarray(share * s.max(axis=(0, -1), initial=0.0))


def face_pinv(x: Any, ops: NumpyStack, tubes: Tubes, rtol: float | None) -> Any:
    """Pseudo-inverse of every face."""
    u, s, vh = face_svd(x, ops, tubes)
    size = ops.to_host(s).astype(np.float64)
    floor = zero_below(size, (int(x.shape[-2]), int(x.shape[-1])), ops.eps, rtol)[None, ..., None]
    turned = np.where(size > floor, 1 / np.where(size > floor, size, 1.0), 0.0)
    return ops.matmul(ops.adjoint(vh) * ops.from_host(turned)[..., None, :], ops.adjoint(u))
