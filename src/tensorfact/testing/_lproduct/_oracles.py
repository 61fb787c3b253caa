"""Tensor-tensor products written out: independent of the rest of tensorfact by intent. Tubes are the last axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tensorfact.testing.oracles import as_double

__all__ = ["block_circulant_product", "star_product", "star_transpose", "transform_matrix", "transform_names"]

Array = npt.NDArray[Any]


def star_product(a: npt.ArrayLike, b: npt.ArrayLike, z: npt.ArrayLike) -> Array:
    """The product of ``a (..., m, l, p)`` and ``b (..., l, n, p)`` under the matrix ``z (p, p)``, face by face.

    Examples
    --------
    >>> star_product(np.ones((1, 2, 3)), np.ones((2, 1, 3)), np.eye(3))
    array([[[2., 2., 2.]]])
    """
    x, y, m = as_double(a), as_double(b), as_double(z)
    xhat, yhat = x @ m.T, y @ m.T
    faces = [xhat[..., k] @ yhat[..., k] for k in range(m.shape[0])]
    return np.asarray(np.stack(faces, axis=-1) @ np.linalg.inv(m).T)


def star_transpose(a: npt.ArrayLike, z: npt.ArrayLike) -> Array:
    """Conjugate transpose of every face in the transform domain."""
    x, m = as_double(a), as_double(z)
    hat = np.swapaxes(x @ m.T, -3, -2).conj()
    return np.asarray(hat @ np.linalg.inv(m).T)


def block_circulant_product(a: npt.ArrayLike, b: npt.ArrayLike) -> Array:
    """The classical t-product: ``c[:, :, k] = sum_j a[:, :, (k - j) % p] @ b[:, :, j]``, without any transform.

    Examples
    --------
    >>> block_circulant_product(np.array([[[1.0, 2.0]]]), np.array([[[0.0, 1.0]]]))
    array([[[2., 1.]]])
    """
    x, y = as_double(a), as_double(b)
    p = x.shape[-1]
    faces = [sum(x[..., (k - j) % p] @ y[..., j] for j in range(p)) for k in range(p)]
    return np.asarray(np.stack(faces, axis=-1))


def _from_scipy(name: str, p: int) -> Array:
    from scipy import fft

    return np.asarray(getattr(fft, name)(np.eye(p), type=2, norm="ortho", axis=0))


def _graded(p: int) -> Array:
    """No multiple of an orthogonal matrix, with a condition number of 100."""
    rng = np.random.default_rng(p)
    left, right = (np.linalg.qr(rng.standard_normal((p, p)))[0] for _ in range(2))
    return np.asarray((left * np.logspace(0, 2, p)) @ right) if p > 1 else np.full((1, 1), 3.0)


_MATRICES: dict[str, Any] = {
    "identity": np.eye,
    "dct": lambda p: _from_scipy("dct", p),
    "dst": lambda p: _from_scipy("dst", p),
    "dft": lambda p: np.fft.fft(np.eye(p)),
    "random": lambda p: np.linalg.qr(np.random.default_rng(p).standard_normal((p, p)))[0],
    "scaled": lambda p: 3.0 * _from_scipy("dct", p),
    "graded": _graded,
}


def transform_names() -> tuple[str, ...]:
    """The keys of `transform_matrix`: "scaled" is 3 x DCT, "graded" is not orthogonal, condition number 100."""
    return tuple(_MATRICES)


def transform_matrix(name: str, p: int) -> Array:
    """The matrix (p, p) of a transform, float64 or complex128.

    Examples
    --------
    >>> transform_matrix("dct", 2).round(4)
    array([[ 0.7071,  0.7071],
           [ 0.7071, -0.7071]])
    """
    if name not in _MATRICES:
        raise ValueError(f"name must be one of {', '.join(_MATRICES)}, got {name!r}")
    return np.asarray(_MATRICES[name](p))
