"""Compress, load, verify, and back to dense."""

from __future__ import annotations

import dataclasses
import json
import os
from datetime import datetime

import numpy as np
import pytest
import torch
import transformers

import tensorfact.compress as tc
from tensorfact.compress import fidelity, run
from tensorfact.compress._job import free_memory
from tensorfact.compress._store import digest_of
from tensorfact.compress.checkpoint import Checkpoint, read_raw, read_weight
from tiny_models import tiny

FAMILIES = ("llama", "qwen2", "gpt2", "bert", "vit")


def tensors(directory):
    return {name: read_raw(info).tobytes() for name, info in Checkpoint.open(directory).tensors.items()}


def test_report_and_files_agree(write_checkpoint, tmp_path):
    source, out = write_checkpoint(), tmp_path / "out"
    report = tc.compress(source, out, param_ratio=0.5, rng=3)
    assert tc.Report.read(out) == report
    assert report.achieved_ratio <= 0.5
    found = Checkpoint.open(out)
    assert found.size == report.params_after
    assert found.nbytes == report.bytes_after
    assert report.params_before == Checkpoint.open(source).size
    assert (out / "extra" / "config.json").is_file()
    assert not (out / "pytorch_model.bin").exists()
    assert "<html" in (out / "report.html").read_text()
    assert report.options["rng"] == 3
    assert datetime.fromisoformat(report.created).tzinfo is not None
    assert "not copied from the source: pytorch_model.bin" in report.notes
    assert any("does not know the family 'plain'" in note for note in report.notes)
    original = Checkpoint.open(source)
    for layer in report.layers:
        weight = read_weight(original.tensors[f"{layer.name}.weight"])
        up, down = (read_weight(found.tensors[f"{layer.name}.{part}.weight"]) for part in ("up", "down"))
        assert up.shape == (layer.shape[0], layer.rank)
        error = np.linalg.norm(weight - up @ down) / np.linalg.norm(weight)
        assert layer.error == pytest.approx(error, rel=1e-3)
        assert layer.optimal_error <= layer.error * (1 + 1e-5)  # the achieved one is known to a few float32 ulps
        assert layer.error <= 1.02 * layer.optimal_error
        assert len(layer.spectrum) <= 64
        assert layer.spectrum[0] == (1, 1.0)
    before, after = tensors(source), tensors(out)
    for name in before.keys() & after.keys():
        assert before[name] == after[name]
    assert after["model.layers.0.up_proj.up.bias"] == before["model.layers.0.up_proj.bias"]


def test_record_names_every_file(write_checkpoint, tmp_path):
    out = tmp_path / "out"
    tc.compress(write_checkpoint(shards=2), out, param_ratio=0.5, max_shard_size="20KB")
    record = json.loads((out / "tensorfact.json").read_text())
    assert record["digest"] == digest_of(record)
    on_disk = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert set(record["files"]) == on_disk - {"tensorfact.json"}
    assert "model.safetensors.index.json" in on_disk
    assert set(record["source"]["files"]) == {"config.json", *(f"model-0000{i}-of-00002.safetensors" for i in (1, 2))}
    assert tc.verify(out) == []


def test_same_seed_same_bits_other_seed_recorded(write_checkpoint, tmp_path, weights_digest):
    # Decay this slow needs the sketch: the exact route would hide the seed.
    source = write_checkpoint(width=160, blocks=1)
    options = {"solver": "subspace", "n_iter": 0}
    digests = []
    for i, rng in enumerate((5, 5, np.random.default_rng(5), 6)):
        report = tc.compress(source, tmp_path / f"out{i}", param_ratio=0.3, options=options, rng=rng)
        digests.append(weights_digest(tmp_path / f"out{i}"))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    report = tc.compress(source, tmp_path / "free", param_ratio=0.3, options=options)
    tc.compress(source, tmp_path / "again", param_ratio=0.3, options=options, rng=report.options["rng"])
    assert weights_digest(tmp_path / "free") == weights_digest(tmp_path / "again")


@pytest.mark.parametrize("family", FAMILIES)
def test_families_load_and_return(tmp_path, family):
    source, out, plain = tmp_path / "source", tmp_path / "out", tmp_path / "plain"
    tiny(family, source)
    report = tc.compress(source, out, param_ratio=0.6, rng=0)
    assert report.layers
    assert tc.verify(out, deep=True) == []
    tc.to_dense(out, plain)
    assert json.loads((plain / "config.json").read_text()) == json.loads((source / "config.json").read_text())
    assert {n: i.shape for n, i in Checkpoint.open(plain).tensors.items()} == {
        n: i.shape for n, i in Checkpoint.open(source).tensors.items()
    }
    assert not [p.name for p in plain.iterdir() if "tensorfact" in p.name or p.name.startswith("report")]
    architecture = getattr(transformers, report.architecture)
    dense, info = architecture.from_pretrained(plain, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    small = tc.load(out)
    batch = (
        {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
        if family == "vit"
        else {"input_ids": torch.arange(24).reshape(2, 12)}
    )
    with torch.inference_mode():
        a, b = dense.eval()(**batch)[0], small.eval()(**batch)[0]
    torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays(tmp_path, dtype):
    source, out = tmp_path / "source", tmp_path / "out"
    tiny("llama", source)
    transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype).save_pretrained(source)
    report = tc.compress(source, out, param_ratio=0.6)
    checkpoint = Checkpoint.open(out)
    assert {info.dtype for info in checkpoint.tensors.values()} == {"BF16" if dtype == torch.bfloat16 else "F16"}
    dense = Checkpoint.open(source)
    for layer in report.layers:  # the error of what is stored, not of what was computed
        weight = read_weight(dense.tensors[f"{layer.name}.weight"])
        up, down = (read_weight(checkpoint.tensors[f"{layer.name}.{part}.weight"]) for part in ("up", "down"))
        assert layer.error == pytest.approx(np.linalg.norm(weight - up @ down) / np.linalg.norm(weight), rel=1e-4)
        assert layer.error > layer.optimal_error
        assert layer.bytes_after == 2 * layer.params_after
    assert tc.load(out, dtype="auto").dtype == dtype


def test_a_model_in_memory(tmp_path, weights_digest, leftovers):
    source = tmp_path / "source"
    tiny("llama", source)
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    report = tc.compress(model, tmp_path / "a", param_ratio=0.5, rng=1)
    tc.compress(source, tmp_path / "b", param_ratio=0.5, rng=1)
    assert report.source == "LlamaForCausalLM in memory"
    assert weights_digest(tmp_path / "a") == weights_digest(tmp_path / "b")
    assert leftovers(tmp_path) == []


def test_a_saved_copy_goes_back_to_dense_too(tmp_path):
    source, out, again, plain = (tmp_path / name for name in ("source", "out", "again", "plain"))
    tiny("gpt2", source)
    tc.compress(source, out, param_ratio=0.6)
    tc.load(out).save_pretrained(again)
    tc.to_dense(again, plain)
    tc.to_dense(out, tmp_path / "plain0")
    assert tensors(plain) == tensors(tmp_path / "plain0")


@pytest.mark.parametrize("allocation", ["spectrum", "uniform"])
def test_estimate_says_what_compress_does(write_checkpoint, tmp_path, allocation):
    source = write_checkpoint()
    before = sorted(os.listdir(tmp_path))
    predicted = tc.estimate(source, param_ratio=0.4, allocation=allocation, rank_pattern={"0.up_proj": 7})
    assert sorted(os.listdir(tmp_path)) == before
    assert predicted.dry_run
    assert predicted.output is None
    done = tc.compress(source, tmp_path / "out", param_ratio=0.4, allocation=allocation, rank_pattern={"0.up_proj": 7})
    for name in ("targeted_before", "targeted_after", "params_before", "params_after", "bytes_before", "bytes_after"):
        assert getattr(predicted, name) == getattr(done, name)
    assert [(r.name, r.rank) for r in predicted.layers] == [(r.name, r.rank) for r in done.layers]
    for guess, fact in zip(predicted.layers, done.layers, strict=True):
        if allocation == "spectrum":
            assert guess.error <= fact.error * (1 + 1e-5)  # the achieved one is known to a few float32 ulps
        else:
            assert guess.error is None
    assert tc.Report.from_json(predicted.to_json()) == predicted


def test_dense_layers_at_break_even_are_listed(write_checkpoint, tmp_path):
    report = tc.compress(write_checkpoint(), tmp_path / "out", param_ratio=0.98, allocation="spectrum")
    left = [record for record in report.dense if record.targeted]
    assert left
    assert all("break-even" in record.reason for record in left)
    assert all(layer.params_after < layer.params_before for layer in report.layers)
    assert report.targeted_after <= 0.98 * report.targeted_before


def test_exact_solver_is_a_lower_bound(write_checkpoint, tmp_path):
    source = write_checkpoint(width=160, blocks=1)
    fast = tc.compress(source, tmp_path / "a", param_ratio=0.2, options={"n_iter": 0, "n_oversamples": 0}, rng=0)
    best = tc.compress(source, tmp_path / "b", param_ratio=0.2, options={"solver": "exact"})
    for a, b in zip(fast.layers, best.layers, strict=True):
        assert b.path == "full-svd"
        assert b.error == pytest.approx(b.optimal_error, rel=1e-4)
        assert a.error > 1.01 * b.error


def test_progress_is_called_for_each_layer(write_checkpoint, tmp_path):
    seen = []
    tc.compress(
        write_checkpoint(),
        tmp_path / "out",
        param_ratio=0.5,
        progress=lambda *step: seen.append(step),
        executor="serial",
    )
    assert [step[:3] for step in seen] == [(phase, i, 4) for phase in ("spectra", "factors") for i in (1, 2, 3, 4)]


def test_compare_fills_the_report(tmp_path):
    source = tmp_path / "source"
    tiny("bert", source)
    report = tc.compress(source, tmp_path / "out", param_ratio=0.6, compare=True)
    assert report.latency is not None
    assert report.fidelity is not None
    assert 0 < report.fidelity.metrics["cosine_mean"] <= 1 + 1e-6
    assert "compare" in report.seconds
    assert tc.verify(tmp_path / "out") == []


def test_a_comparison_that_ends_the_process_costs_nothing_else(write_checkpoint, tmp_path, monkeypatch, leftovers):
    def end(*arguments):
        assert tc.verify(tmp_path / "out") == []
        raise error

    monkeypatch.setattr(fidelity, "evaluate", end)
    error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as caught:
        tc.compress(write_checkpoint(), tmp_path / "out", param_ratio=0.5, compare=True)
    assert "out is complete" in caught.value.__notes__[0]
    error = MemoryError("no more")
    report = tc.compress(tmp_path / "source", tmp_path / "out", param_ratio=0.5, compare=True, overwrite=True)
    assert any("were not compared: MemoryError: no more" in note for note in report.notes)
    assert tc.Report.read(tmp_path / "out") == report
    assert tc.verify(tmp_path / "out") == []
    assert leftovers(tmp_path) == []


def test_no_comparison_without_the_memory(write_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "free_memory", lambda: 1000)
    report = tc.compress(write_checkpoint(), tmp_path / "out", param_ratio=0.5, compare=True)
    assert report.fidelity is None
    assert any("both models take 0.0 GiB in float32" in note for note in report.notes)


def test_free_memory_is_that_of_a_machine():
    free = free_memory()
    assert free is None or 1 << 20 < free < 1 << 50


def test_overwrite_replaces(write_checkpoint, tmp_path, leftovers):
    out = tmp_path / "out"
    source = write_checkpoint()
    tc.compress(source, out, param_ratio=0.5)
    (out / "stale.txt").write_text("x")
    with pytest.raises(FileExistsError, match="out already exists"):
        tc.compress(source, out, param_ratio=0.3)
    report = tc.compress(source, out, param_ratio=0.3, overwrite=True)
    assert tc.Report.read(out) == report
    assert not (out / "stale.txt").exists()
    assert leftovers(tmp_path) == []


def test_a_method_of_ones_own(write_checkpoint, tmp_path):
    """The core knows nothing of `lowrank`: any registered method serves."""

    @dataclasses.dataclass(frozen=True)
    class Rescaled(tc.LowRankMethod):
        name = "rescaled"

        def factor(self, weight, rank, /, *, rng):
            made = super().factor(weight, rank, rng=rng)
            return dataclasses.replace(made, notes=("mine",))

    tc.register(Rescaled)
    assert "rescaled" in tc.methods()
    out = tmp_path / "out"
    report = tc.compress(write_checkpoint(), out, param_ratio=0.5, method="rescaled", options={"floor": 0.2})
    assert report.method == "rescaled"
    assert all(layer.notes == ("mine",) for layer in report.layers)
    assert tc.verify(out) == []
    tc.to_dense(out, tmp_path / "plain")
