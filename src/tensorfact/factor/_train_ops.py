"""What arithmetic on cores needs from an array library: NumPy on the compiled kernels' BLAS, others on their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import linalg

from tensorfact import kernels
from tensorfact.factor._ops import NumpyOps, ops_for

__all__ = [
    "cast_like",
    "concat",
    "copied",
    "dot",
    "exponent_of",
    "identity",
    "is_complex",
    "itemsize",
    "namespace",
    "ops_of",
    "peak",
    "permute",
    "qr",
    "scaled",
    "svd",
    "triangle",
    "wide",
    "working",
    "zeros",
]


def namespace(array: Any) -> Any:
    """The array API namespace of ``array``; NumPy's own for a NumPy array."""
    if isinstance(array, np.ndarray):
        return np
    try:
        from array_api_compat import array_namespace
    except ImportError as missing:
        raise ImportError("arrays of other libraries need array-api-compat: pip install array-api-compat") from missing
    return array_namespace(array)


def ops_of(array: Any) -> NumpyOps:
    """The primitives of the decompositions, for the library, device and type of ``array``."""
    return ops_for(array, array.dtype, None if isinstance(array, np.ndarray) else namespace(array))


def dot(x: Any, y: Any) -> Any:
    """Product of two matrices of one dtype."""
    if isinstance(x, np.ndarray) and x.dtype.char in "fdFD" and x.dtype == y.dtype:
        return kernels.matmul(x, y)
    return x @ y


def qr(x: Any) -> tuple[Any, Any]:
    """Householder QR, economic; safe for every scale and rank."""
    if isinstance(x, np.ndarray):
        q, r = linalg.qr(x, mode="economic", check_finite=False)
        return q, r
    q, r = namespace(x).linalg.qr(x, mode="reduced")
    return q, r


def triangle(x: Any) -> Any:
    """The triangular factor of :func:`qr` alone; the orthonormal one is not formed where the library can do without."""
    if isinstance(x, np.ndarray):
        return linalg.qr(x, mode="raw", check_finite=False)[1]
    return namespace(x).linalg.qr(x, mode="reduced")[1]


def svd(x: Any) -> tuple[Any, np.ndarray, Any]:
    """Thin SVD; the singular values as float64 on the host. ``gesvd`` where ``gesdd`` does not converge."""
    if isinstance(x, np.ndarray):
        try:
            u, s, vh = linalg.svd(x, full_matrices=False, check_finite=False)
        except np.linalg.LinAlgError:
            u, s, vh = linalg.svd(x, full_matrices=False, check_finite=False, lapack_driver="gesvd")
        return u, s.astype(np.float64), vh
    u, s, vh = namespace(x).linalg.svd(x, full_matrices=False)
    return u, ops_of(x).to_numpy(s).astype(np.float64), vh


def permute(x: Any, axes: Sequence[int]) -> Any:
    return x.transpose(axes) if isinstance(x, np.ndarray) else namespace(x).permute_dims(x, tuple(axes))


def concat(parts: Sequence[Any], axis: int) -> Any:
    first = parts[0]
    return np.concatenate(parts, axis) if isinstance(first, np.ndarray) else namespace(first).concat(parts, axis=axis)


def copied(x: Any) -> Any:
    """The same numbers in memory of their own."""
    return x.copy() if isinstance(x, np.ndarray) else namespace(x).asarray(x, copy=True)


def zeros(like: Any, shape: tuple[int, ...]) -> Any:
    """Zeros in the library, type and place of ``like``."""
    if isinstance(like, np.ndarray):
        return np.zeros(shape, like.dtype)
    from array_api_compat import device

    return namespace(like).zeros(shape, dtype=like.dtype, device=device(like))


def identity(like: Any, rows: int, cols: int | None = None) -> Any:
    """The leading part of an identity, in the library, type and place of ``like``."""
    cols = rows if cols is None else cols
    if isinstance(like, np.ndarray):
        return np.eye(rows, cols, dtype=like.dtype)
    from array_api_compat import device

    return namespace(like).eye(rows, cols, dtype=like.dtype, device=device(like))


def working(x: Any) -> Any:
    """``x`` in a precision to compute in: half precision becomes float32."""
    if str(x.dtype).rpartition(".")[2] not in ("float16", "bfloat16"):
        return x
    return x.astype(np.float32) if isinstance(x, np.ndarray) else namespace(x).astype(x, namespace(x).float32)


def wide(x: Any) -> Any:
    """``x`` in double precision, where the library has it."""
    xp = namespace(x)
    if isinstance(x, np.ndarray):
        return x.astype(np.result_type(x.dtype, np.float64), copy=False)
    return xp.astype(x, xp.complex128 if xp.isdtype(x.dtype, "complex floating") else xp.float64, copy=False)


def itemsize(x: Any) -> int:
    """Bytes of a number; the array API standard has none for a dtype."""
    size = getattr(x.dtype, "itemsize", None)
    return int(size) if size is not None else int(namespace(x).finfo(x.dtype).bits) // 8 * (1 + is_complex(x))


def is_complex(x: Any) -> bool:
    xp = namespace(x)
    return bool(np.iscomplexobj(x) if xp is np else xp.isdtype(x.dtype, "complex floating"))


def peak(x: Any) -> float:
    """Largest magnitude of an entry's real or imaginary part; not finite exactly when an entry is not."""
    xp = namespace(x)
    if hasattr(x, "detach"):
        x = x.detach()
    parts = (xp.real(x), xp.imag(x)) if is_complex(x) else (x,)
    found = [float(xp.max(xp.abs(part))) for part in parts]
    return math.nan if any(map(math.isnan, found)) else max(found)


def exponent_of(value: float) -> int:
    """Power of two just above ``value``; 0 for zero."""
    return math.frexp(value)[1] if value > 0 and math.isfinite(value) else 0


def scaled(x: Any, exponent: int) -> Any:
    """``x * 2**exponent``, in steps that stay in the range of every type."""
    while exponent:
        step = max(-120, min(120, exponent))
        x = x * 2.0**step
        exponent -= step
    return x


def cast_like(cores: Sequence[Any], dtype: Any = None) -> tuple[Any, ...]:
    """The cores in ``dtype``, or in the type that all of them fit."""
    xp = namespace(cores[0])
    if dtype is None:
        dtype = cores[0].dtype
        for core in cores[1:]:
            dtype = xp.result_type(dtype, core.dtype)
    return tuple(
        core if core.dtype == dtype else core.astype(dtype) if xp is np else xp.astype(core, dtype) for core in cores
    )
