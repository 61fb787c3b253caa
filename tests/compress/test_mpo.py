"""The mpo method: cores, errors and budgets against einsum, numpy.linalg and counting."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tensorfact.compress._method import Layer, create, owner, stored_size
from tensorfact.compress.checkpoint import TensorInfo
from tensorfact.compress.mpo import MPOMethod, mode_shapes

RNG = np.random.default_rng(0)


def layer(name, shape):
    return Layer(name, "linear", shape, TensorInfo(f"{name}.weight", "F32", shape, "", 0, 4 * shape[0] * shape[1]))


def weight(shape, dtype=np.float64, decay=0.5):
    u, _ = np.linalg.qr(RNG.standard_normal((shape[0], min(shape))))
    v, _ = np.linalg.qr(RNG.standard_normal((shape[1], min(shape))))
    return ((u * np.arange(1, min(shape) + 1) ** -decay) @ v.T).astype(dtype)


def multiplied_out(arrays):
    """The definition, one einsum: W[(i1..iL), (j1..jL)] = A1[0, i1, j1, a] A2[a, i2, j2, b] ... AL[c, iL, jL, 0]."""
    cores = [np.asarray(arrays[f"cores.{k}"], np.float64) for k in range(len(arrays))]
    terms = [f"{chr(65 + k)}{chr(97 + k)}{chr(110 + k)}{chr(66 + k)}" for k in range(len(cores))]
    out = "".join(t[1] for t in terms) + "".join(t[2] for t in terms)
    last = terms[-1][3]
    dense = np.einsum(f"{','.join(terms)}->A{out}{last}", *cores)
    rows, cols = math.prod(c.shape[1] for c in cores), math.prod(c.shape[2] for c in cores)
    return dense.reshape(rows, cols)


def unfolding(w, rows, cols, k):
    """The matrix whose rows are the first k pairs of modes, entry by entry."""
    left = [range(n) for pair in zip(rows[:k], cols[:k], strict=True) for n in pair]
    right = [range(n) for pair in zip(rows[k:], cols[k:], strict=True) for n in pair]
    made = np.empty((math.prod(map(len, left)), math.prod(map(len, right))))
    for a, first in enumerate(itertools.product(*left)):
        for b, rest in enumerate(itertools.product(*right)):
            index = first + rest
            i, j = np.ravel_multi_index(index[::2], rows), np.ravel_multi_index(index[1::2], cols)
            made[a, b] = w[i, j]
    return made


def tails(w, order, bonds):
    rows, cols = mode_shapes(w.shape, order)
    values = [np.linalg.svd(unfolding(w, rows, cols, k), compute_uv=False) for k in range(1, order)]
    return [math.sqrt(sum(s[bond:] ** 2)) / np.linalg.norm(w) for s, bond in zip(values, bonds, strict=True)]


def test_modes_are_part_of_the_file_format():
    # A change here makes stored checkpoints unreadable.
    assert mode_shapes((384, 1536), 2) == ((16, 24), (48, 32))
    assert mode_shapes((1536, 384), 3) == ((8, 12, 16), (8, 8, 6))
    assert mode_shapes((576, 192), 2) == ((24, 24), (16, 12))
    assert mode_shapes((4096, 11008), 2) == ((64, 64), (128, 86))
    assert mode_shapes((30522, 768), 2) == ((6, 5087), (32, 24))
    assert mode_shapes((13, 12), 2) == ((1, 13), (4, 3))
    assert mode_shapes((13, 7), 2) == ((1, 13), (7, 1))


@pytest.mark.parametrize(
    ("shape", "bonds"), [((24, 36), (17,)), ((24, 36), (7, 8)), ((16, 24), (3, 9, 4)), ((13, 7), (3,))]
)
@pytest.mark.parametrize("balance", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_weight_becomes_cores_with_the_error_that_is_told(shape, bonds, balance, dtype):
    w = weight(shape, dtype)
    method = MPOMethod(order=len(bonds) + 1, balance=balance)
    made = method.factor(w, bonds, rng=np.random.default_rng(0))
    layout = method.layout(shape, bonds)
    assert {name: array.shape for name, array in made.arrays.items()} == layout
    assert list(layout) == [f"cores.{k}" for k in range(len(bonds) + 1)]
    assert {array.dtype for array in made.arrays.values()} == {np.dtype(dtype)}
    assert method.dense_shape(layout) == shape
    assert all(owner(method, f"a.b.{name}") == ("a.b", name) for name in layout)
    eps = np.finfo(dtype).eps
    dense = multiplied_out(made.arrays)
    np.testing.assert_allclose(method.expand(made.arrays), dense, rtol=0, atol=100 * eps * np.linalg.norm(w))
    true = np.linalg.norm(w - dense) / np.linalg.norm(w)
    assert abs(made.error - true) <= 1e-3 * true + 10 * eps
    lost = tails(np.asarray(w, np.float64), len(bonds) + 1, bonds)
    bound = math.sqrt(sum(tail**2 for tail in lost))
    assert max(lost) * (1 - 1e-4) - 10 * eps <= true <= bound * (1 + 1e-4) + 10 * eps
    analysis = method.analyse(w)
    assert method.predicted_error(analysis, bonds) == pytest.approx(bound, rel=1e-4)
    assert method.optimal_error(analysis, bonds) == (pytest.approx(bound, rel=1e-4) if len(bonds) == 1 else None)
    assert method.residual(w, made.arrays) == made.error


@pytest.mark.parametrize("bonds", [(17,), (7, 8), (6, 20, 6)])
def test_balanced_cores_share_the_singular_values(bonds):
    made = MPOMethod().factor(weight((24, 36)), bonds, rng=np.random.default_rng(0)).arrays
    cores = [made[f"cores.{k}"] for k in range(len(made))]
    left, rights = np.eye(1), [np.eye(1)]
    for core in cores[::-1]:
        rights.append(np.einsum("amnr,bmns,rs->ab", core, core, rights[-1]))
    for k, core in enumerate(cores[:-1], 1):
        left = np.einsum("ab,amnr,bmns->rs", left, core, core)
        right = rights[len(cores) - k]
        for gram in (left, right):
            assert np.abs(gram - np.diag(np.diag(gram))).max() <= 1e-13 * gram.max()
        ratio = np.diag(left) / np.diag(right)
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-11)
        # the scale of the whole is spread over the cores by powers of two
        assert math.log2(ratio[0]) / 2 == pytest.approx(round(math.log2(ratio[0]) / 2), abs=1e-9)
        assert 2.0**-6 <= ratio[0] <= 2.0**6


def test_the_spectrum_of_two_cores_is_that_of_the_reshuffled_weight():
    w = weight((24, 36))
    kept = w.copy()
    expected = np.linalg.svd(unfolding(w, *mode_shapes(w.shape, 2), 1), compute_uv=False)[:9]
    for balance in (True, False):
        found = MPOMethod(balance=balance).factor(w, (9,), rng=np.random.default_rng(0)).spectrum
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.array_equal(w, kept)


@pytest.mark.parametrize("bonds", [(6,), (6, 5), (2, 4, 3)])
def test_weights_that_need_fewer_bonds_fill_their_place_in_the_file(bonds):
    method = MPOMethod(order=len(bonds) + 1)
    rows, cols = mode_shapes((12, 16), len(bonds) + 1)
    one = np.ones((1, 1))
    for m, n in zip(rows, cols, strict=True):
        one = np.kron(one, RNG.standard_normal((m, n)))  # bonds of 1
    for w in (np.zeros((12, 16)), one, one.astype(np.float32)):
        made = method.factor(w, bonds, rng=np.random.default_rng(0))
        assert {name: array.shape for name, array in made.arrays.items()} == method.layout((12, 16), bonds)
        assert all(np.isfinite(array).all() for array in made.arrays.values())
        assert made.error <= 100 * np.finfo(w.dtype).eps


def test_spectra_are_those_of_the_unfoldings():
    w = weight((24, 36))
    for order in (2, 3, 4):
        method = MPOMethod(order=order)
        analysis = method.analyse(w)
        rows, cols = mode_shapes(w.shape, order)
        for k, row in enumerate(analysis, 1):
            s = np.linalg.svd(unfolding(w, rows, cols, k), compute_uv=False)
            np.testing.assert_allclose(row[: len(s)], s, atol=1e-10)
            assert not row[len(s) :].any()
        shown = method.spectrum(analysis)
        assert len(shown) == method.full_rank(w.shape)
        assert np.all(np.diff(shown) <= 0)
    assert MPOMethod().spectrum(np.empty(0)).size == 0
    assert MPOMethod().predicted_error(np.empty(0), (3,)) is None


shapes = st.lists(st.tuples(st.integers(2, 120), st.integers(2, 120)), min_size=1, max_size=5)
methods = st.builds(
    MPOMethod,
    order=st.integers(2, 4),
    allocation=st.sampled_from(["spectrum", "uniform"]),
    rank_multiple=st.sampled_from([1, 8]),
    min_saving=st.sampled_from([0.0, 0.1, 0.45]),
)


def spectra(method, layers, seed):
    """Made-up analyses of the right form: descending rows of one norm."""
    rng = np.random.default_rng(seed)
    found = {}
    for item in layers:
        rows, cols = mode_shapes(item.shape, method.order)
        sizes = [m * n for m, n in zip(rows, cols, strict=True)]
        lengths = [min(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, method.order)]
        values = np.zeros((len(lengths), max(lengths)))
        for row, length in zip(values, lengths, strict=True):
            row[:length] = np.sort(rng.pareto(1.5, length) + 1e-3)[::-1]
            row /= np.linalg.norm(row)
        found[item.name] = values
    return found


def least_of(method, item):
    """Numbers with bonds of 1, or of the weight where even that saves too little."""
    cores = stored_size(method, item.shape, (1,) * (method.order - 1))
    return cores if cores <= (1 - method.min_saving) * item.size else item.size


@given(shapes, st.floats(0.05, 1.0), methods, st.integers(0, 99))
def test_budget_counts_what_is_stored(sizes, ratio, method, seed):
    layers = [layer(f"l{i}", shape) for i, shape in enumerate(sizes) if method.break_even(shape) >= 1]
    assume(layers)
    total, values = sum(item.size for item in layers), spectra(method, layers, seed)
    least = sum(least_of(method, item) for item in layers)
    if least > ratio * total:
        with pytest.raises(ValueError, match="param_ratio must be at least"):
            method.allocate(layers, ratio, values)
        return
    found = method.allocate(layers, ratio, values)
    by_name = {item.name: item for item in layers}
    assert set(by_name) == set(found.ranks) | set(found.dense)
    cost = sum(by_name[name].size for name in found.dense)
    for name, bonds in found.ranks.items():
        shape = by_name[name].shape
        made = stored_size(method, shape, bonds)  # layout refuses bonds of no use
        assert made <= (1 - method.min_saving) * by_name[name].size * (1 + 1e-9)
        assert made < by_name[name].size
        assert max(bonds) <= method.break_even(shape) <= method.full_rank(shape)
        cost += made
    assert cost <= ratio * total + 1e-6
    assert all("the cores would save less than" in reason for reason in found.dense.values())


def test_break_even_is_where_the_cores_stop_being_smaller():
    for shape in ((384, 1536), (64, 64), (13, 7), (30, 77)):
        for order in (2, 3):
            method = MPOMethod(order=order)
            most, full = method.break_even(shape), method.full_rank(shape)
            useful = MPOMethod(order=order, allocation="uniform", rank_multiple=1, min_saving=0.0)
            bonds = useful.allocate([layer("a", shape)], 0.9999, {}).ranks["a"]
            assert stored_size(method, shape, bonds) < math.prod(shape)
            assert max(bonds) <= most < full + 1
    assert MPOMethod().break_even((384, 384)) == 191  # as of a low rank: the two cores have 384 numbers a bond
    assert MPOMethod(order=3).break_even((2, 2)) == 0


def test_rank_pattern_gives_a_cap_or_all_bonds():
    layers = [layer(f"m.{i}.{part}", (96, 96)) for i in range(2) for part in ("q", "v")]
    method = MPOMethod(order=3, rank_pattern={"m.1.q": (4, 5), "q": 7, "v": 90})
    found = method.allocate(layers, 0.9, spectra(method, layers, 0))
    assert found.ranks == {"m.0.q": (7, 7), "m.1.q": (4, 5)}
    assert "past break-even (" in found.dense["m.0.v"]
    with pytest.raises(ValueError, match="rank_pattern must match a linear weight, got 'k'"):
        MPOMethod(rank_pattern={"k": 5}).allocate(layers, 0.5, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 1}, "order must be an integer >= 2, got 1"),
        ({"order": 2.5}, "order must be an integer >= 2, got 2.5"),
        ({"balance": "no"}, "balance must be true or false, got 'no'"),
        ({"allocation": "random"}, "allocation must be one of spectrum, uniform, got 'random'"),
        ({"floor": -1}, r"floor must be in \[0, 1\], got -1"),
        (
            {"rank_pattern": {"q": 0}},
            "rank_pattern must map names to a bond >= 1, or to 1 of them for order 2, got 'q': 0",
        ),
        ({"order": 3, "rank_pattern": {"q": (2,)}}, "or to 2 of them for order 3"),
        ({"solver": "exact"}, "options of 'mpo' must be among .*, got 'solver'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        create("mpo", options)


def test_arrays_and_bonds_that_do_not_fit_are_refused():
    method = MPOMethod()
    for bad in (
        {"cores.0": (1, 2, 3, 4)},
        {"cores.0": (1, 2, 3, 4), "cores.1": (5, 2, 3, 1)},
        {"cores.1": (1, 2, 3, 1)},
    ):
        with pytest.raises(ValueError, match=r"cores\.0, cores\.1, \.\.\. must have four axes and form a chain, got"):
            method.dense_shape(bad)
    with pytest.raises(
        ValueError, match=r"rank must be of use in a weight of shape \(8, 8\): at most \(8,\), got \(9,\)"
    ):
        method.layout((8, 8), (9,))
    with pytest.raises(ValueError, match="rank must be a tuple of bonds >= 1 for an mpo weight, got"):
        method.layout((8, 8), ())
