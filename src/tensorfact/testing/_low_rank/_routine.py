"""One way to call any low-rank routine, and the problems it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tensorfact.testing import oracles
from tensorfact.testing._promises import BrokenPromise, NotOffered, first_line
from tensorfact.testing.strategies import MatrixSpec, with_layout

__all__ = ["Answer", "LowRankCase", "LowRankRoutine", "Problem", "problem"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class LowRankCase:
    """A matrix and what is asked of it."""

    matrix: MatrixSpec
    rank: int | None = None
    tol: float | None = None

    def __str__(self) -> str:
        asked = f"rank={self.rank}" if self.tol is None else f"tol={self.tol:g}"
        return f"{asked}, {self.matrix}"


class Problem(NamedTuple):
    """The matrix of a spec (read-only, in C order) and its singular values in float64."""

    a: Array
    s: npt.NDArray[np.float64]

    def best(self, rank: int) -> oracles.OptimalErrors:
        """`oracles.optimal_errors` at `rank`, without another SVD."""
        return oracles.optimal_errors_of(self.s, rank)


@lru_cache(maxsize=128)
def problem(spec: MatrixSpec) -> Problem:
    """Build `spec` once: several promises look at the same matrices."""
    a = np.ascontiguousarray(spec.build())
    a.flags.writeable = False
    return Problem(a, oracles.singular_values(a))


class Answer(NamedTuple):
    """What a routine returned, as NumPy arrays; `error` is None where the routine reports none."""

    u: Array
    s: Array
    vh: Array
    error: float | None

    @property
    def approx(self) -> Array:
        """The approximation in double precision."""
        return oracles.reconstruct(self.u, self.s, self.vh)


def _unpack(result: Any, shape: tuple[int, int]) -> Answer:
    parts = (result.u, result.s, result.vh) if hasattr(result, "vh") else tuple(result)
    if len(parts) != 3:
        raise BrokenPromise(f"returned {len(parts)} parts, (u, s, vh) expected")
    u, s, vh = (np.asarray(part) for part in parts)
    k = s.size
    if (u.shape, s.shape, vh.shape) != ((shape[0], k), (k,), (k, shape[1])):
        raise BrokenPromise(f"u {u.shape}, s {s.shape}, vh {vh.shape} do not factor a matrix of shape {shape}")
    error = getattr(result, "error", None)
    return Answer(u, s, vh, None if error is None else float(error))


class LowRankRoutine:
    """Calls ``fn(a, *, rank=None, tol=None, rng=None)``, having found out which parts of it are on offer.

    `tol` and `rng` are not on offer if a plain call with them raises TypeError or NotImplementedError. A dtype that a
    plain call refuses is the business of one promise; the others leave it out.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        probe = MatrixSpec(shape=(12, 9), spectrum="i^-1")
        self.no_rng = self._refusal(probe, rank=2, rng=0)
        self.no_generator = self.no_rng or self._refusal(probe, rank=2, rng=np.random.default_rng(0))
        self.no_tol = self._refusal(probe, tol=0.3)
        served = tuple(d for d in ("float64", "float32") if self._works(MatrixSpec(shape=(12, 9), dtype=d)))
        self.dtypes = served or ("float64",)  # a routine that serves nothing breaks its promises on float64

    def _refusal(self, spec: MatrixSpec, **asked: Any) -> str | None:
        try:
            self.fn(spec.build(), **asked)
        except (TypeError, NotImplementedError) as refusal:
            return str(refusal) or type(refusal).__name__
        except Exception:  # on offer, and broken: the promises will say how
            return None
        return None

    def _works(self, spec: MatrixSpec) -> bool:
        try:
            self.fn(spec.build(), rank=2)
        except Exception:
            return False
        return True

    def require_tol(self) -> None:
        """Raise NotOffered unless `tol` is on offer."""
        if self.no_tol is not None:
            raise NotOffered(self.no_tol)

    def require_rng(self) -> None:
        """Raise NotOffered unless `rng` is on offer."""
        if self.no_rng is not None:
            raise NotOffered(self.no_rng)

    def raw(self, a: Any, *, rank: Any = None, tol: Any = None, rng: Any = None) -> Any:
        """Call with only the arguments that were given and are on offer."""
        asked = {"rank": rank, "tol": tol, "rng": None if self.no_rng else rng}
        return self.fn(a, **{name: value for name, value in asked.items() if value is not None})

    def __call__(self, a: Array, *, rank: int | None = None, tol: float | None = None, rng: Any = 0) -> Answer:
        """Call as a user does; an exception on input that must be served breaks the promise."""
        shape = (int(a.shape[0]), int(a.shape[1]))
        try:
            return _unpack(self.raw(a, rank=rank, tol=tol, rng=rng), shape)
        except BrokenPromise:
            raise
        except Exception as error:
            raise BrokenPromise(f"raised {type(error).__name__}: {first_line(error)}") from error

    def solve(self, case: LowRankCase) -> tuple[Problem, Answer]:
        """Solve `case` on a fresh, writable copy in the layout of its spec, unless that is read-only."""
        known = problem(case.matrix)
        given = with_layout(known.a.copy(), case.matrix.layout)
        return known, self(given, rank=case.rank, tol=case.tol, rng=case.matrix.seed)
