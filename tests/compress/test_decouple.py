"""The decouple method on tiny checkpoints: found, fitted, loaded, refined; and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parents[1]))

import tensorfact.compress as tc  # noqa: E402
from tensorfact.compress import _mlps  # noqa: E402
from tensorfact.compress._cuts import cut_errors  # noqa: E402
from tensorfact.torch.decoupling import SplineHidden, SplineOutput  # noqa: E402
from tiny_models import tiny  # noqa: E402

ONLY_MLPS: dict[str, Any] = {"exclude_modules": ["re:attention|pooler"], "ratio": 0.5}
QUICK = tc.DecoupleMethod(max_iter=4, polish_iter=12)


def data(family: str, count: int = 12) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(0)
    if family == "vit":
        return {"pixel_values": torch.rand(count, 3, 32, 32, generator=rng)}
    return {"input_ids": torch.randint(3, 90, (count, 32), generator=rng)}


def run(source: Path, out: Path, family: str, ratio: float = 0.7, **options: Any) -> tc.Report:
    options = {"method": QUICK, "calibration": data(family), "executor": "serial", "rng": 0, "refine": False} | options
    return tc.compress(source, out, param_ratio=ratio, **options)


@pytest.mark.parametrize("family", ["vit", "bert", "gpt2"])
def test_mlps_become_splines_and_the_models_own_code_runs(family: str, tmp_path: Path) -> None:
    source = tiny(family, tmp_path / "source")
    report = run(source, tmp_path / "out", family)
    assert report.targeted_after <= 0.7 * report.targeted_before
    assert report.targeted_after >= 0.66 * report.targeted_before
    assert len(report.layers) == 4
    assert tc.verify(tmp_path / "out") == []
    model = tc.load(tmp_path / "out").eval()
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(SplineHidden) == kinds.count(SplineOutput) == kinds.count(torch.nn.Identity) == 2
    assert (
        sum(p.numel() for p in model.parameters())
        + sum(module.splines.ends.numel() for module in model.modules() if isinstance(module, SplineHidden))
        == report.params_after
    )
    before = getattr(transformers, report.architecture).from_pretrained(source).eval()
    batch = {key: values[:4] for key, values in data(family).items()}
    with torch.no_grad():
        ours, its = (m(**batch, output_hidden_states=True).hidden_states[-1] for m in (model, before))
    assert float((ours - its).norm() / its.norm()) < 0.05
    auto = transformers.AutoModel.from_pretrained(tmp_path / "out")
    assert any(isinstance(module, SplineHidden) for module in auto.modules())
    model.save_pretrained(tmp_path / "again")
    again = tc.load(tmp_path / "again")
    assert all(torch.equal(values, again.state_dict()[key]) for key, values in model.state_dict().items())
    with pytest.raises(ValueError, match="learned activations"):
        tc.to_dense(tmp_path / "out", tmp_path / "dense")


def test_the_report_has_the_baselines_and_decoupling_beats_them(tmp_path: Path) -> None:
    source = tiny("bert", tmp_path / "source")
    report = run(source, tmp_path / "out", "bert", **ONLY_MLPS)
    assert report.targeted_before == 2 * 2 * 64 * 160
    assert 0.47 <= report.targeted_after / report.targeted_before <= 0.5
    for layer in report.layers[::2]:
        assert layer.path.startswith("decoupling")
        ours = float(layer.notes[0].split("off by ")[1].split()[0])
        svd, drone = (float(note.rsplit(": ", 1)[1]) for note in layer.notes[1:])
        assert "left out" in layer.notes[0]
        assert ours < drone < svd
    assert any("number of branches" in note for note in report.notes)


def test_refinement_trains_the_branches_of_each_block(tmp_path: Path) -> None:
    source = tiny("bert", tmp_path / "source")
    rough = tc.DecoupleMethod(max_iter=2, polish_iter=3)
    report = run(source, tmp_path / "out", "bert", method=rough, refine=tc.Refinement(steps=60), **ONLY_MLPS)
    assert len(report.blocks) == 2
    assert all(block.loss_after <= block.loss_before for block in report.blocks)
    assert report.blocks[0].loss_after < 0.9 * report.blocks[0].loss_before
    assert tc.verify(tmp_path / "out") == []
    tc.load(tmp_path / "out")


def test_a_bfloat16_checkpoint_keeps_its_type(tmp_path: Path) -> None:
    source = tiny("bert", tmp_path / "source", dtype="bfloat16")
    run(source, tmp_path / "out", "bert")
    model = tc.load(tmp_path / "out", dtype="auto").eval()
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert torch.isfinite(model(**data("bert", 2)).last_hidden_state).all()


@pytest.mark.parametrize(
    ("family", "options", "text"),
    [
        ("llama", {}, "gated MLP"),
        ("bert", {"calibration": None}, "calibration must be given"),
        ("bert", {"ratio": 0.3}, "param_ratio must be at least"),
        ("bert", {"target_modules": ["output.dense"]}, "is not targeted"),
        ("bert", {"target_modules": ["re:attention"]}, "both layers of an MLP"),
        ("bert", {"method": "decouple", "options": {"n_basis": 2}}, "degree must be"),
        ("bert", {"method": "decouple", "options": {"max_iter": 0}}, "max_iter"),
        ("bert", {"method": "decouple", "options": {"weight": -1}}, "weight"),
    ],
)
def test_refusals(family: str, options: dict[str, Any], text: str, tmp_path: Path) -> None:
    source = tiny(family, tmp_path / "source")
    with pytest.raises(ValueError, match=text):
        run(source, tmp_path / "out", family, **options)
    assert not (tmp_path / "out").exists()


def build(family: str, **options: Any) -> Any:
    config = transformers.AutoConfig.for_model(family, **options)
    with torch.device("meta"):
        return transformers.AutoModel.from_config(config)


@pytest.mark.parametrize(
    ("family", "options", "count"),
    [
        ("opt", {"num_hidden_layers": 2}, 2),
        ("distilbert", {"n_layers": 2}, 2),
        ("t5", {"num_layers": 2}, 4),
        ("gpt_neox", {"num_hidden_layers": 2}, 2),
        ("dinov2", {"num_hidden_layers": 2}, 2),
        ("modernbert", {"num_hidden_layers": 2}, 0),  # gated, both projections in one matrix
        ("llama", {"num_hidden_layers": 2}, 0),
        ("mixtral", {"num_hidden_layers": 1, "num_local_experts": 2, "hidden_size": 64, "intermediate_size": 96}, 0),
    ],
)
def test_mlps_of_families(family: str, options: dict[str, Any], count: int) -> None:
    model = build(family, **options)
    pairs, _ = _mlps._pairs(model)
    found = [pair for pair in pairs if _mlps.activation_name(model, *pair)[0] is not None]
    assert len(found) == count
    for first, second in found:
        a, b = model.get_submodule(first), model.get_submodule(second)
        assert a.weight.shape == b.weight.shape[::-1]


def test_baselines_against_their_definitions() -> None:
    rng = np.random.default_rng(0)
    w1, w2 = rng.standard_normal((12, 5)), rng.standard_normal((4, 12))
    b1, b2 = rng.standard_normal(12), rng.standard_normal(4)
    x = rng.standard_normal((400, 5)) * np.array([3.0, 1.0, 0.3, 0.1, 0.01])
    left = np.arange(100)
    hidden = np.maximum(x @ w1.T + b1, 0)
    numbers = 3 * (12 + 5 + 12 + 4)
    found = cut_errors((w1, b1, w2, b2), lambda a: np.maximum(a, 0), x, hidden.T @ hidden, left, numbers)
    assert [(name, rank) for name, rank, _ in found] == [("SVD of both weights", 3), ("DRONE", 3)]

    def nearest(weight: np.ndarray, given: np.ndarray) -> np.ndarray:
        """Reduced-rank regression by its definition: the best rank-3 prediction of weight x from x."""
        u, _, _ = np.linalg.svd(weight @ given.T, full_matrices=False)
        return u[:, :3] @ u[:, :3].T @ weight

    truth = np.maximum(x[left] @ w1.T + b1, 0) @ w2.T + b2
    first, second = nearest(w1, x[100:]), nearest(w2, hidden)
    made = np.maximum(x[left] @ first.T + b1, 0) @ second.T + b2
    np.testing.assert_allclose(found[1][2], np.linalg.norm(made - truth) / np.linalg.norm(truth), rtol=1e-9)
    assert found[1][2] < found[0][2]
