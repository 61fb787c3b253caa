"""Which weights are replaced, why the others are not, and how a budget is shared."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tensorfact.compress._method import Layer, create
from tensorfact.compress._patterns import matches
from tensorfact.compress.checkpoint import Checkpoint, TensorInfo
from tensorfact.compress.lowrank import LowRankMethod, break_even, rank_step
from tensorfact.compress.plan import make_plan
from tiny_models import tiny


def layer(name, shape):
    return Layer(name, "linear", shape, TensorInfo(f"{name}.weight", "F32", shape, "", 0, 4 * shape[0] * shape[1]))


def spectra(layers, rng):
    return {item.name: np.sort(rng.pareto(1.5, min(item.shape)))[::-1] + 1e-3 for item in layers}


# --- allocation ---------------------------------------------------------------------------------------------

shapes = st.lists(st.tuples(st.integers(2, 200), st.integers(2, 200)), min_size=1, max_size=8)


@given(
    shapes,
    st.floats(0.3, 1.0),
    st.sampled_from(["spectrum", "uniform"]),
    st.sampled_from([1, 4, 8]),
    st.integers(0, 99),
)
def test_budget_is_kept_and_used(sizes, ratio, allocation, multiple, seed):
    layers = [layer(f"l{i}", shape) for i, shape in enumerate(sizes) if break_even(shape) >= 1]
    method = LowRankMethod(allocation=allocation, rank_multiple=multiple)
    rng = np.random.default_rng(seed)
    least = sum(sum(la.shape) for la in layers) / max(1, sum(la.size for la in layers))
    assume(least < ratio)  # rank 1 everywhere fits
    found = method.allocate(layers, ratio, spectra(layers, rng))
    cost = {la.name: found.ranks[la.name] * sum(la.shape) if la.name in found.ranks else la.size for la in layers}
    budget = ratio * sum(la.size for la in layers)
    assert sum(cost.values()) <= budget + 1e-6
    assert set(cost) == set(found.ranks) | set(found.dense)
    assert not set(found.ranks) & set(found.dense)
    for la in layers:
        assert found.ranks.get(la.name, 1) <= break_even(la.shape)
        step = rank_step(break_even(la.shape), multiple)
        if la.name in found.ranks:
            uniform = math.floor(ratio * la.size / sum(la.shape) + 1e-9)
            floor = min(step, max(1, uniform)) if allocation == "spectrum" else 1
            assert found.ranks[la.name] >= max(floor, int(0.5 * uniform) // step * step)
            if allocation == "spectrum":  # not one more step of it fits
                rank = found.ranks[la.name] // step * step + step
                more = rank * sum(la.shape) if rank <= break_even(la.shape) else la.size
                assert sum(cost.values()) - cost[la.name] + more > budget
            else:
                assert abs(found.ranks[la.name] - uniform) < max(step, 2)


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


# --- choosing -----------------------------------------------------------------------------------------------


def names(plan):
    return [item.name for item in plan.layers]


def test_names_decide_without_a_model(write_checkpoint):
    plan = make_plan(Checkpoint.open(write_checkpoint()))
    assert names(plan) == sorted(f"model.layers.{i}.{part}" for i in (0, 1) for part in ("up_proj", "down_proj"))
    assert plan.dense == {"model.embed_tokens.weight": "embedding", "lm_head.weight": "output head"}
    assert "chosen by their names" in plan.notes[0]


@pytest.mark.parametrize(
    ("targets", "excluded", "expected"),
    [
        ("up_proj", None, ["0.up_proj", "1.up_proj"]),
        (["layers.1.up_proj", "0.down_proj"], None, ["0.down_proj", "1.up_proj"]),
        (r"re:layers\.1\.", None, ["1.down_proj", "1.up_proj"]),
        ("all-linear", "re:up", ["0.down_proj", "1.down_proj"]),
        (None, ["model.layers.0.up_proj"], ["0.down_proj", "1.down_proj", "1.up_proj"]),
    ],
)
def test_patterns(write_checkpoint, targets, excluded, expected):
    checkpoint = Checkpoint.open(write_checkpoint())
    plan = make_plan(checkpoint, target_modules=targets, exclude_modules=excluded)
    assert names(plan) == [f"model.layers.{name}" for name in expected]


def test_a_head_is_replaced_when_named(write_checkpoint):
    plan = make_plan(Checkpoint.open(write_checkpoint()), target_modules=["lm_head"])
    assert names(plan) == ["lm_head"]
    assert plan.dense["model.layers.0.up_proj.weight"] == "not among target_modules"


def test_suffixes_end_at_dots():
    assert matches("q_proj", "a.q_proj")
    assert not matches("proj", "a.q_proj")
    with pytest.raises(ValueError, match=r"valid regular expression, got 're:\('"):
        matches("re:(", "a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_modules": "upproj"}, "must match a linear weight, got 'upproj'; the weights end in up_proj"),
        ({"exclude_modules": ["nothing"]}, "exclude_modules must match a linear weight, got 'nothing'"),
        ({"target_modules": []}, r"target_modules must be a name or a list of names, got \[\]"),
        ({"exclude_modules": "re:."}, "must hold a linear weight to replace, got none: .*excluded by exclude_modules"),
    ],
)
def test_wrong_patterns(write_checkpoint, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_plan(Checkpoint.open(write_checkpoint()), **arguments)


@pytest.mark.parametrize(
    ("family", "count", "reasons"),
    [
        ("llama", 14, {"lm_head.weight": "output head", "model.embed_tokens.weight": "embedding"}),
        ("qwen2", 14, {"model.embed_tokens.weight": "embedding"}),
        ("gpt2", 8, {"transformer.wte.weight": "embedding", "transformer.wpe.weight": "embedding"}),
        ("bert", 13, {"embeddings.position_embeddings.weight": "embedding"}),
        (
            "vit",
            12,
            {
                "vit.embeddings.patch_embeddings.projection.weight": "convolution (Conv2d)",
                "classifier.weight": "output head",
            },
        ),
    ],
)
def test_models_say_what_is_linear(tmp_path, family, count, reasons):
    plan = make_plan(Checkpoint.open(tiny(family, tmp_path)))
    assert len(plan.layers) == count
    assert plan.notes == ()
    assert {item.kind for item in plan.layers} == {"conv1d" if family == "gpt2" else "linear"}
    assert {key: plan.dense[key] for key in reasons} == reasons
    if family == "gpt2":
        shapes = {item.name: item.shape for item in plan.layers}
        assert shapes["transformer.h.0.attn.c_attn"] == (192, 64)


def test_fused_experts_are_left_dense_and_listed(tmp_path):
    plan = make_plan(Checkpoint.open(tiny("mixtral", tmp_path)))
    assert {name.rsplit(".", 1)[-1] for name in names(plan)} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    experts = {key: reason for key, reason in plan.dense.items() if "experts" in key}
    assert experts
    assert all("not supported yet" in reason for reason in experts.values())


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_one_end_of_a_tie_is_refused(tmp_path, family):
    checkpoint = Checkpoint.open(tiny(family, tmp_path))
    with pytest.raises(ValueError, match=r"must not name one end of a tie, got 'lm_head'.*untie the model first"):
        make_plan(checkpoint, target_modules=["lm_head"])
    assert make_plan(checkpoint, exclude_modules=["lm_head"]).layers


def test_keys_without_the_prefix_of_the_base_model(tmp_path):
    source = tiny("bert", tmp_path)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "architectures": ["BertForSequenceClassification"]}))
    plan = make_plan(Checkpoint.open(source))
    assert len(plan.layers) == 13
    assert plan.notes == ()
