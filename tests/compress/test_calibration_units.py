"""Units of several weights that share an array: stored once, counted once, tied after loading, trained together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import tiny_models
from compressed_models import config_of, tensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tensorfact.compress as tc  # noqa: E402
from tensorfact.compress import _method  # noqa: E402
from tensorfact.compress._method import Allocation  # noqa: E402
from tensorfact.compress._units import FactoredUnit, PerWeight, Trainer, Unit  # noqa: E402
from tensorfact.compress.checkpoint import Checkpoint  # noqa: E402
from tensorfact.compress.lowrank import LowRankMethod  # noqa: E402


class SharedLinear(torch.nn.Module):
    """``y = (x basis^T) code^T * sign``, the basis shared with other layers; signs are bytes."""

    def __init__(self, shape, rank, bias, device, dtype):
        super().__init__()
        self.in_features, self.out_features = shape[1], shape[0]
        self.basis = torch.nn.Parameter(torch.empty(rank, shape[1], device=device, dtype=dtype))
        self.code = torch.nn.Parameter(torch.empty(shape[0], rank, device=device, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.empty(shape[0], device=device, dtype=dtype)) if bias else None
        self.register_buffer("flip", torch.zeros(shape[0], dtype=torch.uint8, device=device))

    def forward(self, x):
        y = torch.nn.functional.linear(x @ self.basis.mT, self.code) * (1.0 - 2.0 * self.flip)
        return y if self.bias is None else y + self.bias


class Halving(Trainer):
    """Counts what it is asked, and says that nothing before the last step may be kept."""

    calls: ClassVar[list[int]] = []

    def __init__(self, steps):
        self.steps = steps

    def after_step(self, step, optimizer):
        Halving.calls.append(step)

    def admissible(self, step):
        return step == self.steps


@dataclass(frozen=True)
class SharedMethod(PerWeight):
    """One basis for all targeted weights of a width."""

    name: ClassVar[str] = "shared-test"
    pattern: ClassVar[str] = r"basis|code|flip"
    bias: ClassVar[str] = "bias"
    memory: ClassVar[int] = 3
    remark: ClassVar[str] = ""
    needs_analysis: ClassVar[bool] = False
    stored_types: ClassVar[Mapping[str, str]] = {"flip": "U8"}
    alone: ClassVar[bool] = False

    rank: int = 12

    def units(self, layers):
        widths = dict.fromkeys(layer.shape[1] for layer in layers)
        groups = [tuple(layer for layer in layers if layer.shape[1] == width) for width in widths]
        return tuple(Unit(f"group {i}", group) for i, group in enumerate(groups))

    def spectrum(self, analysis):
        return analysis

    def full_rank(self, shape):
        return min(shape)

    def break_even(self, shape):
        return min(shape)

    def allocate(self, layers, param_ratio, analyses):
        return Allocation({layer.name: self.rank for layer in layers})

    def layout(self, shape, rank):
        return {"basis": (rank, shape[1]), "code": (shape[0], rank), "flip": (shape[0],)}

    def factor_unit(self, unit, weights, ranks, *, rng, evidence):
        rank = ranks[unit.layers[0].name]
        stacked = np.vstack([weights[layer.name] for layer in unit.layers])
        basis = np.linalg.svd(stacked, full_matrices=False)[2][:rank]
        arrays = {f"{unit.layers[0].name}.basis": basis}
        for layer in unit.layers:
            flip = (np.arange(layer.shape[0]) % 2).astype(np.uint8)
            code = weights[layer.name] @ basis.T
            arrays |= {f"{layer.name}.code": code * (1.0 - 2.0 * flip)[:, None], f"{layer.name}.flip": flip}
        return FactoredUnit(arrays, {}, "stacked-svd", recipe={"made": "by a test"})

    def expand(self, arrays):
        return (arrays["code"] * (1.0 - 2.0 * arrays["flip"])[:, None]) @ arrays["basis"]

    def dense_shape(self, shapes):
        return shapes["code"][0], shapes["basis"][1]

    def predicted_error(self, analysis, rank):
        return None

    def optimal_error(self, analysis, rank):
        return None

    def ties(self, recipe):
        return {
            f"{name}.basis": f"{unit['layers'][0]}.basis"
            for unit in recipe.get("units", {}).values()
            for name in unit["layers"][1:]
        }

    def module_class(self):
        return SharedLinear

    def module(self, shape, rank, *, bias, device=None, dtype=None):
        return SharedLinear(shape, rank, bias, device, dtype)

    def install(self, model, names, ranks, recipe):
        PerWeight.install(self, model, names, ranks, recipe)
        for end, source in self.ties(recipe).items():
            (end, _), (source, _) = end.rsplit(".", 1), source.rsplit(".", 1)
            if end in names and source in names:
                model.get_submodule(names[end]).basis = model.get_submodule(names[source]).basis

    def trainer(self, unit, modules, factored, *, steps, rng):
        assert set(modules) == {layer.name for layer in unit.layers}
        return Halving(steps)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    before = dict(_method._METHODS)
    tc.register(SharedMethod)
    yield
    _method._METHODS.clear()
    _method._METHODS.update(before)


def batches(count: int = 12, length: int = 20, seed: int = 0) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(3, 96, (2, length), generator=generator)} for _ in range(count)]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.tiny("bert", tmp_path_factory.mktemp("units") / "dense")


TARGETS = ["re:attention.*(query|key)$", "re:intermediate.dense$"]


@pytest.fixture(scope="module", params=["plain", "calibrated"])
def small(request: pytest.FixtureRequest, dense: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("made") / "small"
    data: dict[str, Any] = {}
    if request.param == "calibrated":
        data = {"calibration": batches(), "refine": tc.Refinement(steps=16)}
    return out, tc.compress(
        dense, out, method="shared-test", param_ratio=0.5, target_modules=TARGETS, rng=0, executor="serial", **data
    )


def test_a_shared_array_is_stored_and_counted_once(small: tuple[Path, Any]) -> None:
    out, report = small
    stored = tensors(out)
    bases = [key for key in stored if key.endswith(".basis")]
    assert len(bases) == 1
    assert len(report.layers) == 6
    assert stored[bases[0]].shape == (12, 64)
    assert {str(stored[key].dtype) for key in stored if key.endswith(".flip")} == {"torch.uint8"}
    # code and basis in float32, a flip is a byte: four of them take the place of a number
    numbers = 12 * 64 + sum(12 * layer.shape[0] + layer.shape[0] // 4 for layer in report.layers)
    assert sum(layer.params_after for layer in report.layers) == numbers
    assert report.targeted_after == numbers
    assert report.bytes_after == Checkpoint.open(out).nbytes
    assert config_of(out)["tensorfact"]["units"]["group 0"]["made"] == "by a test"
    assert tc.verify(out, deep=True) == []


def test_it_is_one_parameter_after_loading_and_saving(small: tuple[Path, Any], tmp_path: Path) -> None:
    out, _ = small
    model = tc.load(out)
    layers = [m for m in model.modules() if isinstance(m, SharedLinear)]
    assert len(layers) == 6
    assert len({id(layer.basis) for layer in layers}) == 1
    before = model(**tiny_models.inputs("bert")).last_hidden_state
    model.save_pretrained(tmp_path / "again")
    assert len([key for key in tensors(tmp_path / "again") if key.endswith(".basis")]) == 1
    again = tc.load(tmp_path / "again")
    assert len({id(m.basis) for m in again.modules() if isinstance(m, SharedLinear)}) == 1
    assert torch.equal(before, again(**tiny_models.inputs("bert")).last_hidden_state)
    other = transformers.AutoModelForSequenceClassification.from_pretrained(out)  # the body in another class
    assert len({id(m.basis) for m in other.modules() if isinstance(m, SharedLinear)}) == 1
    model.tie_weights()
    assert len({id(layer.basis) for layer in layers}) == 1


def test_to_dense_multiplies_it_out_for_every_layer(small: tuple[Path, Any], tmp_path: Path) -> None:
    out, _ = small
    tc.to_dense(out, tmp_path / "plain")
    plain = transformers.BertModel.from_pretrained(tmp_path / "plain").eval()
    inputs = tiny_models.inputs("bert")
    with torch.no_grad():
        expected = plain(**inputs).last_hidden_state
        found = tc.load(out).eval()(**inputs).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5 * float(expected.abs().max()))


def test_a_missing_shared_array_is_an_error(small: tuple[Path, Any], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    out, _ = small
    for file in out.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    lost = {key: value for key, value in tensors(out).items() if not key.endswith(".basis")}
    save_file(lost, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="random weights"):
        tc.load(tmp_path)
    assert any("basis is missing" in problem for problem in tc.verify(tmp_path))


def test_a_unit_across_blocks_trains_them_together(dense: Path, tmp_path: Path) -> None:
    Halving.calls.clear()
    report = tc.compress(
        dense,
        tmp_path / "out",
        method="shared-test",
        param_ratio=0.5,
        target_modules=TARGETS,
        calibration=batches(),
        refine=tc.Refinement(steps=16, lr=3e-3),
        rng=0,
        executor="serial",
    )
    assert Halving.calls == list(range(1, 17))
    (block,) = report.blocks
    assert block.name == "encoder.layer.0 to encoder.layer.1"
    assert block.layers == 6
    assert block.loss_after < block.loss_before
    assert all(layer.output_error is not None and layer.error is not None for layer in report.layers)


def test_estimate_counts_a_shared_array_once(dense: Path) -> None:
    report = tc.estimate(dense, method="shared-test", param_ratio=0.5, target_modules=TARGETS)
    assert sum(layer.params_after for layer in report.layers) == 12 * 64 + sum(
        12 * layer.shape[0] + layer.shape[0] // 4 for layer in report.layers
    )


def test_a_method_that_needs_data_refuses_to_run_without(dense: Path, tmp_path: Path) -> None:
    @dataclass(frozen=True, slots=True)
    class Needy(LowRankMethod):
        needs_calibration: ClassVar[bool] = True

    with pytest.raises(ValueError, match="calibration must be given"):
        tc.compress(dense, tmp_path / "out", method=Needy(), param_ratio=0.5)
    assert json.loads((dense / "config.json").read_text())  # the source is as it was
    assert list(tmp_path.iterdir()) == []
