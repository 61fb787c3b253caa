"""Checkpoints of mpo, end to end: written, verified, told, loaded by transformers, saved again, made dense."""

from __future__ import annotations

import copy
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from compressed_models import compress, config_of, outputs, tensors
from html_page import check_page

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import save_file  # noqa: E402

import tensorfact.compress as tc  # noqa: E402
from tensorfact.compress import huggingface as hf  # noqa: E402
from tensorfact.compress.cli import main  # noqa: E402
from tensorfact.compress.report import render_terminal  # noqa: E402
from tensorfact.compress.report_html import render_html  # noqa: E402
from tensorfact.torch import LowRankLinear, MPOLinear  # noqa: E402

# grouped queries and ties, Conv1D, an encoder with biases, renamed modules, fused experts that stay dense
CASES = [("llama", 2), ("qwen2", 2), ("gpt2", 3), ("bert", 3), ("vit", 2), ("mixtral", 2)]


class Made:
    """Dense and compressed directory of a family, made once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.done: dict[tuple[str, int], tuple[Path, Path]] = {}

    def __call__(self, family: str, order: int = 2) -> tuple[Path, Path]:
        if (family, order) not in self.done:
            dense = tiny_models.tiny(family, self.root / f"{family}-{order}")
            small = compress(dense, self.root / f"{family}-{order}-small", method="mpo", options={"order": order})
            self.done[family, order] = dense, small
        return self.done[family, order]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("mpo"))


def multiplied_out(stored: dict[str, Any], name: str) -> Any:
    """Product of the stored cores by the definition, in float64."""
    keys = sorted(key for key in stored if key.startswith(f"{name}.cores."))
    product = torch.ones(1, 1, 1, dtype=torch.float64)
    for core in (stored[key].double() for key in keys):
        out = torch.einsum("ija,amnb->imjnb", product, core)
        product = out.reshape(out.shape[0] * out.shape[1], -1, out.shape[4])
    return product[..., 0]


@pytest.mark.parametrize(("family", "order"), CASES)
def test_a_checkpoint_loads_as_what_it_stores_and_goes_back(
    made: Made, family: str, order: int, tmp_path: Path
) -> None:
    dense, small = made(family, order)
    assert tc.verify(small, deep=True) == []
    stored, source, config = tensors(small), tensors(dense), config_of(small)
    ranks = config["tensorfact"]["ranks"]
    assert config["tensorfact"]["method"] == "mpo"
    assert all(len(bonds) == order - 1 for bonds in ranks.values())
    report = tc.Report.read(small)
    assert report.targeted_after <= 0.5 * report.targeted_before
    assert report.targeted_after > 0.45 * report.targeted_before
    for record in report.layers:
        cores = [value for key, value in stored.items() if key.startswith(f"{record.name}.cores.")]
        assert record.params_after == sum(core.numel() for core in cores) < record.params_before
        assert record.rank == tuple(core.shape[0] for core in cores[1:])
        w = source[f"{record.name}.weight"].double()
        w = w.T if record.kind == "conv1d" else w
        true = float((multiplied_out(stored, record.name) - w).norm() / w.norm())
        assert record.error == pytest.approx(true, rel=1e-3)
        assert (record.optimal_error is None) == (order > 2)
        if f"{record.name}.bias" in source:
            assert torch.equal(stored[f"{record.name}.bias"], source[f"{record.name}.bias"])

    model = transformers.AutoModel.from_pretrained(small)
    whole = hf.load_model(small)
    layers = [module for module in whole.modules() if isinstance(module, MPOLinear)]
    assert len(layers) == len(ranks) >= 6
    assert not any(isinstance(module, LowRankLinear) for module in whole.modules())
    out = outputs(whole, family)
    body = getattr(whole, whole.base_model_prefix, whole)
    if family != "vit":  # whose head takes no pooled output
        torch.testing.assert_close(outputs(model, family), outputs(body, family), rtol=0, atol=0)

    whole.save_pretrained(tmp_path / "again", max_shard_size="40kB")
    again = hf.load_model(tmp_path / "again")
    assert torch.equal(outputs(again, family), out)
    assert tensors(tmp_path / "again").keys() == stored.keys()
    assert all(torch.equal(value, stored[key]) for key, value in tensors(tmp_path / "again").items())
    assert config_of(tmp_path / "again")["tensorfact"] == config["tensorfact"]

    tc.to_dense(small, tmp_path / "plain")
    plain = tensors(tmp_path / "plain")
    assert {key: value.shape for key, value in plain.items()} == {key: value.shape for key, value in source.items()}
    for name in ranks:
        w = multiplied_out(stored, name)
        w = w.T if family == "gpt2" else w
        torch.testing.assert_close(plain[f"{name}.weight"].double(), w, rtol=0, atol=1e-6 * float(w.norm()))
    twin = outputs(type(whole).__base__.from_pretrained(tmp_path / "plain"), family)
    # float32 rounding of one order of products against another, through two layers
    torch.testing.assert_close(out, twin, rtol=0, atol=2e-5 * twin.abs().max().item())
    assert not torch.allclose(out, outputs(type(whole).__base__.from_pretrained(dense), family), rtol=1e-3)


def test_copies_pickles_training_and_other_heads(made: Made) -> None:
    small = made("llama")[1]
    model = hf.load_model(small)
    out = outputs(model, "llama")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(outputs(twin, "llama"), out)
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(small, num_labels=3)
    assert torch.equal(outputs(classifier.model, "llama"), outputs(model.model, "llama"))
    model.train()
    inputs = tiny_models.inputs("llama")
    loss = model(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    cores = [core for module in model.modules() if isinstance(module, MPOLinear) for core in module.cores]
    assert all(core.grad is not None and float(core.grad.abs().max()) > 0 for core in cores)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(outputs(model, "llama"), out)  # a dense weight kept in eval() is not stale


@pytest.mark.parametrize("order", [2, 3])
def test_bfloat16_tells_the_error_of_what_it_stores(order: int, tmp_path: Path) -> None:
    dense = tiny_models.tiny("bert", tmp_path / "dense", dtype="bfloat16")
    small = compress(dense, tmp_path / "small", method="mpo", options={"order": order})
    stored, source = tensors(small), tensors(dense)
    assert {value.dtype for key, value in stored.items() if ".cores." in key} == {torch.bfloat16}
    for record in tc.Report.read(small).layers:
        w = source[f"{record.name}.weight"].double()
        true = float((multiplied_out(stored, record.name) - w).norm() / w.norm())
        assert record.error == pytest.approx(true, rel=1e-3)
    assert {p.dtype for p in hf.load_model(small).parameters()} == {torch.bfloat16}


def _forget_bonds(config: Any, stored: Any) -> None:
    del config["tensorfact"]["ranks"][NAME]


def _wrong_bonds(config: Any, stored: Any) -> None:
    config["tensorfact"]["ranks"][NAME][0] -= 1


def _lost_core(config: Any, stored: Any) -> None:
    del stored[f"{NAME}.cores.1"]


def _other_method(config: Any, stored: Any) -> None:
    config["tensorfact"]["method"] = "magic"


NAME = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_forget_bonds, r"does not fit the stored tensors.* random weights for 1 .*layers\.1\.mlp\.up_proj\.weight"),
        (_wrong_bonds, r"does not fit the stored tensors.* random weights for 2 .*layers\.1\.mlp\.up_proj\.cores\.0"),
        (_lost_core, r"does not fit the stored tensors.* random weights for 1 .*layers\.1\.mlp\.up_proj\.cores\.1"),
        (_other_method, "names the method 'magic', this tensorfact knows .*mpo.*; install the version that wrote"),
    ],
)
def test_a_recipe_that_does_not_fit_never_loads(made: Made, change: Any, message: str, tmp_path: Path) -> None:
    small = made("llama")[1]
    config, stored = config_of(small), tensors(small)
    change(config, stored)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for load in (hf.load_model, transformers.AutoModel.from_pretrained):
        with pytest.raises(ValueError, match=message):
            load(tmp_path)


def test_damage_is_found_and_to_dense_refuses(made: Made, tmp_path: Path) -> None:
    small = made("llama")[1]
    config, stored = config_of(small), tensors(small)
    del stored[f"{NAME}.cores.0"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(tc.CheckpointError, match=r"factors of 'model\.layers\.1\.mlp\.up_proj': cores\.0, cores\.1"):
        tc.to_dense(tmp_path, tmp_path / "plain")
    (tmp_path / "tensorfact.json").write_bytes((small / "tensorfact.json").read_bytes())
    assert f"tensor {NAME}.cores.0 is missing" in tc.verify(tmp_path)


def test_the_command_line_from_compress_to_page(write_checkpoint: Any, tmp_path: Path, capsys: Any) -> None:
    source, out = str(write_checkpoint()), str(tmp_path / "out")
    common = ["--param-ratio", "0.5", "--method", "mpo", "--no-progress"]
    assert main(["estimate", source, *common]) == 0
    told = capsys.readouterr().out
    assert main(["compress", source, out, *common, "--no-compare", "--option", "balance=false", "--rng", "0"]) == 0
    done = capsys.readouterr().out
    for text in (told, done):
        assert "method mpo" in text
        # 144 x 48 as (12 x 8) by (12 x 6): bonds up to 72, above 41 nothing is saved
        assert "/72" in text
        assert "a rank is the bond between neighbours of 2 cores" in " ".join(text.split())
    assert tc.Report.read(out).options["balance"] is False
    assert [line.split()[2] for line in told.splitlines() if "_proj" in line] == [
        line.split()[2] for line in done.splitlines() if "_proj" in line
    ]
    assert main(["verify", out]) == 0
    assert main(["info", out]) == 0
    assert "mpo, 4 layers, bonds " in capsys.readouterr().out
    assert main(["report", out, "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    check_page(page)
    assert "two factors" not in page
    assert "of 72" in page
    assert main(["to-dense", out, str(tmp_path / "plain"), "--no-progress"]) == 0
    bonds = ["--rank", "up_proj=5", "--rank", "down_proj=3,4", "--option", "order=3"]
    assert main(["compress", source, str(tmp_path / "three"), *common, *bonds, "--no-compare"]) == 0
    assert {record.rank for record in tc.Report.read(tmp_path / "three").layers} == {(5, 5), (3, 4)}
    capsys.readouterr()
    assert main(["compress", source, str(tmp_path / "bad"), *common, "--rank", "up_proj=3,4"]) == 2
    assert "rank_pattern must map names to a bond >= 1, or to 1 of them for order 2" in capsys.readouterr().err


def test_estimate_predicts_two_cores_and_bounds_three(write_checkpoint: Any, tmp_path: Path) -> None:
    source = write_checkpoint()
    for order in (2, 3):
        options: dict[str, Any] = {"method": "mpo", "options": {"order": order}, "param_ratio": 0.4}
        told, done = tc.estimate(source, **options), tc.compress(source, tmp_path / str(order), **options, rng=0)
        for before, after in zip(told.layers, done.layers, strict=True):
            assert before.rank == after.rank
            assert before.error is not None
            assert after.error is not None
            assert after.error <= before.error * (1 + 1e-3)
            if order == 2:
                assert after.error == pytest.approx(before.error, rel=2e-2)
        assert all("the cores would save" in item.reason for item in done.dense if item.targeted)
        blind = tc.estimate(source, **{**options, "allocation": "uniform"})
        assert all(layer.error is None and layer.spectrum == () for layer in blind.layers)


def test_same_bits_on_every_executor(write_checkpoint: Any, weights_digest: Any, tmp_path: Path) -> None:
    source = write_checkpoint()
    digests = set()
    for executor in ("serial", "threads:2", "threads:3"):
        out = tmp_path / executor
        tc.compress(source, out, param_ratio=0.4, method="mpo", options={"order": 3}, executor=executor, rng=1)
        digests.add(weights_digest(out))
    assert len(digests) == 1


def test_reports_draw_bonds_and_their_own_break_even(write_checkpoint: Any, tmp_path: Path) -> None:
    report = tc.compress(
        write_checkpoint(), tmp_path / "out", param_ratio=0.5, method="mpo", options={"order": 3}, rng=0
    )
    page, text = render_html(report), render_terminal(report, width=120)
    check_page(page)
    for layer in report.layers:
        assert layer.full_rank is not None
        assert layer.break_even is not None
        assert f"{','.join(map(str, layer.rank))}/{layer.full_rank}" in text  # type: ignore[arg-type]
        assert max(layer.rank) <= layer.break_even <= layer.full_rank  # type: ignore[arg-type]
        indices, values = zip(*layer.spectrum, strict=True)
        assert indices[-1] == layer.full_rank
        assert np.all(np.diff(values) <= 0)
    assert "of the middle unfolding of the weight" in " ".join(text.split())
    again = tc.Report.from_json(report.to_json())
    assert again == report
    assert math.isclose(again.achieved_ratio, report.achieved_ratio)
