"""Compressed checkpoints in transformers: what is stored is what is loaded."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest

import tiny_models
from compressed_models import Checkpoints, compress, config_of, in_memory, outputs, tensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402

from tensorfact.compress import huggingface as hf  # noqa: E402
from tensorfact.compress._hf_classes import GUARD_KEY  # noqa: E402
from tensorfact.torch import LowRankLinear  # noqa: E402

FAMILIES = tiny_models.FAMILIES
# CausalLM, tied and not, Conv1D, an encoder, renamed modules, fused experts that stay dense
ROUND_TRIP = (*FAMILIES, "mixtral")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.mark.parametrize("family", ROUND_TRIP)
def test_loaded_model_equals_the_in_memory_one_and_the_multiplied_out_one(
    checkpoint: Checkpoints, family: str, tmp_path: Path
) -> None:
    dense, small = checkpoint(family)
    model = hf.load_model(small)
    ranks = config_of(small)["tensorfact"]["ranks"]
    layers = [m for m in model.modules() if isinstance(m, LowRankLinear)]
    assert sorted(layer.rank for layer in layers) == sorted(ranks.values())
    assert len(layers) >= 6
    out = outputs(model, family)
    assert torch.equal(out, outputs(in_memory(dense, small), family))

    # an oracle without low-rank layers: plain weights under the dense names, loaded by transformers alone
    plain = {k: v for k, v in tensors(small).items() if not any(k.startswith(f"{name}.") for name in ranks)}
    stored = tensors(small)
    for name in ranks:
        weight = stored[f"{name}.up.weight"] @ stored[f"{name}.down.weight"]
        plain[f"{name}.weight"] = (weight.T if family == "gpt2" else weight).contiguous()
        if f"{name}.up.bias" in stored:
            plain[f"{name}.bias"] = stored[f"{name}.up.bias"]
    assert plain.keys() == tensors(dense).keys()
    save_file(plain, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(hf.dense_config(config_of(small))))
    twin = outputs(type(model).__base__.from_pretrained(tmp_path), family)
    # float32 rounding of two products against one, through two layers
    torch.testing.assert_close(out, twin, rtol=0, atol=2e-5 * twin.abs().max().item())
    assert not torch.allclose(out, outputs(type(model).__base__.from_pretrained(dense), family), rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_saves_and_loads_again_with_the_same_bits(
    checkpoint: Checkpoints, family: str, tmp_path: Path
) -> None:
    _, small = checkpoint(family)
    model = hf.load_model(small)
    model.save_pretrained(tmp_path, max_shard_size="30kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = hf.load_model(tmp_path)
    assert torch.equal(outputs(again, family), outputs(model, family))
    before, after = config_of(small), config_of(tmp_path)
    for key in ("model_type", "architectures", "auto_map", "tensorfact", GUARD_KEY):
        assert after[key] == before[key]
    assert (tmp_path / hf.SHIM_NAME).read_bytes() == (small / hf.SHIM_NAME).read_bytes()
    assert tensors(tmp_path).keys() == tensors(small).keys()


def test_deepcopy_and_pickle_keep_the_class_and_the_bits(checkpoint: Checkpoints) -> None:
    model = hf.load_model(checkpoint("llama")[1])
    out = outputs(model, "llama")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is type(model)
        assert torch.equal(outputs(twin, "llama"), out)
    assert pickle.loads(pickle.dumps(model.config)).to_dict() == model.config.to_dict()


def test_auto_classes_load_what_they_load_of_the_dense_twin(checkpoint: Checkpoints, tmp_path: Path) -> None:
    _, small = checkpoint("llama")
    whole = hf.load_model(small)
    base = transformers.AutoModel.from_pretrained(small)
    assert type(base).__name__ == "LlamaModel"
    assert torch.equal(outputs(base, "llama"), outputs(whole.model, "llama"))
    # saved as the base model and loaded as the head model: the head is new, as for the dense twin; the rest is not
    base.save_pretrained(tmp_path)
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {"lm_head.weight"}
    assert torch.equal(outputs(loaded.model, "llama"), outputs(base, "llama"))
    # a class that builds its body through AutoModel
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(small, num_labels=3)
    assert torch.equal(outputs(classifier.model, "llama"), outputs(base, "llama"))
    assert classifier.score.weight.shape == (3, 64)
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        transformers.AutoModelForMaskedLM.from_pretrained(small)
    # the other direction: a bare encoder, as sentence encoders are stored
    encoder = checkpoint("bert")[1]
    masked, info = transformers.AutoModelForMaskedLM.from_pretrained(encoder, output_loading_info=True)
    assert all(key.startswith("cls.") for key in info["missing_keys"])
    bare = transformers.AutoModel.from_pretrained(encoder)
    assert torch.equal(outputs(masked.bert, "bert"), outputs(bare, "bert"))


def test_a_compressed_head_is_dropped_with_the_class_that_has_none(checkpoint: Checkpoints, tmp_path: Path) -> None:
    dense, _ = checkpoint("llama")
    small = compress(dense, tmp_path / "small", target_modules=["lm_head", "q_proj"])
    model = hf.load_model(small)
    assert isinstance(model.lm_head, LowRankLinear)
    base = transformers.AutoModel.from_pretrained(small)
    assert torch.equal(outputs(base, "llama"), outputs(model.model, "llama"))
    base.save_pretrained(tmp_path / "base")
    assert "lm_head" not in config_of(tmp_path / "base")["tensorfact"]["ranks"]
    assert torch.equal(outputs(hf.load_model(tmp_path / "base"), "llama"), outputs(base, "llama"))


def test_tied_weights_stay_tied(checkpoint: Checkpoints, tmp_path: Path) -> None:
    model = hf.load_model(checkpoint("qwen2")[1])
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in tensors(tmp_path)
    config = config_of(tmp_path)
    config["tensorfact"]["ranks"]["lm_head"] = 4
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="gives a rank to lm_head, whose weight is tied"):
        hf.load_model(tmp_path)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_half_precision_shards_device_map_and_generation(checkpoint: Checkpoints, family: str) -> None:
    _, small = checkpoint(family, dtype="bfloat16", max_shard_size="60kB")
    model = hf.load_model(small, device_map="cpu")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    wide = hf.load_model(small, dtype=torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    stored = tensors(small)
    assert all(torch.equal(value, stored[key]) for key, value in model.state_dict().items() if key in stored)
    # bfloat16 rounds each of about ten products in a row to 8 bits
    exact = outputs(wide, family)
    assert (outputs(model, family).float() - exact).norm() <= 10 * 2**-8 * exact.norm()
    ids = tiny_models.inputs(family)
    generated = wide.generate(**ids, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    greedy = ids["input_ids"]
    for _ in range(4):
        with torch.no_grad():
            logits = wide(input_ids=greedy).logits[:, -1]
        logits[:, 2] = -torch.inf  # the end token, which min_new_tokens forbids
        greedy = torch.cat([greedy, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(generated, greedy)


# PEFT reads a property of transformers models that transformers has renamed
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_on_a_compressed_model_finds_its_base_again(checkpoint: Checkpoints, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    options = peft.LoraConfig(target_modules="all-linear", r=2, task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(hf.load_model(checkpoint("llama")[1]), options)
    adapted = {name for name, _ in model.named_modules() if name.endswith((".up.lora_A", ".down.lora_A"))}
    assert len(adapted) == 2 * len(config_of(checkpoint("llama")[1])["tensorfact"]["ranks"])
    model.save_pretrained(tmp_path)
    again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(outputs(again, "llama"), outputs(model, "llama"))


def test_torchao_quantises_while_loading_and_saves(checkpoint: Checkpoints, tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    small = checkpoint("llama")[1]
    options = transformers.TorchAoConfig(quantization.Int8WeightOnlyConfig())
    model = hf.load_model(small, quantization_config=options)
    layer = model.model.layers[0].mlp.up_proj
    assert type(layer.up.weight.data) is type(layer.down.weight.data) is not torch.Tensor
    out, exact = outputs(model, "llama"), outputs(hf.load_model(small), "llama")
    assert 0 < (out - exact).norm() <= 0.1 * exact.norm()  # int8 weights: below 1 % a layer, 14 of them
    model.save_pretrained(tmp_path)
    assert torch.equal(outputs(hf.load_model(tmp_path), "llama"), out)


def test_biases_survive(checkpoint: Checkpoints) -> None:
    dense, small = checkpoint("bert")
    before, after = tensors(dense), tensors(small)
    names = config_of(small)["tensorfact"]["ranks"]
    assert all(torch.equal(after[f"{n}.up.bias"], before[f"{n}.bias"]) for n in names)


def test_config_round_trip() -> None:
    source = {"model_type": "llama", "hidden_size": 8, "auto_map": {"AutoModel": "own.Own"}}
    config = hf.compressed_config(source, {"model.layers.0.mlp.up_proj": 4})
    assert config["model_type"] == "tensorfact"
    assert config["auto_map"] == {"AutoConfig": "modeling_tensorfact.TensorfactConfig"}
    assert config["tensorfact"]["ranks"] == {"model.layers.0.mlp.up_proj": 4}
    assert hf.dense_config(config) == source
    own = {"model_type": "bert", "auto_map": {}, "tensorfact": {"theirs": 1}, GUARD_KEY: "model.safetensors"}
    for kept in ({"model_type": "bert"}, own):
        assert hf.dense_config(hf.compressed_config(kept, {"a": 1})) == kept
    for wrong in ({}, config):
        with pytest.raises(ValueError, match="config must name the model_type of an uncompressed model, got"):
            hf.compressed_config(wrong, {})
    with pytest.raises(ValueError, match="format_version 9, this tensorfact reads 1"):
        hf.dense_config({**config, "tensorfact": {**config["tensorfact"], "format_version": 9}})


def test_config_in_memory_is_the_family_and_on_disk_is_ours(checkpoint: Checkpoints) -> None:
    config = transformers.AutoConfig.from_pretrained(checkpoint("llama")[1])
    assert isinstance(config, transformers.LlamaConfig)
    assert config.model_type == "llama"
    assert config.to_dict()["model_type"] == "tensorfact"
    assert not hasattr(config, GUARD_KEY)
    again = transformers.AutoConfig.for_model(**config.to_dict())
    assert type(again) is type(config)
    assert again.to_dict() == config.to_dict()
    unknown = {**config.to_dict(), "tensorfact": {**config.tensorfact, "base_model_type": "no-such-family"}}
    with pytest.raises(
        ValueError, match="base_model_type must be a model type that transformers knows, got 'no-such-fam"
    ):
        transformers.AutoConfig.for_model(**unknown)
