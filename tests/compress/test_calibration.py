"""Calibrated runs: better on the data, exact in what they claim, the same again, and not lost to a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_models
from compressed_models import tensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tensorfact.compress as tc  # noqa: E402
from tensorfact.compress._blocks import Activations, find_blocks  # noqa: E402
from tensorfact.compress._flow import Flow, open_model  # noqa: E402
from tensorfact.compress._grams import collect_evidence  # noqa: E402
from tensorfact.compress._refine import held_out  # noqa: E402
from tensorfact.compress.calibration import open_calibration  # noqa: E402
from tensorfact.compress.checkpoint import Checkpoint  # noqa: E402
from tensorfact.compress.cli import main  # noqa: E402
from tensorfact.compress.huggingface import module_names  # noqa: E402

FAST: dict[str, Any] = {"param_ratio": 0.3, "rank_multiple": 1, "rng": 0, "executor": "serial"}
FAMILIES = ("llama", "gpt2", "bert", "vit")
STEPS = tc.Refinement(steps=32, lr=1e-3)


def batches(family: str, count: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """Random tokens, some of them more often than others, or coarse random images."""
    generator = torch.Generator().manual_seed(seed)
    if family == "vit":
        flat = torch.randn(count, 2, 3, 8, 8, generator=generator)
        return [{"pixel_values": torch.nn.functional.interpolate(x, size=(32, 32))} for x in flat]
    found = []
    for index in range(count):
        ids = 3 + (torch.rand(3, 24, generator=generator) ** 1.5 * 90).long()
        mask = torch.ones_like(ids)
        if family == "bert" and index % 2:
            mask[0, 12:] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root, made = tmp_path_factory.mktemp("dense"), {}

    def get(family: str, **options: Any) -> Path:
        key = family + json.dumps(options, sort_keys=True)
        if key not in made:
            made[key] = tiny_models.tiny(family, root / str(len(made)), **options)
        return made[key]

    return get


def output_error(source: Path, result: Path, family: str) -> float:
    """Relative error of the last hidden state on real positions of other data of the same kind."""
    lost = total = 0.0
    models = [
        transformers.AutoModel.from_pretrained(source).eval(),
        transformers.AutoModel.from_pretrained(result).eval(),
    ]
    for batch in batches(family, count=4, seed=1):
        with torch.no_grad():
            a, b = (model(**batch).last_hidden_state for model in models)
        mask = batch.get("attention_mask", torch.ones(a.shape[:2])).bool()
        lost += float((a - b)[mask].square().sum())
        total += float(a[mask].square().sum())
    return (lost / total) ** 0.5


@pytest.mark.parametrize("family", FAMILIES)
def test_data_help_and_refinement_helps_more(dense: Any, family: str, tmp_path: Path) -> None:
    source, data = dense(family), batches(family)
    plain = tc.compress(source, tmp_path / "plain", allocation="uniform", **FAST)
    white = tc.compress(source, tmp_path / "white", allocation="uniform", calibration=data, refine=False, **FAST)
    fine = tc.compress(source, tmp_path / "fine", allocation="uniform", calibration=data, refine=STEPS, **FAST)
    assert plain.params_after == white.params_after == fine.params_after
    errors = [output_error(source, tmp_path / name, family) for name in ("plain", "white", "fine")]
    assert errors[1] < errors[0]
    assert errors[2] < errors[1]
    for a, b in zip(plain.layers, white.layers, strict=True):
        assert a.error is not None
        assert b.error is not None
        assert b.error >= a.error * (1 - 1e-6)  # nothing is closer to the weight than its own SVD
        assert b.output_error is not None
    assert len(fine.blocks) == 2
    for block in fine.blocks:
        assert block.loss_after < block.loss_before
        assert block.steps == 32
    assert fine.calibration is not None
    assert fine.calibration.samples == white.calibration.samples
    assert fine.calibration.refinement["steps"] == 32
    assert white.calibration.refinement is None
    assert tc.verify(tmp_path / "fine", deep=True) == []
    assert fine.bytes_after == Checkpoint.open(tmp_path / "fine").nbytes
    assert tc.Report.read(tmp_path / "fine").blocks == fine.blocks
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_reported_errors_are_those_of_the_stored_factors(dense: Any, tmp_path: Path) -> None:
    source, data = dense("bert"), batches("bert")
    report = tc.compress(source, tmp_path / "out", calibration=data, refine=STEPS, **FAST)
    model = transformers.BertModel.from_pretrained(source).eval()
    before, after = tensors(source), tensors(tmp_path / "out")
    names = module_names(model, [layer.name for layer in report.layers])
    seen: dict[str, list[Any]] = {name: [] for name in names}
    masks: list[Any] = []

    def hook(name: str) -> Any:
        def keep(module: Any, args: Any) -> None:
            x = args[0]
            seen[name].append(x[masks[-1]] if x.shape[:2] == masks[-1].shape else x.flatten(0, -2))

        return keep

    for name, place in names.items():
        model.get_submodule(place).register_forward_pre_hook(hook(name))
    for batch in data:
        masks.append(batch["attention_mask"].bool())
        with torch.no_grad():
            model(**batch)
    for layer in report.layers:
        weight = before[f"{layer.name}.weight"].double()
        lost = weight - after[f"{layer.name}.up.weight"].double() @ after[f"{layer.name}.down.weight"].double()
        assert layer.error == pytest.approx(float(lost.norm() / weight.norm()), rel=1e-5)
        x = torch.cat(seen[layer.name]).double()
        assert layer.output_error == pytest.approx(float((x @ lost.T).norm() / (x @ weight.T).norm()), rel=1e-4)


def test_norms_and_biases_are_trained_and_nothing_else_changes(dense: Any, tmp_path: Path) -> None:
    source = dense("bert")
    tc.compress(source, tmp_path / "out", calibration=batches("bert"), refine=STEPS, **FAST)
    before, after = tensors(source), tensors(tmp_path / "out")
    same = {key for key in before if key in after and torch.equal(before[key], after[key])}
    changed = {key for key in before if key in after} - same
    assert any("LayerNorm" in key for key in changed)
    assert all("LayerNorm" in key or key.endswith("bias") for key in changed)
    assert all("encoder.layer" in key for key in changed)
    biases = [key for key in after if key.endswith("up.bias") and "encoder" in key]
    assert biases
    assert any(not torch.equal(after[key], before[key.replace("up.bias", "bias")]) for key in biases)


def test_the_same_call_gives_the_same_bits(dense: Any, tmp_path: Path) -> None:
    source = dense("llama", dtype="bfloat16")
    for name, executor in (("a", "serial"), ("b", "threads:2")):
        options = {**FAST, "executor": executor}
        tc.compress(source, tmp_path / name, calibration=batches("llama"), refine=STEPS, **options)
    a, b = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert {value.dtype for value in a.values()} == {torch.bfloat16}


@pytest.mark.parametrize("inputs", ["propagated", "teacher"])
def test_a_refinement_that_fails_is_dropped(dense: Any, tmp_path: Path, inputs: str) -> None:
    source, data = dense("bert"), batches("bert")
    white = tc.compress(source, tmp_path / "white", calibration=data, refine=False, **FAST)
    wild = tc.Refinement(steps=8, lr=0.99, inputs=inputs)  # no way to learn
    report = tc.compress(source, tmp_path / "wild", calibration=data, refine=wild, **FAST)
    assert all(block.loss_after == block.loss_before for block in report.blocks)
    a, b = tensors(tmp_path / "white"), tensors(tmp_path / "wild")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert [la.error for la in white.layers] == [la.error for la in report.layers]


def test_teacher_inputs_train_each_block_alone(dense: Any, tmp_path: Path) -> None:
    source, data = dense("bert"), batches("bert")
    options = {"steps": 32, "lr": 1e-3, "inputs": "teacher"}
    report = tc.compress(source, tmp_path / "out", calibration=data, refine=tc.Refinement(**options), **FAST)
    assert all(block.loss_after < block.loss_before for block in report.blocks)
    propagated = tc.compress(source, tmp_path / "other", calibration=data, refine=STEPS, **FAST)
    assert propagated.blocks[0].loss_after == pytest.approx(report.blocks[0].loss_after, rel=1e-6)
    assert propagated.blocks[1].loss_before > report.blocks[1].loss_before


def test_mpo_is_refined_too(dense: Any, tmp_path: Path) -> None:
    source = dense("bert")
    report = tc.compress(source, tmp_path / "out", method="mpo", calibration=batches("bert"), refine=STEPS, **FAST)
    assert all(block.loss_after < block.loss_before for block in report.blocks)
    assert tc.verify(tmp_path / "out", deep=True) == []


def test_a_model_in_memory(dense: Any, tmp_path: Path) -> None:
    model = transformers.BertModel.from_pretrained(dense("bert"))
    report = tc.compress(model, tmp_path / "out", calibration=batches("bert"), refine=STEPS, **FAST)
    tc.compress(dense("bert"), tmp_path / "other", calibration=batches("bert"), refine=STEPS, **FAST)
    assert report.blocks
    a, b = tensors(tmp_path / "out"), tensors(tmp_path / "other")
    assert all(torch.equal(a[key], b[key]) for key in a)


_KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
import tensorfact.compress as tc
from tensorfact.compress import _state
sys.path.insert(0, sys.argv[4])
import test_calibration
count = int(sys.argv[3])
save = _state.State.save
def saving(self, *args):
    global count
    count -= 1
    if count == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, *args)
_state.State.save = saving
tc.compress(sys.argv[1], sys.argv[2], calibration=test_calibration.batches("bert"), refine=test_calibration.STEPS,
            **test_calibration.FAST)
"""


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(dense: Any, tmp_path: Path) -> None:
    source, here = dense("bert"), str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, here])}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tc.compress(source, tmp_path / "whole", calibration=batches("bert"), refine=STEPS, **FAST)
        command = [sys.executable, "-c", _KILLED, str(source), str(tmp_path / "out"), "3", here]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        state = tmp_path / ".out.tensorfact-state"
        assert len(list(state.glob("stage-*.npz"))) == 2
        assert not (tmp_path / "out").exists()
        stamps = {file.name: file.stat().st_mtime_ns for file in state.glob("*.np[yz]")}
        seen: list[int] = []
        report = tc.compress(
            source,
            tmp_path / "out",
            calibration=batches("bert"),
            refine=STEPS,
            progress=lambda phase, done, total, name: seen.extend(
                [] if seen else [f.stat().st_mtime_ns for f in state.glob("*.npz")]
            ),
            **FAST,
        )
        assert set(seen) <= set(stamps.values())  # what was done is read, not done again
    finally:
        torch.set_num_threads(threads)
    assert any("went on from where an earlier one had stopped" in note for note in report.notes)
    assert not state.exists()
    a, b = tensors(tmp_path / "whole"), tensors(tmp_path / "out")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


class Stop(Exception):  # noqa: N818
    pass


def test_no_error_loses_a_finished_stage(dense: Any, tmp_path: Path) -> None:
    source, out = dense("bert"), tmp_path / "out"
    options = {**FAST, "refine": tc.Refinement(steps=8)}

    def stop(phase: str, done: int, total: int, name: str) -> None:
        if phase == "refinement" and done > total // 2 + 1:
            raise error

    for error in (Stop(), ValueError("of the caller's own")):
        with pytest.raises(type(error)):
            tc.compress(source, out, calibration=batches("bert"), progress=stop, **options)
        state = tmp_path / ".out.tensorfact-state"
        assert list(state.glob("stage-*.npz"))
    for mistake in ({"calibration": tmp_path / "missing.txt"}, {"calibration": iter([])}):
        with pytest.raises(ValueError, match="calibration"):
            tc.compress(source, out, **options, **mistake)
        assert list(state.glob("stage-*.npz"))
    report = tc.compress(source, out, calibration=batches("bert"), **options)
    assert any("went on" in note for note in report.notes)
    assert not state.exists()


def test_a_decoder_with_a_configuration_of_its_own_keeps_no_cache(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=100, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    torch.manual_seed(0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    ids = torch.randint(3, 100, (4, 12), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": ids, "decoder_input_ids": ids.flip(1)} for _ in range(3)]
    options = {**FAST, "refine": tc.Refinement(steps=8)}
    report = tc.compress(tmp_path / "t5", tmp_path / "out", calibration=data, **options)
    assert report.blocks
    assert tc.verify(tmp_path / "out", deep=True) == []


def test_bfloat16_pixels_and_endless_streams_are_taken(dense: Any, tmp_path: Path) -> None:
    def endless() -> Any:
        while True:
            yield torch.randn(64, 3, 32, 32).bfloat16()

    data = tc.Calibration(endless(), samples=128)
    report = tc.compress(dense("vit"), tmp_path / "out", calibration=data, **FAST)
    assert report.calibration.samples == 128


def stopping(after: int) -> Any:
    def progress(phase: str, done: int, total: int, name: str) -> None:
        if phase == "refinement" and done == after:
            raise Stop

    return progress


def test_another_command_starts_afresh_and_no_seed_takes_the_one_of_before(dense: Any, tmp_path: Path) -> None:
    source, data = dense("bert"), batches("bert")
    options = {**FAST, "rng": None}
    with pytest.raises(Stop) as caught:
        tc.compress(source, tmp_path / "out", calibration=data, refine=STEPS, progress=stopping(30), **options)
    assert "the same command goes on from where this one stopped" in caught.value.__notes__
    state = tmp_path / ".out.tensorfact-state"
    seed = json.loads((state / "run.json").read_text())["seed"]
    report = tc.compress(source, tmp_path / "out", calibration=data, refine=STEPS, **options)
    assert report.options["rng"] == seed
    assert any("went on" in note for note in report.notes)
    with pytest.raises(Stop):
        tc.compress(source, tmp_path / "new", calibration=data, refine=STEPS, progress=stopping(30), **FAST)
    other = batches("bert", seed=5)
    report = tc.compress(source, tmp_path / "new", calibration=other, refine=STEPS, **FAST)
    assert not any("went on" in note for note in report.notes)


def test_two_runs_for_one_target_do_not_mix(dense: Any, tmp_path: Path) -> None:
    errors: list[str] = []

    def second(phase: str, done: int, total: int, name: str) -> None:
        if not errors:
            with pytest.raises(ValueError, match="out must not be written by two runs at once") as caught:
                tc.compress(dense("bert"), tmp_path / "out", calibration=batches("bert"), refine=False, **FAST)
            errors.append(str(caught.value))

    tc.compress(dense("bert"), tmp_path / "out", calibration=batches("bert"), refine=False, progress=second, **FAST)
    assert len(errors) == 1


def test_gram_matrices_against_an_oracle_in_one_pass_and_in_many(dense: Any, tmp_path: Path) -> None:
    model = open_model(dense("bert"), "cpu")
    data = open_calibration(batches("bert"), dense("bert"), model)
    parts = (
        "attention.self.query",
        "attention.self.key",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    )
    layers = [f"encoder.layer.{i}.{part}" for i in range(2) for part in parts]
    names = module_names(model, layers)
    found = []
    for number, limit in enumerate((1 << 30, 1)):
        passes: list[str] = []
        folder = tmp_path / str(number)
        folder.mkdir()
        found.append(collect_evidence(model, names, data, folder, samples=50, limit=limit, step=passes.append))
        assert len(passes) == len(data.inputs) * (1 if number == 0 else 8)  # queries and keys share their input
    once, many = found
    rows = []
    handle = model.encoder.layer[1].output.dense.register_forward_pre_hook(lambda m, args: rows.append(args[0]))
    with torch.no_grad():
        for batch in data.inputs:
            model(**batch)
    handle.remove()
    kept = torch.cat([x[batch["attention_mask"].bool()] for x, batch in zip(rows, data.inputs, strict=True)]).double()
    name = "encoder.layer.1.output.dense"
    np.testing.assert_allclose(once.gram(name), (kept.T @ kept).numpy(), rtol=1e-10, atol=1e-12)
    assert once.count(name) == len(kept) == data.positions
    for layer in layers:
        np.testing.assert_array_equal(once.gram(layer), many.gram(layer))
    sample = once.inputs(name, 20)
    assert sample.shape == (20, 160)
    distance = torch.cdist(torch.from_numpy(sample).double(), kept).min(dim=1).values
    assert float(distance.max()) < 1e-6  # they are rows of the inputs
    assert len(once.files) == 10
    assert len(set(once.files.values())) == 8


def test_activations_on_disk_equal_those_in_memory(tmp_path: Path) -> None:
    tensors_ = [torch.randn(2, 3, 4), torch.randn(1, 5, 4)]
    on_disk, in_memory = (Activations.of(tensors_, limit, tmp_path) for limit in (0, 1 << 20))
    assert all(torch.equal(a, b) for a, b in zip(on_disk, in_memory, strict=True))
    other = on_disk.like(0, tmp_path)
    other[1] = tensors_[1]
    assert torch.equal(other[1], tensors_[1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [1, 2, 7, 8, 16, 33])
def test_held_out_batches(count: int) -> None:
    train, measure = held_out(count)
    assert measure
    assert train
    if count > 1:
        assert sorted(train + measure) == list(range(count))
        assert len(measure) == max(1, count // 8)


def test_blocks_are_found(dense: Any) -> None:
    for family, names in (("llama", "model.layers"), ("gpt2", "transformer.h"), ("bert", "encoder.layer")):
        assert [name for name, _ in find_blocks(open_model(dense(family), "cpu"))] == [f"{names}.0", f"{names}.1"]
    assert find_blocks(torch.nn.Sequential(torch.nn.Linear(2, 2))) == []


def test_a_model_whose_blocks_run_more_than_once_is_not_refined(tmp_path: Path) -> None:
    config = transformers.AlbertConfig(
        vocab_size=96, embedding_size=64, hidden_size=64, intermediate_size=160, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=64, num_hidden_groups=2)  # fmt: skip
    torch.manual_seed(0)
    transformers.AlbertModel(config).save_pretrained(tmp_path / "albert")
    data = batches("bert")
    report = tc.compress(tmp_path / "albert", tmp_path / "out", calibration=data, refine=STEPS, **FAST)
    assert report.blocks == ()
    assert any("no block was refined" in note for note in report.notes)
    assert all(layer.output_error is not None for layer in report.layers)


def test_what_lies_between_two_blocks_is_not_forgotten(dense: Any, tmp_path: Path) -> None:
    """A model that halves its hidden state between its blocks: their inputs are then taken from runs of the model."""
    model = open_model(dense("bert"), "cpu")
    first, second = model.encoder.layer

    def forward(hidden_states: Any, attention_mask: Any = None, **rest: Any) -> Any:
        hidden = second(0.5 * first(hidden_states, attention_mask, **rest), attention_mask, **rest)
        return transformers.modeling_outputs.BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden)

    model.encoder.forward = forward
    data = open_calibration(batches("bert", count=4), dense("bert"), model)
    flow = Flow(model, ["encoder.layer.0.output.dense"], data, limit=1 << 20, folder=tmp_path)
    flow.watch(flow.run)
    assert flow.calls is not None
    assert list(flow.calls.breaks) == [1]
    flow.start()

    def outputs() -> list[Any]:
        with torch.no_grad():
            return [model(**batch).last_hidden_state for batch in data.inputs]

    before = outputs()
    for index in range(2):
        targets = flow.teach(range(index, index + 1))
        if index == 0:
            with torch.no_grad():
                first.output.dense.weight.mul_(0.7)
        flow.pass_on(range(index, index + 1), targets)
    for found, expected in ((flow.teacher, before), (flow.student, outputs())):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert not torch.allclose(flow.teacher[0], flow.student[0], atol=1e-3)


@pytest.mark.parametrize("family", ["gemma2", "t5", "swin"])
def test_masks_by_layer_decoders_and_stages_of_a_pyramid(tmp_path: Path, family: str) -> None:
    text = {"vocab_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 64}
    torch.manual_seed(0)
    data = batches("bert")
    if family == "gemma2":
        options = {"intermediate_size": 160, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 8}
        model = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**text, **options))
    elif family == "t5":
        config = transformers.T5Config(vocab_size=96, d_model=64, d_kv=16, d_ff=160, num_layers=2, num_heads=4)
        model = transformers.T5ForConditionalGeneration(config)
        data = [{**batch, "decoder_input_ids": batch["input_ids"]} for batch in data]
    else:
        config = transformers.SwinConfig(
            image_size=32, patch_size=2, embed_dim=32, depths=[2, 2], num_heads=[2, 2], window_size=4
        )
        model, data = transformers.SwinModel(config), batches("vit")
    model.save_pretrained(tmp_path / "dense")
    report = tc.compress(tmp_path / "dense", tmp_path / "out", calibration=data, refine=STEPS, **FAST)
    assert len(report.blocks) == {"gemma2": 3, "t5": 2, "swin": 2}[family]
    if family == "t5":  # it has two stacks, and blocks of one are trained
        (note,) = [note for note in report.notes if "were not trained" in note]
        other = "encoder" if "in the blocks of decoder" in note else "decoder"
        lost = sum(item.name.startswith(f"{other}.") for item in report.layers)
        assert lost
        assert note.startswith(f"{lost} layers")
    assert all(block.loss_after <= block.loss_before for block in report.blocks)
    assert any(block.loss_after < block.loss_before for block in report.blocks)
    assert tc.verify(tmp_path / "out", deep=True) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": [{"input_ids": [[5, 6, 7]]}]}, "at least 160 positions, .* got 3"),
        ({"calibration": []}, "at least one sample"),
        ({"refine": True}, "calibration must be given for refine"),
        ({"calibration": [], "refine": "yes"}, "refine must be a boolean or a Refinement"),
    ],
)
def test_bad_input_leaves_nothing_behind(dense: Any, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tc.compress(dense("bert"), tmp_path / "out", **FAST, **options)
    assert list(tmp_path.iterdir()) == []


def test_nan_activations_are_named(dense: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = tmp_path / "source"
    source.mkdir()
    for file in dense("bert").iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    weights = tensors(source)
    weights["encoder.layer.0.output.LayerNorm.weight"][3] = float("inf")
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"NaN or infinity in the input of encoder\.layer\.1\.attention"):
        tc.compress(source, tmp_path / "out", calibration=batches("bert"), **FAST)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps of the refinement must be an integer >= 1"),
        ({"lr": 0}, "lr of the refinement"),
        ({"warmup": 1.0}, "warmup of the refinement"),
        ({"inputs": "mine"}, "inputs of the refinement must be propagated or teacher"),
    ],
)
def test_options_of_the_refinement_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tc.Refinement(**options)


def test_from_the_command_line(dense: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = dense("bert", tokenizer=True)
    texts = tmp_path / "texts.tsv"
    texts.write_text("\n".join(f"{i}\t" + " ".join(f"w{(i * j) % 80}" for j in range(1, 20)) for i in range(60)))
    command = ["compress", str(source), str(tmp_path / "out"), "--param-ratio", "0.5", "--rng", "0", "--no-compare"]
    data = ["--calibration", str(texts), "--calibration-samples", "40", "--refine-steps", "8"]
    assert main([*command, *data, "--calibration-column", "1", "--calibration-length", "16"]) == 0
    text = capsys.readouterr().out
    assert "calibration: 40 sequences of up to 16 tokens" in text
    assert "refined encoder.layer.1: loss" in text
    report = tc.Report.read(tmp_path / "out")
    assert report.calibration.refinement["steps"] == 8
    assert main(["report", str(tmp_path / "out"), "--html", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "loss before" in page
    assert "error of its outputs" in page
    assert main([*command, "--refine"]) == 2
    assert "--calibration must be given" in capsys.readouterr().err
    assert main([*command, *data, "--no-refine"]) == 2
    assert "--no-refine must not be given" in capsys.readouterr().err
