"""Which weights are replaced, and why the others are not."""

from __future__ import annotations

import json
import sys

import pytest

from tensorfact.compress import plan as planning
from tensorfact.compress._patterns import matches
from tensorfact.compress.checkpoint import Checkpoint
from tensorfact.compress.lowrank import LowRankMethod
from tiny_models import tiny


def make_plan(checkpoint, **options):
    return planning.make_plan(checkpoint, LowRankMethod(), **options)


def names(plan):
    return [item.name for item in plan.layers]


def test_names_decide_without_a_model(write_checkpoint):
    plan = make_plan(Checkpoint.open(write_checkpoint()))
    assert names(plan) == sorted(f"model.layers.{i}.{part}" for i in (0, 1) for part in ("up_proj", "down_proj"))
    assert plan.dense == {"model.embed_tokens.weight": "embedding", "lm_head.weight": "output head"}
    assert "chosen by their names" in plan.notes[0]


def change_config(source, **entries):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **entries}))
    return Checkpoint.open(source)


def test_why_names_decided_is_told(write_checkpoint, monkeypatch):
    source = write_checkpoint()
    pulled = change_config(source, auto_map={"AutoModel": "someone/else--modeling.Own"})
    plan = make_plan(pulled, trust_remote_code=True)
    assert "auto_map must name code in the checkpoint itself, got {'AutoModel': 'someone/else--" in plan.notes[0]
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert make_plan(pulled).notes[0].endswith(": transformers is not installed")


@pytest.mark.parametrize("name", ["pipeline", "AutoModel", "LlamaConfig", "no_such_thing", 3])
def test_only_a_model_class_is_built(tmp_path, name):
    checkpoint = change_config(tiny("bert", tmp_path), architectures=[name])
    plan = make_plan(checkpoint)  # by the family's base model instead
    assert len(plan.layers) == 13


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
