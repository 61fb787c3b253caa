"""tt_round: the error it states is true, tolerances are kept, and ranks are what the theory allows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chains import dense_of, make
from tensorfact import TensorTrain, tt_round
from tensorfact.testing import assert_orthonormal, check_tensor_train
from tensorfact.testing.oracles import full_bonds, relative_error, train_bound, unfolding_values
from tensorfact.testing.tensors import train_specs

few = settings(max_examples=60, deadline=None, database=None, derandomize=True)
METHODS = ("svd", "random")


def check(train, rounded, dtype):
    """Everything that holds for every rounding; returns the true error."""
    x = dense_of(train)
    true = relative_error(x, dense_of(rounded))
    # sizes of what was summed: cancellation inside the given train costs digits that no rounding brings back
    noise = 100 * np.finfo(dtype).eps * np.prod([np.linalg.norm(c) for c in train.cores]) / np.linalg.norm(x)
    assert abs(rounded.error - true) <= 1e-3 * true + noise
    assert rounded.canonical == "left"
    assert rounded.dtype == train.dtype
    for core in rounded.cores[:-1]:
        assert_orthonormal(np.asarray(core).reshape(-1, core.shape[2]))
    squares = math.sqrt(sum(e * e for e in rounded.info.site_errors))
    assert squares == pytest.approx(rounded.error * rounded.info.norm, rel=1e-6, abs=1e-300)
    assert rounded.info.norm == pytest.approx(np.linalg.norm(x), rel=1e-3)
    assert len(rounded.info.site_errors) == train.order - 1
    return true, noise


@given(train_specs(), st.integers(1, 4), st.sampled_from(METHODS), st.sampled_from(["none", "left", "right"]))
@few
def test_a_rank_is_obeyed_and_quasi_optimal(spec, rank, method, side):
    train = TensorTrain(cores=spec.build())
    train = {"none": train, "left": train.left(), "right": train.right()}[side]
    rounded = tt_round(train, rank=rank, method=method, rng=0)
    true, noise = check(train, rounded, spec.dtype)
    values = unfolding_values(dense_of(train))
    bound = train_bound(values, rounded.ranks[1:-1])
    assert true <= 1.05 * bound + noise
    assert all(found <= rank for found in rounded.ranks[1:-1])
    assert rounded.info.converged


@given(
    train_specs(), st.sampled_from([0.7, 0.3, 0.1, 1e-3]), st.sampled_from(METHODS), st.sampled_from(["none", "left"])
)
@few
def test_a_tolerance_is_kept_with_no_more_than_the_unfoldings_need(spec, tol, method, side):
    train = TensorTrain(cores=spec.build())
    train = train.left() if side == "left" else train
    rounded = tt_round(train, tol=tol, method=method, rng=0)
    true, noise = check(train, rounded, spec.dtype)
    assert true <= tol + noise
    assert rounded.error <= tol
    share = tol / math.sqrt(max(1, train.order - 1))
    for values, bond in zip(unfolding_values(dense_of(train)), rounded.ranks[1:-1], strict=True):
        tails = np.sqrt(np.cumsum(values[::-1] ** 2)[::-1])
        assert bond == 1 or tails[bond - 1] > share * (1 - 1e-6) * np.linalg.norm(values) - noise * tails[0]


@pytest.mark.parametrize("method", METHODS)
def test_the_bonds_of_a_sum_are_found_again(method):
    train = make((6, 5, 7, 4), rank=3)
    total = train + 2 * train - 0.5 * train
    rounded = tt_round(total, tol=1e-12, method=method)
    assert rounded.ranks == train.ranks
    assert relative_error(2.5 * dense_of(train), dense_of(rounded)) <= 1e-13
    assert tt_round(train * make((6, 5, 7, 4), seed=1), tol=1e-12, method=method).ranks == (1, 6, 9, 4, 1)


@pytest.mark.parametrize("method", METHODS)
def test_a_cap_that_bites_is_reported(method):
    train = make((6, 5, 7, 4), rank=4)
    rounded = tt_round(train, tol=1e-6, max_rank=2, method=method)
    assert rounded.ranks == (1, 2, 2, 2, 1)
    assert not rounded.info.converged
    assert rounded.error > 1e-6
    check(train, rounded, "float64")
    assert tt_round(train, tol=1e-6, max_rank=(4, 5, 6), method=method).info.converged
    assert tt_round(train, rank=(1, 2, 3), method=method).ranks == (1, 1, 2, 3, 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_bonds_take_the_sketch(method, dtype):
    rng = np.random.default_rng(0)
    decay = 10.0 ** (-np.arange(90) / 6)
    cores = [
        (rng.standard_normal(s) * decay[: s[2]]).astype(dtype)
        for s in ((1, 40, 40), (40, 9, 90), (90, 30, 30), (30, 30, 1))
    ]
    train = TensorTrain(cores=cores)
    for asked in ({"rank": 7}, {"tol": 1e-3}, {"tol": 1e-2, "max_rank": 5}, {"tol": 3e-5}):
        rounded = tt_round(train, method=method, rng=1, **asked)
        true, noise = check(train, rounded, dtype)
        bound = train_bound(unfolding_values(dense_of(train)), rounded.ranks[1:-1])
        assert true <= 1.02 * bound + noise
        if "tol" in asked and "max_rank" not in asked:
            assert true <= asked["tol"]
        assert rounded.info.path == method


def test_random_rounding_needs_few_more_bonds_than_the_deterministic_one():
    rng = np.random.default_rng(0)
    decay = np.arange(1.0, 121) ** -1.5
    train = TensorTrain(
        cores=[rng.standard_normal(s) * decay[: s[2]] for s in ((1, 60, 60), (60, 20, 120), (120, 60, 1))]
    )
    exact = tt_round(train, tol=0.02)
    for seed in range(5):
        found = tt_round(train, tol=0.02, method="random", rng=seed)
        assert all(q <= 1.1 * r + 1 for q, r in zip(found.ranks, exact.ranks, strict=True))


def test_equal_rng_gives_equal_bits_and_the_global_state_is_left_alone():
    train = make((30, 20, 30), rank=25)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (tt_round(train, rank=2, method="random", rng=7) for _ in range(2))
    assert all(np.array_equal(x, y) for x, y in zip(first.cores, second.cores, strict=True))
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1e200, 1e-200])
def test_any_scale(method, size):
    train = make((5, 6, 4), rank=4)
    plain = tt_round(train, rank=2, method=method, rng=0)
    moved = tt_round(TensorTrain(cores=[train.cores[0] * size, *train.cores[1:]]), rank=2, method=method, rng=0)
    assert moved.error == pytest.approx(plain.error, rel=1e-9)
    assert moved.norm() == pytest.approx(plain.norm() * size, rel=1e-9)
    assert moved.info.norm == pytest.approx(plain.info.norm * size, rel=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_zero_one_mode_and_full_rank(method):
    zero = tt_round(make((3, 4, 5)) * 0.0, tol=0.1, method=method)
    assert zero.ranks == (1, 1, 1, 1)
    assert (zero.error, zero.info.path) == (0.0, "zero")
    assert not dense_of(zero).any()
    assert_orthonormal(zero.cores[1].reshape(-1, 1))
    one = tt_round(make((5,)), rank=3, method=method)
    assert relative_error(dense_of(make((5,))), dense_of(one)) <= 1e-15
    full = tt_round(make((3, 4, 2), rank=9), rank=100, method=method)
    assert full.ranks == (1, *full_bonds((3, 4, 2)), 1)


def test_what_is_refused():
    train = make((3, 4, 5))
    for asked, text in (
        ({}, "exactly one of rank and tol"),
        ({"rank": 2, "tol": 0.1}, "exactly one of rank and tol"),
        ({"rank": 2, "max_rank": 3}, "max_rank goes with tol"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"rank": 1.5}, "rank must be an integer, got 1.5"),
        ({"rank": (1, 2, 3)}, "rank must be an integer or hold 2 of them"),
        ({"tol": -0.1}, "tol must be a number in"),
        ({"tol": 1.0}, "tol must be a number in"),
        ({"tol": math.nan}, "tol must be a number in"),
        ({"tol": 1e-17}, "tol must be a number in"),
        ({"rank": 2, "method": "magic"}, "method must be 'svd' or 'random', got 'magic'"),
    ):
        with pytest.raises(ValueError, match=text):
            tt_round(train, **asked)
    with pytest.raises(TypeError, match="tt must be a TensorTrain, got list"):
        tt_round(list(train.cores), rank=2)
    for method in METHODS:
        for side in ("none", "left", "right"):
            broken = TensorTrain(cores=[train.cores[0], train.cores[1] * np.inf, train.cores[2]], canonical=side)
            with pytest.raises(ValueError, match="cores must be finite, got NaN or infinity in core"):
                tt_round(broken, rank=2, method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "complex128"])
@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
def test_other_libraries(method, dtype, library):
    xp = pytest.importorskip(library)
    train = make((8, 9, 7), rank=6, dtype=dtype)
    other = TensorTrain(cores=[xp.asarray(core.copy()) for core in train.cores])
    rounded = tt_round(other, rank=2, method=method, rng=0)
    assert all(isinstance(core, type(other.cores[0])) for core in rounded.cores)
    check(
        train,
        TensorTrain(
            cores=[np.asarray(c) for c in rounded.cores], error=rounded.error, canonical="left", info=rounded.info
        ),
        dtype,
    )


def test_half_precision_is_cast_back_and_the_error_is_that_of_the_stored_cores():
    torch = pytest.importorskip("torch")
    train = TensorTrain(
        cores=[torch.from_numpy(core.copy()).to(torch.float16) for core in make((6, 7, 5), rank=4).cores]
    )
    rounded = tt_round(train, rank=2)
    assert rounded.dtype == torch.float16
    x, y = (np.einsum("aib,bjc,ckd->ijk", *(c.double().numpy() for c in t.cores)) for t in (train, rounded))
    assert rounded.error == pytest.approx(relative_error(x, y), rel=1e-3)


def exact_train(a):
    """A train of the whole array, by NumPy's QR."""
    if a.dtype == object or a.ndim == 0 or a.size == 0:
        raise ValueError("no train")
    if a.dtype == np.float16:
        raise TypeError("no half precision in LAPACK")
    cores, bond, rest = [], 1, a.astype(np.result_type(a.dtype, np.float32))
    for n in a.shape[:-1]:
        q, rest = np.linalg.qr(rest.reshape(bond * n, -1))
        cores.append(q.reshape(bond, n, -1))
        bond = q.shape[1]
    return TensorTrain(cores=[*cores, rest.reshape(bond, a.shape[-1], 1)])


@pytest.mark.parametrize("method", METHODS)
def test_rounding_an_exact_train_keeps_the_contract_of_tt_svd(method):
    def routine(a, **asked):
        return tt_round(exact_train(a), method=method, **asked)

    check_tensor_train(routine, max_examples=10)
