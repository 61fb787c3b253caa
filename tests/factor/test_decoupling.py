"""decouple: recovery, floors, noise, invariances, degenerate data, errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.interpolate import BSpline

import tensorfact
from decoupling_problems import problem
from tensorfact import Decoupling, decouple, decouple_mlp, mlp_jacobians, sample_jacobians


def fit_of(truth, rank, **options):
    return decouple(truth.x, truth.f, truth.jac, rank=rank, **{"rng": 0, **options})


def spline_floor(truth, n_basis, degree=3, weight=0.1):
    """Least squares in all coefficients at the true weights, quantile knots: (error of jac, error of f)."""
    z = truth.x @ truth.v
    rows_j, rows_f = [], []
    for i in range(truth.w.shape[1]):
        t = tensorfact.quantile_knots(z[:, i], n_basis, degree, blend=1.0)
        basis = BSpline(t, np.eye(n_basis), degree)
        rows_j.append(np.einsum("n,sk,m->snmk", truth.w[:, i], basis(z[:, i], 1), truth.v[:, i]))
        rows_f.append(np.einsum("n,sk->snk", truth.w[:, i], basis(z[:, i])))
    design_j = np.concatenate(rows_j, axis=-1).reshape(truth.jac.size, -1)
    design_f = np.concatenate(rows_f, axis=-1).reshape(truth.f.size, -1)
    root = np.sqrt(weight)
    both = np.concatenate([design_j, root * design_f])
    c = np.linalg.lstsq(both, np.concatenate([truth.jac.ravel(), root * truth.f.ravel()]), rcond=1e-13)[0]
    errors = design_j @ c - truth.jac.ravel(), design_f @ c - truth.f.ravel()
    return tuple(np.linalg.norm(e) / np.linalg.norm(a) for e, a in zip(errors, (truth.jac, truth.f), strict=True))


@pytest.mark.parametrize(("sizes", "n_basis"), [((3, 3, 3), 10), ((4, 5, 6), 12)])
@pytest.mark.parametrize("seed", range(2))
def test_polynomials_are_recovered_exactly(sizes, n_basis, seed):
    n, m, r = sizes
    truth = problem("poly", n, m, r, seed)
    found = fit_of(truth, r, n_basis=n_basis)
    assert found.error <= 1e-12
    assert found.jacobian_error <= 1e-12
    # The factors are unique here: every true branch is found, whatever the order.
    for true, mine in ((truth.w, found.w), (truth.v, found.v)):
        cosines = np.abs((true / np.linalg.norm(true, axis=0)).T @ (mine / np.linalg.norm(mine, axis=0)))
        assert cosines.max(axis=1).min() > 1 - 1e-8


def test_a_recovered_function_holds_at_other_samples():
    truth = problem("poly", 3, 3, 3, 2)
    found = decouple(truth.x[:100], truth.f[:100], truth.jac[:100], rank=3, n_basis=8, rng=0)
    inside = np.abs(truth.x[100:]).max(axis=1) < 0.8
    assert inside.sum() > 10
    np.testing.assert_allclose(found(truth.x[100:][inside]), truth.f[100:][inside], rtol=0, atol=1e-10)
    np.testing.assert_allclose(found.jacobian(truth.x[100:][inside]), truth.jac[100:][inside], rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["trig", "tanh"])
@pytest.mark.parametrize("seed", range(2))
def test_other_functions_reach_the_floor_of_splines(kind, seed):
    truth = problem(kind, 3, 3, 3, seed)
    found = fit_of(truth, 3, n_basis=10, n_restarts=3, polish_iter=60)
    jac_floor, f_floor = spline_floor(truth, 10)
    assert found.jacobian_error <= 2 * jac_floor
    assert found.error <= 2 * f_floor
    assert 0 < found.info.floor_jacobian <= 1.5 * found.jacobian_error


@pytest.mark.parametrize("ridge", [1e-8, 1e-4, 1e-2, 1e-1])
def test_no_start_dies_above_the_uniqueness_bound(ridge):
    truth = problem("tanh", 2, 2, 3, 0)
    found = fit_of(truth, 3, n_basis=10, ridge=ridge, max_iter=60, n_restarts=6, polish=False)
    assert np.isfinite(found.info.restarts).all()
    assert max(found.info.restarts) < 0.1
    assert found.jacobian_error < 0.1
    assert found.info.notes == ()


def test_a_ridge_kills_branches_and_they_are_started_again():
    truth = problem("tanh", 2, 2, 3, 1)
    found = fit_of(truth, 3, n_basis=10, ridge=0.3, regularization="ridge", max_iter=60, polish=False)
    assert np.isfinite(found.error)
    assert found.info.repairs > 0


def test_noise_is_not_fitted():
    clean, noisy = (problem("trig", 3, 3, 3, 0, noise=noise) for noise in (0.0, 0.01))
    found = fit_of(noisy, 3, n_basis=12, n_restarts=3, polish_iter=40)
    assert 0.8e-2 < found.jacobian_error < 1.2e-2
    true_error = np.linalg.norm(found.jacobian(clean.x) - clean.jac) / np.linalg.norm(clean.jac)
    assert true_error < 0.7e-2


def test_exact_coefficients_never_raise_the_objective_at_fixed_directions():
    truth = problem("tanh", 3, 4, 3, 0)
    seen = []
    found = fit_of(
        truth, 3, coefficients="exact", n_restarts=2, max_iter=15, polish=False, progress=lambda p: seen.append(p)
    )
    assert [p.step for p in seen] == list(range(1, len(seen) + 1))
    assert all(p.phase == "sweep" and p.objective.shape == (2,) for p in seen)
    best = np.array([p.objective for p in seen])
    assert (np.diff(best, axis=0) <= 0).all()  # what is reported is the best so far
    assert found.info.sweeps == len(seen)
    assert found.jacobian_error < 0.2


@pytest.mark.parametrize("method", ["lm", "lbfgs"])
def test_polish_lowers_the_objective(method):
    truth = problem("trig", 3, 3, 3, 1)
    rough = fit_of(truth, 3, n_restarts=2, max_iter=20, polish=False)
    fine = fit_of(truth, 3, n_restarts=2, max_iter=20, polish=method, polish_iter=60)
    assert fine.info.polish == method
    assert rough.info.polish == "none"
    assert min(fine.info.restarts) < 0.9 * min(rough.info.restarts)


def test_units_and_order_do_not_matter():
    truth = problem("poly", 3, 3, 3, 2)
    scale_x, scale_f, shift_x, shift_f = np.array([3.0, 0.2, 7.0]), np.array([100.0, 1e-3, 1.0]), 5.0, -2.0
    other = decouple(
        truth.x * scale_x + shift_x,
        truth.f * scale_f + shift_f,
        truth.jac * scale_f[:, None] / scale_x,
        rank=3,
        n_basis=10,
        rng=0,
    )
    plain = fit_of(truth, 3, n_basis=10)
    np.testing.assert_allclose((other(truth.x * scale_x + shift_x) - shift_f) / scale_f, plain(truth.x), atol=1e-9)
    order = np.random.default_rng(0).permutation(150)
    shuffled = decouple(truth.x[order], truth.f[order], truth.jac[order], rank=3, n_basis=10, rng=0)
    np.testing.assert_allclose(shuffled(truth.x), plain(truth.x), atol=1e-9)


def test_the_result_is_consistent():
    truth = problem("trig", 3, 4, 2, 0)
    found = fit_of(truth, 2, n_restarts=2, max_iter=20, polish_iter=20)
    assert found.shape == (3, 4)
    assert found.rank == 2
    assert found.n_params == 2 * (3 + 4 + 12) + 3
    assert found.size == found.n_params + 2 * 10
    np.testing.assert_allclose(np.linalg.norm(found.v, axis=0), 1, rtol=1e-12)
    assert (found.v[np.abs(found.v).argmax(axis=0), [0, 1]] > 0).all()
    branches = found.internals(truth.x)
    np.testing.assert_allclose(branches.mean(axis=0), 0, atol=1e-12)
    by_scipy = np.stack([g(z) for g, z in zip(found.splines, (truth.x @ found.v).T, strict=True)], axis=1)
    np.testing.assert_allclose(branches, by_scipy, atol=1e-12)
    np.testing.assert_allclose(found(truth.x), branches @ found.w.T + found.bias, atol=1e-12)
    np.testing.assert_allclose(found(truth.x[0]), found(truth.x)[0], rtol=1e-12)
    _, numeric = sample_jacobians(found, truth.x)
    np.testing.assert_allclose(found.jacobian(truth.x), numeric, atol=1e-6)
    assert found.error == pytest.approx(np.linalg.norm(found(truth.x) - truth.f) / np.linalg.norm(truth.f))
    with pytest.raises(ValueError, match="read-only"):
        found.w[0, 0] = 1.0
    again = Decoupling.from_arrays(found.to_arrays())
    np.testing.assert_array_equal(again(truth.x), found(truth.x))
    assert again.info == found.info
    assert json.loads(found.to_arrays()["info"].tobytes())["polish"] == "lm"
    assert repr(found).startswith("Decoupling(4 -> 2 -> 3, degree=3, n_basis=12, error=")
    with pytest.raises(ValueError, match=r"missing \['bias'\]"):
        Decoupling.from_arrays({key: value for key, value in found.to_arrays().items() if key != "bias"})
    same = fit_of(truth, 2, n_restarts=2, max_iter=20, polish_iter=20)
    np.testing.assert_array_equal(same.w, found.w)


def test_float32_stays_float32():
    truth = problem("poly", 2, 2, 2, 0)
    single = [a.astype(np.float32) for a in truth[:3]]
    found = decouple(*single, rank=2, n_basis=6, n_restarts=2, rng=0)
    assert found.w.dtype == found.coefficients.dtype == found(single[0]).dtype == np.float32
    assert found.error < 1e-5


def degenerate(kind):
    truth = problem("tanh", 3, 3, 3, 0, count=80)
    x, f, jac = truth.x.copy(), truth.f.copy(), truth.jac.copy()
    rank = 3
    if kind == "ties":
        x = np.round(x)
        f, jac = sample_jacobians(lambda a: np.tanh(a @ truth.v) @ truth.w.T, x)
    elif kind == "constant input":
        x[:, 1] = 0.5
        f, jac = sample_jacobians(lambda a: np.tanh(a @ truth.v) @ truth.w.T, x)
    elif kind == "constant outputs":
        f[:] = 2.0
        jac[:] = 0.0
    elif kind == "outlier":
        x[0] *= 1e6
        f, jac = sample_jacobians(lambda a: np.tanh(a @ truth.v) @ truth.w.T, x)
    elif kind == "one output":
        f, jac, rank = f[:, :1], jac[:, :1], 5
    elif kind == "more branches than outputs":
        rank = 7
    elif kind == "two samples":
        x, f, jac = x[:2], f[:2], jac[:2]
    elif kind == "one input":
        x = x[:, :1]
        f, jac = sample_jacobians(lambda a: np.tanh(a @ truth.v[:1]) @ truth.w.T, x)
    elif kind == "same sample":
        x[:], f[:], jac[:] = x[0], f[0], jac[0]
    elif kind == "linear":
        f, jac = sample_jacobians(lambda a: a @ truth.v @ truth.w.T, x)
    return x, f, jac, rank


KINDS = [
    "ties",
    "constant input",
    "constant outputs",
    "outlier",
    "one output",
    "more branches than outputs",
    "two samples",
    "one input",
    "same sample",
    "linear",
]


@pytest.mark.parametrize("kind", KINDS)
def test_degenerate_data_give_a_finite_result(kind):
    x, f, jac, rank = degenerate(kind)
    found = decouple(x, f, jac, rank=rank, n_basis=6, n_restarts=2, max_iter=15, polish_iter=10, rng=0)
    for part in (found.w, found.v, found.knots, found.coefficients, found.bias, found(x), found.jacobian(x)):
        assert np.isfinite(part).all()
    assert np.isfinite([found.error, found.jacobian_error]).all()
    assert found.error <= 1.0
    if kind == "constant outputs":
        assert found.error < 1e-12
        assert "zero Jacobians" in found.info.notes
    if kind == "two samples":
        assert "fewer data than parameters" in found.info.notes
    if kind == "linear":
        assert found.error < 1e-6


@pytest.mark.parametrize(
    "options",
    [
        {"degree": 1},
        {"n_basis": 4},
        {"weight": 0.0},
        {"ridge": 0.0},
        {"normalize": False},
        {"degree": 5},
        {"blend": 0.0},
    ],
    ids=str,
)
def test_options_at_their_limits(options):
    truth = problem("tanh", 3, 3, 3, 0, count=80)
    found = fit_of(truth, 3, n_restarts=2, max_iter=15, polish_iter=10, **{"n_basis": 8, **options})
    assert np.isfinite(found.error)
    assert found.jacobian_error < 0.7
    assert ("no polish at degree 1" in found.info.notes) == (options.get("degree") == 1)


X, F, J = np.zeros((5, 2)), np.zeros((5, 3)), np.zeros((5, 3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decouple(X[0], F, J, rank=1), r"x must have two axes, one row a sample, got shape \(2,\)"),
        (lambda: decouple(X[:1], F[:1], J[:1], rank=1), "x must hold at least two samples"),
        (lambda: decouple(X, F[:4], J, rank=1), "f must have one row for each of the 5 samples of x"),
        (lambda: decouple(X, F, J.transpose(0, 2, 1), rank=1), r"jac must have shape \(N, n, m\) = \(5, 3, 2\)"),
        (lambda: decouple(X + np.nan, F, J, rank=1), "x must be finite"),
        (lambda: decouple(X, F, J + np.inf, rank=1), "jac must be finite"),
        (lambda: decouple(X + 0j, F, J, rank=1), "x must hold real numbers, got dtype complex128"),
        (lambda: decouple(X, F, J, rank=0), "rank must be at least 1, got 0"),
        (lambda: decouple(X, F, J, rank=1, degree=0), "degree must be between 1 and 7, got 0"),
        (lambda: decouple(X, F, J, rank=1, n_basis=3), "n_basis must be at least 4, got 3"),
        (lambda: decouple(X, F, J, rank=1, weight=-1), "weight must be a finite number, at least 0, got -1"),
        (lambda: decouple(X, F, J, rank=1, regularization="l1"), "regularization must be 'proximal' or 'ridge'"),
        (lambda: decouple(X, F, J, rank=1, coefficients="all"), "coefficients must be 'project' or 'exact'"),
        (lambda: decouple(X, F, J, rank=1, polish="sgd"), "polish must be True, False"),
        (lambda: decouple(X, F, J, rank=1, n_restarts=0), "n_restarts must be at least 1, got 0"),
        (lambda: decouple(X, F, J, rank=1, blend=1.5), "blend must be a number in"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- sampling and networks --------------------------------------------------------------------------------------------


def network(h=8, m=3, n=4, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (h, m), (h,), (n, h), (n,)
    return [rng.standard_normal(shape) for shape in shapes], rng.standard_normal((60, m))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "sigmoid", "silu", "tanh"])
def test_jacobians_of_networks_agree_with_torch_and_differences(activation):
    torch = pytest.importorskip("torch")
    weights, x = network()
    f, jac = mlp_jacobians(*weights, activation, x)
    by_differences = sample_jacobians(lambda a: mlp_jacobians(*weights, activation, a)[0], x)
    np.testing.assert_allclose(by_differences[1], jac, atol=1e-8 if activation != "relu" else 1e-4)
    w1, b1, w2, b2 = (torch.from_numpy(a) for a in weights)
    name = "gelu" if activation == "gelu_tanh" else activation
    extra = {"approximate": "tanh"} if activation == "gelu_tanh" else {}
    act = getattr(torch.nn.functional, name)
    by_torch = sample_jacobians(lambda a: act(a @ w1.T + b1, **extra) @ w2.T + b2, torch.from_numpy(x))
    np.testing.assert_allclose(by_torch[0], f, atol=1e-12)
    np.testing.assert_allclose(by_torch[1], jac, atol=1e-12)


def test_a_network_is_decoupled_without_its_jacobians():
    weights, x = network(h=6)
    found = decouple_mlp(*weights, "tanh", x, rank=6, n_basis=16, polish_iter=60, rng=0)
    f, jac = mlp_jacobians(*weights, "tanh", x)
    assert found.error == pytest.approx(np.linalg.norm(found(x) - f) / np.linalg.norm(f))
    by_entries = np.linalg.norm(found.jacobian(x) - jac) / np.linalg.norm(jac)
    assert found.jacobian_error == pytest.approx(by_entries, rel=1e-4)
    assert found.jacobian_error < 2e-2
    assert found.error < 1e-2
    dense = decouple(x, f, jac, rank=6, n_basis=16, n_restarts=2, polish_iter=30, rng=0)
    assert found.jacobian_error < 3 * dense.jacobian_error + 1e-3


def test_bad_networks_are_named():
    (w1, b1, w2, b2), x = network()
    for call, message in (
        (lambda: decouple_mlp(w1.T, b1, w2, b2, "tanh", x, rank=2), r"w1 must have shape \(h, m\) with m = 3"),
        (lambda: decouple_mlp(w1, b1, w2.T, b2, "tanh", x, rank=2), r"w2 must have shape \(n, h\) with h = 8"),
        (lambda: decouple_mlp(w1, b2, w2, b2, "tanh", x, rank=2), r"b1 must have shape \(8,\)"),
        (lambda: decouple_mlp(w1, b1, w2, b2, "softmax", x, rank=2), "activation must be one of gelu, .*got 'softmax'"),
        (lambda: sample_jacobians(lambda a: a[:, 0], x), r"fn must map \(N, m\) to \(N, n\)"),
        (lambda: sample_jacobians(lambda a: a, x, method="forward"), "method must be"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
