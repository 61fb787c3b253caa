"""What a TT-SVD routine promises about its result."""

from __future__ import annotations

from hypothesis import strategies as st

from tensorfact.testing import oracles
from tensorfact.testing._promises import NotOffered, Promise, require
from tensorfact.testing._tensor_train._cases import (
    BOND_FACTOR,
    BOND_SLACK,
    CUBE,
    DEEP,
    MANY,
    QUASI_FACTOR,
    REGULAR,
    REPORTED_SHARE,
    check_orthonormal,
    check_quasi_optimal,
    eps_of,
    medium,
    promise,
    rounding,
    small,
    toleranced,
)
from tensorfact.testing._tensor_train._routine import TrainCase, TrainRoutine
from tensorfact.testing.strategies import EXACT_LOW_RANK
from tensorfact.testing.tensors import TensorSpec


@promise(
    "bonds",
    "cores (r, n, r') in a chain; every bond is the rank that was asked for, or the largest useful one below it",
    lambda routine: st.one_of(small(routine), medium(routine)),
    (CUBE, MANY),
)
def _bonds(routine: TrainRoutine, case: TrainCase) -> None:
    _, train = routine.solve(case)
    wanted = oracles.full_bonds(case.tensor.shape, case.rank)
    require(train.bonds == wanted, f"bonds {train.bonds}, expected {wanted}")


def _with_bonds(routine: TrainRoutine) -> st.SearchStrategy[TrainCase]:
    routine.require("bonds")
    return st.builds(
        TrainCase,
        st.builds(TensorSpec, shape=st.just((6, 5, 7, 4)), dtype=st.sampled_from(routine.dtypes)),
        st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 4)),
    )


@promise("bond-by-bond", "a rank for each inner bond is obeyed, clipped to the useful ones", _with_bonds)
def _bond_by_bond(routine: TrainRoutine, case: TrainCase) -> None:
    known, train = routine.solve(case)
    shape, bonds = case.tensor.shape, [1, *case.rank, 1]
    for k in range(1, len(shape)):
        bonds[k] = min(bonds[k], bonds[k - 1] * shape[k - 1])
    for k in range(len(shape) - 1, 0, -1):
        bonds[k] = min(bonds[k], bonds[k + 1] * shape[k])
    require(train.bonds == tuple(bonds[1:-1]), f"bonds {train.bonds}, expected {tuple(bonds[1:-1])}")
    check_quasi_optimal(known, train)


@promise(
    "dtype-kept",
    "float32 stays float32 and float64 stays float64, in every core",
    lambda routine: st.builds(
        TrainCase,
        st.builds(TensorSpec, shape=st.just((4, 5, 3)), dtype=st.sampled_from(("float64", "float32"))),
        st.just(2),
    ),
)
def _dtype_kept(routine: TrainRoutine, case: TrainCase) -> None:
    known, train = routine.solve(case)
    found = [core.dtype.name for core in train.cores]
    require(found == [known.a.dtype.name] * len(found), f"cores came back as {', '.join(found)}")


@promise(
    "orthonormal-cores",
    "all cores but one are orthonormal towards it to 50 eps sqrt(r), on the side that the result names if it does",
    lambda routine: st.one_of(small(routine, (*REGULAR, *DEEP)), medium(routine, (*REGULAR, *DEEP))),
    (CUBE, MANY, TrainCase(TensorSpec(shape=(20, 20, 20), kind="10^(-i/4)"), 13)),
)
def _orthonormal_cores(routine: TrainRoutine, case: TrainCase) -> float:
    return check_orthonormal(routine.solve(case)[1])


@promise(
    "quasi-optimal",
    f"error at most {QUASI_FACTOR} x the root of the summed squares of the unfoldings' tails, sqrt(d - 1) x the best",
    lambda routine: st.one_of(small(routine), medium(routine)),
    (CUBE, MANY),
)
def _quasi_optimal(routine: TrainRoutine, case: TrainCase) -> float:
    return check_quasi_optimal(*routine.solve(case))


@promise(
    "deep-tails",
    "where singular values fall to rounding level, so does the error: at most 2 x the bound + 100 eps",
    lambda routine: medium(routine, DEEP),
    (TrainCase(TensorSpec(shape=(20, 20, 20), kind="10^(-i/4)"), 13),),
)
def _deep_tails(routine: TrainRoutine, case: TrainCase) -> None:
    known, train = routine.solve(case)
    error, bound = oracles.relative_error(known.a, train.approx), known.bound(train.bonds)
    allowed = 2.0 * bound + rounding(known.a)
    require(error <= allowed, f"relative error {error:.4g} > {allowed:.4g} (bound {bound:.4g})")


@promise(
    "reported-error",
    "the error that the result reports is the error recomputed from its cores, to 0.1 %",
    lambda routine: st.one_of(small(routine, (*REGULAR, *DEEP, EXACT_LOW_RANK)), medium(routine, (*REGULAR, *DEEP))),
    (CUBE, MANY, TrainCase(TensorSpec(shape=(20, 20, 20), kind="10^(-i/4)"), 13)),
)
def _reported_error(routine: TrainRoutine, case: TrainCase) -> None:
    known, train = routine.solve(case)
    if train.error is None:
        raise NotOffered("the result carries no error")
    error = oracles.relative_error(known.a, train.approx)
    allowed = REPORTED_SHARE * error + rounding(known.a)
    require(abs(train.error - error) <= allowed, f"reported {train.error:.6g}, recomputed {error:.6g}")


# --- tolerance --------------------------------------------------------------------------------------------------------


@promise("tol-kept", "relative Frobenius error of the whole tensor <= tol, always", toleranced)
def _tol_kept(routine: TrainRoutine, case: TrainCase) -> float:
    known, train = routine.solve(case)
    error, asked = oracles.relative_error(known.a, train.approx), float(case.tol or 0.0)
    # Rounding the entries moves the error by up to eps, rounding the cores by a share of itself: no miss within that.
    allowed = asked * (1.0 + rounding(known.a)) + eps_of(known.a)
    require(error <= allowed, f"relative error {error:.6g} > tol (by {error / asked - 1:.2g} of it)", error / asked)
    return error / asked


@promise(
    "tol-bonds-small",
    f"no bond for a tol above {BOND_FACTOR} x what its own unfolding needs for tol / sqrt(d - 1), + {BOND_SLACK}",
    toleranced,
)
def _tol_bonds_small(routine: TrainRoutine, case: TrainCase) -> float:
    known, train = routine.solve(case)
    share = float(case.tol or 0.0) / max(1, len(known.values)) ** 0.5
    worst = 0.0
    for k, (values, bond) in enumerate(zip(known.values, train.bonds, strict=True)):
        least = max(1, oracles.rank_for_tail(values, share))
        ratio = bond / least
        require(bond <= BOND_FACTOR * least + BOND_SLACK, f"bond {k + 1} is {bond}, {least} would do", ratio)
        worst = max(worst, ratio)
    return worst


PROMISES: tuple[Promise[TrainRoutine], ...] = (
    _bonds,
    _bond_by_bond,
    _dtype_kept,
    _orthonormal_cores,
    _quasi_optimal,
    _deep_tails,
    _reported_error,
    _tol_kept,
    _tol_bonds_small,
)
