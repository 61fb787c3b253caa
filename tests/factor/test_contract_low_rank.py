"""randomized_svd keeps every promise of a low-rank routine, on each of its paths and for each kind of input."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy.sparse.linalg import aslinearoperator

from tensorfact import randomized_svd
from tensorfact.testing import LOW_RANK_PROMISES, check_low_rank

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
