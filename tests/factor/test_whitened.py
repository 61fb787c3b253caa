"""Whitened SVD: the loss is the singular tail of A X, in every form, for singular Gram matrices too."""

from __future__ import annotations

import numpy as np
import pytest

import tensorfact
from tensorfact.factor import whitened_singular_values, whitened_svd

FORMS = ("output", "input", "cholesky")


def problem(m: int, n: int, inputs: int, seed: int = 0, *, complex_: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return a weight and inputs whose directions have scales from 1 to 1e-2."""
    rng = np.random.default_rng(seed)
    mix = np.linalg.qr(rng.standard_normal((n, n)))[0] * np.geomspace(1, 1e-2, n)
    x = mix @ rng.standard_normal((n, inputs))
    w = rng.standard_normal((m, n)) * np.geomspace(1, 0.1, m)[:, None]
    if complex_:
        x = x + 1j * mix @ rng.standard_normal((n, inputs))
        w = w + 1j * rng.standard_normal((m, n))
    return w, x


def tail(w: np.ndarray, x: np.ndarray, rank: int) -> float:
    """Oracle: the squared singular values of A X beyond the rank, from the outputs themselves."""
    return float(np.sum(np.linalg.svd(w @ x, compute_uv=False)[rank:] ** 2))


@pytest.mark.parametrize("form", [*FORMS, "auto"])
@pytest.mark.parametrize(("m", "n"), [(24, 40), (40, 24), (30, 30), (1, 8), (8, 1)])
@pytest.mark.parametrize("complex_", [False, True])
def test_the_loss_is_the_singular_tail(form: str, m: int, n: int, complex_: bool) -> None:
    w, x = problem(m, n, 200, complex_=complex_)
    gram = x @ x.conj().T
    for rank in sorted({1, min(m, n) // 2, min(m, n) - 1} - {0}):
        made = whitened_svd(w, gram, rank=rank, form=form)
        left, right = made.factors()
        assert left.shape == (m, rank)
        assert right.shape == (rank, n)
        lost = float(np.linalg.norm((w - left @ right) @ x) ** 2)
        total = float(np.linalg.norm(w @ x) ** 2)
        expected = tail(w, x, rank)
        assert lost == pytest.approx(expected, rel=1e-6)
        assert made.error**2 * total == pytest.approx(expected, rel=1e-6, abs=1e-12 * total)
        assert made.weight_error == pytest.approx(np.linalg.norm(w - left @ right) / np.linalg.norm(w), rel=1e-9)
        np.testing.assert_allclose(made.s, np.linalg.svd(w @ x, compute_uv=False)[:rank], rtol=1e-6)
        np.testing.assert_allclose(made.left.conj().T @ made.left, np.eye(rank), atol=1e-10)


@pytest.mark.parametrize(("m", "n"), [(24, 40), (40, 24)])
def test_the_three_published_forms_agree(m: int, n: int) -> None:
    w, x = problem(m, n, 300)
    made = [whitened_svd(w, x @ x.T, rank=10, form=form).reconstruct() for form in FORMS]
    for other in made[1:]:
        np.testing.assert_allclose(other, made[0], atol=1e-8 * np.abs(made[0]).max())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("m", "n"), [(24, 40), (40, 24)])
def test_a_singular_gram_matrix_is_no_obstacle(form: str, m: int, n: int) -> None:
    w, x = problem(m, n, 12)  # twelve inputs: the outputs have rank 12
    gram = x @ x.T
    assert np.linalg.matrix_rank(gram) == 12
    total = float(np.linalg.norm(w @ x) ** 2)
    for rank in (5, 11):
        made = whitened_svd(w, gram, rank=rank, form=form)
        lost = float(np.linalg.norm((w - made.reconstruct()) @ x) ** 2)
        # The Cholesky form needs a ridge of 1e-6 of the largest eigenvalue, and solves that problem
        rel = 1e-6 if form != "cholesky" else 1e-2
        assert lost == pytest.approx(tail(w, x, rank), rel=rel)
    made = whitened_svd(w, gram, rank=20, form=form)
    assert np.linalg.norm((w - made.reconstruct()) @ x) ** 2 <= 1e-9 * total
    assert made.rank == 20


@pytest.mark.parametrize("form", ["output", "input"])
def test_rank_beyond_the_inputs_serves_the_weight(form: str) -> None:
    w, x = problem(24, 40, 6)
    found = whitened_svd(w, x @ x.T, rank=15, form=form)
    basis = np.linalg.svd(w @ x, full_matrices=False)[0][:, :6]
    rest = w - basis @ (basis.T @ w)
    best = np.sqrt(np.sum(np.linalg.svd(rest, compute_uv=False)[9:] ** 2)) / np.linalg.norm(w)
    assert found.weight_error == pytest.approx(best, rel=1e-8)
    everything = whitened_svd(w, x @ x.T, rank=24, form=form)
    assert everything.weight_error < 1e-12
    nothing = whitened_svd(w, np.zeros((40, 40)), rank=7, form=form)
    plain = np.linalg.svd(w, compute_uv=False)
    assert nothing.weight_error == pytest.approx(np.sqrt(np.sum(plain[7:] ** 2) / np.sum(plain**2)), rel=1e-9)
    assert nothing.error == 0.0


def test_no_random_candidate_of_the_rank_is_better() -> None:
    w, x = problem(20, 30, 100)
    gram = x @ x.T
    made = whitened_svd(w, gram, rank=6)
    rng = np.random.default_rng(1)
    for scale in (1e-3, 1e-1, 1.0):
        for _ in range(20):
            left = made.left + scale * rng.standard_normal(made.left.shape)
            right = made.right + scale * rng.standard_normal(made.right.shape)
            lost = np.linalg.norm((w - left @ right) @ x) / np.linalg.norm(w @ x)
            assert lost >= made.error * (1 - 1e-9)


def test_the_identity_gives_the_plain_svd() -> None:
    w, _ = problem(20, 30, 1)
    made = whitened_svd(w, np.eye(30), rank=6)
    plain = tensorfact.randomized_svd(w, rank=6, rng=0, n_iter=30)
    assert made.error == pytest.approx(plain.error, rel=1e-6)
    assert made.error == pytest.approx(made.weight_error, rel=1e-9)


@pytest.mark.parametrize("shape", [(30, 20), (20, 30)])
def test_tol_is_the_smallest_rank_that_keeps_it(shape: tuple[int, int]) -> None:
    w, x = problem(*shape, 100)
    made = whitened_svd(w, x @ x.T, tol=0.2)
    assert made.error <= 0.2
    assert whitened_svd(w, x @ x.T, rank=made.rank - 1).error > 0.2
    capped = whitened_svd(w, x @ x.T, tol=0.2, max_rank=2)
    assert capped.rank == 2
    assert capped.error > 0.2


def test_singular_values_are_those_of_the_outputs() -> None:
    for shape in ((30, 20), (20, 30)):
        w, x = problem(*shape, 50)
        np.testing.assert_allclose(
            whitened_singular_values(w, x @ x.T), np.linalg.svd(w @ x, compute_uv=False)[:20], rtol=1e-6
        )
    assert np.count_nonzero(whitened_singular_values(w, np.zeros((30, 30)))) == 0


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.complex64])
def test_types_survive_and_factors_multiply_to_the_same(dtype: type) -> None:
    w, x = problem(20, 30, 100)
    made = whitened_svd(w.astype(dtype), x @ x.T, rank=6)
    assert made.dtype == dtype
    eps = np.finfo(dtype).eps
    for split in ("sqrt", "left", "right"):
        left, right = made.factors(split)
        assert left.dtype == right.dtype == dtype
        np.testing.assert_allclose(left @ right, made.reconstruct(), atol=30 * eps * np.abs(w).max())
    left, right = made.factors("sqrt")
    np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1), rtol=50 * eps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": np.ones(3)}, "a must be a matrix"),
        ({"a": np.full((3, 4), np.nan)}, "a must be finite"),
        ({"gram": np.full((4, 4), np.inf)}, "gram must be finite"),
        ({"gram": np.eye(3)}, r"gram must have shape \(4, 4\)"),
        ({"gram": np.triu(np.ones((4, 4)))}, "gram must be Hermitian"),
        ({"gram": -np.eye(4)}, "gram must be positive semidefinite"),
        ({"gram": np.ones((4, 4)) - 2 * np.eye(4) + np.diag([2.0] * 4) - np.eye(4)}, "positive semidefinite"),
        ({"rank": 4}, "rank must be between 1 and 3"),
        ({"rank": True}, "rank must be an integer"),
        ({"rank": None}, "exactly one of rank and tol"),
        ({"tol": 0.5}, "exactly one of rank and tol"),
        ({"max_rank": 2}, "max_rank goes with tol"),
        ({"form": "qr"}, "form must be"),
    ],
)
def test_bad_input_is_named(change: dict[str, object], message: str) -> None:
    given: dict[str, object] = {"a": np.arange(12.0).reshape(3, 4), "gram": np.eye(4), "rank": 2, **change}
    a, gram = given.pop("a"), given.pop("gram")
    with pytest.raises(ValueError, match=message):
        whitened_svd(a, gram, **given)


def test_split_is_checked() -> None:
    with pytest.raises(ValueError, match="split must be"):
        whitened_svd(np.eye(3), np.eye(3), rank=1).factors("middle")


@pytest.mark.parametrize("scale", [1e-170, 1e-30, 1e30, 1e160])
def test_errors_do_not_depend_on_the_scale(scale):
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((6, 8)), rng.standard_normal((8, 30))
    plain, scaled = whitened_svd(w, x @ x.T, rank=2), whitened_svd(w * scale, x @ x.T, rank=2)
    assert scaled.error == pytest.approx(plain.error, rel=1e-9)
    assert scaled.weight_error == pytest.approx(plain.weight_error, rel=1e-9)
    np.testing.assert_allclose(scaled.s / scale, plain.s, rtol=1e-9)
    np.testing.assert_allclose(scaled.reconstruct() / scale, plain.reconstruct(), rtol=0, atol=1e-12)


def test_many_small_values_count_towards_the_tolerance():
    n, rng = 300, np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    s = np.full(n, 0.9 * np.sqrt(n * np.finfo(np.float64).eps))
    s[0] = 1.0
    w = (u * s) @ v.T
    for form in ("output", "input"):
        found = whitened_svd(w, np.eye(n), tol=1e-6, form=form)
        assert np.linalg.norm(w - found.reconstruct()) <= 1e-6 * np.linalg.norm(w)


def test_left_factors_stay_orthonormal_for_badly_scaled_inputs():
    for seed in range(4):
        rng = np.random.default_rng(seed)
        w, q = rng.standard_normal((60, 40)), np.linalg.qr(rng.standard_normal((40, 40)))[0]
        found = whitened_svd(w, (q * np.logspace(0, -8, 40) ** 2) @ q.T, rank=40, form="input")
        assert np.abs(found.left.T @ found.left - np.eye(40)).max() <= 1e-13
        assert found.weight_error <= 1e-12
