"""Invertible transforms of tubes: what the tensor-tensor product is built on."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from tensorfact.factor._input import check_count
from tensorfact.factor._stack import stack_for
from tensorfact.factor._transform_matrices import NAMES, fast, is_long, named_inverse, named_matrix

__all__ = ["Transform"]

_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Transform:
    """An invertible p x p matrix ``Z`` that acts on the tubes of a tensor: ``ahat[..., u] = sum_k Z[u, k] a[..., k]``.

    Make one by name: `identity`, `dct`, `dst`, `dft`, `haar`, `hartley`, `random_orthogonal`, `from_matrix`.

    Parameters
    ----------
    name : str
        ``"dct"`` and so on; ``"random"`` or ``"matrix"`` where the matrix is given.
    length : int
        Number p of entries of a tube.
    given : ndarray (p, p), optional
        The matrix where the name does not tell it.

    Notes
    -----
    ``scale`` is the number c with ``Z^H Z = c^2 I``, or None: 1 for all named transforms but the DFT, which is not
    normalised (c = sqrt(p)), so that its product is the classical t-product. Frobenius norms, and with them the
    optimality of truncations, are known only where ``scale`` is.

    Examples
    --------
    >>> from tensorfact import Transform
    >>> Transform.dct(4).matrix.round(4)[1]
    array([ 0.6533,  0.2706, -0.2706, -0.6533])
    >>> Transform.dft(9).scale
    3.0
    """

    name: str
    length: int
    given: np.ndarray | None = field(default=None)
    _inverse: np.ndarray | None = field(default=None, init=False)
    _scale: float | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.name in NAMES and self.given is None:
            object.__setattr__(self, "length", check_count("p", self.length, 1))
            if self.name == "haar" and self.length & (self.length - 1):
                raise ValueError(f"p must be a power of two for the Haar wavelet, got {self.length}")
            object.__setattr__(self, "_scale", math.sqrt(self.length) if self.name == "dft" else 1.0)
            return
        if self.given is None:
            raise ValueError(f"name must be one of {', '.join(NAMES)} or come with a matrix, got {self.name!r}")
        z, eps = _checked(self.given)
        z, inverse, scale = _settled(z, eps)
        for name, value in (("length", z.shape[0]), ("given", z), ("_inverse", inverse), ("_scale", scale)):
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
            object.__setattr__(self, name, value)

    # -- makers --------------------------------------------------------------------------------------------------
    @classmethod
    def identity(cls, p: int) -> Self:
        """No transform: the product is p independent matrix products."""
        return cls("identity", p)

    @classmethod
    def dct(cls, p: int) -> Self:
        """Orthonormal DCT-II."""
        return cls("dct", p)

    @classmethod
    def dst(cls, p: int) -> Self:
        """Orthonormal DST-II."""
        return cls("dst", p)

    @classmethod
    def dft(cls, p: int) -> Self:
        """DFT without normalisation: the product is the classical, block-circulant t-product. Real in, real out."""
        return cls("dft", p)

    @classmethod
    def haar(cls, p: int) -> Self:
        """Orthonormal Haar wavelet; p must be a power of two."""
        return cls("haar", p)

    @classmethod
    def hartley(cls, p: int) -> Self:
        """Orthonormal Hartley transform: symmetric, its own inverse."""
        return cls("hartley", p)

    @classmethod
    def random_orthogonal(cls, p: int, rng: Any = None) -> Self:
        """Orthogonal matrix drawn uniformly; ``rng`` is None, an int or a ``numpy.random.Generator``."""
        block = np.random.default_rng(rng).standard_normal((check_count("p", p, 1), p))
        q, r = np.linalg.qr(block)
        return cls("random", p, q * np.where(np.diagonal(r) < 0, -1.0, 1.0))

    @classmethod
    def from_matrix(cls, m: Any) -> Self:
        """Any invertible matrix, real or complex; a singular one is refused, an ill-conditioned one warns.

        Its ``scale`` is found where ``m`` is a multiple of an orthogonal or unitary matrix, to 100 eps of its dtype.
        """
        return cls("matrix", 0, m)

    # -- what it is ----------------------------------------------------------------------------------------------
    @property
    def matrix(self) -> np.ndarray:
        """The matrix (p, p), float64 or complex128, read-only."""
        return named_matrix(self.name, self.length) if self.given is None else self.given

    @property
    def inverse_matrix(self) -> np.ndarray:
        """Its inverse, read-only."""
        return named_inverse(self.name, self.length) if self._inverse is None else self._inverse

    @property
    def scale(self) -> float | None:
        """The c of ``Z^H Z = c^2 I``; None where there is none."""
        return self._scale

    @property
    def is_complex(self) -> bool:
        """Whether the matrix has complex entries."""
        return self.name == "dft" if self.given is None else self.given.dtype.kind == "c"

    @property
    def size(self) -> int:
        """Numbers to store with what was made by it: none for a named one, p^2 for a given matrix."""
        return 0 if self.given is None else self.length**2

    @property
    def partner(self) -> np.ndarray | None:
        """Index of the row that is the conjugate of each row; None where a complex matrix has no such pairing.

        With it real tensors have conjugate pairs of faces, and one of each pair is enough.
        """
        if not self.is_complex:
            return np.arange(self.length)
        if self.given is None:
            return -np.arange(self.length) % self.length
        swap = self.given.conj() @ self.inverse_matrix
        found = np.argmax(np.abs(swap), axis=1)
        expected = np.zeros_like(swap)
        expected[np.arange(self.length), found] = 1
        return found if np.abs(swap - expected).max() <= 1e4 * _EPS * self.length else None

    # -- what it does --------------------------------------------------------------------------------------------
    def forward(self, a: Any, /, *, axis: int = -1) -> Any:
        """``Z`` applied along ``axis`` of an array of any library; ``2 p`` flop a number, or an FFT above 512."""
        return self._apply(a, axis, "forward")

    def inverse(self, a: Any, /, *, axis: int = -1) -> Any:
        """``Z^-1`` applied along ``axis``; complex where ``Z`` is."""
        return self._apply(a, axis, "inverse")

    def adjoint(self, a: Any, /, *, axis: int = -1) -> Any:
        """``Z^H`` applied along ``axis``: ``<Z a, b> = <a, Z^H b>``."""
        return self._apply(a, axis, "adjoint")

    def _apply(self, a: Any, axis: int, way: str) -> Any:
        x, ops = stack_for("a", a)
        axis = normal_axis("axis", axis, x.ndim)
        if int(x.shape[axis]) != self.length:
            raise ValueError(f"axis {axis} of a must have the length {self.length} of the transform, got {x.shape}")
        if isinstance(x, np.ndarray) and is_long(self.name, self.length):
            y = fast(self.name, ops.to_complex(x) if self.is_complex else x, axis, way != "forward")
            return ops.finish(y * self.length if way == "adjoint" and self.is_complex else y)
        matrices = {"forward": self.matrix, "inverse": self.inverse_matrix, "adjoint": self.matrix.conj().T}
        z = matrices[way]
        return ops.finish(ops.moveaxis(ops.front(x, z, axis), 0, axis))

    # -- as a value ----------------------------------------------------------------------------------------------
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Transform):
            return NotImplemented
        same = (self.name, self.length) == (other.name, other.length)
        return same and (self.given is None or bool(np.array_equal(self.given, other.matrix)))

    def __hash__(self) -> int:
        return hash((self.name, self.length))

    def to_arrays(self) -> dict[str, Any]:
        """Name and, where it was given, matrix; :meth:`from_arrays` reads them back."""
        name = f"{self.name}:{self.length}".encode()
        arrays: dict[str, Any] = {"transform": np.frombuffer(name, dtype=np.uint8)}
        return arrays if self.given is None else {**arrays, "matrix": self.given}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Self:
        """Rebuild a transform from :meth:`to_arrays`."""
        if "transform" not in arrays:
            raise ValueError(f"arrays must hold transform, got {sorted(arrays)}")
        name, _, length = np.asarray(arrays["transform"]).tobytes().decode().partition(":")
        return cls(name, int(length), arrays.get("matrix"))

    def __repr__(self) -> str:
        if self.given is None:
            return f"Transform.{self.name}({self.length})"
        scale = "not orthogonal" if self.scale is None else f"scale {self.scale:.3g}"
        return f"Transform({self.name}, p={self.length}, {scale})"


def _checked(m: Any) -> tuple[np.ndarray, float]:
    """A square, finite matrix in double precision, and the eps that it was given in."""
    z = np.array(m.detach().cpu().numpy() if hasattr(m, "detach") else m)
    if z.ndim != 2 or z.shape[0] != z.shape[1] or z.shape[0] == 0:
        raise ValueError(f"m must be a square matrix, got shape {z.shape}")
    if z.dtype.kind not in "iufc":
        raise ValueError(f"m must hold numbers, got dtype {z.dtype}")
    eps = float(np.finfo(z.dtype).eps) if z.dtype.kind in "fc" else _EPS
    z = z.astype(np.complex128 if z.dtype.kind == "c" else np.float64)
    if not np.isfinite(z).all():
        raise ValueError("m must be finite, got NaN or infinity")
    return z, eps


def _settled(z: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray, float | None]:
    """The matrix, its inverse and its scale; what is orthogonal in single precision is made so in double."""
    u, s, vh = np.linalg.svd(z)
    condition = float(s[0] / s[-1]) if s[-1] > 0 else math.inf
    if condition >= 1 / (_EPS * z.shape[0]):
        raise ValueError(f"m must be invertible, its condition number is {condition:.3g}")
    scale = float(np.sqrt(np.mean(s**2)))
    if np.abs(s / scale - 1).max() <= 100 * eps:
        if eps > _EPS:
            z = scale * (u @ vh)
        return z, z.conj().T / scale**2, scale
    if condition > 1 / math.sqrt(_EPS):
        warnings.warn(f"m is ill-conditioned ({condition:.3g}): products lose as many digits", stacklevel=5)
    return z, np.linalg.inv(z), None


def normal_axis(name: str, axis: Any, ndim: int) -> int:
    """``axis`` counted from the front."""
    if isinstance(axis, bool) or not hasattr(axis, "__index__"):
        raise ValueError(f"{name} must be an integer, got {axis!r}")
    if not -ndim <= int(axis) < ndim:
        raise ValueError(f"{name} must be between {-ndim} and {ndim - 1}, got {int(axis)}")
    return int(axis) % ndim


@functools.lru_cache(maxsize=64)
def named(name: str, p: int) -> Transform:
    """The transform called ``name``."""
    if name not in NAMES:
        raise ValueError(f"transform must be one of {', '.join(NAMES)}, a Transform or a matrix, got {name!r}")
    return Transform(name, p)
