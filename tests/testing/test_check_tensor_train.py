"""check_tensor_train passes a correct routine and names the promise that a broken one breaks."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest

from tensorfact.testing import TENSOR_TRAIN_PROMISES, TensorSpec, TrainSpec, check_tensor_train
from tensorfact.testing.oracles import (
    full_bonds,
    relative_error,
    train_bound,
    train_to_dense,
    unfolding_values,
)
from tensorfact.testing.tensors import TENSOR_KINDS, TENSOR_LAYOUTS, with_tensor_layout

NAMES = [promise.name for promise in TENSOR_TRAIN_PROMISES]


def reference(a, *, rank=None, tol=None, rng=None):
    """TT-SVD by LAPACK's full SVDs in double precision: slow, and right in every respect."""
    a = np.asarray(a)
    if a.dtype == object or a.ndim == 0 or a.size == 0:
        raise ValueError(f"a must be a non-empty numeric array, got {a.dtype} of shape {a.shape}")
    if not np.isfinite(a).all():
        raise ValueError("a must be finite")
    bonds = rank if isinstance(rank, tuple) else (rank,) * (a.ndim - 1)
    if tol is None and any(bond < 1 for bond in (*bonds, rank if isinstance(rank, int) else 1)):
        raise ValueError(f"rank must be at least 1, got {rank}")
    if tol is not None and not tol >= 0:
        raise ValueError(f"tol must be non-negative, got {tol}")
    wide = a.astype(np.complex128 if a.dtype.kind == "c" else np.float64)
    out = np.dtype(np.float64) if a.dtype.kind in "iu" else a.dtype
    shape, cores, bond, rest, spent = a.shape, [], 1, wide, 0.0
    useful = [1, *(bonds if tol is None else full_bonds(shape)), 1]
    for k in range(1, len(shape)):
        useful[k] = min(useful[k], useful[k - 1] * shape[k - 1])
    for k in range(len(shape) - 1, 0, -1):
        useful[k] = min(useful[k], useful[k + 1] * shape[k])
    share = None if tol is None else tol * np.linalg.norm(wide) / max(1, len(shape) - 1) ** 0.5
    for k, n in enumerate(shape[:-1], 1):
        u, s, vh = np.linalg.svd(rest.reshape(bond * n, -1), full_matrices=False)
        keep = useful[k]
        if tol is not None:
            keep = max(1, next(i for i in range(s.size + 1) if np.linalg.norm(s[i:]) <= share))
        spent += np.linalg.norm(s[keep:]) ** 2
        cores.append(u[:, :keep].reshape(bond, n, keep).astype(out))
        bond, rest = keep, s[:keep, None] * vh[:keep]
    cores.append(rest.reshape(bond, shape[-1], 1).astype(out))
    return SimpleNamespace(cores=cores, error=relative_error(wide, train_to_dense(cores)), canonical="left")


def test_a_correct_routine_keeps_every_promise():
    report = check_tensor_train(reference, max_examples=8)
    assert report.names("kept") == tuple(NAMES)
    assert all(result.examples > 0 and result.detail == "" for result in report)


# --- planted faults: each breaks one promise --------------------------------------------------------------------------


def one_rank_less(a, *, rank=None, tol=None, rng=None):
    return reference(a, rank=max(1, rank - 1) if isinstance(rank, int) and 1 < rank < 100 else rank, tol=tol)


def first_bond_everywhere(a, *, rank=None, tol=None, rng=None):
    return reference(a, rank=(rank[0],) * len(rank) if isinstance(rank, tuple) else rank, tol=tol)


def doubles(a, **asked):
    found = reference(a, **asked)
    found.cores = [core.astype(float) if core.dtype == np.float32 else core for core in found.cores]
    return found


def shared_scale(a, **asked):
    """Half of the norm in the first core, where the routine says that it is orthonormal."""
    found = reference(a, **asked)
    if len(found.cores) > 1:
        found.cores[0], found.cores[-1] = found.cores[0] * 2, found.cores[-1] / 2
    return found


def skips_a_direction(a, **asked):
    """Drop the first direction of the last bond where there are two or more."""
    found = reference(a, **asked)
    if isinstance(asked.get("rank"), int) and 1 < asked["rank"] < 14 and a.ndim == 3 and a.size > 4000:
        found.cores[-1] = found.cores[-1].copy()
        found.cores[-1][0] = 0
        found.error = relative_error(a, train_to_dense(found.cores))
    return found


def squares_the_condition(a, **asked):
    """Lose what lies below 1e-5 of the norm, as eigenvectors of a single-precision Gram matrix do."""
    found = reference(a, **asked)
    if asked.get("rank") and a.size > 2000:
        last = found.cores[-1]
        norms = np.linalg.norm(last.reshape(last.shape[0], -1), axis=1)
        found.cores[-1] = np.where((norms < 1e-3 * norms.max())[:, None, None], 0, last).astype(last.dtype)
        found.error = relative_error(a, train_to_dense(found.cores))
    return found


def proud(a, **asked):
    found = reference(a, **asked)
    found.error *= 0.99
    return found


def loose(a, *, rank=None, tol=None, rng=None):
    return reference(a, rank=rank, tol=None if tol is None else 2.5 * tol)


def greedy(a, *, rank=None, tol=None, rng=None):
    return reference(a, rank=rank, tol=None if tol is None else tol / 30)


def refuses(condition, text="not served"):
    def routine(a, **asked):
        if condition(np.asarray(a), asked.get("rank")):
            raise ValueError(text)
        return reference(a, **asked)

    return routine


def vectors_doubled(a, **asked):
    found = reference(a, **asked)
    if a.ndim == 1:
        found.cores = [2 * core for core in found.cores]
    return found


def merges_ties(a, **asked):
    """One vector twice where singular values repeat."""
    found = reference(a, **asked)
    if a.ndim > 1 and asked.get("rank") == 2 and a.size:
        s = np.linalg.svd(a.reshape(a.shape[0], -1).astype(float), compute_uv=False)
        if s.size > 1 and s[0] > 0 and abs(s[1] / s[0] - 1) < 1e-5 and found.cores[0].shape[2] == 2:
            found.cores[0] = found.cores[0][:, :, [0, 0]]
            found.error = relative_error(a, train_to_dense(found.cores))
    return found


def null_vectors_zero(a, **asked):
    """Leave the singular vectors of zero singular values at zero: the train still stands for the tensor."""
    found = reference(a, **asked)
    if a.dtype.kind == "f" and a.any() and (a == np.round(a)).all():
        values = unfolding_values(a)
        for core, s in zip(found.cores[:-1], values, strict=True):
            core[:, :, s[: core.shape[2]] < 1e-6 * s[0]] = 0
    return found


def divides_by_norm(a, **asked):
    found = reference(a, **asked)
    if a.size and not a.any():
        found.cores[-1] = found.cores[-1] * np.nan
    return found


def squares_overflow(a, **asked):
    found = reference(a, **asked)
    if a.dtype == np.float32 and a.size and np.abs(a).max() > 1e15:
        found.cores[-1] = found.cores[-1] * 0
        found.error = 1.0
    return found


def ignores_strides(a, **asked):
    if isinstance(a, np.ndarray) and a.ndim > 1 and a.flags.f_contiguous and not a.flags.c_contiguous:
        a = a.ravel(order="K").reshape(a.shape)
    return reference(a, **asked)


def lost_conjugate(a, **asked):
    found = reference(a, **asked)
    if a.dtype.kind == "c" and a.ndim > 1:
        found.cores[-1] = found.cores[-1].conj()
    return found


def int_wraps(a, **asked):
    found = reference(a, **asked)
    if a.dtype.kind == "i":
        found.cores = [core.astype(np.float32) for core in found.cores]
    return found


def centres_in_place(a, **asked):
    found = reference(a, **asked)
    if isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.flags.writeable:
        a -= 1
    return found


def keeps_a_view(a, **asked):
    found = reference(a, **asked)
    if a.ndim == 2 and a.shape[0] == 1 and a.dtype == np.float64:
        found.cores = [np.ones((1, 1, 1)), a.reshape(1, -1, 1)]
    return found


def swallows_nan(a, **asked):
    return reference(np.nan_to_num(a) if a.dtype.kind == "f" else a, **asked)


def clips_rank(a, *, rank=None, tol=None, rng=None):
    return reference(a, rank=max(1, rank) if isinstance(rank, int) else rank, tol=tol)


def any_tol(a, *, rank=None, tol=None, rng=None):
    return reference(a, rank=rank, tol=abs(np.nan_to_num(tol)) if tol is not None else None)


def empty_is_fine(a, **asked):
    if np.size(a) == 0:
        return SimpleNamespace(cores=[np.zeros((1, n, 1)) for n in np.shape(a)], error=0.0)
    return reference(a, **asked)


class Drifts:
    def __init__(self):
        self.calls = 0

    def __call__(self, a, **asked):
        found, self.calls = reference(a, **asked), self.calls + 1
        if a.dtype.kind == "f" and a.dtype != np.float16:
            found.cores[-1] = found.cores[-1] * a.dtype.type(1 + self.calls % 2 * np.finfo(a.dtype).eps)
        return found


def global_seed(a, **asked):
    np.random.seed(0)  # noqa: NPY002
    return reference(a, **asked)


def global_python_seed(a, **asked):
    random.seed(0)
    return reference(a, **asked)


TINY = ("bonds", "bond-by-bond")
FAULTS = [
    ("bonds", one_rank_less, ("rank-deficient",)),
    ("bond-by-bond", first_bond_everywhere, ()),
    ("dtype-kept", doubles, ()),
    ("orthonormal-cores", shared_scale, ()),
    ("quasi-optimal", skips_a_direction, ("deep-tails", "unit-modes")),
    ("deep-tails", squares_the_condition, ("quasi-optimal", "many-modes")),
    ("reported-error", proud, ()),
    ("tol-kept", loose, ()),
    ("tol-bonds-small", greedy, ()),
    ("exact-at-full-rank", refuses(lambda a, rank: isinstance(rank, int) and rank > a.size > 0), ()),
    ("matrices", refuses(lambda a, rank: a.shape == (16, 16) and rank is not None), TINY),
    ("vectors", vectors_doubled, ()),
    ("unit-modes", refuses(lambda a, rank: a.ndim > 1 and 1 in a.shape and a.any() and rank in (1, 2, 3, 4)), ()),
    ("many-modes", refuses(lambda a, rank: a.ndim == 16), ()),
    ("tied-values", merges_ties, ()),
    ("rank-deficient", null_vectors_zero, ()),
    ("zero-tensor", divides_by_norm, ()),
    ("scale-free", squares_overflow, ()),
    ("any-layout", ignores_strides, ()),
    ("complex", lost_conjugate, ()),
    ("other-dtypes", int_wraps, ()),
    ("input-untouched", centres_in_place, ()),
    ("cores-own-memory", keeps_a_view, ()),
    ("refuses-nonfinite", swallows_nan, ()),
    ("refuses-bad-rank", clips_rank, ()),
    ("refuses-bad-tol", any_tol, ()),
    ("refuses-bad-input", empty_is_fine, ()),
    ("same-bits", Drifts(), ()),
    ("global-state-untouched", global_seed, ()),
    ("global-state-untouched", global_python_seed, ()),
]


@pytest.mark.parametrize(
    ("promise", "routine", "consequences"), FAULTS, ids=[f"{fault[0]}-{i}" for i, fault in enumerate(FAULTS)]
)
def test_a_planted_fault_is_named_by_its_promise(promise, routine, consequences):
    report = check_tensor_train(routine, max_examples=4, raise_on_failure=False)
    broken = set(report.names("broken"))
    assert promise in broken
    assert broken <= {promise, *consequences}


def test_every_promise_has_a_planted_fault():
    assert {fault[0] for fault in FAULTS} == set(NAMES)


# --- the routine's own forms, and the report --------------------------------------------------------------------------


def test_what_a_routine_does_not_take_is_not_offered():
    def one_rank_only(a, *, rank):
        if not isinstance(rank, int):
            raise TypeError("rank is one number")
        return reference(a, rank=rank).cores

    report = check_tensor_train(one_rank_only, max_examples=3)
    expected = {"bond-by-bond", "reported-error", "tol-kept", "tol-bonds-small", "refuses-bad-tol"}
    assert set(report.names("not offered")) == expected


def test_cores_that_share_the_singular_values_break_one_promise_only():
    def shared(a, **asked):
        found = reference(a, **asked)
        if len(found.cores) > 1:
            found.cores[0], found.cores[-1] = found.cores[0] * 4, found.cores[-1] / 4
        return found.cores

    assert check_tensor_train(shared, max_examples=3, raise_on_failure=False).names("broken") == ("orthonormal-cores",)


def test_cores_that_make_no_train_are_a_broken_promise_and_not_a_crash():
    def reversed_cores(a, **asked):
        return reference(a, **asked).cores[::-1]

    (result,) = check_tensor_train(reversed_cores, promises=["bonds"], raise_on_failure=False)
    assert "make no train of a tensor of shape" in result.detail


def test_arguments_of_the_check():
    with pytest.raises(ValueError, match=r"promises must be among bonds, .* got 'speed'"):
        check_tensor_train(reference, promises=["speed"])
    with pytest.raises(ValueError, match="max_examples must be at least 1, got 0"):
        check_tensor_train(reference, max_examples=0)
    with pytest.raises(AssertionError, match="1 of 2 promises broken:\n  tol-kept: relative Frobenius error"):
        check_tensor_train(loose, promises=["tol-kept", "vectors"])


# --- oracles and recipes ----------------------------------------------------------------------------------------------


def test_oracles_of_trains_against_closed_forms():
    cores = TrainSpec(shape=(3, 4, 5), rank=2).build()
    assert np.allclose(train_to_dense(cores), np.einsum("aib,bjc,ckd->ijk", *cores))
    a = np.zeros((2, 2, 2))
    a[0, 0, 0], a[1, 1, 1] = 4.0, 3.0
    values = unfolding_values(a)
    assert [list(s[:2]) for s in values] == [[4.0, 3.0], [4.0, 3.0]]
    assert train_bound(values, (1, 2)) == pytest.approx(0.6)
    assert train_bound(values, (1, 1)) == pytest.approx(0.6 * np.sqrt(2))
    assert full_bonds((2, 3, 4, 5), 100) == (2, 6, 5)
    assert full_bonds((2, 3, 4, 5), 4) == (2, 4, 4)


@pytest.mark.parametrize("kind", TENSOR_KINDS)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_recipes_build_what_they_say(kind, dtype):
    spec = TensorSpec(shape=(4, 3, 5), kind=kind, dtype=dtype)
    a = spec.build()
    assert (a.shape, a.dtype, bool(a.any())) == ((4, 3, 5), np.dtype(dtype), kind != "zero")
    assert np.array_equal(a, spec.build())
    if kind == "delta":
        for s in unfolding_values(a):
            assert np.allclose(s[:3], 1, atol=1e-5)
    if kind == "exact-low-rank":
        assert [np.linalg.matrix_rank(a.reshape(m, -1)) for m in (4, 12)] == [2, 2]


@pytest.mark.parametrize("layout", TENSOR_LAYOUTS)
def test_layouts_change_the_memory_and_not_the_values(layout):
    a = TensorSpec(shape=(4, 3, 5)).build()
    b = with_tensor_layout(a, layout)
    assert np.array_equal(a, b)
    assert layout in ("C", "read-only") or not b.flags.c_contiguous
