"""Cases that low-rank promises are searched over, and the constants they share, and how a promise is written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tensorfact.testing import oracles, tolerances
from tensorfact.testing._low_rank._routine import Answer, LowRankCase, LowRankRoutine, Problem
from tensorfact.testing._promises import Promise, require
from tensorfact.testing.strategies import EXACT_LOW_RANK, MatrixSpec, ranks, shapes

# Bars of tensorfact's own contract at default settings, over power laws and trained weights. scikit-learn's defaults
# reach 1.000 on the quickly decaying spectra; i^-0.5 at half rank is what separates the routines.
FROBENIUS_FACTOR = 1.005
SPECTRAL_FACTOR = 1.05
# Ritz values of a projection lie below the singular values; rounding moves them by a small multiple of eps * sigma_1
# (Weyl), 50 as for orthonormality.
OVERESTIMATE_C = 50.0
# A rank chosen from a tolerance may lie above the optimal one: the basis is not the optimal one. The 10 % is the
# width of a trimmed block at rank 100 to 300, the 2 leaves room at tiny ranks.
RANK_FACTOR, RANK_SLACK = 1.1, 2
# The reported error may differ from the recomputed one by 1 % of it, and by rounding: a user who reads it decides
# on one or two digits. Identities by subtraction lose more than that below sqrt(eps) and must switch to a residual.
REPORTED_SHARE = 0.01
# 2^66 = 7.4e19: squares of 1e-20 and 1e20 leave the range of float32; a power of two scales without rounding.
SCALES = (2.0**-66, 2.0**66)

MEDIUM_SHAPES = ((60, 40), (40, 60), (200, 150), (97, 211), (128, 128), (300, 90))  # room to oversample and miss
# Each kind of difficulty belongs to one promise, so that a routine which cannot bear it breaks that one and no other.
REGULAR = ("i^-0.5", "i^-1", "i^-2", "0.99^i")
TIED = ("ties", "flat", "step")  # no single singular vector is determined, and Krylov spaces of one vector stop early
DEEP = ("10^(-i/4)", "graded")  # down to rounding: what squares the condition number loses the lower half of these
TOLERANCES = (0.5, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)  # 1e-4 is below sqrt(eps) of float32


Check = Callable[[LowRankRoutine, Any], "float | None"]


def promise(
    name: str, text: str, cases: Callable[[LowRankRoutine], st.SearchStrategy[Any]], always: tuple[Any, ...] = ()
) -> Callable[[Check], Promise[LowRankRoutine]]:
    """Make a `Promise` of the decorated check and its cases."""

    def make(check: Check) -> Promise[LowRankRoutine]:
        return Promise(name=name, text=text, cases=cases, check=check, always=always)

    return make


# --- cases ------------------------------------------------------------------------------------------------------------


def specs(
    routine: LowRankRoutine, shape: st.SearchStrategy[tuple[int, int]], names: Sequence[str]
) -> st.SearchStrategy[MatrixSpec]:
    return st.builds(
        MatrixSpec,
        shape=shape,
        dtype=st.sampled_from(routine.dtypes),
        spectrum=st.sampled_from(names),
        seed=st.integers(0, 99),
    )


def small(routine: LowRankRoutine, names: Sequence[str] = REGULAR) -> st.SearchStrategy[LowRankCase]:
    """Ranks below full on at least 2 x 2: single rows, full rank and singular matrices have their own promises."""
    return specs(routine, shapes(min_side=2), names).flatmap(
        lambda spec: st.builds(LowRankCase, st.just(spec), ranks(spec.shape, below_full=True))
    )


def medium(routine: LowRankRoutine, names: Sequence[str] = REGULAR) -> st.SearchStrategy[LowRankCase]:
    """Ranks of 5 to 50 % of the shorter side."""
    return st.builds(
        lambda spec, share: LowRankCase(spec, max(1, round(share * min(spec.shape)))),
        specs(routine, st.sampled_from(MEDIUM_SHAPES), names),
        st.sampled_from((0.05, 0.1, 0.2, 0.35, 0.5)),
    )


def toleranced(routine: LowRankRoutine) -> st.SearchStrategy[LowRankCase]:
    routine.require_tol()
    names = (*REGULAR, *TIED, *DEEP, EXACT_LOW_RANK)
    some_shape = st.one_of(shapes(), st.sampled_from(MEDIUM_SHAPES))
    return st.builds(
        lambda spec, tol: LowRankCase(spec, tol=tol), specs(routine, some_shape, names), st.sampled_from(TOLERANCES)
    )


SLOW_DECAY = LowRankCase(MatrixSpec(shape=(200, 150), spectrum="i^-0.5"), 30)  # the bar's own spectrum
HALF_RANK = LowRankCase(MatrixSpec(shape=(128, 128), spectrum="i^-0.5"), 64)


def eps_of(a: Any) -> float:
    return float(np.finfo(a.dtype).eps)


def rounding(a: Any) -> float:
    return tolerances.ROUNDING_C * eps_of(a)


def check_near_optimal(known: Problem, answer: Answer, floor: float | None = None) -> None:
    """Frobenius error within the factor of the best one at the rank that came back."""
    error = oracles.relative_error(known.a, answer.approx)
    allowed = FROBENIUS_FACTOR * known.best(answer.s.size).frobenius + (rounding(known.a) if floor is None else floor)
    require(error <= allowed, f"relative error {error:.4g} > {allowed:.4g}")


def check_orthonormal(answer: Answer) -> float:
    worst = 0.0
    for name, factor, axis in (("u", answer.u, -1), ("vh", answer.vh, 0)):
        defect = tolerances.orthonormality_defect(factor, axis=axis)
        require(
            defect <= tolerances.ORTHONORMAL_C,
            f"{name}: ||Q^H Q - I||_F = {defect:.3g} > {tolerances.ORTHONORMAL_C:g} eps sqrt(rank)",
        )
        worst = max(worst, defect)
    return worst
