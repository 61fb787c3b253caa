"""Hypothesis strategies for the inputs of matrix decompositions.

A matrix is drawn as a `MatrixSpec`, a one-line recipe that prints well and shrinks fast, and then built. Recipes that
come first in the lists are the simple ones: Hypothesis shrinks towards them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

__all__ = [
    "LAYOUTS",
    "SHAPES",
    "SPECTRA",
    "MatrixSpec",
    "dtypes",
    "layouts",
    "matrices",
    "matrix_specs",
    "matrix_with_spectrum",
    "ranks",
    "shapes",
    "spectra",
    "spectrum_values",
    "with_layout",
]

# Square, tall, wide; primes defeat blocking by 2 and 4; one side of 1 is where code that indexes [1] falls over.
SHAPES: tuple[tuple[int, int], ...] = (
    *((2, 2), (3, 2), (2, 3), (5, 5), (7, 5), (5, 7), (13, 11), (11, 29), (16, 16), (31, 17), (64, 6), (6, 64)),
    *((1, 1), (1, 7), (7, 1), (1, 64), (64, 1)),
)


def _ties(n: int, eps: float) -> npt.NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.arange(n) // 3), dtype=np.float64)


def _step(n: int, eps: float) -> npt.NDArray[np.float64]:
    return np.where(np.arange(n) < max(1, n // 3), 1.0, 1e-3)


def _graded(n: int, eps: float) -> npt.NDArray[np.float64]:
    return np.asarray(eps ** (np.arange(n) / max(n - 1, 1)), dtype=np.float64)


# Name -> values from (count, eps of the dtype). Trained weights look like the slow power laws; the others are the
# classical hard cases: no gap, one gap, ties, values down to rounding, nothing at all.
SPECTRA: dict[str, Callable[[int, float], npt.NDArray[np.float64]]] = {
    "flat": lambda n, eps: np.ones(n),
    "i^-0.5": lambda n, eps: np.arange(1.0, n + 1) ** -0.5,
    "i^-1": lambda n, eps: np.arange(1.0, n + 1) ** -1.0,
    "i^-2": lambda n, eps: np.arange(1.0, n + 1) ** -2.0,
    "0.99^i": lambda n, eps: np.asarray(0.99 ** np.arange(n), dtype=np.float64),
    "10^(-i/4)": lambda n, eps: 10.0 ** (-np.arange(n) / 4),
    "ties": _ties,
    "step": _step,
    "graded": _graded,
    "zero": lambda n, eps: np.zeros(n),
}

# A spectrum that is not in the table: integer factors, so that the matrix has exactly this rank in every dtype.
EXACT_LOW_RANK = "exact-low-rank"


def spectrum_values(name: str, n: int, dtype: npt.DTypeLike = "float64") -> npt.NDArray[np.float64]:
    """Return the first `n` singular values of the spectrum called `name` (a key of `SPECTRA`).

    Examples
    --------
    >>> spectrum_values("i^-1", 4)
    array([1.        , 0.5       , 0.33333333, 0.25      ])
    """
    if name not in SPECTRA:
        raise ValueError(f"name must be one of {', '.join(SPECTRA)}, got {name!r}")
    return SPECTRA[name](n, float(np.finfo(np.dtype(dtype)).eps))


def matrix_with_spectrum(
    shape: tuple[int, int],
    s: npt.ArrayLike,
    *,
    rng: np.random.Generator | int | None = None,
    dtype: npt.DTypeLike = "float64",
) -> npt.NDArray[Any]:
    """Matrix with the given singular values and random orthonormal factors (QR of Gaussian blocks).

    Parameters
    ----------
    shape : (int, int)
        Shape (m, n).
    s : array_like
        At most min(m, n) singular values.
    rng : None, int or numpy.random.Generator
        Source of the factors.
    dtype : dtype-like
        float32, float64, complex64 or complex128; built in double precision, then rounded once.

    Examples
    --------
    >>> a = matrix_with_spectrum((5, 3), [2.0, 1.0, 0.5], rng=0)
    >>> np.linalg.svd(a, compute_uv=False).round(12)
    array([2. , 1. , 0.5])
    """
    generator = np.random.default_rng(rng)
    values = np.asarray(s, dtype=np.float64)
    kind = np.dtype(dtype)

    def orthonormal(rows: int) -> npt.NDArray[Any]:
        block: npt.NDArray[Any] = generator.standard_normal((rows, values.size))
        if kind.kind == "c":
            block = block + 1j * generator.standard_normal((rows, values.size))
        return np.linalg.qr(block)[0]

    product: npt.NDArray[Any] = ((orthonormal(shape[0]) * values) @ orthonormal(shape[1]).conj().T).astype(kind)
    return product


def _strided(a: npt.NDArray[Any]) -> npt.NDArray[Any]:
    wide = np.zeros((2 * a.shape[0], 3 * a.shape[1]), a.dtype)
    wide[::2, ::3] = a
    return wide[::2, ::3]


def _read_only(a: npt.NDArray[Any]) -> npt.NDArray[Any]:
    copy = a.copy()
    copy.flags.writeable = False
    return copy


LAYOUTS: dict[str, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "read-only": _read_only,
    "strided": _strided,
    "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
}


def with_layout(a: npt.NDArray[Any], layout: str) -> npt.NDArray[Any]:
    """Equal values in another memory layout, a key of `LAYOUTS`; "reversed" has negative strides.

    Examples
    --------
    >>> with_layout(np.eye(3), "reversed").strides
    (-24, -8)
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    return LAYOUTS[layout](a)


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixSpec:
    """Recipe of a test matrix; `build` makes the same array every time.

    Examples
    --------
    >>> MatrixSpec(shape=(4, 3), spectrum="i^-1").build().shape
    (4, 3)
    """

    shape: tuple[int, int]
    dtype: str = "float64"
    spectrum: str = "i^-0.5"
    layout: str = "C"
    scale: float = 1.0
    seed: int = 0

    def build(self) -> npt.NDArray[Any]:
        """Make the matrix, rounded to `dtype`, times `scale`, in memory order `layout`."""
        m, n = self.shape
        if self.spectrum == EXACT_LOW_RANK:
            rank = max(1, min(m, n) // 3)
            generator = np.random.default_rng(self.seed)
            # Entries of at most 9 * rank in size: exact in float32, and float64 oracles agree on the rank.
            left, right = (generator.choice((-3, -2, -1, 1, 2, 3), size) for size in ((m, rank), (rank, n)))
            a = (left @ right).astype(self.dtype)
        else:
            values = spectrum_values(self.spectrum, min(m, n), self.dtype)
            a = matrix_with_spectrum(self.shape, values, rng=self.seed, dtype=self.dtype)
        return with_layout(a * a.real.dtype.type(self.scale) if self.scale != 1.0 else a, self.layout)


def shapes(*, min_side: int = 1) -> st.SearchStrategy[tuple[int, int]]:
    """Small (m, n): square, tall, wide, prime, and one row or column unless ``min_side > 1``."""
    return st.sampled_from([shape for shape in SHAPES if min(shape) >= min_side])


def dtypes(*, complex_too: bool = False) -> st.SearchStrategy[str]:
    """Names of the supported real dtypes, and of the complex ones if asked."""
    return st.sampled_from(["float64", "float32", *(["complex128", "complex64"] if complex_too else [])])


def spectra(*, exclude: Sequence[str] = ("zero",)) -> st.SearchStrategy[str]:
    """Names of spectra: the keys of `SPECTRA` and "exact-low-rank", less `exclude`."""
    return st.sampled_from([name for name in (*SPECTRA, EXACT_LOW_RANK) if name not in exclude])


def layouts() -> st.SearchStrategy[str]:
    """Names of memory layouts, the keys of `LAYOUTS`."""
    return st.sampled_from(list(LAYOUTS))


def matrix_specs(
    *,
    shape: st.SearchStrategy[tuple[int, int]] | None = None,
    dtype: st.SearchStrategy[str] | None = None,
    spectrum: st.SearchStrategy[str] | None = None,
    layout: st.SearchStrategy[str] | None = None,
    scale: st.SearchStrategy[float] | None = None,
) -> st.SearchStrategy[MatrixSpec]:
    """Recipes of matrices; every ingredient can be narrowed. Layout is "C" and scale 1 unless given."""
    return st.builds(
        MatrixSpec,
        shape=shapes() if shape is None else shape,
        dtype=dtypes() if dtype is None else dtype,
        spectrum=spectra() if spectrum is None else spectrum,
        layout=st.just("C") if layout is None else layout,
        scale=st.just(1.0) if scale is None else scale,
        seed=st.integers(0, 99),
    )


def matrices(specs: st.SearchStrategy[MatrixSpec] | None = None) -> st.SearchStrategy[npt.NDArray[Any]]:
    """Arrays built from `specs` (default: all of `matrix_specs`).

    Examples
    --------
    >>> from hypothesis import given
    >>> @given(matrices(matrix_specs(layout=layouts())))
    ... def test_finite(a):
    ...     assert np.isfinite(a).all()
    >>> test_finite()
    """
    return (matrix_specs() if specs is None else specs).map(MatrixSpec.build)


def ranks(shape: tuple[int, int], *, below_full: bool = False) -> st.SearchStrategy[int]:
    """Target ranks 1 .. min(shape), or .. min(shape) - 1 (but at least 1) if ``below_full``."""
    full = min(shape)
    return st.integers(1, max(1, full - 1) if below_full else full)
