"""From whatever the user holds to an operand: the one place where input is judged and converted."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from tensorfact.factor._operand import Dense, Linear, Operand, Portable, Streamed
from tensorfact.factor._ops import NumpyOps, PortableOps

__all__ = ["Source", "as_source", "check_count", "check_fraction"]

_STREAM_BYTES = 128 << 20  # a smaller np.memmap is simply read
_HALF = ("float16", "bfloat16")
_WORKING = {"float32": np.float32, "float64": np.float64, "complex64": np.complex64, "complex128": np.complex128}
_SAFETENSORS = {"F64": np.float64, "F32": np.float32, "F16": np.float32, "BF16": np.float32}


@dataclass(frozen=True, slots=True)
class Source:
    """An operand in working precision, and the type that results are cast back to (None: keep)."""

    op: Operand
    array: Any | None  # the array behind a dense operand, for a full SVD
    result_dtype: Any | None


def as_source(a: Any) -> Source:
    """Wrap ``a``; ``ValueError`` or ``TypeError`` names what cannot be served."""
    source = _dispatch(a)
    m, n = source.op.shape
    if m == 0 or n == 0:
        raise ValueError(f"a must not be empty, got shape {(m, n)}")
    return source


def _dispatch(a: Any) -> Source:
    from scipy.sparse import issparse
    from scipy.sparse.linalg import LinearOperator, aslinearoperator

    if isinstance(a, LinearOperator):
        dtype = np.dtype(a.dtype if a.dtype is not None else np.float64)
        return Source(Linear(a, NumpyOps(_working(dtype))), None, dtype if dtype.name in _HALF else None)
    if issparse(a):
        a = cast(Any, a).tocsr(copy=True)
        a.sum_duplicates()
        ops = NumpyOps(_working(a.dtype))
        entries = np.asarray(a.data, dtype=np.complex128 if ops.complex else np.float64)
        norm2 = float(np.sum(entries.real**2 + entries.imag**2))
        return Source(Linear(aslinearoperator(a.astype(ops.dtype)), ops, norm2=norm2), None, None)
    if hasattr(a, "get_shape") and hasattr(a, "get_dtype"):  # a safetensors slice
        shape, name = tuple(a.get_shape()), str(a.get_dtype())
        _two_axes(shape)
        if name not in _SAFETENSORS:
            raise ValueError(f"a must hold floating-point numbers, got a safetensors slice of type {name}")
        half = {"F16": np.dtype(np.float16), "BF16": "bfloat16"}.get(name)
        return Source(Streamed(a, shape, NumpyOps(_SAFETENSORS[name])), None, half)
    if not isinstance(a, np.ndarray) and (hasattr(a, "__array_namespace__") or type(a).__module__.startswith("torch")):
        return _portable(a)
    if isinstance(a, np.ma.MaskedArray):
        raise ValueError("a must not be a masked array: a factorisation has no use for the mask; fill it first")
    if not isinstance(a, np.ndarray):
        a = np.asarray(a)
    _two_axes(a.shape)
    working = _working(a.dtype)
    half = a.dtype if a.dtype.name in _HALF else None
    ops = NumpyOps(working)
    if isinstance(a, np.memmap) and a.nbytes > _STREAM_BYTES:
        return Source(Streamed(a, (a.shape[0], a.shape[1]), ops), None, half)
    array = np.asarray(a, dtype=working)
    itemsize = array.itemsize
    if 0 not in array.shape and itemsize not in array.strides:
        array = np.ascontiguousarray(array)
    elif any(stride < itemsize for stride, size in zip(array.strides, array.shape, strict=True) if size > 1):
        array = np.ascontiguousarray(array)  # reversed or broadcast axes: BLAS takes neither
    return Source(Dense(array, ops), array, half)


def _portable(a: Any) -> Source:
    try:
        from array_api_compat import array_namespace
    except ImportError as missing:
        raise ImportError("arrays of other libraries need array-api-compat: pip install array-api-compat") from missing
    xp = array_namespace(a)
    _two_axes(tuple(a.shape))
    name = str(a.dtype).rpartition(".")[2]
    result = None
    if name in _HALF:
        result, a = a.dtype, xp.astype(a, xp.float32)
    elif xp.isdtype(a.dtype, "integral"):
        a = xp.astype(a, xp.float64)
    elif not xp.isdtype(a.dtype, ("real floating", "complex floating")):
        raise ValueError(f"a must hold floating-point, complex or integer numbers, got dtype {a.dtype}")
    if hasattr(a, "detach"):
        a = a.detach()
    ops = PortableOps(a, xp, a.dtype)
    return Source(Portable(a, ops), a, result)


def _two_axes(shape: tuple[int, ...]) -> None:
    if len(shape) != 2:
        raise ValueError(f"a must have two axes, got shape {tuple(shape)}")


def _working(dtype: np.dtype[Any]) -> Any:
    """Working precision for a NumPy type: halves compute in float32, integers in float64."""
    if dtype.name in _HALF:
        return np.float32
    if dtype.kind in "iu":
        return np.float64
    if dtype.name not in _WORKING:
        raise ValueError(
            "a must hold float16, bfloat16, float32, float64, complex64, complex128 or integer numbers, "
            f"got dtype {dtype}"
        )
    return _WORKING[dtype.name]


def check_count(name: str, value: Any, low: int, high: float = math.inf) -> int:
    """``value`` as an int in [low, high]; bool and fractions are refused."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ValueError(f"{name} must be an integer, got {value!r}")
    count = int(value)
    if not low <= count <= high:
        limit = f"at least {low}" if high == math.inf else f"between {low} and {high}"
        raise ValueError(f"{name} must be {limit}, got {count}")
    return count


def check_fraction(name: str, value: Any, low: float, high: float) -> float:
    """``value`` as a float in [low, high)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= float(value) < high:
        raise ValueError(f"{name} must be a number in [{low:.3g}, {high:.3g}), got {value!r}")
    return float(value)
