"""randomized_svd keeps every promise of a low-rank routine, on each of its paths and for each kind of input."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy.sparse.linalg import aslinearoperator

from tensorfact import randomized_svd
from tensorfact.testing import LOW_RANK_PROMISES, MatrixSpec, check_low_rank, optimal_errors

NAMES = tuple(promise.name for promise in LOW_RANK_PROMISES)


def test_defaults_keep_every_promise():
    assert check_low_rank(randomized_svd, max_examples=30).names("kept") == NAMES


# The default takes an exact path on most test matrices, which are small: the direct iterations are asked for by name.
@pytest.mark.parametrize("method", ["shifted", "krylov"])
def test_direct_methods_keep_every_promise(method):
    assert check_low_rank(partial(randomized_svd, method=method), max_examples=10).names("kept") == NAMES


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
def test_arrays_of_other_libraries_keep_every_promise(library):
    xp = pytest.importorskip(library)

    def routine(a, **asked):
        if a.dtype == object:
            raise TypeError(f"{library} has no object arrays")
        if a.dtype == np.float16 and library == "array_api_strict":
            raise TypeError("the array API standard has no float16")
        return randomized_svd(xp.asarray(a.copy()), **asked)

    assert check_low_rank(routine, max_examples=8).names("kept") == NAMES


def test_linear_operators_keep_the_promises_that_do_not_need_the_entries():
    def routine(a, **asked):
        return randomized_svd(aslinearoperator(a), **asked)

    names = (
        *("shapes", "dtype-kept", "orthonormal", "ordered", "never-overestimates", "near-optimal-frobenius"),
        *("near-optimal-spectral", "deep-tails", "tol-kept", "every-rank", "rows-and-columns", "tied-values"),
        *("rank-deficient", "zero-matrix", "complex", "refuses-bad-rank", "refuses-bad-tol", "same-rng-same-bits"),
        *("rng-kinds", "global-state-untouched"),
    )
    assert check_low_rank(routine, promises=names, max_examples=8).names("kept") == names


@pytest.mark.parametrize("seed", [1, 3])
def test_shift_spares_the_leading_directions_of_a_graded_matrix(seed):
    # Found by deep-tails: an over-estimated smallest singular value made the shift equal to sigma_3^2 and lost it.
    a = MatrixSpec(shape=(300, 90), dtype="float32", spectrum="graded", seed=1).build()
    found = randomized_svd(a, rank=18, method="shifted", rng=seed)
    assert found.error <= 1.01 * optimal_errors(a, 18).frobenius
