"""shared_basis against the definition, the singular value tail, exact budgets and dense least squares."""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest

import tensorfact
from tensorfact.factor import SharedBasis, SparseCodes
from tensorfact.factor._shared_budget import budget_shares
from tensorfact.factor._shared_codes import code_bytes
from tensorfact.factor._shared_refit import Member, loss, refit_basis, refit_codes, scores, top
from tensorfact.factor.shared_basis import svd_start

Array = Any
D, N = 24, 60


def weights(dtype: Any = np.float64, count: int = 4, seed: int = 0) -> list[Array]:
    """Return matrices of both orientations whose singular values fall slowly."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        u, _ = np.linalg.qr(rng.standard_normal((D, D)))
        v, _ = np.linalg.qr(rng.standard_normal((N, D)))
        made = (u * np.arange(1, D + 1) ** -0.3) @ v.T
        found.append((made.T if i % 2 == 0 else made).astype(dtype))
    return found


def grams(seed: int = 1, rank: int | None = None) -> list[Array]:
    """Return Gram matrices of inputs with a few strong directions, of the inputs of `weights()`."""
    rng = np.random.default_rng(seed)
    found = []
    for matrix in weights():
        size = matrix.shape[1]
        x = rng.standard_normal((rank or 4 * size, size)) * np.exp(rng.standard_normal(size))
        found.append(x.T @ x)
    return found


def side_by_side(matrices: list[Array]) -> Array:
    return np.hstack([w.T if w.shape[0] >= w.shape[1] else w for w in matrices]).astype(np.float64)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float64, 1e-12)])
@pytest.mark.parametrize("rank", [D, D + 7, 3 * D])
def test_padding_leaves_the_product_as_it_is(dtype: Any, tolerance: float, rank: int) -> None:
    targets = [np.ascontiguousarray(w.T if w.shape[0] >= w.shape[1] else w) for w in weights(dtype)]
    _, basis, codes = svd_start(targets, rank, np.random.default_rng(0))
    whole = np.hstack(codes)
    assert basis.shape == (D, rank)
    assert np.linalg.norm(basis @ whole - np.hstack(targets)) < tolerance * np.linalg.norm(np.hstack(targets))
    # bit for bit: the further columns of the basis are zero
    assert np.array_equal(basis[:, :D] @ whole[:D], basis[:, :D] @ np.hstack(codes)[:D])
    assert not basis[:, D:].any()
    assert np.linalg.norm(basis[:, :D].T @ basis[:, :D] - np.eye(D)) < 10 * tolerance
    if rank > D:  # gradients reach the zero columns, because their codes are not zero
        assert np.all(np.any(whole[D:] != 0, axis=1))


@pytest.mark.parametrize("rank", [1, 7, 20])
def test_without_a_mask_the_error_is_the_singular_tail(rank: int) -> None:
    wide = side_by_side(weights())
    sigma = np.linalg.svd(wide, compute_uv=False)
    _, basis, codes = svd_start(
        [w.T if w.shape[0] >= w.shape[1] else w for w in weights()], rank, np.random.default_rng(0)
    )
    lost = np.linalg.norm(wide - basis @ np.hstack(codes)) ** 2
    assert lost == pytest.approx(float(np.sum(sigma[rank:] ** 2)), rel=1e-8)


def test_one_matrix_with_full_codes_is_its_truncated_svd() -> None:
    (matrix,) = weights(count=1)
    ratio = 10 * (D + N) / (D * N)
    made = tensorfact.shared_basis([matrix], param_ratio=ratio, sparsity=0.0, budget="parameters", sweeps=0, rng=0)
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    assert made.rank == 10
    assert made.density == 1.0
    assert made.reconstruct(0) == pytest.approx((u[:, :10] * s[:10]) @ vh[:10], abs=1e-10)


@pytest.mark.parametrize(
    ("ratio", "sparsity", "form"), [*product([0.3, 0.5, 0.8], [0.5, 0.75, 0.97], ["bitmask", "csr"])]
)
def test_the_budget_is_met_in_bytes(ratio: float, sparsity: float, form: str) -> None:
    matrices = weights(np.float32)
    made = tensorfact.shared_basis(matrices, param_ratio=ratio, sparsity=sparsity, format=form, sweeps=0, rng=0)
    dense = sum(w.nbytes for w in matrices)
    arrays = made.to_arrays()
    stored = [part.nbytes for key, part in arrays.items() if key.split(".")[-1] in
              ("basis", "values", "mask", "indices", "pointers")]  # fmt: skip
    assert made.nbytes == sum(stored) <= ratio * dense
    assert made.nbytes > ratio * dense - 8 * len(matrices)  # not one value of each more fits
    # the rounding of the rank goes into values: less than a part in `rank` of them, and the cost of one column
    columns = sum(max(w.shape) for w in matrices)
    slack = (D + columns / 8) / (made.rank * columns) + (1 - sparsity) / made.rank
    assert 1 - sparsity - 1e-9 <= made.density <= 1 - sparsity + slack


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
def test_the_budget_is_met_in_parameters(ratio: float) -> None:
    matrices = weights(np.float32)
    made = tensorfact.shared_basis(matrices, param_ratio=ratio, budget="parameters", sweeps=0, rng=0)
    assert made.size == math.floor(ratio * made.dense_size + 1e-6)
    # compute_sparse_r of FiPS with the true widths
    share = made.dense_size / D**2
    assert made.rank == math.floor(ratio * share * D / (share * 0.25 + 1))


@pytest.mark.parametrize(
    ("short", "widths", "ratio", "free", "honest"),
    [  # the table of the specification: DeiT-B, Gemma-2-2B in groups of 8 and 4, Llama-3.1-8B with its true hidden size
        (768, [3072] * 8, 0.10, 273, 223),
        (768, [3072] * 8, 0.25, 682, 558),
        (768, [3072] * 8, 0.50, 1365, 1117),
        (2304, [9216] * 24, 0.40, 3538, 2853),
        (2304, [9216] * 12, 0.60, 5104, 4147),
        (4096, [14336] * 12, 0.25, 3739, 3044),
        (4096, [14336] * 12, 0.60, 8975, 7307),
    ],
)
def test_ranks_are_those_of_the_formula(short: int, widths: list[int], ratio: float, free: int, honest: int) -> None:
    counted = budget_shares(short, widths, ratio, 0.75, itemsize=2, budget="parameters")
    stored = budget_shares(short, widths, ratio, 0.75, itemsize=2, form="bitmask")
    assert counted.rank == free
    # the last byte of a column of the mask is filled up, which may cost one column of the basis
    assert honest - 1 <= stored.rank <= honest
    size = short * sum(widths)
    assert counted.rank * short + counted.kept == pytest.approx(ratio * size, rel=1e-3)
    parts = sum(code_bytes((stored.rank, n), 0, 2, "bitmask") for n in widths)
    assert 2 * (stored.rank * short + stored.kept) + parts == pytest.approx(ratio * 2 * size, rel=1e-6)
    assert stored.kept / (stored.rank * sum(widths)) == pytest.approx(0.25, abs=5e-4)


@pytest.mark.parametrize("rank", [None, 16, 40])
def test_a_given_rank_and_an_automatic_sparsity(rank: int | None) -> None:
    made = tensorfact.shared_basis(weights(), param_ratio=0.6, sparsity="auto", rank=rank, sweeps=0, rng=0)
    assert made.rank == (rank or D)
    assert made.nbytes <= 0.6 * made.dense_size * 8
    small = tensorfact.shared_basis(weights(), param_ratio=0.1, sparsity="auto", sweeps=0, rng=0)
    assert small.rank < D


def test_pruning_keeps_the_largest_of_all_together() -> None:
    made = tensorfact.shared_basis(weights(), param_ratio=0.5, rank=D, sweeps=0, rng=0)
    codes = made.basis.T @ side_by_side(weights())  # an orthonormal basis: codes are projections
    kept = np.hstack([code.kept() for code in made.codes])
    assert abs(codes[kept]).min() >= abs(codes[~kept]).max()
    assert np.count_nonzero(kept) == sum(len(code.values) for code in made.codes)
    assert len({round(code.density, 6) for code in made.codes}) > 1


def test_ties_are_cut_in_order() -> None:
    found = top([np.ones((2, 3)), np.ones((1, 4))], 7)
    assert [int(part.sum()) for part in found] == [6, 1]
    assert found[1].tolist() == [[True, False, False, False]]
    assert all(part.all() for part in top([np.ones((2, 2))], 9))


@pytest.mark.parametrize("mask", [None, "random", "empty row"])
@pytest.mark.parametrize("index", [0, 1])
def test_codes_reach_the_least_squares_optimum(mask: str | None, index: int) -> None:
    """Against a dense solve in float64 with the Kronecker product of both metrics."""
    rng = np.random.default_rng(2)
    target, basis = rng.standard_normal((6, 9)), rng.standard_normal((6, 5))
    x = rng.standard_normal((30, 9 if index else 6))
    member = Member(target, short=None if index else x.T @ x, long=x.T @ x if index else None)
    keep = np.ones((5, 9), bool) if mask is None else rng.random((5, 9)) < 0.6
    if mask == "empty row":
        keep[2] = False
    left = np.eye(6) if member.short is None else member.short
    right = np.eye(9) if member.long is None else member.long
    system = np.kron(basis.T @ left @ basis, right)[np.ix_(keep.ravel(), keep.ravel())]
    expected = np.zeros(keep.shape)
    expected[keep] = np.linalg.solve(system, (basis.T @ left @ target @ right)[keep])
    found = refit_codes(basis, np.zeros((5, 9)), None if mask is None else keep, member, 400)
    assert found == pytest.approx(expected, abs=1e-7)
    assert not found[~keep].any()


def test_the_basis_reaches_the_least_squares_optimum() -> None:
    rng = np.random.default_rng(3)
    members, codes = [], []
    for i in range(3):
        x = rng.standard_normal((30, 7 if i else 5))
        target = rng.standard_normal((5, 7))
        members.append(Member(target, short=None if i else x.T @ x, long=x.T @ x if i else None, weight=1 + i))
        codes.append(rng.standard_normal((4, 7)))
    system, right_hand = np.zeros((20, 20)), np.zeros((5, 4))
    for member, v in zip(members, codes, strict=True):
        left = np.eye(5) if member.short is None else member.short
        right = np.eye(7) if member.long is None else member.long
        system += member.weight * np.kron(left, v @ right @ v.T)
        right_hand += member.weight * left @ member.target @ right @ v.T
    expected = np.linalg.solve(system, right_hand.ravel()).reshape(5, 4)
    found = refit_basis(np.zeros((5, 4)), codes, members, 400)
    assert found == pytest.approx(expected, abs=1e-7)


def test_the_loss_falls_with_every_half_sweep() -> None:
    made = tensorfact.shared_basis(weights(), param_ratio=0.4, sweeps=0, rng=0)
    members = []
    for w, gram in zip(weights(), grams(), strict=True):
        flip = w.shape[0] >= w.shape[1]
        members.append(Member(w.T if flip else w, short=gram if flip else None, long=None if flip else gram))
    basis, codes = np.array(made.basis), [code.dense() for code in made.codes]
    masks = [code.kept() for code in made.codes]
    losses = [loss(basis, codes, members)]
    for _ in range(4):
        codes = [refit_codes(basis, v, k, m, 3) for v, k, m in zip(codes, masks, members, strict=True)]
        losses.append(loss(basis, codes, members))
        basis = refit_basis(basis, codes, members, 3)
        losses.append(loss(basis, codes, members))
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(losses))
    assert losses[-1] < 0.5 * losses[0]


def test_one_matrix_reaches_the_whitened_optimum() -> None:
    """No mask, one input-side matrix: the alternation converges to the SVD of ``G^(1/2) W`` (LR-9)."""
    rng = np.random.default_rng(4)
    target = rng.standard_normal((8, 20))
    x = rng.standard_normal((50, 8)) * np.arange(1, 9)
    gram = x.T @ x
    values, vectors = np.linalg.eigh(gram)
    sigma = np.linalg.svd((vectors * np.sqrt(values)).T @ target, compute_uv=False)
    optimum = float(np.sum(sigma[3:] ** 2))
    member = Member(target, short=gram)
    _, basis, (codes,) = svd_start([target], 3, rng)
    for _ in range(300):
        codes = refit_codes(basis, codes, None, member, 8)
        basis = refit_basis(basis, [codes], [member], 8)
    found = loss(basis, [codes], [member])
    assert optimum * (1 - 1e-9) <= found <= optimum * (1 + 1e-3)


@pytest.mark.parametrize("singular", [False, True])
def test_data_lowers_the_error_of_the_outputs(singular: bool) -> None:
    given = grams(rank=5 if singular else None)

    def output_error(made: SharedBasis) -> float:
        lost = whole = 0.0
        for i, (w, gram) in enumerate(zip(weights(), given, strict=True)):
            delta = w - made.reconstruct(i)
            total = float(np.sum((w @ gram) * w))
            lost += float(np.sum((delta @ gram) * delta)) / total
            whole += 1
        return math.sqrt(lost / whole)

    blind = tensorfact.shared_basis(weights(), param_ratio=0.4, rng=0)
    seeing = tensorfact.shared_basis(weights(), param_ratio=0.4, grams=given, rng=0)
    assert output_error(seeing) < 0.7 * output_error(blind)
    assert seeing.info.final_error == pytest.approx(output_error(seeing), rel=1e-6)
    assert seeing.info.final_error < seeing.info.start_error
    assert seeing.info.data
    assert not blind.info.data
    assert blind.error <= seeing.error


def test_sweeps_lower_the_error_and_never_raise_it() -> None:
    errors = [tensorfact.shared_basis(weights(), param_ratio=0.5, sweeps=n, rng=0).error for n in (0, 1, 6)]
    assert errors[2] < errors[0]
    assert max(errors[1:]) <= errors[0] * (1 + 1e-9)


def test_scores_are_what_an_entry_adds() -> None:
    rng = np.random.default_rng(5)
    target, basis, codes = rng.standard_normal((4, 6)), rng.standard_normal((4, 3)), rng.standard_normal((3, 6))
    x = rng.standard_normal((20, 6))
    member = Member(target, long=x.T @ x, weight=2.0)
    found = scores(basis, codes, member)
    for i, j in product(range(3), range(6)):
        alone = np.zeros((3, 6))
        alone[i, j] = codes[i, j]
        assert found[i, j] == pytest.approx(math.sqrt(2.0 * member.norm2(basis @ alone)))


@pytest.mark.parametrize("form", ["bitmask", "csr", "auto"])
@pytest.mark.parametrize("shape", [(5, 7), (8, 3), (17, 70_000), (1, 1)])
def test_packing_goes_both_ways(form: Any, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(6)
    dense = rng.standard_normal(shape).astype(np.float32)
    mask = rng.random(shape) < 0.3
    if shape[0] > 4:
        mask[0], mask[1] = False, True
    codes = SparseCodes.pack(dense, mask, form)
    assert np.array_equal(codes.dense(), np.where(mask, dense, 0))
    assert np.array_equal(codes.kept(), mask)
    parts = [p for p in (codes.values, codes.mask, codes.indices, codes.pointers) if p is not None]
    assert codes.nbytes == sum(part.nbytes for part in parts)
    again = SparseCodes.from_arrays(codes.to_arrays())
    assert np.array_equal(again.dense(), codes.dense())
    assert again.format == codes.format


def test_few_values_are_stored_by_index() -> None:
    mask = np.zeros((64, 64), bool)
    mask[3, 5] = True
    assert SparseCodes.pack(np.ones((64, 64), np.float32), mask).format == "csr"
    assert SparseCodes.pack(np.ones((64, 64), np.float32), ~mask).format == "bitmask"


def test_the_result_goes_through_arrays() -> None:
    made = tensorfact.shared_basis(weights(np.float32), param_ratio=0.5, rng=0)
    again = SharedBasis.from_arrays(made.to_arrays())
    for i, matrix in enumerate(weights(np.float32)):
        assert again.shapes[i] == matrix.shape
        assert np.array_equal(again.reconstruct(i), made.reconstruct(i))
    assert (again.error, again.info, again.nbytes) == (made.error, made.info, made.nbytes)
    assert "4 matrices" in repr(again)
    with pytest.raises(ValueError, match="missing"):
        SharedBasis.from_arrays({"basis": made.basis})
    with pytest.raises(ValueError, match="read-only"):
        made.basis[0, 0] = 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_error_is_that_of_what_is_stored(dtype: Any) -> None:
    matrices = weights(dtype)
    made = tensorfact.shared_basis(matrices, param_ratio=0.5, rng=0)
    pairs = [(w.astype(np.float64), made.reconstruct(i).astype(np.float64)) for i, w in enumerate(matrices)]
    lost = math.sqrt(sum(np.sum((w - r) ** 2) for w, r in pairs) / sum(np.sum(w**2) for w, _ in pairs))
    assert made.error == pytest.approx(lost, rel=1e-6)
    assert made.dtype == dtype
    assert made.nbytes <= 0.5 * sum(w.nbytes for w in matrices)


def test_a_run_is_repeatable() -> None:
    first, second = (tensorfact.shared_basis(weights(np.float32), param_ratio=0.4, rng=3) for _ in range(2))
    assert np.array_equal(first.basis, second.basis)
    assert all(np.array_equal(a.values, b.values) for a, b in zip(first.codes, second.codes, strict=True))


def test_zero_matrices() -> None:
    made = tensorfact.shared_basis([np.zeros((8, 20)), np.zeros((8, 20))], param_ratio=0.5)
    assert made.error == 0.0
    assert not made.reconstruct(1).any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": []}, "at least one matrix"),
        ({"weights": [np.zeros((3, 4, 5))]}, "matrices that are not empty"),
        ({"weights": [np.ones((4, 8)), np.ones((5, 8))]}, "one short side, got 4 at 0 and 5 at 1"),
        ({"weights": [np.full((4, 8), np.nan)]}, "finite"),
        ({"weights": [np.ones((4, 8), complex)]}, "real floating"),
        ({"weights": [np.ones((4, 8)), np.ones((4, 8), np.float32)]}, "one dtype"),
        ({"param_ratio": 0.0}, "param_ratio"),
        ({"param_ratio": 1.5}, "param_ratio"),
        ({"param_ratio": 1e-3}, "param_ratio must leave room"),
        ({"sparsity": 1.0}, "sparsity"),
        ({"budget": "bits"}, "budget"),
        ({"format": "coo"}, "format"),
        ({"sweeps": -1}, "sweeps"),
        ({"rank": 0}, "rank"),
        ({"rank": 200}, "param_ratio must leave room"),
        ({"grams": [None]}, "one a weight"),
        ({"grams": [np.eye(3)] * 4}, "grams must be finite of shape"),
        ({"grams": [np.full((w.shape[1],) * 2, np.inf) for w in weights()]}, "grams must be finite"),
        ({"grams": [np.zeros((w.shape[1],) * 2) for w in weights()]}, "not all zero"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], words: str) -> None:
    arguments: dict[str, Any] = {"weights": weights(), "param_ratio": 0.5, **change}
    with pytest.raises(ValueError, match=words):
        tensorfact.shared_basis(arguments.pop("weights"), **arguments)


def test_broken_codes_are_refused() -> None:
    codes = SparseCodes.pack(np.ones((9, 4)), np.eye(9, 4, dtype=bool), "bitmask")
    with pytest.raises(ValueError, match="as many as places"):
        SparseCodes(shape=(9, 4), values=np.ones(3), mask=codes.mask)
    with pytest.raises(ValueError, match="uint8"):
        SparseCodes(shape=(9, 5), values=codes.values, mask=codes.mask)
    with pytest.raises(ValueError, match="mask, or indices"):
        SparseCodes(shape=(9, 4), values=codes.values)


@pytest.mark.parametrize(("dtype", "scale"), [("f", 1e-30), ("f", 1e30), ("d", 1e-200), ("d", 1e200), ("e", 1e4)])
def test_errors_do_not_depend_on_the_scale(dtype, scale):
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((64, 16)) for _ in range(3)]
    weights = [np.clip(w, -6, 6) for w in weights]  # float16 ends at 65504
    plain, scaled = (
        tensorfact.shared_basis([(w * by).astype(dtype) for w in weights], param_ratio=0.6, rng=0)
        for by in (1.0, scale)
    )
    assert scaled.error == pytest.approx(plain.error, rel=1e-2)  # float16 rounds other digits
    assert scaled.info.final_error == pytest.approx(plain.info.final_error, rel=1e-2)


@pytest.mark.parametrize("gram", [np.diag([10.0, -5.0] + [1.0] * 14), np.eye(16) + 5 * np.eye(16, k=1)])
def test_gram_matrices_that_are_none_are_refused(gram):
    w = np.random.default_rng(0).standard_normal((64, 16))
    with pytest.raises(ValueError, match="grams must be sums of x x\\^T"):
        tensorfact.shared_basis([w], param_ratio=0.6, grams=[gram], rng=0)
