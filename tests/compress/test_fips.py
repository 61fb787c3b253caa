"""The fips method: groups, budgets, checkpoints that share a basis, refinement."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from compressed_models import config_of, outputs, tensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tensorfact.compress as tc  # noqa: E402
from tensorfact.compress import FipsMethod  # noqa: E402
from tensorfact.compress._method import Layer  # noqa: E402
from tensorfact.compress._mlp_names import block_of, is_mlp  # noqa: E402
from tensorfact.compress.checkpoint import TensorInfo  # noqa: E402
from tensorfact.compress.cli import main  # noqa: E402
from tensorfact.torch import SharedBasisLinear  # noqa: E402

WORDS = [f"w{i} w{i + 1} w{2 * i % 90} w{(7 * i) % 90} w{(3 * i) % 90} w{i % 11}" for i in range(48)]


def layer(name: str, shape: tuple[int, int], dtype: str = "F32") -> Layer:
    return Layer(name, "linear", shape, TensorInfo(f"{name}.weight", dtype, shape, Path("none"), 0, 0))


def mlp(block: int, width: int = 8, prefix: str = "model.layers") -> list[Layer]:
    shapes = {"gate_proj": (4 * width, width), "up_proj": (4 * width, width), "down_proj": (width, 4 * width)}
    return [layer(f"{prefix}.{block}.mlp.{name}", shape) for name, shape in shapes.items()]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fips") / "bert"
    return tiny_models.tiny("bert", directory, tokenizer=True, num_hidden_layers=3)


def compress(dense: Path, out: Path, **arguments: Any) -> Any:
    return tc.compress(
        dense, out, **{"method": "fips", "param_ratio": 0.5, "executor": "serial", "rng": 0, **arguments}
    )


def stored_bytes(directory: Path) -> int:
    return sum(value.numel() * value.element_size() for value in tensors(directory).values())


def test_groups_are_consecutive_and_even() -> None:
    layers = [item for block in (10, 2, 0, 1, 3, 4, 5) for item in mlp(block)]
    units = FipsMethod(group_size=4).units(layers)
    blocks = [[int(item.name.split(".")[2]) for item in unit.layers][::3] for unit in units]
    assert blocks == [[0, 1, 2], [3, 4, 5], [10]]  # 10 follows nothing
    assert sorted(item.name for unit in units for item in unit.layers) == sorted(item.name for item in layers)
    alone = FipsMethod(share=False).units(layers)
    assert all(len(unit.layers) == 1 for unit in alone)
    assert len({unit.name for unit in units}) == len(units)


def test_no_group_crosses_a_change_of_width_or_type() -> None:
    layers = [*mlp(0), *mlp(1), *mlp(2, width=16), *mlp(3, width=16)]
    units = FipsMethod(group_size=4).units(layers)
    assert [{min(item.shape) for item in unit.layers} for unit in units] == [{8}, {16}]
    stages = [*mlp(0, prefix="swin.layers.0.blocks"), *mlp(1, prefix="swin.layers.1.blocks")]
    assert len(FipsMethod().units(stages)) == 2
    mixed = [*mlp(0), *(layer(item.name.replace(".0.", ".1."), item.shape, "BF16") for item in mlp(0))]
    assert len(FipsMethod().units(mixed)) == 2


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("encoder.layer.0.intermediate.dense", (1536, 384), True),
        ("encoder.layer.0.output.dense", (384, 1536), True),
        ("encoder.layer.0.attention.output.dense", (384, 384), False),
        ("model.layers.3.self_attn.k_proj", (256, 2048), False),
        ("model.layers.3.mlp.gate_proj", (8192, 2048), True),
        ("transformer.h.1.mlp.c_fc", (3072, 768), True),
        ("transformer.h.1.attn.c_attn", (2304, 768), False),
        ("encoder.block.0.layer.0.SelfAttention.q", (512, 256), False),
        ("encoder.block.0.layer.1.DenseReluDense.wi", (2048, 512), True),
        ("encoder.layers.0.downsample.reduction", (256, 512), False),
        ("model.layers.0.mlp.gate", (8, 64), False),
        ("blocks.5.mlp.fc1", (1536, 384), True),
        ("pooler.dense", (384, 100), False),
    ],
)
def test_the_weights_of_mlps_are_told_by_their_names(name: str, shape: tuple[int, int], expected: bool) -> None:
    assert is_mlp(name, shape) is expected
    assert bool(FipsMethod().wanted(name, shape)) is not expected
    assert block_of("encoder.layer.11.output.dense") == ("encoder.layer", 11)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
@pytest.mark.parametrize("ratio", [0.33, 0.5, 0.8])
@pytest.mark.parametrize("options", [{}, {"sparsity": 0.75}, {"share": False}])
def test_the_budget_is_met_by_every_group(dtype: str, ratio: float, options: dict[str, Any]) -> None:
    layers = [layer(item.name, item.shape, dtype) for block in range(4) for item in mlp(block, width=256)]
    method = FipsMethod(**options)
    allocation = method.allocate(layers, ratio, {})
    itemsize = 4 if dtype == "F32" else 2
    for unit in method.units(layers):
        basis = min(unit.layers[0].shape) * allocation.ranks[unit.layers[0].name][0]  # type: ignore[index]
        codes = 0
        for item in unit.layers:
            shapes = method.layout(item.shape, allocation.ranks[item.name])
            codes += shapes["values"][0] * itemsize + math.prod(shapes["mask"])
        dense = sum(item.size for item in unit.layers) * itemsize
        assert 0.999 * ratio < (basis * itemsize + codes) / dense <= ratio
        if options.get("sparsity"):
            kept = sum(allocation.ranks[item.name][1] for item in unit.layers)  # type: ignore[index]
            places = sum(max(item.shape) for item in unit.layers) * allocation.ranks[unit.layers[0].name][0]  # type: ignore[index]
            assert kept / places == pytest.approx(0.25, abs=1.5e-3)


def test_a_checkpoint_shares_its_basis(bert: Path, tmp_path: Path) -> None:
    report = compress(bert, tmp_path / "out", options={"group_size": 3})
    assert tc.verify(tmp_path / "out", deep=True) == []
    dense, small = tensors(bert), tensors(tmp_path / "out")
    assert sum(key.endswith(".basis") for key in small) == 1
    targets = [key for key in dense if key.endswith("dense.weight") and "attention" not in key and "pooler" not in key]
    assert len(targets) == len(report.layers) == 6
    before = sum(4 * dense[key].numel() for key in targets)
    after = stored_bytes(tmp_path / "out") - (stored_bytes(bert) - before)
    assert 0.998 * 0.5 * before < after <= 0.5 * before  # masks and basis included
    assert report.bytes_after == stored_bytes(tmp_path / "out")
    assert sum(row.bytes_after for row in report.layers) == after
    # what is stored, by the definition
    recipe = config_of(tmp_path / "out")["tensorfact"]
    (unit,) = recipe["units"].values()
    basis = small[f"{unit['layers'][0]}.basis"].double().numpy()
    model = transformers.AutoModel.from_pretrained(tmp_path / "out")
    shared = [module for module in model.modules() if isinstance(module, SharedBasisLinear)]
    assert len(shared) == 6
    assert len({id(module.basis) for module in shared}) == 1
    total = lost = 0.0
    for name in unit["layers"]:
        keep = np.unpackbits(
            small[f"{name}.mask"].numpy().T if "intermediate" in name else small[f"{name}.mask"].numpy(),
            axis=0, count=basis.shape[1], bitorder="little",
        ).astype(bool)  # fmt: skip
        codes = np.zeros(keep.shape)
        codes[keep] = small[f"{name}.values"].numpy()
        weight = basis @ codes if "intermediate" not in name else (basis @ codes).T
        found = model.get_submodule(name).weight.detach().numpy()
        assert found == pytest.approx(weight, abs=1e-5)
        row = next(row for row in report.layers if row.name == name)
        original = dense[f"{name}.weight"].double().numpy()
        assert row.error == pytest.approx(np.linalg.norm(original - weight) / np.linalg.norm(original), rel=1e-4)
        total, lost = total + np.sum(original**2), lost + np.sum((original - weight) ** 2)
    assert math.sqrt(lost / total) < 0.4


def test_it_goes_back_and_is_saved_once(bert: Path, tmp_path: Path) -> None:
    compress(bert, tmp_path / "out", options={"group_size": 3})
    model = transformers.AutoModel.from_pretrained(tmp_path / "out")
    expected = outputs(model, "bert")
    tc.to_dense(tmp_path / "out", tmp_path / "dense")
    plain = transformers.AutoModel.from_pretrained(tmp_path / "dense")
    assert type(plain).__name__ == "BertModel"
    assert torch.allclose(outputs(plain, "bert"), expected, atol=1e-5)
    model.save_pretrained(tmp_path / "again")
    saved = tensors(tmp_path / "again")
    assert sum(key.endswith(".basis") for key in saved) == 1
    again = transformers.AutoModel.from_pretrained(tmp_path / "again")
    assert torch.equal(outputs(again, "bert"), expected)
    assert len({id(m.basis) for m in again.modules() if isinstance(m, SharedBasisLinear)}) == 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "vit"])
def test_other_families(family: str, tmp_path: Path) -> None:
    dense = tiny_models.tiny(family, tmp_path / "dense")
    report = compress(dense, tmp_path / "out", options={"sweeps": 1})
    assert len(report.layers) == (6 if family == "llama" else 4)
    assert all("attn" not in row.name and "attention" not in row.name for row in report.layers)
    assert tc.verify(tmp_path / "out", deep=True) == []
    model = tc.load(tmp_path / "out")
    expected = outputs(model, family)
    tc.to_dense(tmp_path / "out", tmp_path / "back")
    back = type(model).__mro__[1].from_pretrained(tmp_path / "back")
    assert torch.allclose(outputs(back, family), expected, atol=1e-5)


def test_halves_are_counted_as_halves(tmp_path: Path) -> None:
    dense = tiny_models.tiny("bert", tmp_path / "dense", dtype="bfloat16")
    report = compress(dense, tmp_path / "out", options={"group_size": 2})
    before = sum(row.bytes_before for row in report.layers)
    after = stored_bytes(tmp_path / "out") - (stored_bytes(dense) - before)
    assert 0.995 * 0.5 * before < after <= 0.5 * before
    assert all(row.error < 0.5 for row in report.layers)


@pytest.mark.parametrize("options", [{"group_size": 3}, {"share": False}, {"prune": "gradual", "sparsity": 0.75}])
def test_data_and_refinement_help(bert: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    blind = compress(bert, tmp_path / "blind", options=options)
    seen = compress(bert, tmp_path / "seen", options=options, calibration=WORDS, refine=False)
    assert sum(row.output_error for row in seen.layers) < sum(row.error for row in blind.layers)
    trained = compress(
        bert, tmp_path / "trained", options=options, calibration=WORDS, refine=tc.Refinement(steps=24, lr=2e-4)
    )
    assert tc.verify(tmp_path / "trained", deep=True) == []
    blocks = trained.blocks
    assert blocks
    assert all(block.loss_after <= block.loss_before for block in blocks)
    if options.get("prune") != "gradual":  # 24 steps from dense codes are too few to catch up
        assert all(block.loss_after < block.loss_before for block in blocks)
        assert stored_bytes(tmp_path / "trained") == stored_bytes(tmp_path / "seen")
    x = tiny_models.inputs("bert")
    with torch.no_grad():
        reference = transformers.AutoModel.from_pretrained(bert).eval()(**x)[0]
        errors = {
            name: float((transformers.AutoModel.from_pretrained(tmp_path / name).eval()(**x)[0] - reference).norm())
            for name in ("blind", "trained")
        }
    assert errors["trained"] < errors["blind"]


def test_the_same_seed_gives_the_same_bits(bert: Path, tmp_path: Path, weights_digest: Any) -> None:
    for name in ("a", "b"):
        compress(bert, tmp_path / name, calibration=WORDS, refine=tc.Refinement(steps=4))
    assert weights_digest(tmp_path / "a") == weights_digest(tmp_path / "b")


def test_estimate_and_the_command_line(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = tc.estimate(bert, method="fips", param_ratio=0.5)
    made = compress(bert, tmp_path / "out")
    assert planned.bytes_after == made.bytes_after
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "fips" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "tensorfact.json").read_text())
    assert record["method"] == "fips"


def test_a_broken_file_is_noticed(bert: Path, tmp_path: Path) -> None:
    compress(bert, tmp_path / "out")
    method = FipsMethod()
    with pytest.raises(ValueError, match="fit together"):
        method.dense_shape({"basis": (8, 12), "values": (3,), "mask": (3, 3)})
    with pytest.raises(ValueError, match="as many as the mask"):
        method.expand({"basis": np.ones((8, 12)), "values": np.ones(3), "mask": np.zeros((2, 32), np.uint8)})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"group_size": 0}, "group_size"),
        ({"share": 1}, "share"),
        ({"sparsity": 1.0}, "sparsity"),
        ({"sparsity": True}, "sparsity"),
        ({"sweeps": -1}, "sweeps"),
        ({"prune": "late"}, "prune"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FipsMethod(**options)


def test_a_budget_that_cannot_be_met_names_the_group(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"param_ratio must leave room .* in encoder\.layer\.0"):
        compress(bert, tmp_path / "out", param_ratio=0.002, options={"share": True})
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="rank must be columns"):
        FipsMethod().layout((8, 4), 3)
