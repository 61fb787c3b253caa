"""How a budget of parameters is shared among the weights."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tensorfact.compress._budget import rank_step
from tensorfact.compress._method import Layer, create
from tensorfact.compress.checkpoint import TensorInfo
from tensorfact.compress.lowrank import LowRankMethod, break_even


def layer(name, shape):
    return Layer(name, "linear", shape, TensorInfo(f"{name}.weight", "F32", shape, "", 0, 4 * shape[0] * shape[1]))


def spectra(layers, rng):
    return {item.name: np.sort(rng.pareto(1.5, min(item.shape)))[::-1] + 1e-3 for item in layers}


shapes = st.lists(st.tuples(st.integers(2, 200), st.integers(2, 200)), min_size=1, max_size=8)
methods = st.builds(
    LowRankMethod,
    allocation=st.sampled_from(["spectrum", "uniform"]),
    rank_multiple=st.sampled_from([1, 4, 8]),
    min_saving=st.sampled_from([0.0, 0.1, 0.45]),
)


def targets(sizes):
    return [layer(f"l{i}", shape) for i, shape in enumerate(sizes) if break_even(shape) >= 1]


def least_of(method, layers):
    """Numbers of the smallest allocation: rank 1 everywhere, but where even that saves too little."""
    return sum(sum(la.shape) if method.largest_rank(la.shape) else la.size for la in layers)


def even_share(layers, budget):
    """Share of its parameters that each layer gets if none gets less than rank 1, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        fits = sum(max(share * la.size, sum(la.shape)) for la in layers) <= budget
        low, high = (share, high) if fits else (low, share)
    return low


@example(
    [(2, 60), (111, 140)],
    0.5168673877995069,
    LowRankMethod(allocation="uniform", rank_multiple=4, min_saving=0.0),
    0,
)
@given(shapes, st.floats(0.05, 1.0), methods, st.integers(0, 99))
def test_budget_is_kept_and_used(sizes, ratio, method, seed):
    layers = targets(sizes)
    budget = ratio * sum(la.size for la in layers)
    assume(least_of(method, layers) <= budget)
    found = method.allocate(layers, ratio, spectra(layers, np.random.default_rng(seed)))
    cost = {la.name: found.ranks[la.name] * sum(la.shape) if la.name in found.ranks else la.size for la in layers}
    assert sum(cost.values()) <= budget + 1e-6
    assert set(cost) == set(found.ranks) | set(found.dense)
    assert not set(found.ranks) & set(found.dense)
    free = [la for la in layers if method.largest_rank(la.shape)]
    whole = math.floor(budget + 1e-6)  # numbers are not stored in parts
    share = even_share(free, whole - sum(la.size for la in layers if la not in free))
    for la in free:
        most = method.largest_rank(la.shape)
        assert most <= break_even(la.shape)
        assert most * sum(la.shape) <= (1 - method.min_saving) * la.size * (1 + 1e-9)
        step = rank_step(most, method.rank_multiple)
        if la.name in found.ranks:
            rank, uniform = found.ranks[la.name], min(most, share * la.size / sum(la.shape))
            assert 1 <= rank <= most
            assert rank >= max(min(step, int(uniform - 1e-6)), int(0.5 * uniform - 1e-6) // step * step)
            if method.allocation == "spectrum":  # not one more step of it fits
                rank = rank // step * step + step
                more = rank * sum(la.shape) if rank <= most else la.size
                assert sum(cost.values()) - cost[la.name] + more > budget
            else:
                assert abs(rank - uniform) < max(step, 2)


@given(shapes, st.floats(0.001, 1.0), st.floats(1.0, 3.0), methods)
def test_what_fits_is_never_refused(sizes, ratio, growth, method):
    layers = targets(sizes)
    assume(layers)
    total, values = sum(la.size for la in layers), spectra(layers, np.random.default_rng(0))
    least = least_of(method, layers)
    if least > ratio * total:
        with pytest.raises(ValueError, match="for these weights and ranks, got") as caught:
            method.allocate(layers, ratio, values)
        ratio = float(re.search(r"must be at least (\S+) for", str(caught.value))[1])
        assert 0 <= ratio - least / total <= 1.001e-4
    first = method.allocate(layers, ratio, values).ranks
    more = method.allocate(layers, min(1.0, growth * ratio), values).ranks
    if method.allocation == "uniform":
        assert all(first.get(name, math.inf) <= more.get(name, math.inf) for name in (la.name for la in layers))


@pytest.mark.parametrize("allocation", ["spectrum", "uniform"])
def test_a_small_weight_does_not_stop_the_others(allocation):
    layers = [layer("small", (2, 200)), layer("large", (200, 200))]
    method = LowRankMethod(allocation=allocation, rank_multiple=1)
    for ratio in (0.015, 0.02, 0.3, 0.3021, 0.31, 0.4):
        ranks = method.allocate(layers, ratio, spectra(layers, np.random.default_rng(0))).ranks
        assert ranks.get("small", 1) == 1  # rank 2 is break-even: dense
        assert 1 <= ranks["large"] <= (ratio * 40400 - 202) / 400
        assert allocation == "spectrum" or ranks["large"] == int((ratio * 40400 - 202) / 400)
    with pytest.raises(ValueError, match=r"param_ratio must be at least 0\.015 for these weights and ranks, got 0\.01"):
        method.allocate(layers, 0.01, spectra(layers, np.random.default_rng(0)))


def test_a_weight_that_would_hardly_shrink_stays_dense():
    layers = [layer(name, (384, 384)) for name in ("a", "b", "c")] + [layer("tiny", (3, 3))]
    values = spectra(layers, np.random.default_rng(0))
    for allocation in ("spectrum", "uniform"):
        found = LowRankMethod(allocation=allocation).allocate(layers, 0.97, values)
        assert max(found.ranks.values()) <= 172  # 0.9 * 192
        assert all(reason.endswith("two factors would save less than 10%") for reason in found.dense.values())
    assert "a" in LowRankMethod().allocate(layers[:1] * 1, 1.0, values).dense
    bold = LowRankMethod(min_saving=0.0, allocation="uniform", rank_multiple=1).allocate(layers, 0.99, values)
    assert bold.ranks["a"] == 190
    given_rank = LowRankMethod(rank_pattern={"a": 185}).allocate(layers, 0.97, values)
    assert given_rank.ranks["a"] == 185
    wary = LowRankMethod(min_saving=0.5).allocate(layers, 0.4, values)
    assert wary.dense == {"tiny": "even rank 1 is near break-even: two factors would save less than 50%"}


def test_equal_shapes_share_by_sorting_all_singular_values():
    layers = [layer("a", (64, 64)), layer("b", (64, 64))]
    values = {"a": np.geomspace(1, 1e-4, 64), "b": np.geomspace(1, 0.5, 64)}
    found = LowRankMethod(rank_multiple=1, floor=0.0).allocate(layers, 0.5, values)
    energy = {name: s**2 / np.sum(s**2) for name, s in values.items()}
    best = sorted(((e, name) for name in energy for e in energy[name]), reverse=True)[:32]
    expected = {name: max(1, sum(n == name for _, n in best)) for name in energy}
    assert sum(found.ranks.values()) == 32
    assert {name: abs(found.ranks[name] - expected[name]) <= 1 for name in expected} == {"a": True, "b": True}


def test_floor_is_respected():
    layers = [layer("a", (64, 64)), layer("b", (64, 64))]
    values = {"a": np.geomspace(1, 1e-8, 64), "b": np.ones(64)}
    for floor in (0.0, 0.5, 1.0):
        ranks = LowRankMethod(rank_multiple=1, floor=floor).allocate(layers, 0.5, values).ranks
        assert ranks["a"] >= floor * 16


def test_everything_stays_dense_at_ratio_one():
    layers = [layer("a", (64, 48)), layer("b", (30, 90))]
    for allocation in ("spectrum", "uniform"):
        found = LowRankMethod(allocation=allocation).allocate(layers, 1.0, spectra(layers, np.random.default_rng(0)))
        assert found.ranks == {}
        assert set(found.dense) == {"a", "b"}


def test_rank_pattern_counts_against_the_budget():
    layers = [layer(f"m.{i}.{part}", (96, 96)) for i in range(3) for part in ("q", "v")]
    method = LowRankMethod(rank_pattern={"m.1.q": 5, "q": 30, "v": 60})
    found = method.allocate(layers[:4], 0.8, spectra(layers, np.random.default_rng(0)))
    assert found.ranks == {"m.0.q": 30, "m.1.q": 5}
    assert "past break-even (47)" in found.dense["m.0.v"]
    with pytest.raises(ValueError, match=r"param_ratio must be at least 0\.6823 for these weights and ranks, got 0\.3"):
        method.allocate(layers[:4], 0.3, spectra(layers, np.random.default_rng(0)))
    with pytest.raises(ValueError, match="rank_pattern must match a linear weight, got 'k'; the weights end in q, v"):
        LowRankMethod(rank_pattern={"k": 5}).allocate(layers, 0.5, {})


def test_zero_weights_are_served():
    layers = [layer("a", (64, 64)), layer("b", (64, 64))]
    found = LowRankMethod().allocate(layers, 0.5, {"a": np.zeros(64), "b": np.ones(64)})
    assert found.ranks["a"] >= 8


def test_steps_suit_tiny_matrices():
    assert [rank_step(limit, 8) for limit in (1, 7, 8, 16, 31, 64, 500)] == [1, 1, 1, 2, 2, 8, 8]
    assert break_even((384, 384)) == 191
    assert break_even((2, 2)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allocation": "random"}, "allocation must be one of spectrum, uniform, got 'random'"),
        ({"rank_multiple": 0}, "rank_multiple must be an integer >= 1, got 0"),
        ({"floor": 1.5}, r"floor must be in \[0, 1\], got 1.5"),
        ({"min_saving": 1}, r"min_saving must be in \[0, 1\), got 1"),
        ({"rank_pattern": {"q": 2.5}}, "rank_pattern must map names to ranks >= 1, got 'q': 2.5"),
        ({"depth": 3}, "options of 'lowrank' must be among .*, got 'depth'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        create("lowrank", options)


def test_unknown_method():
    with pytest.raises(ValueError, match=r"method must be one of .*lowrank.*, got 'magic'"):
        create("magic")
