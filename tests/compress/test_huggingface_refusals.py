"""Compressed checkpoints in transformers: nothing but the stored model ever loads, in this process or a fresh one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tiny_models
from compressed_models import Checkpoints, config_of, in_memory, outputs, tensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402

from tensorfact.compress import huggingface as hf  # noqa: E402

FAMILIES = tiny_models.FAMILIES


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


def edited(source: Path, out: Path, change: Any) -> Path:
    """Copy a one-file checkpoint with `change(config, tensors)` applied."""
    config, stored = config_of(source), tensors(source)
    change(config, stored)
    out.mkdir()
    (out / "config.json").write_text(json.dumps(config))
    save_file(stored, out / "model.safetensors", metadata={"format": "pt"})
    return out


NAME = "model.layers.1.mlp.up_proj"


def _forget_rank(config: Any, stored: Any) -> None:
    del config["tensorfact"]["ranks"][NAME]


def _wrong_rank(config: Any, stored: Any) -> None:
    config["tensorfact"]["ranks"][NAME] += 1


def _lost_factor(config: Any, stored: Any) -> None:
    del stored[f"{NAME}.down.weight"]


def _unknown_layer(config: Any, stored: Any) -> None:
    config["tensorfact"]["ranks"]["model.layers.7.mlp.up_proj"] = 3


def _lost_norm(config: Any, stored: Any) -> None:
    del stored["model.norm.weight"]


def _no_recipe(config: Any, stored: Any) -> None:
    del config["tensorfact"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_forget_rank, r"does not fit the stored tensors.* random weights for 1 .*layers\.1\.mlp\.up_proj\.weight"),
        (
            _wrong_rank,
            r"does not fit the stored tensors.* random weights for 2 .*layers\.1\.mlp\.up_proj\.down\.weight",
        ),
        (
            _lost_factor,
            r"does not fit the stored tensors.* random weights for 1 .*layers\.1\.mlp\.up_proj\.down\.weight",
        ),
        (_unknown_layer, r"names layers that Llama\w+ lacks or holds fused: model\.layers\.7\.mlp\.up_proj"),
        (_no_recipe, r"config\.json must hold a 'tensorfact' entry with ranks, base_model_type, base_config, got None"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_recipe_that_does_not_fit_raises_through_every_class(
    checkpoint: Checkpoints, tmp_path: Path, change: Any, message: str
) -> None:
    broken = edited(checkpoint("llama")[1], tmp_path / "broken", change)
    for load in (
        hf.load_model,
        transformers.AutoModelForCausalLM.from_pretrained,
        transformers.AutoModel.from_pretrained,
    ):
        with pytest.raises(ValueError, match=message):
            load(broken)
    if change is _wrong_rank:
        with pytest.raises(ValueError, match=message):
            transformers.AutoModel.from_pretrained(broken, ignore_mismatched_sizes=True)


def test_load_model_refuses_missing_tensors_and_foreign_directories(checkpoint: Checkpoints, tmp_path: Path) -> None:
    dense, small = checkpoint("llama")
    with pytest.raises(ValueError, match=r"lacks tensors of \['LlamaForCausalLM'\]: model\.norm\.weight"):
        hf.load_model(edited(small, tmp_path / "norm", _lost_norm))
    with pytest.raises(ValueError, match="path must be a compressed checkpoint, got model_type 'llama'"):
        hf.load_model(dense)
    with pytest.raises(ValueError, match=r"path must be a checkpoint directory with a config\.json, got"):
        hf.load_model(tmp_path / "nothing")
    nameless = edited(small, tmp_path / "nameless", lambda config, stored: config.pop("architectures"))
    with pytest.raises(ValueError, match=r"config\.json must name a model class of transformers, got \[\]"):
        hf.load_model(nameless)
    other = edited(small, tmp_path / "other", lambda config, stored: config.update(architectures=["pipeline"]))
    with pytest.raises(ValueError, match=r"must name a model class of transformers, got \['pipeline'\]"):
        hf.load_model(other)
    assert type(hf.load_model(nameless, "AutoModel")).__name__ == "LlamaModel"


def test_the_family_class_itself_refuses_even_here(checkpoint: Checkpoints) -> None:
    for options in ({}, {"attn_implementation": "eager", "dtype": torch.float32}):
        with pytest.raises(ValueError, match=r"compressed by tensorfact: pip install"):
            transformers.LlamaForCausalLM.from_pretrained(checkpoint("llama")[1], **options)


@pytest.mark.parametrize("auto_class", [None, "AutoModelForCausalLM"])
def test_nothing_is_unpickled(checkpoint: Checkpoints, tmp_path: Path, auto_class: str | None) -> None:
    _, small = checkpoint("llama")
    pickled = edited(small, tmp_path / "pickled", lambda config, stored: None)
    (pickled / "model.safetensors").unlink()
    torch.save(tensors(small), pickled / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        hf.load_model(pickled, auto_class)


def run(script: str, directory: Path, home: Path) -> str:
    """Run a script in a fresh process with the checkpoint directory as its argument; return what it printed."""
    environment = {
        **os.environ,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", script, str(directory)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


WITHOUT = """
import sys
sys.modules["tensorfact"] = None  # as if it were not installed
import transformers

def refused(name, **options):
    try:
        getattr(transformers, name).from_pretrained(sys.argv[1], **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise SystemExit(f"{name} {options} returned a model")

for name in ("AutoModel", "AutoModelForCausalLM", "AutoConfig"):
    assert refused(name, trust_remote_code=True).startswith("ImportError: This checkpoint was compressed by tensorfact")
    assert 'pip install "tensorfact[hf]"' in refused(name, trust_remote_code=True)
    assert "trust_remote_code=True" in refused(name)
    assert "trust_remote_code=True" in refused(name, trust_remote_code=False)
for name in ("LlamaModel", "LlamaForCausalLM"):
    for trust in ({}, {"trust_remote_code": True}, {"attn_implementation": "eager", "ignore_mismatched_sizes": True}):
        assert 'compressed by tensorfact: pip install "tensorfact[hf]"' in refused(name, **trust)
print(transformers.AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=False)("w1 w2").input_ids)
"""

NOT_IMPORTED = """
import sys
import tiny_models, torch, transformers
assert "tensorfact" not in sys.modules
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
with torch.no_grad():
    torch.save(model(**tiny_models.inputs("llama"))[0], sys.argv[1] + "/fresh.pt")
"""

IMPORTED = """
import sys
import tensorfact.compress
assert not {"torch", "transformers", "numba"} & set(sys.modules)
import tiny_models, torch, transformers
for line in open(sys.argv[1] + "/list.txt"):
    family, name, directory = line.split()
    model = getattr(transformers, name).from_pretrained(directory, trust_remote_code=False).eval()
    with torch.no_grad():
        torch.save(model(**tiny_models.inputs(family))[0], f"{sys.argv[1]}/{family}.pt")
    if family in ("llama", "gpt2", "bert"):
        assert transformers.AutoTokenizer.from_pretrained(directory)("w1 w2").input_ids == [5, 6]
    if family == "llama":
        generator = transformers.pipeline("text-generation", directory)
        assert generator("w5 w6", max_new_tokens=2)[0]["generated_text"].startswith("w5 w6")
"""


def test_without_the_package_no_path_returns_a_model(checkpoint: Checkpoints, tmp_path: Path) -> None:
    assert run(WITHOUT, checkpoint("llama")[1], tmp_path).split("\n")[-2].endswith("[5, 6]")


def test_installed_but_not_imported_loads_with_trust_remote_code(checkpoint: Checkpoints, tmp_path: Path) -> None:
    dense, small = checkpoint("llama")
    run(NOT_IMPORTED, small, tmp_path)
    assert torch.equal(torch.load(small / "fresh.pt"), outputs(in_memory(dense, small), "llama"))


def test_every_family_loads_in_a_fresh_process_after_one_import(checkpoint: Checkpoints, tmp_path: Path) -> None:
    auto = {"bert": "AutoModel", "vit": "AutoModelForImageClassification"}
    lines = [f"{family} {auto.get(family, 'AutoModelForCausalLM')} {checkpoint(family)[1]}" for family in FAMILIES]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    run(IMPORTED, tmp_path, tmp_path)
    for family in FAMILIES:
        assert torch.equal(torch.load(tmp_path / f"{family}.pt"), outputs(in_memory(*checkpoint(family)), family))
