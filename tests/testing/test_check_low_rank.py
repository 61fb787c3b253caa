"""check_low_rank passes a correct routine and names the promise that a broken one breaks."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest

from tensorfact.testing import LOW_RANK_PROMISES, MatrixSpec, check_low_rank
from tensorfact.testing.oracles import relative_error

NAMES = [promise.name for promise in LOW_RANK_PROMISES]


def reference(a, *, rank=None, tol=None, rng=None):
    """Full SVD in double precision, truncated: slow, and right in every respect."""
    if a.dtype == object or a.ndim != 2 or a.size == 0:
        raise ValueError(f"a must be a non-empty numeric matrix, got {a.dtype} of shape {a.shape}")
    if not np.isfinite(a).all():
        raise ValueError("a must be finite")
    wide = a.astype(np.complex128 if a.dtype.kind == "c" else np.float64)
    out = np.dtype(np.float64) if a.dtype.kind in "iu" else a.dtype
    u, s, vh = np.linalg.svd(wide, full_matrices=False)
    if tol is not None:
        if not tol >= 0:
            raise ValueError(f"tol must be non-negative, got {tol}")
        rank = next(k for k in range(s.size + 1) if np.linalg.norm(s[k:]) <= tol * np.linalg.norm(s))
        rank = max(rank, 1)
    if not 1 <= rank <= s.size:
        raise ValueError(f"rank must be in 1..{s.size}, got {rank}")
    u, s, vh = u[:, :rank].astype(out), s[:rank].astype(np.empty(0, out).real.dtype), vh[:rank].astype(out)
    error = relative_error(wide, (u.astype(wide.dtype) * s) @ vh.astype(wide.dtype))
    return SimpleNamespace(u=u, s=s, vh=vh, error=error)


def test_a_correct_routine_keeps_every_promise():
    report = check_low_rank(reference, max_examples=15)
    assert report.names("kept") == tuple(NAMES)
    assert not report.broken
    assert all(result.examples > 0 and result.detail == "" for result in report)


# --- planted faults: each breaks one promise --------------------------------------------------------------------------


def changed(**parts):
    """A routine that alters parts of the reference's result: name -> function of the result."""

    def routine(a, **asked):
        found = reference(a, **asked)
        for name, change in parts.items():
            setattr(found, name, change(SimpleNamespace(**vars(found))))
        return found

    return routine


def one_rank_less(a, *, rank=None, tol=None, rng=None):
    return reference(a, rank=None if rank is None else max(1, rank - 1), tol=tol)


def last_direction_wrong(a, **asked):
    """Take the smallest singular triplet in place of the last wanted one."""
    found = reference(a, **asked)
    k = found.s.size
    if asked.get("rank") and 1 < k < min(a.shape):
        u, s, vh = np.linalg.svd(a.astype(np.float64), full_matrices=False)
        found.u[:, -1], found.s[-1], found.vh[-1] = u[:, -1], s[-1], vh[-1]
        found.error = relative_error(a, (found.u.astype(float) * found.s) @ found.vh)
    return found


def skips_a_direction(a, **asked):
    """Leave out one of the last directions for the first unwanted one, where the Frobenius norm hardly notices."""
    found = reference(a, **asked)
    k = found.s.size
    if asked.get("rank") and min(a.shape) >= 100 and k > 4:
        u, s, vh = np.linalg.svd(a.astype(np.float64), full_matrices=False)
        if 1.06 < s[k - 4] / s[k] < 1.1:
            keep = [*range(k - 4), *range(k - 3, k + 1)]
            found.u, found.s, found.vh = (part.astype(a.dtype) for part in (u[:, keep], s[keep], vh[keep]))
            found.error = relative_error(a, (found.u.astype(float) * found.s) @ found.vh)
    return found


def squares_the_condition(a, *, rank=None, tol=None, rng=None):
    """Lose what lies below 1e-8 sigma_1, as eigenvectors of A^H A in float64 do."""
    found = reference(a, rank=rank, tol=tol)
    small = found.s < 1e-8 * found.s.max()
    if rank is not None and a.dtype == np.float64 and found.s.max() > 0 and small.any():
        found.s = np.where(small, 0, found.s)
        found.error = relative_error(a, (found.u * found.s) @ found.vh)
    return found


def loose(a, *, rank=None, tol=None, rng=None):
    return reference(a, rank=rank, tol=None if tol is None else 1.3 * tol)


def greedy(a, *, rank=None, tol=None, rng=None):
    return reference(a, rank=rank, tol=None if tol is None else tol / 20)


def below_full_rank(a, *, rank=None, tol=None, rng=None):
    if rank is not None and a.ndim == 2 and rank == min(a.shape) > 1:
        raise ValueError(f"rank must be below min(shape), got {rank}")
    return reference(a, rank=rank, tol=tol)


def two_by_two_at_least(a, *, rank=None, tol=None, rng=None):
    if a.ndim == 2 and min(a.shape) == 1 and tol is None:
        raise ValueError(f"a must have two rows and columns, got shape {a.shape}")
    return reference(a, rank=rank, tol=tol)


def null_vectors_zero(a, **asked):
    """Leave the singular vectors of zero singular values at zero: a = u s vh still holds."""
    found = reference(a, **asked)
    if a.dtype == np.float64 and (a == np.round(a)).all() and found.s.size and found.s[0] > 0:
        found.u = np.where(found.s < 1e-10 * found.s[0], 0, found.u)
    return found


def merges_ties(a, **asked):
    """Return one vector twice where singular values repeat."""
    found = reference(a, **asked)
    if found.s.size > 1 and found.s[0] > 0 and abs(found.s[1] - found.s[0]) < 1e-4 * found.s[0]:
        found.u = np.concatenate([found.u[:, :1], found.u[:, :1], found.u[:, 2:]], axis=1)
        found.vh = np.concatenate([found.vh[:1], found.vh[:1], found.vh[2:]])
        found.error = relative_error(a, (found.u.astype(float) * found.s) @ found.vh)
    return found


def divides_by_norm(a, **asked):
    found = reference(a, **asked)
    if a.size and not a.any():
        found.u = found.u * np.nan
    return found


def squares_overflow(a, **asked):
    found = reference(a, **asked)
    with np.errstate(over="ignore"):
        if a.dtype.kind == "f" and not np.isfinite((a.astype(np.float32) ** 2).sum()):
            found.s = found.s * 0
            found.error = 1.0
    return found


def ignores_strides(a, **asked):
    """Read the buffer of a Fortran-ordered square matrix as if it were in C order."""
    wrong = a.ndim == 2 and a.flags.f_contiguous and not a.flags.c_contiguous
    return reference(a.ravel("K").reshape(a.shape) if wrong else a, **asked)


def real_part(a, **asked):
    found = reference(np.ascontiguousarray(a.real), **asked)
    if a.dtype.kind == "c":
        found.u, found.vh = found.u.astype(a.dtype), found.vh.astype(a.dtype)
    return found


def int_wraps(a, **asked):
    return reference(a % 4 if a.dtype.kind == "i" else a, **asked)


def centres_in_place(a, **asked):
    found = reference(a, **asked)
    a[...] = a - a.mean(axis=0)
    return found


def swallows_nan(a, **asked):
    return reference(np.nan_to_num(a) if a.dtype.kind == "f" else a, **asked)


def clips_rank(a, *, rank=None, tol=None, rng=None):
    return reference(a, rank=None if rank is None else min(max(rank, 1), min(a.shape)), tol=tol)


def any_tol(a, *, rank=None, tol=None, rng=None):
    return reference(a, rank=rank, tol=None if tol is None else abs(np.nan_to_num(tol)))


def empty_is_fine(a, *, rank=None, tol=None, rng=None):
    if a.dtype != object and a.ndim == 2 and a.size == 0:
        return np.zeros((a.shape[0], 0)), np.zeros(0), np.zeros((0, a.shape[1]))
    return reference(a, rank=rank, tol=tol)


CALLS = iter(range(10**9))


def drifts(a, **asked):
    found = reference(a, **asked)
    if next(CALLS) % 2:
        found.u, found.vh = -found.u, -found.vh
    return found


def generator_counts_twice(a, *, rank=None, tol=None, rng=None):
    if isinstance(rng, np.random.Generator):
        rng.random()
    found = reference(a, rank=rank, tol=tol)
    if np.random.default_rng(rng).random() < 0.5:
        found.u, found.vh = -found.u, -found.vh
    return found


def global_seed(a, **asked):
    np.random.seed(0)  # noqa: NPY002 - the fault
    return reference(a, **asked)


def global_python_seed(a, **asked):
    random.random()
    return reference(a, **asked)


# (promise, routine, promises that fall with it)
FAULTS = [
    (
        "shapes",
        one_rank_less,
        (
            "near-optimal-frobenius",
            "near-optimal-spectral",
            "deep-tails",
            "every-rank",
            "tied-values",
            "rank-deficient",
            "other-dtypes",
            "complex",
            "refuses-bad-rank",
        ),
    ),
    (
        "dtype-kept",
        changed(u=lambda r: r.u.astype(float) if r.u.dtype == "f4" else r.u),
        ("orthonormal", "tied-values", "rank-deficient", "rows-and-columns", "zero-matrix"),
    ),
    (
        "orthonormal",
        changed(u=lambda r: r.u * r.u.dtype.type(1.0001)),
        (
            "near-optimal-frobenius",
            "near-optimal-spectral",
            "deep-tails",
            "reported-error",
            "tol-kept",
            "every-rank",
            "rows-and-columns",
            "tied-values",
            "rank-deficient",
            "zero-matrix",
            "complex",
            "other-dtypes",
        ),
    ),
    ("ordered", changed(u=lambda r: r.u[:, ::-1], s=lambda r: r.s[::-1], vh=lambda r: r.vh[::-1]), ()),
    ("ordered", changed(u=lambda r: -r.u, s=lambda r: -r.s), ()),
    (
        "never-overestimates",
        changed(s=lambda r: r.s * r.s.dtype.type(1.0005)),
        (
            "near-optimal-frobenius",
            "near-optimal-spectral",
            "deep-tails",
            "reported-error",
            "tol-kept",
            "every-rank",
            "rows-and-columns",
            "tied-values",
            "rank-deficient",
            "other-dtypes",
        ),
    ),
    (
        "near-optimal-frobenius",
        last_direction_wrong,
        ("near-optimal-spectral", "deep-tails", "tied-values", "rank-deficient", "complex", "other-dtypes"),
    ),
    ("near-optimal-spectral", skips_a_direction, ()),
    ("deep-tails", squares_the_condition, ()),
    ("reported-error", changed(error=lambda r: 1.05 * r.error), ()),
    ("tol-kept", loose, ()),
    ("tol-rank-small", greedy, ()),
    ("every-rank", below_full_rank, ()),
    ("rows-and-columns", two_by_two_at_least, ()),
    ("tied-values", merges_ties, ("tol-kept",)),
    ("rank-deficient", null_vectors_zero, ()),
    ("zero-matrix", divides_by_norm, ()),
    ("scale-free", squares_overflow, ()),
    ("any-layout", ignores_strides, ()),
    ("complex", real_part, ()),
    ("other-dtypes", int_wraps, ()),
    ("input-untouched", centres_in_place, ("any-layout", "other-dtypes")),
    ("refuses-nonfinite", swallows_nan, ()),
    ("refuses-bad-rank", clips_rank, ()),
    ("refuses-bad-tol", any_tol, ()),
    ("refuses-bad-input", empty_is_fine, ()),
    ("same-rng-same-bits", drifts, ("rng-kinds",)),
    ("rng-kinds", generator_counts_twice, ()),
    ("global-state-untouched", global_seed, ()),
    ("global-state-untouched", global_python_seed, ()),
]


@pytest.mark.parametrize(
    ("promise", "routine", "consequences"), FAULTS, ids=[f"{fault[0]}-{i}" for i, fault in enumerate(FAULTS)]
)
def test_a_planted_fault_is_named_by_its_promise(promise, routine, consequences):
    report = check_low_rank(routine, max_examples=6, raise_on_failure=False)
    broken = set(report.names("broken"))
    assert promise in broken
    assert broken <= {promise, *consequences}


def test_every_promise_has_a_planted_fault():
    assert {fault[0] for fault in FAULTS} == set(NAMES)


# --- the report -------------------------------------------------------------------------------------------------------


def test_failure_names_the_promise_and_the_smallest_case():
    with pytest.raises(AssertionError) as caught:
        check_low_rank(one_rank_less, promises=["ordered", "shapes"])
    head, promise, detail = str(caught.value).splitlines()
    assert head == "1 of 2 promises broken:"
    assert promise == "  shapes: u is (m, rank), s (rank,), vh (rank, n): the rank that was asked for"
    # the fault needs rank 2, and below full rank that needs the 5 x 5 of the list of shapes
    assert detail == f"    rank 1 came back; case: rank=2, {MatrixSpec(shape=(5, 5), spectrum='i^-0.5')}"


def test_an_exception_on_valid_input_is_a_broken_promise():
    def raises(a, *, rank=None, tol=None, rng=None):
        raise RuntimeError("kernel went missing")

    (result,) = check_low_rank(raises, promises=["ordered"], raise_on_failure=False)
    assert result.status == "broken"
    assert "raised RuntimeError: kernel went missing" in result.detail


def test_a_transposed_factor_is_a_broken_promise_not_a_crash():
    def v_for_vh(a, *, rank=None, tol=None, rng=None):
        found = reference(a, rank=rank, tol=tol)
        return found.u, found.s, found.vh.T

    (result,) = check_low_rank(v_for_vh, promises=["shapes"], raise_on_failure=False)
    assert "do not factor a matrix of shape" in result.detail


def test_what_a_routine_does_not_take_is_not_offered():
    def rank_only(a, *, rank):
        found = reference(a, rank=rank)
        return found.u, found.s, found.vh

    report = check_low_rank(rank_only, max_examples=4)
    expected = {"reported-error", "tol-kept", "tol-rank-small", "refuses-bad-tol", "same-rng-same-bits", "rng-kinds"}
    assert set(report.names("not offered")) == expected
    assert "unexpected keyword argument 'tol'" in next(r for r in report if r.promise == "tol-kept").detail


def test_a_refused_dtype_counts_once():
    def double_only(a, *, rank=None, tol=None, rng=None):
        if a.dtype != np.float64:
            raise ValueError(f"a must be float64, got {a.dtype}")
        return reference(a, rank=rank, tol=tol)

    assert check_low_rank(double_only, max_examples=4, raise_on_failure=False).names("broken") == ("dtype-kept",)


def test_same_seed_same_report():
    first, second = (check_low_rank(loose, promises=["tol-kept"], raise_on_failure=False, seed=3) for _ in range(2))
    assert first == second
    assert str(first).startswith("tol-kept  broken")


def test_report_is_a_sequence():
    report = check_low_rank(reference, promises=["ordered", "shapes"], max_examples=2)
    assert len(report) == 2
    assert [result.promise for result in report] == ["ordered", "shapes"]
    assert report[0].text == next(p.text for p in LOW_RANK_PROMISES if p.name == "ordered")
    assert report[:1] == (report[0],)


def test_unknown_promise_is_refused():
    with pytest.raises(ValueError, match=r"promises must be among shapes, .* got 'speed'"):
        check_low_rank(reference, promises=["speed"])


def test_max_examples_must_be_positive():
    with pytest.raises(ValueError, match="max_examples must be at least 1, got 0"):
        check_low_rank(reference, max_examples=0)
