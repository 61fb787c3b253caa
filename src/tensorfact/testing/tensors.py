"""Hypothesis strategies for the inputs of tensor decompositions, and for trains.

A tensor is drawn as a `TensorSpec`, a one-line recipe that prints well and shrinks fast, and then built; a train as a
`TrainSpec`. Recipes that come first in the lists are the simple ones: Hypothesis shrinks towards them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from tensorfact.testing.oracles import full_bonds, train_to_dense
from tensorfact.testing.strategies import EXACT_LOW_RANK, SPECTRA, dtypes, spectrum_values

__all__ = [
    "TENSOR_KINDS",
    "TENSOR_LAYOUTS",
    "TENSOR_SHAPES",
    "TensorSpec",
    "TrainSpec",
    "tensor_shapes",
    "tensor_specs",
    "tensors",
    "train_specs",
]

# Two to twelve modes; primes; a mode of 1 first, last and between; one mode much larger than the others, at either end.
TENSOR_SHAPES: tuple[tuple[int, ...], ...] = (
    *((2, 2), (3, 2), (2, 2, 2), (4, 5, 6), (7, 5, 3), (5, 7), (2, 3, 2, 3, 2), (3, 11, 13), (31, 4, 2), (2, 4, 31)),
    *((2,) * 6, (2,) * 9, (6, 2, 2, 6), (16, 16)),
    *((1, 6), (6, 1), (5, 1, 4), (1, 3, 3), (3, 1, 1, 5), (1, 1, 1), (4, 4, 1)),
)
MANY_MODES = 6

# Spectra of `strategies.SPECTRA` shape every mode of a Gaussian tensor; these two are made otherwise.
DELTA = "delta"  # sum of orthogonal rank-one terms of equal size: every singular value of every unfolding is tied
TENSOR_KINDS: tuple[str, ...] = (*SPECTRA, DELTA, EXACT_LOW_RANK)


def _strided(a: npt.NDArray[Any]) -> npt.NDArray[Any]:
    wide = np.zeros(tuple(2 * n for n in a.shape), a.dtype)
    every_second = (slice(None, None, 2),) * a.ndim
    wide[every_second] = a
    return wide[every_second]


def _read_only(a: npt.NDArray[Any]) -> npt.NDArray[Any]:
    copy = a.copy()
    copy.flags.writeable = False
    return copy


def _reversed(a: npt.NDArray[Any]) -> npt.NDArray[Any]:
    back = (slice(None, None, -1),) * a.ndim
    return a[back].copy()[back]


def _permuted(a: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 0, -1)), -1, 0)


TENSOR_LAYOUTS: dict[str, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "read-only": _read_only,
    "strided": _strided,
    "reversed": _reversed,
    "permuted": _permuted,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """Recipe of a test tensor; `build` makes the same array every time.

    Examples
    --------
    >>> TensorSpec(shape=(4, 3, 2), kind="i^-1").build().shape
    (4, 3, 2)
    """

    shape: tuple[int, ...]
    dtype: str = "float64"
    kind: str = "i^-0.5"
    layout: str = "C"
    scale: float = 1.0
    seed: int = 0

    def build(self) -> npt.NDArray[Any]:
        """Make the tensor, rounded to `dtype`, times `scale`, in memory order `layout`."""
        generator = np.random.default_rng(self.seed)
        complex_ = np.dtype(self.dtype).kind == "c"
        if self.kind == EXACT_LOW_RANK:
            bonds = (1, *full_bonds(self.shape, 2), 1)
            sizes = zip(bonds, self.shape, bonds[1:], strict=False)  # entries are integers: exact in every dtype
            a = train_to_dense([generator.choice((-2, -1, 1, 2), size) for size in sizes]).astype(self.dtype)
        elif self.kind == DELTA:
            a = np.zeros(self.shape, np.complex128 if complex_ else np.float64)
            a[(np.arange(min(self.shape)),) * len(self.shape)] = 1.0
            a = _rotated(a, generator, complex_).astype(self.dtype)
        else:
            a = generator.standard_normal(self.shape)
            if complex_:
                a = a + 1j * generator.standard_normal(self.shape)
            for axis, n in enumerate(self.shape):
                weights = spectrum_values(self.kind, n, self.dtype)
                a = a * weights.reshape((-1,) + (1,) * (len(self.shape) - 1 - axis))
            a = _rotated(a, generator, complex_).astype(self.dtype)
        if self.scale != 1.0:
            a = a * a.real.dtype.type(self.scale)
        return with_tensor_layout(a, self.layout)


def _rotated(a: npt.NDArray[Any], generator: np.random.Generator, complex_: bool) -> npt.NDArray[Any]:
    """The tensor in a random orthonormal basis of every mode: the same singular values, no axis-parallel structure."""
    for axis, n in enumerate(a.shape):
        block: npt.NDArray[Any] = generator.standard_normal((n, n))
        if complex_:
            block = block + 1j * generator.standard_normal((n, n))
        a = np.moveaxis(np.tensordot(np.linalg.qr(block)[0], a, axes=(1, axis)), 0, axis)
    return a


def with_tensor_layout(a: npt.NDArray[Any], layout: str) -> npt.NDArray[Any]:
    """Equal values in another memory layout, a key of `TENSOR_LAYOUTS`."""
    if layout not in TENSOR_LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(TENSOR_LAYOUTS)}, got {layout!r}")
    return TENSOR_LAYOUTS[layout](a)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSpec:
    """Recipe of a train with Gaussian cores; `build` makes the cores.

    Examples
    --------
    >>> [core.shape for core in TrainSpec(shape=(4, 3), rank=2).build()]
    [(1, 4, 2), (2, 3, 1)]
    """

    shape: tuple[int, ...]
    rank: int = 2
    dtype: str = "float64"
    seed: int = 0

    def build(self) -> list[npt.NDArray[Any]]:
        """Make the cores; all inner bonds are `rank`, also where that is more than can be used."""
        generator = np.random.default_rng(self.seed)
        bonds = (1, *(self.rank,) * (len(self.shape) - 1), 1)
        cores = []
        for size in zip(bonds, self.shape, bonds[1:], strict=False):
            core: npt.NDArray[Any] = generator.standard_normal(size)
            if np.dtype(self.dtype).kind == "c":
                core = core + 1j * generator.standard_normal(size)
            cores.append(core.astype(self.dtype))
        return cores


def tensor_shapes(*, min_side: int = 1, max_order: int = 12) -> st.SearchStrategy[tuple[int, ...]]:
    """Small shapes of two to nine modes, with modes of 1 unless ``min_side > 1``."""
    return st.sampled_from([s for s in TENSOR_SHAPES if min(s) >= min_side and len(s) <= max_order])


def tensor_specs(
    *,
    shape: st.SearchStrategy[tuple[int, ...]] | None = None,
    dtype: st.SearchStrategy[str] | None = None,
    kinds: Sequence[str] | None = None,
) -> st.SearchStrategy[TensorSpec]:
    """Recipes of tensors; every ingredient can be narrowed."""
    return st.builds(
        TensorSpec,
        shape=tensor_shapes() if shape is None else shape,
        dtype=dtypes() if dtype is None else dtype,
        kind=st.sampled_from([kind for kind in TENSOR_KINDS if kind != "zero"] if kinds is None else list(kinds)),
        seed=st.integers(0, 99),
    )


def tensors(specs: st.SearchStrategy[TensorSpec] | None = None) -> st.SearchStrategy[npt.NDArray[Any]]:
    """Arrays built from `specs` (default: all of `tensor_specs`).

    Examples
    --------
    >>> from hypothesis import given
    >>> @given(tensors())
    ... def test_finite(a):
    ...     assert np.isfinite(a).all()
    >>> test_finite()
    """
    return (tensor_specs() if specs is None else specs).map(TensorSpec.build)


def train_specs(
    *, shape: st.SearchStrategy[tuple[int, ...]] | None = None, dtype: st.SearchStrategy[str] | None = None
) -> st.SearchStrategy[TrainSpec]:
    """Recipes of trains with one to six modes and bonds of 1 to 5, some of them larger than is of use."""
    few = st.lists(st.integers(1, 5), min_size=1, max_size=MANY_MODES).map(tuple)
    return st.builds(
        TrainSpec,
        shape=few if shape is None else shape,
        rank=st.integers(1, 5),
        dtype=dtypes(complex_too=True) if dtype is None else dtype,
        seed=st.integers(0, 99),
    )
