"""How a TT-SVD routine promises to behave: towards its input, bad input and random state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tensorfact.testing._promises import BadInput, BrokenPromise, Promise, first_line, refused, require
from tensorfact.testing._random_states import random_states, unusual_random_states
from tensorfact.testing._tensor_train._cases import CUBE, medium, promise, small
from tensorfact.testing._tensor_train._routine import TrainCase, TrainRoutine, problem
from tensorfact.testing.tensors import TensorSpec


@promise(
    "input-untouched",
    "the tensor is not modified, whatever its layout",
    lambda routine: st.builds(
        lambda case, layout: replace(case, tensor=replace(case.tensor, layout=layout)),
        small(routine),
        st.sampled_from(("C", "F", "strided", "permuted")),
    ),
    (TrainCase(TensorSpec(shape=(4, 5, 6)), 2), TrainCase(TensorSpec(shape=(4, 5, 6), layout="F"), 2)),
)
def _input_untouched(routine: TrainRoutine, case: TrainCase) -> None:
    given = case.tensor.build()
    before = given.copy()
    routine(given, rank=case.rank, rng=case.tensor.seed)
    require(given.tobytes() == before.tobytes(), f"{int((given != before).sum())} entries were changed")


@promise(
    "cores-own-memory",
    "writing to the tensor afterwards changes no core",
    lambda routine: st.one_of(
        small(routine),
        st.builds(TrainCase, st.builds(TensorSpec, shape=st.sampled_from(((5, 1), (1, 5), (4, 3)))), st.just(9)),
    ),
    tuple(TrainCase(TensorSpec(shape=shape), 9) for shape in ((5, 1), (1, 5), (4, 3))),
)
def _cores_own_memory(routine: TrainRoutine, case: TrainCase) -> None:
    given = case.tensor.build()
    train = routine(given, rank=case.rank, rng=case.tensor.seed)
    before = train.bits
    given *= -3
    require(train.bits == before, "a core is a view of the tensor")


def _refused(routine: TrainRoutine, bad: BadInput) -> None:
    def describe(result: Any) -> str:
        return f"cores of shapes {[tuple(np.shape(core)) for core in getattr(result, 'cores', result)]}"

    a, rank = bad.args
    refused(bad, lambda: routine.raw(a, rank=rank, rng=0), describe)


def _nonfinite(shape: tuple[int, ...], value: float, at: float) -> BadInput:
    a = TensorSpec(shape=shape).build()
    index = int(at * (a.size - 1))
    a.flat[index] = value
    return BadInput(f"{value} at flat index {index} of shape {shape}", (a, 2))


@promise(
    "refuses-nonfinite",
    "NaN and infinity anywhere are refused with ValueError",
    lambda routine: st.builds(
        _nonfinite,
        st.sampled_from(((4, 5, 6), (5, 7), (2,) * 6, (31, 4, 2), (2, 4, 31))),
        st.sampled_from((float("nan"), float("inf"), float("-inf"))),
        st.sampled_from((0.0, 0.5, 1.0)),
    ),
    (_nonfinite((4, 5, 6), float("nan"), 0.0), _nonfinite((4, 5, 6), float("inf"), 1.0)),
)
def _refuses_nonfinite(routine: TrainRoutine, bad: BadInput) -> None:
    _refused(routine, bad)


_PLAIN = TensorSpec(shape=(4, 5, 6)).build()


@promise(
    "refuses-bad-rank",
    "rank 0 or negative is refused with ValueError",
    lambda routine: st.sampled_from(tuple(BadInput(f"rank={rank}", (_PLAIN.copy(), rank)) for rank in (0, -1))),
)
def _refuses_bad_rank(routine: TrainRoutine, bad: BadInput) -> None:
    _refused(routine, bad)


def _bad_tolerances(routine: TrainRoutine) -> st.SearchStrategy[float]:
    routine.require("tol")
    return st.sampled_from((-0.1, float("nan")))


@promise("refuses-bad-tol", "a negative or NaN tol is refused with ValueError", _bad_tolerances)
def _refuses_bad_tol(routine: TrainRoutine, tol: float) -> None:
    try:
        routine.raw(_PLAIN.copy(), tol=tol, rng=0)
    except ValueError:
        return
    except Exception as error:
        raise BrokenPromise(f"{type(error).__name__}, not ValueError: {first_line(error)}") from error
    raise BrokenPromise("accepted")


@promise(
    "refuses-bad-input",
    "numbers without modes, empty and object arrays are refused with ValueError (or TypeError)",
    lambda routine: st.sampled_from(
        tuple(
            BadInput(what, (a, 1), (ValueError, TypeError))
            for what, a in (
                ("shape ()", np.array(1.0)),
                ("shape (0, 5, 2)", np.zeros((0, 5, 2))),
                ("shape (5, 2, 0)", np.zeros((5, 2, 0))),
                ("object array", np.array([[1.0, None], [2.0, "x"]], dtype=object)),
            )
        )
    ),
)
def _refuses_bad_input(routine: TrainRoutine, bad: BadInput) -> None:
    _refused(routine, bad)


@promise(
    "same-bits",
    "two equal calls give equal bits, with the same rng where one is taken",
    lambda routine: st.one_of(small(routine), medium(routine)),
    (CUBE,),
)
def _same_bits(routine: TrainRoutine, case: TrainCase) -> None:
    first, second = routine.solve(case)[1], routine.solve(case)[1]
    require(first.bits == second.bits, "a core differs between two calls")


@promise(
    "global-state-untouched",
    "the global random states of Python, NumPy and torch are left as they were, with rng and without",
    lambda routine: medium(routine),
    (CUBE,),
)
def _global_state_untouched(routine: TrainRoutine, case: TrainCase) -> None:
    known = problem(case.tensor)
    with unusual_random_states():
        for rng in (None, 0):
            before = random_states()
            routine(known.a.copy(), rank=case.rank, rng=rng)
            require(random_states() == before, f"a global random state was changed (rng={rng})")


PROMISES: tuple[Promise[TrainRoutine], ...] = (
    _input_untouched,
    _cores_own_memory,
    _refuses_nonfinite,
    _refuses_bad_rank,
    _refuses_bad_tol,
    _refuses_bad_input,
    _same_bits,
    _global_state_untouched,
)
