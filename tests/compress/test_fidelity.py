"""Comparing two models: exact where the answer is known, for every family, and never a reason to lose a run."""

from __future__ import annotations

import copy
import dataclasses
import math
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tiny_models import FAMILIES, inputs, tiny

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tensorfact.compress import _inputs, fidelity  # noqa: E402
from tensorfact.compress._latency import interleaved  # noqa: E402
from tensorfact.compress.fidelity import compare_outputs, evaluate, measure_latency, measure_layers  # noqa: E402
from tensorfact.compress.records import LayerRecord  # noqa: E402

EXACT = {"relative_error": 0.0, "cosine_mean": 1.0, "top1_agreement": 1.0, "kl_mean": 0.0, "sentence_cosine_mean": 1.0}


class Outputs(dict[str, Any]):
    __getattr__ = dict.__getitem__


class Fixed(torch.nn.Module):
    """A model that returns given logits, whatever the input."""

    config = None

    def __init__(self, logits: Any) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, input_ids: Any, attention_mask: Any = None) -> Outputs:
        return Outputs(logits=self.logits)


def layer(shape: tuple[int, int], rank: int | tuple[int, ...]) -> LayerRecord:
    counts = {"params_before": 1, "params_after": 1, "bytes_before": 4, "bytes_after": 4}
    return LayerRecord(
        name="x", kind="linear", shape=shape, dtype="F32", rank=rank, error=0.1, optimal_error=None, path="", **counts
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_equals_itself(family: str, tmp_path: Path) -> None:
    path = tiny(family, tmp_path)
    model = _inputs.load_dense(path)
    result = compare_outputs(path, model)
    assert result.output == ("last_hidden_state" if family == "bert" else "logits")
    for name, value in result.metrics.items():
        assert value == pytest.approx(EXACT[name], abs=1e-5)
    assert "seed 0" in result.input
    assert "float32" in result.input


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_model_is_told_apart(family: str, tmp_path: Path) -> None:
    dense = _inputs.load_dense(tiny(family, tmp_path))
    changed = copy.deepcopy(dense)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in changed.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    metrics = compare_outputs(dense, changed, inputs=inputs(family)).metrics
    assert 1e-4 < metrics["relative_error"] < 2
    assert metrics["cosine_mean"] < 0.99999
    assert metrics.get("kl_mean", 1.0) > 0


def test_measures_of_logits_are_those_of_the_formulas() -> None:
    a = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.2, 0.2, 0.6], [0.9, 0.05, 0.05]]]))
    b = torch.log(torch.tensor([[[0.25, 0.5, 0.25], [0.2, 0.2, 0.6], [0.05, 0.9, 0.05]]]))
    batch = {"input_ids": torch.zeros(1, 3, dtype=torch.int64), "attention_mask": torch.tensor([[1, 1, 0]])}
    metrics = compare_outputs(Fixed(a), Fixed(b), inputs=batch).metrics  # the third position is padding
    assert metrics["top1_agreement"] == pytest.approx(0.5)
    assert metrics["kl_mean"] == pytest.approx(0.5 * (0.5 * math.log(2) + 0.25 * math.log(0.5)), rel=1e-5)
    difference = 2 * math.log(2) ** 2
    norm = float(a[0, :2].square().sum())
    assert metrics["relative_error"] == pytest.approx(math.sqrt(difference / norm), rel=1e-5)


def test_perplexity_is_the_exponential_of_the_mean_loss(tmp_path: Path) -> None:
    model = _inputs.load_dense(tiny("llama", tmp_path))
    batch = inputs("llama")
    metrics = compare_outputs(model, model, inputs=batch).metrics
    with torch.no_grad():
        loss = model(**batch, labels=batch["input_ids"]).loss
    assert metrics["perplexity_before"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert metrics["perplexity_after"] == metrics["perplexity_before"]


def test_sentences_go_through_the_tokenizer_of_the_checkpoint(tmp_path: Path) -> None:
    path = tiny("llama", tmp_path, tokenizer=True)
    result = compare_outputs(path, _inputs.load_dense(path))
    assert "24 built-in English sentences" in result.input
    assert "perplexity_before" in result.metrics


def test_a_broken_tokenizer_falls_back_to_token_ids(tmp_path: Path) -> None:
    path = tiny("bert", tmp_path)
    (path / "tokenizer.json").write_text("{")
    assert "random token ids" in compare_outputs(path, _inputs.load_dense(path)).input


def test_inputs_depend_on_the_seed_only(tmp_path: Path) -> None:
    for family, key in (("llama", "input_ids"), ("vit", "pixel_values")):
        model = _inputs.load_dense(tiny(family, tmp_path / family))
        first, again, other = (_inputs.default_inputs(model, None, seed=s).batches[0][key] for s in (3, 3, 4))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_synthetic_images_are_smooth_and_of_unit_spread(tmp_path: Path) -> None:
    model = _inputs.load_dense(tiny("vit", tmp_path))
    pixels = _inputs.default_inputs(model, None, seed=0).batches[0]["pixel_values"]
    assert pixels.shape == (4, 3, 32, 32)
    assert torch.allclose(pixels.std(dim=(1, 2, 3)), torch.ones(4), atol=1e-2)
    steps = (pixels[..., 1:] - pixels[..., :-1]).std()
    assert steps < 0.6 * pixels.std()


def test_an_unknown_kind_of_input_is_refused(tmp_path: Path) -> None:
    model = _inputs.load_dense(tiny("bert", tmp_path))
    model.main_input_name = "input_values"
    with pytest.raises(ValueError, match="inputs must be given for a model whose main input is 'input_values'"):
        compare_outputs(model, model)


def test_outputs_that_are_not_finite_are_refused() -> None:
    logits = torch.full((1, 2, 3), float("nan"))
    with pytest.raises(ValueError, match="the outputs must be finite"):
        compare_outputs(Fixed(logits), Fixed(logits), inputs={"input_ids": torch.zeros(1, 2, dtype=torch.int64)})


def test_latency_is_measured_and_described(tmp_path: Path) -> None:
    model = _inputs.load_dense(tiny("bert", tmp_path))
    result = measure_latency(model, model, inputs=inputs("bert"), repeats=5)
    assert result.before_ms > 0
    assert result.after_ms > 0
    assert result.repeats == 5
    assert result.threads == torch.get_num_threads()
    assert "2 x 7" in result.input
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        measure_latency(model, model, inputs=inputs("bert"), repeats=0)


class Slow(torch.nn.Module):
    """A model that takes 20 ms a pass."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, input_ids: Any) -> Any:
        time.sleep(0.02)
        return input_ids


def test_one_forward_pass_is_the_mean_over_the_batches() -> None:
    batch = {"input_ids": torch.zeros(1, 2, dtype=torch.int64)}
    both = _inputs.Inputs((batch, batch), (None, None), "two batches")
    result = fidelity._time_models(Slow(), Slow(), both, repeats=3)
    assert 20 <= result.before_ms < 36
    assert 20 <= result.after_ms < 36
    assert result.input.endswith(", mean of 2 batches")


def test_interleaving_gives_every_run_its_own_median() -> None:
    calls: list[str] = []
    runs = [lambda: calls.append("a"), lambda: calls.append("b")]
    for repeats in (3, 4):
        calls.clear()
        medians, done = interleaved(runs, repeats=repeats, seconds=10.0)
        assert done == repeats
        assert len(medians) == 2
        assert calls[:6] == ["a", "b", "a", "b", "b", "a"]


@pytest.mark.parametrize("repeats", [3, 4])
def test_interleaved_medians_stay_with_their_run(repeats: int) -> None:
    slow, fast = (lambda: time.sleep(0.02)), (lambda: None)
    (before, after), _ = interleaved([slow, fast], repeats=repeats, seconds=10.0)
    assert before >= 20
    assert after < 20


def test_every_distinct_layer_is_timed_once() -> None:
    layers = [layer((256, 64), 8), layer((256, 64), 8), layer((64, 64), 4)]
    timed, words = measure_layers(layers, tokens=16, seconds=0.5)
    assert timed[0].latency_before_ms == timed[1].latency_before_ms
    assert all(record.latency_after_ms and record.latency_after_ms > 0 for record in timed)
    bonds = [layer((256, 64), (8,)), layer((64, 64), (2, 3)), layer((256, 64), (8,))]
    timed, _ = measure_layers(bonds, "mpo", tokens=16, seconds=0.5)
    assert timed[0].latency_after_ms == timed[2].latency_after_ms
    assert all(record.latency_after_ms and record.latency_after_ms > 0 for record in timed)
    assert words.startswith("16 tokens, float32")
    assert measure_layers([]) == ((), "")


def test_evaluate_fills_everything(tmp_path: Path) -> None:
    path = tiny("bert", tmp_path)
    found = evaluate(path, _inputs.load_dense(path), [layer((64, 64), 4)])
    assert found.notes == ()
    assert found.fidelity is not None
    assert found.fidelity.metrics["relative_error"] == 0.0
    assert found.latency is not None
    assert "128 tokens" in found.latency.layer_input
    assert found.layers[0].latency_before_ms is not None


def test_evaluate_never_raises_for_a_model_that_does_not_load(tmp_path: Path) -> None:
    found = evaluate(tmp_path / "nothing", tmp_path / "nothing", [layer((64, 64), 4)])
    assert found.fidelity is None
    assert found.latency is None
    assert found.layers[0].latency_before_ms is not None
    assert found.notes[0].startswith("the two models were not compared: ")


def test_evaluate_survives_layers_that_cannot_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(layers: Any, method: str) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(fidelity, "measure_layers", fail)
    found = evaluate("a", "b", [layer((64, 64), 4)])
    assert found.notes == ("the two models were not compared: MemoryError: no room",)
    assert found.layers == (layer((64, 64), 4),)


def test_evaluate_without_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = evaluate("a", "b", [layer((64, 64), 4)])
    assert "torch is not installed" in found.notes[0]
    assert dataclasses.replace(found, notes=()).layers == (layer((64, 64), 4),)
