"""One way to call any TT-SVD routine, and the problems it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tensorfact.testing import oracles, tolerances
from tensorfact.testing._promises import BrokenPromise, NotOffered, first_line
from tensorfact.testing.tensors import TensorSpec, with_tensor_layout

__all__ = ["Problem", "Train", "TrainCase", "TrainRoutine", "orthonormality", "problem"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class TrainCase:
    """A tensor and what is asked of it."""

    tensor: TensorSpec
    rank: Any = None
    tol: float | None = None

    def __str__(self) -> str:
        asked = f"rank={self.rank}" if self.tol is None else f"tol={self.tol:g}"
        return f"{asked}, {self.tensor}"


class Problem(NamedTuple):
    """The tensor of a spec (read-only, in C order) and the singular values of its unfoldings in float64."""

    a: Array
    values: tuple[npt.NDArray[np.float64], ...]

    def bound(self, bonds: Sequence[int]) -> float:
        """`oracles.train_bound` at these bonds, without another SVD."""
        return oracles.train_bound(self.values, bonds)


@lru_cache(maxsize=256)
def problem(spec: TensorSpec) -> Problem:
    """Build `spec` once: several promises look at the same tensors."""
    a = np.ascontiguousarray(spec.build())
    a.flags.writeable = False
    return Problem(a, oracles.unfolding_values(a))


class Train(NamedTuple):
    """What a routine returned, as NumPy arrays; `error` and `canonical` are None where it reports none."""

    cores: tuple[Array, ...]
    error: float | None
    canonical: str | None

    @property
    def bonds(self) -> tuple[int, ...]:
        """The inner bonds."""
        return tuple(core.shape[2] for core in self.cores[:-1])

    @property
    def approx(self) -> Array:
        """The approximation in double precision."""
        return oracles.train_to_dense(self.cores)

    @property
    def bits(self) -> list[bytes]:
        """The bits of all cores."""
        return [core.tobytes() for core in self.cores]


def orthonormality(train: Train) -> float:
    """Defect of the cores on the side that the result names, or towards the best one core where it names none."""
    left = [tolerances.orthonormality_defect(core.reshape(-1, core.shape[2])) for core in train.cores]
    right = [tolerances.orthonormality_defect(core.reshape(core.shape[0], -1), axis=0) for core in train.cores]
    d = len(train.cores)
    centres = {"left": [d - 1], "right": [0]}.get(train.canonical or "", list(range(d)))
    return min(max((*left[:c], *right[c + 1 :]), default=0.0) for c in centres)


def _unpack(result: Any, shape: tuple[int, ...]) -> Train:
    cores = tuple(np.asarray(core) for core in getattr(result, "cores", result))
    sizes = [core.shape for core in cores]
    fits = len(sizes) == len(shape) and all(len(s) == 3 and s[1] == n for s, n in zip(sizes, shape, strict=False))
    joined = fits and all(s[2] == t[0] for s, t in pairwise(sizes))
    if not joined or sizes[0][0] != 1 or sizes[-1][2] != 1:
        raise BrokenPromise(f"cores of shapes {sizes} make no train of a tensor of shape {shape}")
    error = getattr(result, "error", None)
    return Train(cores, None if error is None else float(error), getattr(result, "canonical", None))


class TrainRoutine:
    """Calls ``fn(a, *, rank=None, tol=None, rng=None)``, having found out which parts of it are on offer.

    `tol`, a rank for every bond and `rng` are not on offer if a plain call with them raises TypeError or
    NotImplementedError. A dtype that a plain call refuses is the business of one promise, and cores that are not
    orthonormal even in a plain case of another; the rest leave them out.
    """

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self.no_rng = self._refusal(rank=2, rng=0)
        self.no_tol = self._refusal(tol=0.3)
        self.no_bonds = self._refusal(rank=(2, 2))
        served = tuple(d for d in ("float64", "float32") if self._works(d))
        self.dtypes = served or ("float64",)  # a routine that serves nothing breaks its promises on float64
        self.canonical = self._canonical()

    def _refusal(self, **asked: Any) -> str | None:
        try:
            self.fn(TensorSpec(shape=(4, 5, 3)).build(), **asked)
        except (TypeError, NotImplementedError) as refusal:
            return str(refusal) or type(refusal).__name__
        except Exception:  # on offer, and broken: the promises will say how
            return None
        return None

    def _works(self, dtype: str) -> bool:
        try:
            self.fn(TensorSpec(shape=(4, 5, 3), dtype=dtype).build(), rank=2)
        except Exception:
            return False
        return True

    def _canonical(self) -> bool:
        try:
            train = self(TensorSpec(shape=(4, 5, 3), dtype=self.dtypes[0]).build(), rank=2)
        except BrokenPromise:
            return True
        return orthonormality(train) <= tolerances.ORTHONORMAL_C

    def require(self, part: str) -> None:
        """Raise NotOffered unless `part` ("tol", "bonds" or "rng") is on offer."""
        refusal = getattr(self, f"no_{part}")
        if refusal is not None:
            raise NotOffered(refusal)

    def raw(self, a: Any, *, rank: Any = None, tol: Any = None, rng: Any = None) -> Any:
        """Call with only the arguments that were given and are on offer."""
        asked = {"rank": rank, "tol": tol, "rng": None if self.no_rng else rng}
        return self.fn(a, **{name: value for name, value in asked.items() if value is not None})

    def __call__(self, a: Array, *, rank: Any = None, tol: float | None = None, rng: Any = 0) -> Train:
        """Call as a user does; an exception on input that must be served breaks the promise."""
        try:
            return _unpack(self.raw(a, rank=rank, tol=tol, rng=rng), a.shape)
        except BrokenPromise:
            raise
        except Exception as error:
            raise BrokenPromise(f"raised {type(error).__name__}: {first_line(error)}") from error

    def solve(self, case: TrainCase) -> tuple[Problem, Train]:
        """Solve `case` on a fresh, writable copy in the layout of its spec, unless that is read-only."""
        known = problem(case.tensor)
        given = with_tensor_layout(known.a.copy(), case.tensor.layout)
        return known, self(given, rank=case.rank, tol=case.tol, rng=case.tensor.seed)
