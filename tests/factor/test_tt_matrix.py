"""TTMatrix and tt_matrix_svd: against dense matrices, unfoldings and products in double precision."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorfact
from chains import dense_of
from tensorfact import TensorTrain, TTMatrix, balanced_shape, tt_matrix_svd, useful_ranks
from tensorfact.factor import _contraction
from tensorfact.testing import assert_orthonormal, check_tensor_train
from tensorfact.testing.oracles import relative_error, train_bound, unfolding_values

few = settings(max_examples=50, deadline=None, database=None, derandomize=True)
SHAPES = [
    ((8, 16), (8, 16)),
    ((8, 8, 8), (4, 4, 8)),
    ((4, 4, 8), (8, 8, 8)),
    ((5, 13), (8, 16)),
    ((2, 3, 2, 4), (3, 1, 4, 2)),
    ((7,), (5,)),
    ((1, 6), (6, 1)),
    ((2, 2, 2, 2, 2, 2, 2), (1, 2, 3, 2, 1, 2, 2)),
]


def weight(rows, cols, dtype="float64", decay=0.7, seed=0):
    """A matrix whose interleaved unfoldings have decaying singular values."""
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((math.prod(rows), math.prod(cols)))
    if np.dtype(dtype).kind == "c":
        w = w + 1j * rng.standard_normal(w.shape)
    w *= np.arange(1.0, w.shape[0] + 1)[:, None] ** -decay * np.arange(1.0, w.shape[1] + 1) ** -decay
    return w.astype(dtype)


def interleaved(w, rows, cols):
    axes = list(itertools.chain(*((k, len(rows) + k) for k in range(len(rows)))))
    return w.reshape(*rows, *cols).transpose(axes).reshape([m * n for m, n in zip(rows, cols, strict=True)])


@pytest.mark.parametrize(("rows", "cols"), SHAPES)
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_error_identity_orthonormal_cores_and_quasi_optimality(rows, cols, dtype):
    w = weight(rows, cols, dtype)
    eps = np.finfo(dtype).eps
    values = unfolding_values(interleaved(w, rows, cols))
    for asked in ({"rank": 3}, {"rank": 10**6}, {"tol": 0.3}, {"tol": 0.03}, {"tol": 0.2, "max_rank": 2}):
        op = tt_matrix_svd(w, rows, cols, rng=0, **asked)
        dense = dense_of(op)
        true = relative_error(w, dense)
        assert abs(op.error - true) <= 1e-3 * true + 100 * eps
        assert relative_error(dense, op.reconstruct()) <= 100 * eps
        assert (op.shape, op.row_shape, op.col_shape) == (w.shape, rows, cols)
        assert op.dtype == w.dtype
        for core in op.cores[:-1]:
            assert_orthonormal(core.reshape(-1, core.shape[3]))
        squares = math.sqrt(sum(e * e for e in op.info.site_errors))
        assert squares == pytest.approx(op.error * np.linalg.norm(w), rel=1e-4)
        assert true <= 1.01 * train_bound(values, op.ranks[1:-1]) + 100 * eps
        if "rank" in asked:
            assert op.ranks[1:-1] == useful_ranks([m * n for m, n in zip(rows, cols, strict=True)], asked["rank"])
        elif "max_rank" not in asked:
            assert true <= asked["tol"]
            assert op.info.converged
        else:
            assert op.info.converged == (op.error <= 0.2)


def test_two_sites_are_the_truncated_svd_of_the_reshuffled_matrix():
    w = weight((24, 32), (48, 64), "float32")
    s = np.linalg.svd(interleaved(w, (24, 32), (48, 64)).astype(float), compute_uv=False)
    op = tt_matrix_svd(w, (24, 32), (48, 64), rank=16, rng=0)
    assert op.error == pytest.approx(np.linalg.norm(s[16:]) / np.linalg.norm(s), rel=5e-3)
    kept = tt_matrix_svd(w, (24, 32), (48, 64), tol=0.5, rng=0)
    assert kept.error <= 0.5
    assert (
        kept.ranks[1] <= 1.1 * np.flatnonzero(np.sqrt(np.cumsum(s[::-1] ** 2)[::-1]) <= 0.5 * np.linalg.norm(s))[0] + 2
    )


def test_a_kronecker_product_has_bond_one():
    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((3, 4)), rng.standard_normal((2, 5)), rng.standard_normal((6, 2))
    op = tt_matrix_svd(np.kron(np.kron(a, b), c), (3, 2, 6), (4, 5, 2), tol=1e-12)
    assert op.ranks == (1, 1, 1, 1)


@given(
    st.sampled_from(SHAPES),
    st.integers(1, 6),
    st.sampled_from([None, 1, 3, 70]),
    st.sampled_from(["float32", "float64", "complex128"]),
)
@few
def test_products_equal_those_of_the_dense_matrix(shape, rank, columns, dtype):
    rows, cols = shape
    op = tt_matrix_svd(weight(rows, cols, dtype), rows, cols, rank=rank, rng=0)
    dense, rng, eps = dense_of(op), np.random.default_rng(1), np.finfo(dtype).eps
    x = rng.standard_normal((op.shape[1],) if columns is None else (op.shape[1], columns)).astype(dtype)
    found = op @ x
    assert found.dtype == dtype
    assert found.shape == (dense @ x).shape
    assert np.linalg.norm(found - dense @ x) <= 100 * eps * np.linalg.norm(dense) * np.linalg.norm(x)
    y = rng.standard_normal((op.shape[0],) if columns is None else (columns, op.shape[0])).astype(dtype)
    assert np.linalg.norm(y @ op - y @ dense) <= 100 * eps * np.linalg.norm(dense) * np.linalg.norm(y)


@pytest.mark.parametrize(("rows", "cols"), [((4, 3), (3, 5)), ((2, 3, 2), (3, 2, 4)), ((2, 2, 2, 3), (2, 3, 1, 2))])
def test_every_contraction_order_gives_the_same_product(rows, cols):
    """All pairwise trees, not only the one that the model prefers."""
    op = tt_matrix_svd(weight(rows, cols), rows, cols, rank=4, rng=0)
    x = np.random.default_rng(0).standard_normal((*cols, 7))
    wanted = dense_of(op) @ x.reshape(-1, 7)

    def plans(count):
        if count == 1:
            yield ()
            return
        for pair in itertools.combinations(range(count), 2):
            for rest in plans(count - 1):
                yield (pair, *rest)

    seen = 0
    for plan in plans(len(rows) + 1):
        seen += 1
        assert np.allclose(_contraction.apply_plan(plan, op.cores, x), wanted, rtol=1e-12, atol=1e-12)
        if seen > 400:
            break
    assert seen >= 3


def macs(plan, rows, cols, ranks, columns):
    """Multiply-adds of a plan, by walking it over sets of axes."""
    size = {"x": columns, **{f"b{k}": r for k, r in enumerate(ranks)}}
    size |= {f"m{k}": m for k, m in enumerate(rows)} | {f"n{k}": n for k, n in enumerate(cols)}
    held, total = [set(names) for names in _contraction.labels(len(rows))], 0
    for i, j in plan:
        a, b = held[i], held[j]
        total += math.prod(size[name] for name in a | b)
        held = [names for k, names in enumerate(held) if k not in (i, j)] + [a ^ b]
    return total


@pytest.mark.parametrize(
    ("rows", "cols", "chi", "ratio"),
    [((8, 16), (8, 16), 4, 0.75), ((8, 8, 8), (4, 4, 8), 4, 0.44), ((4, 4, 8), (8, 8, 8), 4, 0.44)],
)
def test_small_bonds_take_the_chain_at_many_columns_and_larger_ones_the_dense_matrix(rows, cols, chi, ratio):
    """Multiply-adds per column against the dense product, from the closed forms (specification 4.2)."""
    dense, columns = math.prod(rows) * math.prod(cols), 8192
    ranks = (1, *(chi,) * (len(rows) - 1), 1)
    cost = macs(_contraction.plan_for(rows, cols, ranks, columns), rows, cols, ranks, columns) / columns / dense
    assert ratio - 0.01 <= cost <= 1.01  # fewer numbers moved may be worth more operations, never more than dense
    wide = (1, *(8 * chi,) * (len(rows) - 1), 1)
    cost = macs(_contraction.plan_for(rows, cols, wide, columns), rows, cols, wide, columns) / columns / dense
    assert cost == pytest.approx(1.0, abs=0.02)


def test_one_column_never_forms_the_matrix_of_a_large_operator():
    rows, cols, ranks = (16, 16, 16), (16, 16, 16), (1, 8, 8, 1)
    plan = _contraction.plan_for(rows, cols, ranks, 1)
    assert macs(plan, rows, cols, ranks, 1) < 0.4 * 16**6
    assert _contraction.plan_for(rows, cols, ranks, 1) is plan  # remembered
    assert _contraction.plan_for(rows, cols, ranks, 1000) is _contraction.plan_for(rows, cols, ranks, 1024)


def test_long_chains_are_planned_without_a_search():
    rows = cols = (2,) * 10
    op = TTMatrix.random(rows, cols, rank=3, rng=0)
    x = np.random.default_rng(0).standard_normal((1024, 3))
    assert np.allclose(op @ x, dense_of(op) @ x)


def test_stacks_of_vectors_follow_matmul():
    op = tt_matrix_svd(weight((3, 4), (5, 2)), (3, 4), (5, 2), rank=3)
    dense, rng = dense_of(op), np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 10, 4))
    assert np.allclose(op @ x, dense @ x)
    y = rng.standard_normal((2, 3, 4, 12))
    assert np.allclose(y @ op, y @ dense)
    assert np.allclose(op @ np.arange(10), dense @ np.arange(10))  # integers become floating point
    assert np.allclose(op @ (1j * x), dense @ (1j * x))
    for wrong in (np.ones(9), np.ones((9, 2)), np.float64(1.0)):
        with pytest.raises(ValueError, match="x must have 10 rows, got shape"):
            op @ wrong
    with pytest.raises(ValueError, match="x must have 12 columns, got shape"):
        np.ones((2, 9)) @ op


@pytest.mark.parametrize("dtype", ["float32", "complex128"])
def test_algebra_of_operators(dtype):
    rows, cols = (3, 4), (5, 2)
    a = tt_matrix_svd(weight(rows, cols, dtype), rows, cols, rank=3)
    b = tt_matrix_svd(weight(rows, cols, dtype, seed=1), rows, cols, rank=2)
    x, y = dense_of(a), dense_of(b)
    for found, wanted in (
        (a + b, x + y),
        (a - b, x - y),
        (2 * a, 2 * x),
        (a / 4, x / 4),
        (-a, -x),
        (a.T, x.T),
        (a.conj(), x.conj()),
        (a @ b.T, x @ y.T),
        (b.T.conj() @ a, y.conj().T @ x),
        (a.balanced(), x),
        ((a + b).round(rank=100), x + y),
        (TTMatrix.from_train(a.to_train(), rows, cols), x),
    ):
        assert relative_error(wanted, dense_of(found)) <= 1000 * np.finfo(dtype).eps
        assert found.dtype == dtype
    assert a.norm() == pytest.approx(np.linalg.norm(x), rel=1e-5)
    vector = TensorTrain(cores=[np.ones((1, 5, 2), dtype), np.ones((2, 2, 1), dtype)])
    assert relative_error(x @ np.full(10, 2.0), dense_of(a @ vector).ravel()) <= 1000 * np.finfo(dtype).eps
    assert (a @ b.T).ranks == (1, 6, 1)
    with pytest.raises(ValueError, match="same factors"):
        a + b.T
    with pytest.raises(ValueError, match=r"col_shape must equal the other's row_shape, got \(5, 2\) and \(3, 4\)"):
        a @ b
    with pytest.raises(ValueError, match=r"x must have the modes \(5, 2\), got a train of shape \(2, 5\)"):
        a @ TensorTrain(cores=[np.ones((1, 2, 1), dtype), np.ones((1, 5, 1), dtype)])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_balanced_cores_share_the_singular_values(dtype):
    rows, cols = (8, 8, 8), (4, 4, 8)
    w = weight(rows, cols, dtype)
    op = tt_matrix_svd(w, rows, cols, rank=9, balance=True)
    plain = tt_matrix_svd(w, rows, cols, rank=9)
    assert op.error == pytest.approx(plain.error, rel=1e-3)
    assert relative_error(dense_of(plain), dense_of(op)) <= 1e-5
    values = unfolding_values(interleaved(dense_of(op), rows, cols))
    left, right = (op.cores[0].reshape(-1, 9), op.cores[-1].reshape(9, -1))  # sqrt(S) on both sides of the outer bonds
    assert np.allclose(left.T @ left, np.diag(values[0][:9]), atol=1e-4 * values[0][0])
    assert np.allclose(right @ right.T, np.diag(values[1][:9]), atol=1e-4 * values[1][0])


def test_balancing_bears_zero_singular_values():
    op = tt_matrix_svd(np.kron(np.ones((3, 3)), np.eye(4)), (3, 4), (3, 4), rank=5, balance=True)
    assert all(np.isfinite(core).all() for core in op.cores)
    assert relative_error(np.kron(np.ones((3, 3)), np.eye(4)), dense_of(op)) <= 1e-12
    zero = tt_matrix_svd(np.zeros((12, 12)), (3, 4), (3, 4), rank=5, balance=True)
    assert not dense_of(zero).any()
    assert (zero.error, zero.info.path) == (0.0, "zero")


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_random_operators_have_the_variance_that_was_asked_for(order):
    rows, cols = balanced_shape(512, order), balanced_shape(128, order)
    draws = [np.mean(dense_of(TTMatrix.random(rows, cols, rank=8, std=0.02, rng=seed)) ** 2) for seed in range(200)]
    assert math.sqrt(np.mean(draws)) == pytest.approx(0.02, rel=0.03)
    exact = TTMatrix.random(rows, cols, rank=8, std=0.02, rescale=True, rng=0)
    assert math.sqrt(np.mean(dense_of(exact) ** 2)) == pytest.approx(0.02, rel=1e-10)


@pytest.mark.parametrize(
    ("rows", "cols", "std"), [((8, 16), (8, 16), 0.088), ((8, 8, 8), (4, 4, 8), 0.026), ((4, 4, 8), (8, 8, 8), 0.0093)]
)
def test_the_published_initialisation_gives_what_its_formula_says(rows, cols, std):
    draws = [np.mean(dense_of(TTMatrix.random(rows, cols, rank=8, init="paper", rng=s)) ** 2) for s in range(100)]
    assert math.sqrt(np.mean(draws)) == pytest.approx(std, rel=0.05)


def test_random_operators_are_clipped_repeatable_and_refuse_nonsense():
    op = TTMatrix.random((8, 8, 8), (4, 4, 8), rank=1000, dtype=np.float32, rng=3)
    assert op.ranks == (1, 32, 64, 1)
    assert op.dtype == np.float32
    again = TTMatrix.random((8, 8, 8), (4, 4, 8), rank=1000, dtype=np.float32, rng=3)
    assert all(np.array_equal(x, y) for x, y in zip(op.cores, again.cores, strict=True))
    for asked, text in (
        ({"std": -1.0}, "std must be positive and finite, got -1.0"),
        ({"std": 1.0, "init": "paper"}, "takes one integer rank and no std"),
        ({"init": "magic"}, "init must be 'exact' or 'paper', got 'magic'"),
    ):
        with pytest.raises(ValueError, match=text):
            TTMatrix.random((4, 4), (4, 4), rank=2, **asked)
    with pytest.raises(ValueError, match="must have one length"):
        TTMatrix.random((4, 4), (4,), rank=2)


@pytest.mark.parametrize(
    ("n", "order", "factors"),
    [
        (512, 3, (8, 8, 8)),
        (128, 2, (8, 16)),
        (65, 2, (5, 13)),
        (128, 3, (4, 4, 8)),
        (768, 3, (8, 8, 12)),
        (13, 2, (1, 13)),
        (1, 3, (1, 1, 1)),
        (12, 1, (12,)),
    ],
)
def test_balanced_shapes(n, order, factors):
    assert balanced_shape(n, order) == factors


@given(st.integers(1, 3000), st.integers(1, 4))
@few
def test_balanced_shapes_multiply_to_the_size_and_have_the_smallest_sum(n, order):
    found = balanced_shape(n, order)
    assert math.prod(found) == n
    assert list(found) == sorted(found)
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    if len(divisors) ** (order - 1) <= 2000:
        sums = [
            sum(f) + n // math.prod(f) for f in itertools.product(divisors, repeat=order - 1) if n % math.prod(f) == 0
        ]
        assert sum(found) == min(sums)


def test_useful_ranks():
    assert useful_ranks((64, 256), 100) == (64,)
    assert useful_ranks((32, 32, 64), 100) == (32, 64)
    assert useful_ranks((40, 208), 32) == (32,)
    assert useful_ranks((10, 10, 10, 10), (2, 100, 3)) == (2, 20, 3)
    assert useful_ranks((7,), 5) == ()
    with pytest.raises(ValueError, match="rank must be an integer or hold 1 of them"):
        useful_ranks((4, 4), (1, 2))


def test_parameters_of_the_published_model():
    """Specification 6: 25 operators of PicoGPT, without embedding, biases and norms."""
    layers = (
        [((8, 16), (8, 16))] * 16 + [((8, 8, 8), (4, 4, 8))] * 4 + [((4, 4, 8), (8, 8, 8))] * 4 + [((5, 13), (8, 16))]
    )
    for chi, total in ((4, 42336), (8, 79168), (16, 177408), (32, 472192)):
        assert 13696 + sum(TTMatrix.random(m, n, rank=chi).size for m, n in layers) == total


@pytest.mark.parametrize(
    ("layer", "chi", "error"),
    [
        (((8, 16), (8, 16)), 8, 0.873),
        (((8, 8, 8), (4, 4, 8)), 16, 0.893),
        (((4, 4, 8), (8, 8, 8)), 32, 0.627),
        (((5, 13), (8, 16)), 32, 0.297),
    ],
)
def test_errors_of_random_weights(layer, chi, error):
    """Specification 7, measured there: within 0.01."""
    rows, cols = layer
    w = 0.02 * np.random.default_rng(0).standard_normal((math.prod(rows), math.prod(cols)))
    assert tt_matrix_svd(w, rows, cols, rank=chi, rng=0).error == pytest.approx(error, abs=0.01)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_any_scale(size):
    rows, cols = (4, 4, 4), (4, 3, 2)
    w = weight(rows, cols, "float32")
    plain, moved = (tt_matrix_svd(a, rows, cols, rank=5, rng=0) for a in (w, (w * size).astype(np.float32)))
    assert moved.error == pytest.approx(plain.error, rel=1e-5)
    assert moved.info.norm == pytest.approx(plain.info.norm * size, rel=1e-5)
    assert relative_error(dense_of(plain), dense_of(moved) / size) <= 1e-5
    assert relative_error(dense_of(plain), dense_of(moved.balanced()) / size) <= 1e-5


def test_half_precision():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype in (np.float16, ml_dtypes.bfloat16):
        w = weight((4, 8), (8, 4)).astype(dtype)
        for balance in (False, True):
            op = tt_matrix_svd(w, (4, 8), (8, 4), rank=6, balance=balance)
            assert op.dtype == dtype
            cores = [np.asarray(core, float) for core in op.cores]
            wide = dense_of(TTMatrix(cores=cores))
            assert op.error == pytest.approx(relative_error(w.astype(float), wide), rel=1e-3)
        assert tt_matrix_svd(w, (4, 8), (8, 4), tol=0.1).error <= 0.1
        with pytest.raises(ValueError, match="tol must be a number in"):
            tt_matrix_svd(w, (4, 8), (8, 4), tol=1e-4)


@pytest.mark.parametrize("library", ["torch", "array_api_strict"])
def test_other_libraries(library):
    xp = pytest.importorskip(library)
    rows, cols = (4, 6, 2), (3, 2, 8)
    w = weight(rows, cols, "float32")
    for asked in ({"rank": 5}, {"tol": 0.1}, {"rank": 5, "balance": True}):
        op = tt_matrix_svd(xp.asarray(w.copy()), rows, cols, rng=0, **asked)
        assert all(isinstance(core, type(xp.asarray(w.copy()))) for core in op.cores)
        dense = dense_of(op)
        assert op.error == pytest.approx(relative_error(w, dense), rel=1e-3)
        x = np.random.default_rng(0).standard_normal((op.shape[1], 5)).astype(np.float32)
        assert relative_error(dense @ x, np.asarray(op @ xp.asarray(x))) <= 1e-5
        assert relative_error(dense, np.asarray(op.reconstruct())) <= 1e-5


def test_input_is_neither_changed_nor_shared():
    for rows, cols in SHAPES:
        w = weight(rows, cols)
        before = w.copy()
        op = tt_matrix_svd(w, rows, cols, rank=100)
        assert np.array_equal(w, before)
        dense = dense_of(op)
        w *= -2
        assert np.array_equal(dense_of(op), dense)
    frozen = weight((3, 4), (5, 2))
    frozen.flags.writeable = False
    assert tt_matrix_svd(np.asfortranarray(frozen), (3, 4), (5, 2), tol=1e-10).error <= 1e-10
    assert tt_matrix_svd(frozen[::-1, ::-1], (3, 4), (5, 2), tol=1e-10).error <= 1e-10
    assert tt_matrix_svd(np.arange(120).reshape(12, 10), (3, 4), (5, 2), rank=2).dtype == np.float64


def test_what_is_refused():
    w = weight((3, 4), (5, 2))
    for args, asked, text in (
        (((3, 4), (5, 3)), {"rank": 2}, r"must multiply to the shape of w, \(12, 10\), got \(3, 4\), \(5, 3\)"),
        (((3, 4), (10,)), {"rank": 2}, "must have one length"),
        (((), ()), {"rank": 2}, "row_shape must hold at least one factor"),
        ((12, (5, 2)), {"rank": 2}, "row_shape must be a sequence of positive integers, got 12"),
        (((3, 4), (-5, -2)), {"rank": 2}, "col_shape must be at least 1, got -5"),
        (((3, 4), (5, 2)), {}, "exactly one of rank and tol"),
        (((3, 4), (5, 2)), {"rank": 0}, "rank must be at least 1, got 0"),
        (((3, 4), (5, 2)), {"tol": math.nan}, "tol must be a number in"),
    ):
        with pytest.raises(ValueError, match=text):
            tt_matrix_svd(w, *args, **asked)
    for bad in (np.nan, np.inf):
        broken = w.copy()
        broken[3, 4] = bad
        with pytest.raises(ValueError, match="a must be finite"):
            tt_matrix_svd(broken, (3, 4), (5, 2), rank=2)
    with pytest.raises(ValueError, match=r"four axes \(r, m, n, r'\), got shape \(1, 3, 2\) at 0"):
        TTMatrix(cores=[np.ones((1, 3, 2))])
    with pytest.raises(ValueError, match="must multiply to"):
        TTMatrix.from_train(TensorTrain(cores=[np.ones((1, 6, 1))]), (2,), (2,))
    with pytest.raises(ValueError, match="max_bytes=10"):
        tt_matrix_svd(w, (3, 4), (5, 2), rank=2).reconstruct(max_bytes=10)


def test_repr_draws_the_sites():
    op = tt_matrix_svd(weight((3, 4), (5, 2)), (3, 4), (5, 2), rank=2)
    assert repr(op).startswith("TTMatrix(3x5 -2- 4x2, 2.61x smaller, error=")
    assert repr(op).endswith(", left)")


def test_a_matrix_of_one_column_keeps_the_contract_of_tt_svd():
    """The sites (n, 1) make the operator a plain train: every promise applies."""

    def routine(a, **asked):
        a = np.asarray(a)
        if a.ndim == 0:
            raise ValueError("no modes")
        return tensorfact.tt_matrix_svd(a.reshape(-1, 1), a.shape, (1,) * a.ndim, **asked).to_train()

    check_tensor_train(routine, max_examples=10)
