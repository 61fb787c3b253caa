"""Checkpoints in few bits: real bytes, two lines to load them, training that rounds, and a control without factors."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from compressed_models import config_of, tensors
from compressed_models import outputs as first_output

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tensorfact.compress as tc  # noqa: E402
import tensorfact.torch  # noqa: E402
from tensorfact.compress import FipsMethod, QuantizeMethod  # noqa: E402
from tensorfact.compress._grouping import format_bytes  # noqa: E402
from tensorfact.compress._method import Layer  # noqa: E402
from tensorfact.compress.checkpoint import Checkpoint, TensorInfo, read_weight  # noqa: E402
from tensorfact.compress.cli import main  # noqa: E402
from tensorfact.factor._quantized import dequantize, quantize  # noqa: E402

WORDS = [f"w{i} w{i + 1} w{2 * i % 90} w{(7 * i) % 90} w{(3 * i) % 90} w{i % 11}" for i in range(48)]
RATIO = {"lowrank": 0.6, "pivots": 0.6, "fips": 0.3, "quantize": 0.3}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bits") / "bert"
    return tiny_models.tiny("bert", directory, tokenizer=True, num_hidden_layers=2)


def compress(dense: Path, out: Path, **arguments: Any) -> Any:
    method = arguments.get("method", "lowrank")
    given = {"method": method, "param_ratio": RATIO[method], "executor": "serial", "rng": 0}
    return tc.compress(dense, out, **{**given, **arguments})


def outputs(directory: Path) -> Any:
    return first_output(transformers.AutoModel.from_pretrained(directory), "bert")


def layer(name: str, shape: tuple[int, int]) -> Layer:
    return Layer(name, "linear", shape, TensorInfo(f"{name}.weight", "F32", shape, Path("none"), 0, 0))


def stored_bytes(directory: Path) -> int:
    return sum(value.numel() * value.element_size() for value in tensors(directory).values())


def check(dense: Path, out: Path, report: Any, tmp_path: Path) -> None:
    """The bytes are those of the file, and every way to load it gives the same numbers."""
    assert report.bytes_after == stored_bytes(out) == Checkpoint.open(out).nbytes
    saved = sum(layer.bytes_before - layer.bytes_after for layer in report.layers)
    assert report.bytes_before - report.bytes_after == saved
    assert report.achieved_ratio <= report.param_ratio
    assert tc.verify(out, deep=True) == []
    model = transformers.AutoModel.from_pretrained(out)
    expected = first_output(model, "bert")
    tc.to_dense(out, tmp_path / "dense")
    assert config_of(tmp_path / "dense") == config_of(dense)
    shapes = {key: (value.shape, value.dtype) for key, value in tensors(tmp_path / "dense").items()}
    assert shapes == {key: (value.shape, value.dtype) for key, value in tensors(dense).items()}
    torch.testing.assert_close(outputs(tmp_path / "dense"), expected, rtol=0, atol=tolerance(report) * 5)
    model.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(outputs(tmp_path / "again"), expected, rtol=0, atol=0)
    assert stored_bytes(tmp_path / "again") == stored_bytes(out)


def tolerance(report: Any) -> float:
    return {"F32": 1e-5, "BF16": 2e-2, "F16": 2e-3}[report.layers[0].dtype]


@pytest.mark.parametrize("bits", [8, 4, 3])
@pytest.mark.parametrize(("method", "options"), [("lowrank", {}), ("fips", {}), ("fips", {"share": False})])
def test_files_are_as_small_as_the_report_says(
    bert: Path, tmp_path: Path, method: str, options: dict[str, Any], bits: int
) -> None:
    report = compress(bert, tmp_path / "out", method=method, factor_bits=bits, options=options)
    check(bert, tmp_path / "out", report, tmp_path)
    found = tensors(tmp_path / "out")
    packed = {key: value for key, value in found.items() if key.endswith(".packed")}
    assert packed
    assert {value.dtype for value in packed.values()} == {torch.uint8}
    assert {found[key[: -len("packed")] + "scale"].dtype for key in packed} == {torch.bfloat16}
    for key, value in packed.items():
        scale = found[key[: -len("packed")] + "scale"]
        count = len(scale) if scale.ndim == 2 else None
        if count is not None:
            assert value.shape[0] == math.ceil(count * bits / 8)
    estimated = tc.estimate(
        bert, method=method, factor_bits=bits, options=options, param_ratio=RATIO[method], executor="serial"
    )
    assert estimated.targeted_after == pytest.approx(report.targeted_after, abs=8)
    assert estimated.bytes_after == pytest.approx(report.bytes_after, abs=8 * len(report.layers))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("method", ["lowrank", "fips", "quantize"])
def test_half_precision(bert: Path, tmp_path: Path, method: str, dtype: str) -> None:
    half = tmp_path / "half"
    transformers.AutoModel.from_pretrained(bert).to(getattr(torch, dtype)).save_pretrained(half)
    report = compress(half, tmp_path / "out", method=method, factor_bits=4, param_ratio=0.6)
    check(half, tmp_path / "out", report, tmp_path)
    kinds = {value.dtype for value in tensors(tmp_path / "out").values()}
    assert kinds <= {torch.uint8, torch.bfloat16, getattr(torch, dtype)}


@pytest.mark.parametrize("width", [17, 30])
def test_odd_sizes(tmp_path: Path, write_checkpoint: Any, width: int) -> None:
    source = write_checkpoint(width=width)
    for bits in (8, 4, 3):
        for method in ("lowrank", "quantize"):
            out = tmp_path / f"{method}{bits}"
            report = compress(source, out, method=method, factor_bits=bits, param_ratio=0.7)
            assert report.bytes_after == Checkpoint.open(out).nbytes
            assert tc.verify(out) == []
            tc.to_dense(out, tmp_path / f"dense-{method}{bits}")
            plain = Checkpoint.open(tmp_path / f"dense-{method}{bits}")
            for layer in report.layers:
                key = f"{layer.name}.weight"
                weight = read_weight(Checkpoint.open(source).tensors[key]).astype(np.float64)
                lost = np.linalg.norm(read_weight(plain.tensors[key]) - weight) / np.linalg.norm(weight)
                assert lost == pytest.approx(layer.error, rel=1e-4)


def test_parameters_count_the_same_with_any_bits(bert: Path, tmp_path: Path) -> None:
    plain = compress(bert, tmp_path / "plain")
    small = compress(bert, tmp_path / "small", factor_bits=4)
    assert [layer.rank for layer in plain.layers] == [layer.rank for layer in small.layers]
    assert plain.params_after == small.params_after
    assert 0.13 < sum(la.bytes_after for la in small.layers) / sum(la.bytes_after for la in plain.layers) < 0.16


@pytest.mark.parametrize("bits", [None, 4])
def test_bytes_that_few_bits_do_not_reach_are_told(tmp_path: Path, write_checkpoint: Any, bits: int | None) -> None:
    report = compress(write_checkpoint(), tmp_path / "out", param_ratio=0.98, factor_bits=bits)
    wide = [record for record in report.dense if record.targeted]
    assert wide
    kept, whole = sum(r.bytes for r in wide), sum(r.bytes for r in wide) + sum(la.bytes_after for la in report.layers)
    text = (
        f"factor_bits: {len(wide)} of {len(wide) + len(report.layers)} targeted weights stay dense, in their own type, "
        f"and take {format_bytes(kept)} of the {format_bytes(whole)} of all of them"
    )
    assert [note for note in report.notes if note.startswith("factor_bits: ")] == ([] if bits is None else [text])
    assert any("param_ratio counts numbers, not bytes" in note for note in report.notes) is (bits is not None)
    none_left = compress(tmp_path / "source", tmp_path / "small", param_ratio=0.4, factor_bits=bits)
    assert not any(note.startswith("factor_bits: ") for note in none_left.notes)


def test_fewer_bits_buy_more_of_a_budget_of_bytes() -> None:
    shapes_ = [(1024, 256), (1024, 256), (256, 1024)]
    layers = [layer(f"model.layers.{b}.mlp.{i}_proj", shape) for b in range(2) for i, shape in enumerate(shapes_)]
    whole = sum(item.size for item in layers) * 4
    for bits in (8, 4, 3):
        for ratio in (0.1, 0.2):
            method = FipsMethod(factor_bits=bits)
            ranks = method.allocate(layers, ratio, {}).ranks
            used = 0
            for i, item in enumerate(layers):
                shapes = method.layout(item.shape, ranks[item.name])
                sizes = {key: math.prod(shape) * (2 if key.endswith("scale") else 1) for key, shape in shapes.items()}
                used += sum(size for key, size in sizes.items() if i == 0 or not key.startswith("basis"))
            rank, _ = ranks[layers[0].name]  # type: ignore[misc]
            full = sum(kept for _, kept in ranks.values()) == rank * sum(max(item.shape) for item in layers)  # type: ignore[misc]
            assert used <= ratio * whole
            assert full or used > 0.999 * ratio * whole


@pytest.mark.parametrize("method", ["lowrank", "fips", "quantize"])
def test_training_rounds_and_does_not_end_worse(bert: Path, tmp_path: Path, method: str) -> None:
    arguments = {"method": method, "factor_bits": 3, "calibration": WORDS, "refine": tc.Refinement(steps=40, lr=3e-3)}
    report = compress(bert, tmp_path / "out", **arguments)
    check(bert, tmp_path / "out", report, tmp_path)
    assert report.blocks
    assert all(block.loss_after <= block.loss_before for block in report.blocks)
    assert sum(b.loss_after for b in report.blocks) < 0.95 * sum(b.loss_before for b in report.blocks)
    assert not any(key.endswith(("latent", "log_scale")) for key in tensors(tmp_path / "out"))


@pytest.mark.parametrize("method", ["lowrank", "fips"])
def test_a_stopped_run_goes_on_to_the_same_bits(bert: Path, tmp_path: Path, method: str, weights_digest: Any) -> None:
    arguments = {"method": method, "factor_bits": 4, "calibration": WORDS, "refine": tc.Refinement(steps=12)}
    arguments["options"] = {"group_size": 1} if method == "fips" else {}

    def stop(phase: str, done: int, total: int, name: str) -> None:
        if phase == "refinement" and done == 18:  # in the second block
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(bert, tmp_path / "a", progress=stop, **arguments)
    report = compress(bert, tmp_path / "a", **arguments)
    assert any("went on" in note for note in report.notes)
    compress(bert, tmp_path / "b", **arguments)
    assert weights_digest(tmp_path / "a") == weights_digest(tmp_path / "b")


def test_quantize_shares_bytes_by_the_errors(bert: Path, tmp_path: Path) -> None:
    report = compress(bert, tmp_path / "out", method="quantize", param_ratio=0.13)
    assert 0.12 < report.achieved_ratio <= 0.13
    assert {layer.rank for layer in report.layers} >= {3, 4}
    check(bert, tmp_path / "out", report, tmp_path)
    for layer in report.layers:
        weight = read_weight(Checkpoint.open(bert).tensors[f"{layer.name}.weight"])
        rounded = dequantize(*quantize(weight, layer.rank))
        assert layer.error == pytest.approx(np.linalg.norm(rounded - weight) / np.linalg.norm(weight), rel=1e-5)
    uniform = compress(bert, tmp_path / "uniform", method="quantize", param_ratio=0.13, allocation="uniform")
    assert len({layer.rank for layer in uniform.layers}) == 1
    named = {"re:.*query": 8}
    report = compress(bert, tmp_path / "named", method="quantize", factor_bits=3, rank_pattern=named)
    assert {layer.rank for layer in report.layers if "query" in layer.name} == {8}
    assert {layer.rank for layer in report.layers if "query" not in layer.name} == {3}


def test_weights_with_few_outputs_stay_dense() -> None:
    small, large = layer("a", (7, 64)), layer("b", (64, 64))
    allocation = QuantizeMethod(factor_bits=4).allocate([small, large], 0.5, {})
    assert allocation.ranks == {"b": 4}
    assert list(allocation.dense) == ["a"]


def test_the_command_line(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compress", str(bert), str(tmp_path / "out"), "--param-ratio", "0.6", "--factor-bits", "4"]
    assert main([*command, "--no-compare", "--no-progress"]) == 0
    assert config_of(tmp_path / "out")["tensorfact"]["options"] == {"factor_bits": 4}
    report = tc.Report.read(tmp_path / "out")
    assert report.options["factor_bits"] == 4
    assert main(["estimate", str(bert), "--param-ratio", "0.6", "--factor-bits", "4", "--json", "--no-progress"]) == 0
    text = capsys.readouterr().out
    assert json.loads(text[text.index("{") :])["bytes_after"] == report.bytes_after
    for method, bits, message in (
        ("lowrank", "9", "factor_bits must be an integer from 2 to 8, got 9"),
        ("mpo", "4", "options of 'mpo' must be among"),
        ("quantize", "8", "param_ratio must be at least 0.2"),
    ):
        words = ["compress", str(bert), str(tmp_path / "no"), "--param-ratio", "0.2", "--method", method]
        assert main([*words, "--factor-bits", bits]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_mistakes_are_named(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prune must be 'start' with factor_bits"):
        FipsMethod(factor_bits=4, prune="gradual")
    with pytest.raises(ValueError, match="rank_pattern must map names to bits from 2 to 8"):
        QuantizeMethod(rank_pattern={"a": 9})
    compress(bert, tmp_path / "out", factor_bits=4)
    config = config_of(tmp_path / "out")
    config["tensorfact"]["options"] = {"factor_bits": 3}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    assert any("has shape" in problem for problem in tc.verify(tmp_path / "out"))
    with pytest.raises(tc.CheckpointError, match="must fit together"):
        tc.to_dense(tmp_path / "out", tmp_path / "dense")
    config["tensorfact"]["options"] = {"unheard": 3}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="options of 'lowrank' must be among"):
        tc.to_dense(tmp_path / "out", tmp_path / "dense")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("trained", [False, True])
def test_pivots_take_fewer_bytes_for_the_same_weights(bert: Path, tmp_path: Path, dtype: str, trained: bool) -> None:
    source = tmp_path / "source"
    transformers.AutoModel.from_pretrained(bert).to(getattr(torch, dtype)).save_pretrained(source)
    shutil.copy(bert / "tokenizer.json", source)
    shutil.copy(bert / "tokenizer_config.json", source)
    data = {"calibration": WORDS, "refine": tc.Refinement(steps=20, lr=3e-3)} if trained else {}
    report = compress(source, tmp_path / "out", method="pivots", param_ratio=0.6, **data)
    check(source, tmp_path / "out", report, tmp_path)
    assert all(block.loss_after <= block.loss_before for block in report.blocks)
    for item in report.layers:
        numbers = item.rank * (sum(item.shape) - item.rank)
        bits = 8 * math.ceil(item.shape[0] / 8)
        assert item.bytes_after == numbers * (4 if dtype == "float32" else 2) + bits // 8
    if not trained:
        ranks = {f"re:^{item.name}$": item.rank for item in report.layers}
        plain = compress(source, tmp_path / "plain", method="lowrank", param_ratio=1, rank_pattern=ranks)
        errors = {item.name: item.error for item in plain.layers}
        for item in report.layers:
            if item.name in errors:
                assert item.error == pytest.approx(errors[item.name], rel=1e-4 if dtype == "float32" else 0.05)
        same = compress(source, tmp_path / "same", method="lowrank", param_ratio=0.6)
        assert sum(i.error for i in report.layers) < 0.97 * sum(i.error for i in same.layers)


@pytest.mark.parametrize("shape", [(64, 64), (40, 96), (96, 40), (9, 5), (3, 2), (2, 2)])
@pytest.mark.parametrize(("dtype", "width"), [("F32", 32), ("BF16", 16), ("F64", 64)])
def test_pivots_count_their_bits_at_break_even(shape: tuple[int, int], dtype: str, width: int) -> None:
    method, item = tc.PivotMethod(), layer("a", shape)
    item = dataclasses.replace(item, info=dataclasses.replace(item.info, dtype=dtype))
    smaller = [
        rank
        for rank in range(1, min(shape) + 1)
        if rank * (sum(shape) - rank) + math.ceil(8 * math.ceil(shape[0] / 8) / width) < math.prod(shape)
    ]
    assert len(method.menu(item, None).costs) == len(smaller) + 1
    even = method.break_even(shape)
    assert even in {0, *smaller}
    if width == 16:
        assert even == len(smaller)


@pytest.mark.parametrize("rank", [63, 64, 100])
def test_a_rank_that_pivots_cannot_store_smaller_is_told(rank: int) -> None:
    layers = [layer("a", (64, 64)), layer("b", (64, 64))]
    found = tc.PivotMethod(allocation="uniform", rank_pattern={"a": rank}).allocate(layers, 0.8, {})
    assert found.dense == {"a": f"rank {rank} of rank_pattern is past break-even (62)"}
    kept = tc.PivotMethod(allocation="uniform", rank_pattern={"a": 62}).allocate(layers, 0.8, {})
    assert kept.ranks["a"] == 62


def test_pivots_refuse_what_is_not_finite() -> None:
    made = tensorfact.torch.PivotLowRankLinear(12, 10, rank=4)
    up, down = torch.ones(10, 4), torch.ones(4, 12)
    for name, bad in (("up", up.index_fill(0, torch.tensor(3), torch.nan)), ("down", down * torch.inf)):
        with pytest.raises(ValueError, match=f"{name} must be finite, got NaN or infinity"):
            made.store(**{"up": up, "down": down, name: bad})


def test_pivots_refuse_few_bits() -> None:
    with pytest.raises(ValueError, match="factor_bits must be None for pivots, got 4"):
        tc.PivotMethod(factor_bits=4)


@pytest.mark.parametrize("pattern", ["2:4", "1:4"])
@pytest.mark.parametrize("bits", [None, 4])
def test_patterns_of_four(bert: Path, tmp_path: Path, pattern: str, bits: int | None) -> None:
    options = {"code_pattern": pattern}
    data = {"calibration": WORDS, "refine": tc.Refinement(steps=20, lr=3e-3)} if pattern == "1:4" else {}
    report = compress(bert, tmp_path / "out", method="fips", factor_bits=bits, options=options, **data)
    check(bert, tmp_path / "out", report, tmp_path)
    assert all(block.loss_after <= block.loss_before for block in report.blocks)
    kept, found = int(pattern[0]), tensors(tmp_path / "out")
    for item in report.layers:
        rank, values = item.rank
        assert values == rank // 4 * kept * max(item.shape)
        assert found[f"{item.name}.mask"].numel() == math.ceil(rank * kept / 16) * max(item.shape)
    with pytest.raises(ValueError, match="sparsity must be 'auto' with code_pattern"):
        FipsMethod(code_pattern=pattern, sparsity=0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="code_pattern must be None"):
        FipsMethod(code_pattern="3:4")  # type: ignore[arg-type]


@pytest.mark.parametrize(("prune", "pattern"), [("rigl", None), ("sr-ste", "1:4")])
def test_masks_that_move_in_the_refinement(bert: Path, tmp_path: Path, prune: str, pattern: str | None) -> None:
    options = {"prune": prune, "code_pattern": pattern}
    data = {"calibration": WORDS, "refine": tc.Refinement(steps=120, lr=3e-3)}
    report = compress(bert, tmp_path / "out", method="fips", options=options, **data)
    check(bert, tmp_path / "out", report, tmp_path)
    assert all(block.loss_after < block.loss_before for block in report.blocks)
    still = compress(
        bert, tmp_path / "still", method="fips", options={"code_pattern": pattern}, calibration=WORDS, refine=False
    )
    masks = [tensors(tmp_path / name) for name in ("out", "still")]
    keys = [key for key in masks[0] if key.endswith(".mask")]
    assert any(not torch.equal(masks[0][key], masks[1][key]) for key in keys)
    assert still.bytes_after == report.bytes_after


@pytest.mark.parametrize(("prune", "pattern"), [("rigl", "1:4"), ("sr-ste", None), ("gradual", "2:4"), ("magic", None)])
def test_ways_to_prune_that_do_not_fit(prune: Any, pattern: Any) -> None:
    with pytest.raises(ValueError, match="prune must be"):
        FipsMethod(prune=prune, code_pattern=pattern)
