"""One way to call any basis routine, and the oracle it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from tensorfact.testing._promises import BrokenPromise, NotOffered

__all__ = ["KINDS", "SplineCase", "SplineRoutine", "cases", "oracle"]

Array = npt.NDArray[Any]

# Kinds of clamped knots, the simple ones first: Hypothesis shrinks towards them.
KINDS = ("uniform", "general", "repeated", "clustered")


@dataclass(frozen=True, slots=True)
class SplineCase:
    """Knots, a degree, the order of the derivative, and where to evaluate."""

    kind: str = "uniform"
    degree: int = 3
    n_basis: int = 8
    nu: int = 0
    dtype: str = "float64"
    seed: int = 0
    scale: float = 1.0
    count: int = 40

    @property
    def knots(self) -> Array:
        """Clamped knots on [-1, 2], times `scale`."""
        rng = np.random.default_rng(self.seed)
        breaks = np.linspace(-1.0, 2.0, self.n_basis - self.degree + 1)
        inner = breaks.size - 2
        if self.kind != "uniform" and inner > 0:
            breaks[1:-1] = np.sort(rng.uniform(-1, 2, inner))
        if self.kind == "repeated" and inner > 1:
            breaks[1 : 1 + min(max(self.degree, 1), inner)] = breaks[1]
        if self.kind == "clustered" and inner > 1:
            breaks[1:-1] = np.sort(rng.uniform(0, 1e-6, inner))
        return np.pad(breaks * self.scale, self.degree, mode="edge").astype(self.dtype)

    @property
    def x(self) -> Array:
        """Random points of the domain, both ends and every knot inside."""
        t = self.knots.astype(np.float64)
        lo, hi = t[self.degree], t[-self.degree - 1]
        inside = np.random.default_rng(self.seed + 1).uniform(lo, hi, self.count)
        found = np.concatenate([inside, np.unique(t[(t >= lo) & (t <= hi)])])
        points: Array = np.clip(found.astype(self.dtype), self.knots[0], self.knots[-1])
        return points


def oracle(case: SplineCase) -> Array:
    """The dense basis (points, functions) in float64 by SciPy, the limit from the left at the right end."""
    from scipy.interpolate import BSpline

    t, x = case.knots.astype(np.float64), case.x.astype(np.float64)
    if case.nu > case.degree:
        return np.zeros((x.size, case.n_basis))
    end = t[-1]
    if case.degree == case.nu:  # pieces are constant, so SciPy's value beside the end is the limit
        x = np.where(x == end, np.nextafter(end, -np.inf), x)
    return np.stack([BSpline(t, row, case.degree)(x, case.nu) for row in np.eye(case.n_basis)], axis=1)


class SplineRoutine:
    """``fn(x, knots, degree, nu)`` -> dense (n, k), sparse matrix, or (values (n, degree + 1), first (n,))."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn

    def call(self, x: Any, knots: Any, degree: int, nu: int) -> Any:
        """The raw result; refusals in so many words are "not offered"."""
        try:
            return self.fn(x, knots, degree) if nu == 0 else self.fn(x, knots, degree, nu)
        except (TypeError, NotImplementedError) as error:
            raise NotOffered(f"{type(error).__name__}: {error}") from error

    def dense(self, case: SplineCase) -> Array:
        """The result as a dense matrix, checked for its shape."""
        try:
            found = self.call(case.x, case.knots, case.degree, case.nu)
        except NotOffered:
            raise
        except Exception as error:
            raise BrokenPromise(f"raised {type(error).__name__}: {error}") from error
        shape = case.x.size, case.n_basis
        if isinstance(found, tuple):
            values, first = (np.asarray(part) for part in found)
            if values.shape != (shape[0], case.degree + 1) or first.shape != (shape[0],):
                raise BrokenPromise(f"returned values {values.shape} and first {first.shape}")
            if first.size and (first.min() < 0 or first.max() + case.degree >= case.n_basis):
                raise BrokenPromise(f"first runs from {first.min()} to {first.max()} of {case.n_basis} functions")
            matrix = np.zeros(shape, values.dtype)
            for q in range(case.degree + 1):
                matrix[np.arange(shape[0]), first + q] += values[:, q]
        else:
            matrix = found.toarray() if hasattr(found, "toarray") else np.asarray(found)
        if matrix.shape != shape:
            raise BrokenPromise(f"returned shape {matrix.shape}, {shape} expected")
        return matrix


def cases(
    kinds: tuple[str, ...] = KINDS, *, nu: tuple[int, ...] = (0,), dtypes: tuple[str, ...] = ("float64",)
) -> st.SearchStrategy[SplineCase]:
    """Cases of degree 0 to 5 and up to twelve intervals."""
    return st.builds(
        lambda kind, degree, more, order, dtype, seed: SplineCase(kind, degree, degree + 1 + more, order, dtype, seed),
        st.sampled_from(kinds),
        st.integers(0, 5),
        st.integers(0, 11),
        st.sampled_from(nu),
        st.sampled_from(dtypes),
        st.integers(0, 99),
    )
