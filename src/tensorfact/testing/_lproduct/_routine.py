"""One way to call any tensor-tensor product, and the problems it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from tensorfact.testing import tolerances
from tensorfact.testing._lproduct._oracles import transform_matrix, transform_names
from tensorfact.testing._promises import BrokenPromise, NotOffered, Promise

__all__ = ["LproductCase", "LproductRoutine", "agree", "cases", "first_line", "promise"]

Array = npt.NDArray[Any]
ORTHOGONAL = ("identity", "dct", "dst", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class LproductCase:
    """Shapes (m, l) and (l, n), tubes of length p, a transform by name."""

    m: int = 2
    l: int = 3
    n: int = 2
    p: int = 4
    transform: str = "dct"
    dtype: str = "float64"
    seed: int = 0

    @property
    def z(self) -> Array:
        """The transform as a matrix in double precision."""
        return transform_matrix(self.transform, self.p)

    def tensor(self, rows: int, cols: int, number: int = 0, batch: tuple[int, ...] = ()) -> Array:
        """A Gaussian tensor (*batch, rows, cols, p)."""
        rng = np.random.default_rng((self.seed, number))
        a = rng.standard_normal((*batch, rows, cols, self.p))
        kind = np.dtype(self.dtype)
        return (a + 1j * rng.standard_normal(a.shape) if kind.kind == "c" else a).astype(kind)

    def pair(self, batch: tuple[int, ...] = ()) -> tuple[Array, Array]:
        """The two factors."""
        return self.tensor(self.m, self.l, 0, batch), self.tensor(self.l, self.n, 1, batch)


def cases(
    routine: LproductRoutine, transforms: tuple[str, ...] | None = None, dtypes: tuple[str, ...] | None = None
) -> st.SearchStrategy[LproductCase]:
    """Small sizes, primes and ones among them; every transform and every dtype that is served."""
    side = st.sampled_from((2, 1, 3, 5, 7, 16))
    return st.builds(
        LproductCase,
        m=side,
        l=side,
        n=side,
        p=st.sampled_from((4, 1, 2, 3, 5, 8, 11, 16)),
        transform=st.sampled_from(transforms or transform_names()),
        dtype=st.sampled_from(dtypes or routine.dtypes),
        seed=st.integers(0, 99),
    )


class LproductRoutine:
    """Calls ``fn(a, b, z)`` with the transform as a matrix in double precision."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        served = tuple(d for d in ("float64", "float32") if self._works(LproductCase(dtype=d)))
        self.dtypes = served or ("float64",)  # a routine that serves nothing breaks its promises on float64

    def _works(self, case: LproductCase) -> bool:
        try:
            self.fn(*case.pair(), case.z)
        except Exception:
            return False
        return True

    def __call__(self, a: Array, b: Array, z: Array) -> Array:
        """Call as a user does; an exception on input that must be served breaks the promise."""
        try:
            return np.asarray(self.fn(a.copy(), b.copy(), z.copy()))
        except Exception as error:
            raise BrokenPromise(f"raised {type(error).__name__}: {first_line(error)}") from error

    def offered(self, what: str, a: Array, b: Array, z: Array) -> Array:
        """Call for something that a routine may refuse."""
        try:
            self.fn(a.copy(), b.copy(), z.copy())
        except (TypeError, ValueError, NotImplementedError) as refusal:
            raise NotOffered(f"{what}: {first_line(refusal)}") from refusal
        except Exception as failure:
            raise BrokenPromise(f"raised {type(failure).__name__}: {first_line(failure)}") from failure
        return self(a, b, z)


def agree(found: Array, wanted: Array, case: LproductCase, *sizes: Array, c: float = tolerances.ROUNDING_C) -> float:
    """Distance over ``eps cond(Z) (||Z|| ||factor||) ...``: rounding; more than ``c`` breaks the promise."""
    if found.shape != wanted.shape:
        raise BrokenPromise(f"shape {found.shape}, expected {wanted.shape}")
    if not np.isfinite(found).all():
        raise BrokenPromise("the product has NaN or infinity")
    s = np.linalg.svd(case.z, compute_uv=False)
    room = float(np.finfo(case.dtype).eps) * float(s[0] / s[-1]) / float(s[0])
    for factor in sizes:
        room *= float(s[0]) * float(np.linalg.norm(factor))
    units = float(np.linalg.norm(found - wanted)) / room
    if not units <= c:
        raise BrokenPromise(f"off by {units:.3g} eps cond(Z) of the factors' size, {c:g} allowed", units)
    return units


def first_line(error: BaseException) -> str:
    """First line of an exception's text, cut to 160 characters."""
    return (str(error).strip().splitlines() or [""])[0][:160]


Check = Callable[[LproductRoutine, Any], "float | None"]


def promise(
    name: str, text: str, cases: Callable[[LproductRoutine], st.SearchStrategy[Any]], always: tuple[Any, ...] = ()
) -> Callable[[Check], Promise[LproductRoutine]]:
    """Make a `Promise` of the decorated check and its cases."""

    def make(check: Check) -> Promise[LproductRoutine]:
        return Promise(name=name, text=text, cases=cases, check=check, always=always)

    return make
