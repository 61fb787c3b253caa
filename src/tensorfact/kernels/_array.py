"""Arguments of kernels: the one place where dtypes and layouts are decided and copies happen."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

Matrix = NDArray[Any]

DTYPES = tuple(np.dtype(t) for t in (np.float32, np.float64, np.complex64, np.complex128))


def as_matrix(a: ArrayLike, name: str) -> Matrix:
    """Two-dimensional array of a kernel dtype, without a copy where the dtype is already one.

    float16 becomes float32; integers and booleans become float64; other byte orders become native.
    """
    array = np.asarray(a)
    if array.ndim != 2:
        raise ValueError(f"{name} must have 2 axes, got shape {array.shape}")
    if array.dtype in DTYPES and array.dtype.isnative:
        return array
    if array.dtype.newbyteorder("=") in DTYPES:
        return array.astype(array.dtype.newbyteorder("="))
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype.kind in "biu":
        return array.astype(np.float64)
    raise ValueError(f"{name} must be of a real or complex number type up to 64 bits a part, got dtype {array.dtype}")


def as_real_matrix(a: ArrayLike, name: str) -> Matrix:
    """The same for kernels of real numbers only."""
    array = as_matrix(a, name)
    if array.dtype.kind == "c":
        raise ValueError(f"{name} must be real, got dtype {array.dtype}")
    return array


def is_lines(a: Matrix) -> bool:
    """Whether `a` is aligned and row- or column-contiguous: contiguous lines at any distance, no negative stride."""
    item = a.itemsize
    if not a.flags.aligned or any(s % item for s in a.strides):
        return False
    for (count, length), (step, inner) in ((a.shape, a.strides), (a.shape[::-1], a.strides[::-1])):
        if (length <= 1 or inner == item) and (count <= 1 or step >= max(1, length) * item):
            return True
    return False


def as_lines(a: Matrix) -> Matrix:
    """`a` itself if it is row- or column-contiguous, else a C-contiguous copy."""
    return a if is_lines(a) else np.array(a, order="C", copy=True)


def as_contiguous(a: Matrix) -> Matrix:
    """`a` itself if it is aligned and C-contiguous, else a copy."""
    return a if a.flags.c_contiguous and a.flags.aligned else np.array(a, order="C", copy=True)


def as_real(a: ArrayLike, dtype: DTypeLike, name: str) -> Matrix:
    """C-contiguous array of `dtype`; complex numbers are refused, for a cast would drop a part of them."""
    array = np.asarray(a)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be real, got dtype {array.dtype}")
    return as_contiguous(array.astype(dtype, copy=False))


def as_offset(bias: ArrayLike | None, size: int, dtype: DTypeLike) -> Matrix:
    """A bias as one row, without columns where there is none."""
    if bias is None:
        return np.zeros((1, 0), dtype)
    if np.shape(bias) != (size,):
        raise ValueError(f"bias must have shape ({size},), got {np.shape(bias)}")
    return as_real(bias, dtype, "bias")[None]


def output(out: Matrix | None, shape: tuple[int, int], dtype: DTypeLike, *inputs: Matrix) -> Matrix:
    """Check `out`, or make a new array. It must not overlap `inputs`: kernels write before they have read all."""
    if out is None:
        return np.empty(shape, dtype)
    if not isinstance(out, np.ndarray) or out.shape != shape or out.dtype != dtype:
        got = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise ValueError(f"out must be an array of {np.dtype(dtype)} with shape {shape}, got {got}")
    if not (out.flags.c_contiguous and out.flags.aligned and out.flags.writeable):
        raise ValueError("out must be C-contiguous and writeable")
    if any(np.may_share_memory(out, a) for a in inputs):
        raise ValueError("out must not share memory with the other arguments")
    return out
