"""Products with packed sparse matrices against float64: patterns, odd sizes, threads, guards, errors."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from tensorfact import kernels
from tensorfact.kernels import _dispatch

DTYPES = [np.float32, np.float64]
SHAPES = [(1, 1), (5, 3), (128, 64), (129, 65), (300, 61), (37, 200)]

pytestmark = pytest.mark.usefixtures("rung")


def sparse(k, n, density, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((k, n)) * (rng.random((k, n)) < density)


def close(actual, x, v, bias=0.0):
    """Within rounding of a sum of products: eps times the sum of their magnitudes."""
    exact = x.astype(np.float64) @ v.astype(np.float64) + bias
    bound = np.abs(x.astype(np.float64)) @ np.abs(v.astype(np.float64)) + np.abs(bias)
    eps = np.finfo(actual.dtype).eps
    assert actual.shape == exact.shape
    assert (np.abs(actual - exact) <= 4 * eps * np.sqrt(x.shape[1] + 1) * bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_product_equals_the_dense_one(rung, dtype):
    rng = np.random.default_rng(1)
    for k, n in [(5, 3), (129, 65)] if rung == "numba" else SHAPES:
        for density in (0.0, 0.1, 0.5, 1.0):
            v = sparse(k, n, density).astype(dtype)
            plan = kernels.pack_sparse(v)
            assert plan.nnz == np.count_nonzero(v)
            np.testing.assert_array_equal(plan.dense, v)
            bias = rng.standard_normal(n).astype(dtype)
            for tokens in (0, 1, 15, 17, 70):
                x = rng.standard_normal((tokens, k)).astype(dtype)
                got = kernels.sparse_product(x, plan, path="sparse")
                assert got.dtype == dtype
                close(got, x, v)
                close(kernels.sparse_product(x, plan, bias, path="sparse"), x, v, bias)
                close(kernels.sparse_product(x, plan, bias, path="dense"), x, v, bias)


@pytest.mark.parametrize("kept", [1, 2])
def test_structured_patterns_and_the_transpose(kept):
    rng = np.random.default_rng(kept)
    v = rng.standard_normal((150, 88)).astype(np.float32)
    v *= (rng.random((150, 22, 4)).argsort(axis=2) < kept).reshape(150, 88)
    x, z = rng.standard_normal((33, 150)).astype(np.float32), rng.standard_normal((33, 88)).astype(np.float32)
    close(kernels.sparse_product(x, kernels.pack_sparse(v), path="sparse"), x, v)
    close(kernels.sparse_product(z, kernels.pack_sparse(v.T), path="sparse"), z, v.T)


def test_empty_and_full_rows_and_columns():
    v = sparse(260, 140, 0.2)
    v[:, [0, 63, 64, 139]] = 0
    v[128:256] = 0
    v[[3, 259]] = 1.0
    v[:, 70] = 2.0
    x = np.random.default_rng(0).standard_normal((19, 260))
    close(kernels.sparse_product(x, kernels.pack_sparse(v), path="sparse"), x, v)


def test_a_mask_keeps_zeros_and_drops_the_rest():
    v = sparse(40, 50, 1.0)
    mask = np.random.default_rng(0).random(v.shape) < 0.3
    v[0] = 0.0
    plan = kernels.pack_sparse(v, mask)
    assert plan.nnz == mask.sum()
    np.testing.assert_array_equal(plan.dense, v * mask)
    x = np.random.default_rng(1).standard_normal((9, 40))
    close(kernels.sparse_product(x, plan, path="sparse"), x, v * mask)


def test_no_sizes_at_all():
    for k, n in [(0, 4), (4, 0), (0, 0)]:
        plan = kernels.pack_sparse(np.zeros((k, n)))
        assert plan.density == 0.0
        for path in ("auto", "sparse"):
            np.testing.assert_array_equal(kernels.sparse_product(np.ones((3, k)), plan, path=path), np.zeros((3, n)))


def test_numbers_that_meet_no_entry_are_not_used():
    v = np.zeros((200, 70))
    v[5, 3] = v[199, 69] = 1.0
    x = np.full((20, 200), np.nan)
    x[:, 199] = 2.0
    x[:, 0] = np.inf
    y = kernels.sparse_product(x, kernels.pack_sparse(v), path="sparse")
    assert np.isnan(y[:, 3]).all()
    assert (y[:, 69] == 2.0).all()
    assert (np.delete(y, [3, 69], axis=1) == 0.0).all()


def test_bits_do_not_depend_on_threads_or_company(rung):
    v = sparse(400, 333, 0.3).astype(np.float32)
    plan = kernels.pack_sparse(v)
    x = np.random.default_rng(0).standard_normal((205, 400)).astype(np.float32)
    one = kernels.sparse_product(x, plan, path="sparse", workers=1)
    for workers in (2, 7):
        np.testing.assert_array_equal(one, kernels.sparse_product(x, plan, path="sparse", workers=workers))
    if rung == "cpp":  # BLAS, which the other rungs use, sums one row otherwise than many
        for lo, hi in [(0, 1), (3, 20), (60, 205)]:
            part = kernels.sparse_product(x[lo:hi], plan, path="sparse", workers=2)
            np.testing.assert_array_equal(one[lo:hi], part)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_beyond_the_arrays_is_read_or_written(rung, dtype):
    """Inputs at the very end of a mapped page, output between guards: a vector too far faults or shows."""
    if rung != "cpp":
        pytest.skip("only the compiled kernel has vectors")

    def at_the_end(a):
        memory = mmap.mmap(-1, -(-max(a.nbytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE)
        placed = np.frombuffer(memory, a.dtype)[-a.size :].reshape(a.shape)
        placed[...] = a
        return placed

    for k, n in [(7, 5), (131, 67)]:
        v = sparse(k, n, 0.4).astype(dtype)
        plan = kernels.pack_sparse(v)
        arrays = (plan.values, plan.rows, plan.columns, plan.starts)
        plan = kernels.SparsePlan(plan.shape, plan.nnz, *(at_the_end(a) for a in arrays))
        for tokens in (1, 3, 18, 66):
            x = at_the_end(np.random.default_rng(0).standard_normal((tokens, k)).astype(dtype))
            guarded = np.full((tokens + 2, n), 7.0, dtype)
            kernels.sparse_product(x, plan, path="sparse", out=guarded[1:-1])
            close(guarded[1:-1], x, v)
            assert (guarded[[0, -1]] == 7.0).all()


def test_the_compiled_kernel_refuses_a_broken_plan(rung):
    if rung != "cpp":
        pytest.skip("the other rungs have Python's own checks")
    plan = kernels.pack_sparse(sparse(130, 70, 0.3))
    parts = {name: getattr(plan, name) for name in ("values", "rows", "columns", "starts")}
    for name, place, value in [("rows", 0, 200), ("columns", 5, 64), ("starts", 3, 10**6), ("starts", -1, 10**9)]:
        broken = {**parts, name: parts[name].copy()}
        broken[name][0, place] = value
        with pytest.raises(ValueError, match="plan"):
            kernels.sparse_product(np.ones((2, 130)), kernels.SparsePlan(plan.shape, 1, **broken), path="sparse")


def test_layouts_and_casts():
    v = sparse(48, 30, 0.3)
    plan = kernels.pack_sparse(v.astype(np.float16))
    assert plan.dtype == np.float32
    assert kernels.pack_sparse(v, dtype=np.float32).dtype == np.float32
    x = np.random.default_rng(0).standard_normal((40, 96))[::2, ::2]
    plan = kernels.pack_sparse(np.asfortranarray(v))
    for view in (x, np.asfortranarray(x), x.astype(np.float32)):
        close(kernels.sparse_product(view, plan, path="sparse"), view, v)


def test_the_path_that_runs_can_be_asked(rung):
    thin, half = (kernels.pack_sparse(sparse(800, 1400, density).astype(np.float32)) for density in (0.1, 0.7))
    ways = {kernels.sparse_path(tokens, half) for tokens in (1, 5, 64, 4096)}
    assert ways == {"dense"}
    assert kernels.sparse_path(4096, thin) == ("sparse" if rung == "cpp" else "dense")
    x = np.random.default_rng(0).standard_normal((64, 800)).astype(np.float32)
    with _dispatch.use("cpp"):
        np.testing.assert_array_equal(
            kernels.sparse_product(x, thin), kernels.sparse_product(x, thin, path=kernels.sparse_path(64, thin))
        )
        assert "dense" not in vars(kernels.pack_sparse(np.eye(2)))


def test_errors_name_the_argument():
    plan = kernels.pack_sparse(np.eye(4))
    x = np.ones((3, 4))
    for run, text in [
        (lambda: kernels.pack_sparse(np.eye(4) * 1j), "v must be real"),
        (lambda: kernels.pack_sparse(np.ones(3)), "v must have 2 axes"),
        (lambda: kernels.pack_sparse(np.eye(4), np.eye(4)), "mask must be an array of bool"),
        (lambda: kernels.pack_sparse(np.eye(4), np.ones((2, 2), bool)), "mask must be an array of bool"),
        (lambda: kernels.pack_sparse(np.eye(4), dtype=np.int64), "dtype must be float32 or float64"),
        (lambda: kernels.sparse_product(np.ones((3, 5)), plan), "x must have 4 columns"),
        (lambda: kernels.sparse_product(x * 1j, plan), "x must be real"),
        (lambda: kernels.sparse_product(x, np.eye(4)), "plan must come from pack_sparse"),
        (lambda: kernels.sparse_product(x, plan, np.ones(3)), "bias must have shape"),
        (lambda: kernels.sparse_product(x, plan, path="fast"), "path must be"),
        (lambda: kernels.sparse_product(x, plan, out=np.ones((2, 4))), "out must be"),
        (lambda: kernels.sparse_product(x, plan, out=x), "out must not share memory"),
    ]:
        with pytest.raises(ValueError, match=text):
            run()
