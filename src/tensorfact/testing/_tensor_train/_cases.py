"""Cases that promises of trains are searched over, the constants they share, and how a promise is written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tensorfact.testing import oracles, tolerances
from tensorfact.testing._promises import Promise, require
from tensorfact.testing._tensor_train._routine import Problem, Train, TrainCase, TrainRoutine, orthonormality
from tensorfact.testing.strategies import EXACT_LOW_RANK
from tensorfact.testing.tensors import DELTA, TensorSpec, tensor_shapes

# Deterministic TT-SVD stays below 1 by theorem; tensorfact allows its sketches 1.05 x the deterministic error.
QUASI_FACTOR = 1.05
# The rank rule with tol / sqrt(d - 1) of the whole at every bond never needs more than the unfolding itself does; a
# basis from a sketch may take a tenth more, and 2 leaves room at tiny ranks.
BOND_FACTOR, BOND_SLACK = 1.1, 2
# The issue of a user who adds errors up: three digits of the reported error are right.
REPORTED_SHARE = 1e-3
# 2^66 = 7.4e19: squares of 1e-20 and 1e20 leave the range of float32; a power of two scales without rounding.
SCALES = (2.0**-66, 2.0**66)

MEDIUM_SHAPES = ((20, 20, 20), (12, 30, 18), (64, 16, 9), (9, 16, 64), (8, 8, 8, 8), (2,) * 12, (40, 60), (5, 200, 4))
REGULAR = ("i^-0.5", "i^-1", "i^-2", "0.99^i", "flat")
TIED = (DELTA, "step", "ties")
DEEP = ("10^(-i/4)", "graded")  # down to rounding: what squares the condition number loses the lower half of these
TOLERANCES = (0.5, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)  # 1e-4 is below sqrt(eps) of float32

Check = Callable[[TrainRoutine, Any], "float | None"]


def promise(
    name: str, text: str, cases: Callable[[TrainRoutine], st.SearchStrategy[Any]], always: tuple[Any, ...] = ()
) -> Callable[[Check], Promise[TrainRoutine]]:
    """Make a `Promise` of the decorated check and its cases."""

    def make(check: Check) -> Promise[TrainRoutine]:
        return Promise(name=name, text=text, cases=cases, check=check, always=always)

    return make


# --- cases ------------------------------------------------------------------------------------------------------------


def specs(
    routine: TrainRoutine, shape: st.SearchStrategy[tuple[int, ...]], kinds: Sequence[str]
) -> st.SearchStrategy[TensorSpec]:
    return st.builds(
        TensorSpec,
        shape=shape,
        dtype=st.sampled_from(routine.dtypes),
        kind=st.sampled_from(kinds),
        seed=st.integers(0, 99),
    )


def small(routine: TrainRoutine, kinds: Sequence[str] = REGULAR) -> st.SearchStrategy[TrainCase]:
    """Ranks of 1 to 6 of small tensors without modes of 1, which have a promise of their own."""
    return st.builds(TrainCase, specs(routine, tensor_shapes(min_side=2), kinds), st.integers(1, 6))


def medium(routine: TrainRoutine, kinds: Sequence[str] = REGULAR) -> st.SearchStrategy[TrainCase]:
    """Ranks with room to oversample and miss."""
    return st.builds(
        TrainCase, specs(routine, st.sampled_from(MEDIUM_SHAPES), kinds), st.sampled_from((1, 2, 3, 5, 8, 13))
    )


def toleranced(routine: TrainRoutine) -> st.SearchStrategy[TrainCase]:
    routine.require("tol")
    kinds = (*REGULAR, *TIED, *DEEP, EXACT_LOW_RANK)
    shape = st.one_of(tensor_shapes(), st.sampled_from(MEDIUM_SHAPES))
    return st.builds(
        lambda spec, tol: TrainCase(spec, tol=tol), specs(routine, shape, kinds), st.sampled_from(TOLERANCES)
    )


CUBE = TrainCase(TensorSpec(shape=(20, 20, 20), kind="i^-0.5"), 5)
MANY = TrainCase(TensorSpec(shape=(2,) * 12, kind="i^-1"), 8)


def eps_of(a: Any) -> float:
    return float(np.finfo(a.dtype).eps)


def rounding(a: Any) -> float:
    return tolerances.ROUNDING_C * eps_of(a)


def check_quasi_optimal(known: Problem, train: Train, factor: float = QUASI_FACTOR) -> float:
    """Error within `factor` of what TT-SVD promises at the bonds that came back."""
    error, bound = oracles.relative_error(known.a, train.approx), known.bound(train.bonds)
    ratio = error / (bound + rounding(known.a))
    require(ratio <= factor, f"{ratio:.4f} x the bound (relative error {error:.4g}, bound {bound:.4g})", ratio)
    return ratio


def check_exact(known: Problem, train: Train) -> None:
    error = oracles.relative_error(known.a, train.approx)
    require(error <= rounding(known.a), f"relative error {error:.3g} > {rounding(known.a):.3g}")


def check_orthonormal(train: Train) -> float:
    worst, limit = orthonormality(train), tolerances.ORTHONORMAL_C
    require(worst <= limit, f"||Q^H Q - I||_F = {worst:.3g} > {limit:g} eps sqrt(r) in the best canonical form")
    return worst
