"""Linear algebra on stacks of matrices, faces first: one small table of primitives, for NumPy and for other libraries.

Everything of the tensor-tensor product is written once against these methods.  A compiled kernel goes in below them.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

__all__ = ["NumpyStack", "PortableStack", "require_finite", "same_kind", "stack_for"]

_HALF = ("float16", "bfloat16")
_SERVED = ("float32", "float64", "complex64", "complex128")


class NumpyStack:
    """Primitives on NumPy arrays in working precision.

    All of them are NumPy's own: a product here and a factorisation there in another BLAS would wait for its threads.
    """

    def __init__(self, dtype: Any, result_dtype: Any = None) -> None:
        self.dtype = np.dtype(dtype)  # of the host arrays that go with the stack
        self.result_dtype = result_dtype
        self.complex = self.dtype.kind == "c"
        self.eps = float(np.finfo(self.dtype).eps)

    # -- transforms ----------------------------------------------------------------------------------------------
    def front(self, x: Any, z: np.ndarray, axis: int = -1) -> Any:
        """``z (q, p)`` applied along ``axis``, which comes to the front: one product, no copy before or after it."""
        z = self.host(z)
        if z.dtype.kind != "c" or x.dtype.kind == "c":
            return np.tensordot(z, x, axes=(1, axis))
        real = np.tensordot(z.real, x, axes=(1, axis))
        out = np.empty(real.shape, dtype=z.dtype)
        out.real, out.imag = real, np.tensordot(z.imag, x, axes=(1, axis))
        return out

    def back(self, y: Any, z: np.ndarray, *, last: bool = True) -> Any:
        """``z (p, q)`` applied along the first axis, which goes to the end if ``last``."""
        z = self.host(z)
        return np.tensordot(y, z, axes=(0, 1)) if last else np.tensordot(z, y, axes=(1, 0))

    def back_real(self, y: Any, z: np.ndarray, *, last: bool = True) -> Any:
        """The real part of :meth:`back`."""
        z = self.host(z)
        out = self.back(y.real, z.real, last=last)
        out -= self.back(y.imag, z.imag, last=last)
        return out

    def host(self, z: np.ndarray) -> np.ndarray:
        """A small host matrix in working precision; real stays real."""
        wide = self.eps < 1e-10
        kinds = (np.complex128 if wide else np.complex64) if z.dtype.kind == "c" else (np.float64, np.float32)[not wide]
        return z.astype(kinds, copy=False)

    # -- shapes --------------------------------------------------------------------------------------------------
    def moveaxis(self, x: Any, source: Any, target: Any) -> Any:
        return np.moveaxis(x, source, target)

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        return x.reshape(shape)

    def take(self, x: Any, index: np.ndarray, axis: int = 0) -> Any:
        return np.take(x, index, axis=axis)

    def concat(self, parts: list[Any], axis: int = 0) -> Any:
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)

    def zeros(self, shape: tuple[int, ...], like: Any) -> Any:
        return np.zeros(shape, dtype=like.dtype)

    def adjoint(self, x: Any) -> Any:
        """Conjugate transpose of every face."""
        x = np.swapaxes(x, -1, -2)
        return x.conj() if x.dtype.kind == "c" else x

    def conj(self, x: Any) -> Any:
        return x.conj() if x.dtype.kind == "c" else x

    def real(self, x: Any) -> Any:
        return x.real

    def to_complex(self, x: Any) -> Any:
        return x.astype(np.result_type(x.dtype, np.complex64), copy=False)

    def all_finite(self, x: Any) -> bool:
        """Whether every entry is finite; one read, and a second one only if the sum is not."""
        with np.errstate(all="ignore"):
            return bool(np.isfinite(np.sum(x))) or bool(np.isfinite(x).all())

    def from_host(self, x: np.ndarray) -> Any:
        return self.host(x)

    def to_host(self, x: Any) -> np.ndarray:
        return np.asarray(x)

    def finish(self, x: Any) -> Any:
        """``x`` in the type of the user's array: halves are cast back."""
        return x if self.result_dtype is None or x.dtype.kind == "c" else x.astype(self.result_dtype)

    # -- faces ---------------------------------------------------------------------------------------------------
    def matmul(self, x: Any, y: Any) -> Any:
        return np.matmul(x, y)

    def energies(self, x: Any) -> np.ndarray:
        """Sum of squares over the last two axes, in float64."""
        magnitude = np.abs(x)
        return np.asarray(np.sum(np.square(magnitude, dtype=np.float64), axis=(-2, -1)))

    def svd(self, x: Any, full: bool = False) -> tuple[Any, Any, Any]:
        u, s, vh = np.linalg.svd(x, full_matrices=full)
        return u, s, vh

    def singular_values(self, x: Any) -> np.ndarray:
        return np.linalg.svd(x, compute_uv=False).astype(np.float64)

    def qr(self, x: Any, mode: Literal["reduced", "complete"]) -> tuple[Any, Any]:
        q, r = np.linalg.qr(x, mode=mode)
        return q, r

    def inv(self, x: Any) -> Any:
        return np.linalg.inv(x)


class PortableStack(NumpyStack):
    """The same primitives through the array API, on the array's own device."""

    def __init__(self, like: Any, xp: Any, result_dtype: Any = None) -> None:
        from array_api_compat import device

        name = str(like.dtype).rpartition(".")[2]
        super().__init__(name if name in _SERVED else "float64", result_dtype)
        self.xp = xp
        self.device = device(like)

    def front(self, x: Any, z: np.ndarray, axis: int = -1) -> Any:
        z = self.from_host(z)
        if self._complex(z) and not self._complex(x):
            x = self.to_complex(x)
        elif self._complex(x):
            z = self.to_complex(z)
        return self.xp.tensordot(z, x, axes=((1,), (axis % x.ndim,)))

    def back(self, y: Any, z: np.ndarray, *, last: bool = True) -> Any:
        z = self.from_host(z)
        if self._complex(y) or self._complex(z):
            y, z = self.to_complex(y), self.to_complex(z)
        return self.xp.tensordot(y, z, axes=((0,), (1,))) if last else self.xp.tensordot(z, y, axes=((1,), (0,)))

    def back_real(self, y: Any, z: np.ndarray, *, last: bool = True) -> Any:
        return self.real(self.back(y, z, last=last))

    def _complex(self, x: Any) -> bool:
        return bool(self.xp.isdtype(x.dtype, "complex floating"))

    def moveaxis(self, x: Any, source: Any, target: Any) -> Any:
        return self.xp.moveaxis(x, source, target)

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        return self.xp.reshape(x, shape)

    def take(self, x: Any, index: np.ndarray, axis: int = 0) -> Any:
        return self.xp.take(x, self.xp.asarray(np.array(index), device=self.device), axis=axis)

    def concat(self, parts: list[Any], axis: int = 0) -> Any:
        return parts[0] if len(parts) == 1 else self.xp.concat(parts, axis=axis)

    def zeros(self, shape: tuple[int, ...], like: Any) -> Any:
        return self.xp.zeros(shape, dtype=like.dtype, device=self.device)

    def adjoint(self, x: Any) -> Any:
        return self.conj(x.mT)

    def conj(self, x: Any) -> Any:
        return self.xp.conj(x) if self._complex(x) else x

    def real(self, x: Any) -> Any:
        return self.xp.real(x) if self._complex(x) else x

    def to_complex(self, x: Any) -> Any:
        return self.xp.astype(x, self.xp.complex64 if self.eps > 1e-10 else self.xp.complex128, copy=False)

    def all_finite(self, x: Any) -> bool:
        return bool(self.xp.all(self.xp.isfinite(x)))

    def from_host(self, x: np.ndarray) -> Any:
        return self.xp.asarray(np.array(self.host(x), order="C"), device=self.device)

    def to_host(self, x: Any) -> np.ndarray:
        from tensorfact.factor._ops import PortableOps

        return PortableOps.to_numpy(self, x)  # type: ignore[arg-type]

    def finish(self, x: Any) -> Any:
        return x if self.result_dtype is None or self._complex(x) else self.xp.astype(x, self.result_dtype)

    def matmul(self, x: Any, y: Any) -> Any:
        return self.xp.matmul(x, y)

    def energies(self, x: Any) -> np.ndarray:
        magnitude = self.xp.abs(x)
        return self.to_host(self.xp.sum(magnitude * magnitude, axis=(-2, -1), dtype=self.xp.float64))

    def svd(self, x: Any, full: bool = False) -> tuple[Any, Any, Any]:
        u, s, vh = self.xp.linalg.svd(x, full_matrices=full)
        return u, s, vh

    def singular_values(self, x: Any) -> np.ndarray:
        return self.to_host(self.xp.linalg.svdvals(x)).astype(np.float64)

    def qr(self, x: Any, mode: Literal["reduced", "complete"]) -> tuple[Any, Any]:
        q, r = self.xp.linalg.qr(x, mode=mode)
        return q, r

    def inv(self, x: Any) -> Any:
        return self.xp.linalg.inv(x)


def stack_for(name: str, a: Any, look: bool = True) -> tuple[Any, NumpyStack]:
    """``a`` in working precision and the primitives for it; ``ValueError`` names what cannot be served.

    Without ``look`` the caller makes sure with `require_finite`, or otherwise, that ``a`` is finite.
    """
    if not isinstance(a, np.ndarray) and (hasattr(a, "__array_namespace__") or type(a).__module__.startswith("torch")):
        return _portable(name, a, look)
    if isinstance(a, np.ma.MaskedArray):
        raise ValueError(f"{name} must not be a masked array: fill it first")
    a = np.asarray(a)
    if a.dtype.name in _HALF:
        x, ops = a.astype(np.float32), NumpyStack(np.float32, a.dtype)
    elif a.dtype.name in _SERVED:
        x, ops = a, NumpyStack(a.dtype)
    else:
        raise ValueError(_wrong_type(name, a.dtype))
    if look:
        require_finite(name, ops.all_finite(x))
    return x, ops


def _portable(name: str, a: Any, look: bool) -> tuple[Any, NumpyStack]:
    try:
        from array_api_compat import array_namespace
    except ImportError as missing:
        raise ImportError("arrays of other libraries need array-api-compat: pip install array-api-compat") from missing
    xp = array_namespace(a)
    if hasattr(a, "detach"):
        a = a.detach()
    kind, result = str(a.dtype).rpartition(".")[2], None
    if kind in _HALF:
        a, result = xp.astype(a, xp.float32), a.dtype
    elif kind not in _SERVED:
        raise ValueError(_wrong_type(name, a.dtype))
    ops = PortableStack(a, xp, result)
    if look:
        require_finite(name, ops.all_finite(a))
    return a, ops


def _wrong_type(name: str, dtype: Any) -> str:
    served = f"{', '.join(_HALF)}, {', '.join(_SERVED[:-1])} or {_SERVED[-1]}"
    return f"{name} must hold {served} numbers, got dtype {dtype}; convert it first"


def require_finite(name: str, finite: bool) -> None:
    """Refuse an argument that is not finite."""
    if not finite:
        raise ValueError(f"{name} must be finite, got NaN or infinity")


def same_kind(a: Any, b: Any, given: tuple[Any, Any]) -> None:
    """Refuse two arrays of different libraries (``TypeError``) or dtypes (``ValueError``); nothing is promoted."""
    libraries = [type(x).__module__.partition(".")[0] for x in (a, b)]
    if libraries[0] != libraries[1]:
        raise TypeError(f"a and b must be arrays of one library, got {libraries[0]} and {libraries[1]}")
    dtypes = [getattr(x, "dtype", None) for x in given]
    if a.dtype != b.dtype or (None not in dtypes and dtypes[0] != dtypes[1]):
        raise ValueError(f"a and b must have one dtype, got {dtypes[0] or a.dtype} and {dtypes[1] or b.dtype}")
    if math.prod(a.shape) == 0 or math.prod(b.shape) == 0:
        raise ValueError(f"a and b must not be empty, got shapes {tuple(a.shape)} and {tuple(b.shape)}")
