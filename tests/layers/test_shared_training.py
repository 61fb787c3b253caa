"""Pruning schedules and training of codes under masks."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from tensorfact.torch import CodeTrainer, PruningSchedule, SharedBasisGroup, SharedBasisLinear  # noqa: E402
from tensorfact.torch._shared_training import density, frozen_basis  # noqa: E402


def group(seed: int = 0, **arguments: Any) -> SharedBasisGroup:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        linears = {f"{i}": nn.Linear(*shape, dtype=torch.float64) for i, shape in enumerate([(12, 40), (40, 12)] * 2)}
    return SharedBasisGroup.from_linears(
        linears, **{"param_ratio": 0.5, "rank": 12, "sweeps": 0, "rng": 0, **arguments}
    )


def members(made: SharedBasisGroup) -> list[SharedBasisLinear]:
    return list(made.layers().values())


@pytest.mark.parametrize(("begin", "steps"), [(240, 600), (200, 800), (0, 37), (91, 333)])
def test_the_schedule_ends_where_it_should(begin: int, steps: int) -> None:
    schedule = PruningSchedule(steps, 0.75, begin=begin / steps, end=0.75)
    values = [schedule.sparsity(step) for step in range(steps + 1)]
    assert all(after >= before for before, after in pairwise(values))
    assert values[-1] == values[schedule.end] == 0.75
    assert schedule.due(schedule.end)  # also where it is no multiple of the interval
    assert not any(schedule.due(step) for step in range(schedule.end + 1, steps + 1))
    assert all(value == 0.05 for value in values[: schedule.begin])
    middle = (schedule.begin + schedule.end) // 2
    share = (middle - schedule.begin) / (schedule.end - schedule.begin)
    assert values[middle] == pytest.approx(0.75 - 0.25 * (1 - share) ** 3)


def test_the_published_code_stops_short() -> None:
    """The wrong denominator would give .712 and .741 (the defect that the schedule does not have)."""
    for begin, end, expected in ((240, 450, 0.712), (200, 600, 0.741)):
        wrong = 0.75 - 0.25 * (1 - (end - begin) / end) ** 3
        assert wrong == pytest.approx(expected, abs=5e-4)
        assert PruningSchedule(round(end / 0.75), 0.75, begin=begin / (end / 0.75)).sparsity(end) == 0.75


def train(made: SharedBasisGroup, trainer: CodeTrainer, steps: int = 40, decay: float = 0.01) -> list[list[Any]]:
    """Fit noise with AdamW; return the masks after every step."""
    optimizer = torch.optim.AdamW(trainer.parameters(), lr=1e-2, weight_decay=decay)
    generator = torch.Generator().manual_seed(0)
    seen = []
    for step in range(1, steps + 1):
        x = torch.randn(16, 12, generator=generator, dtype=torch.float64)
        out = made["1"](made["0"](x)) + made["3"](made["2"](x))
        optimizer.zero_grad()
        (out - x).square().mean().backward()
        optimizer.step()
        trainer.after_step(step, optimizer)
        for layer in trainer.layers:
            assert not layer.codes[~layer.keep].any()
            state = optimizer.state[layer.codes]
            assert not state["exp_avg"][~layer.keep].any()
            assert not state["exp_avg_sq"][~layer.keep].any()
        seen.append([layer.keep.clone() for layer in trainer.layers])
    return seen


@pytest.mark.parametrize("together", [True, False])
def test_gradual_pruning_meets_the_budget(together: bool) -> None:
    made = group(sparsity=0.75, rank=None, param_ratio=0.4)
    layers = members(made)
    kept = [layer.kept for layer in layers]
    places = sum(layer.code_shape[0] * layer.code_shape[1] for layer in layers)
    schedule = PruningSchedule(40, 1 - sum(kept) / places)
    dense = [torch.randn(layer.code_shape, dtype=torch.float64) for layer in layers]
    trainer = CodeTrainer(layers, schedule, codes=dense, together=together)
    seen = train(made, trainer)
    counts = [sum(int(mask.sum()) for mask in masks) for masks in seen]
    assert all(after <= before for before, after in pairwise(counts))
    assert counts[-1] == sum(kept)
    assert counts[0] == pytest.approx(places * 0.95, rel=0.01)
    # frozen in the last quarter
    assert all(torch.equal(a, b) for masks in seen[30:] for a, b in zip(masks, seen[29], strict=True))
    assert trainer.settled(30)
    assert not trainer.settled(29)
    before = [layer.weight.detach().clone() for layer in layers]
    trainer.finish()
    assert [layer.kept for layer in layers] == kept or together
    assert sum(layer.kept for layer in layers) == sum(kept)
    assert density(layers) == pytest.approx(sum(kept) / places)
    for layer, weight in zip(layers, before, strict=True):
        assert layer.codes is None
        assert torch.equal(layer.weight.detach(), weight)
        assert layer.kept_places().sum() == layer.kept == len(layer.values)
    assert set(layers[0].state_dict()) == {"basis", "values", "mask", "bias"}


def test_global_pruning_takes_the_smallest_contributions() -> None:
    made = group()
    layers = members(made)
    codes = [torch.randn(layer.code_shape, dtype=torch.float64) for layer in layers]
    schedule = PruningSchedule(1, 0.75, begin=0.0, end=1.0)
    trainer = CodeTrainer(layers, schedule, codes=codes)
    trainer.after_step(1)
    lengths = made.basis.detach().norm(dim=0)[:, None]
    kept = torch.cat([(v.abs() * lengths)[la.keep] for v, la in zip(codes, layers, strict=True)])
    cut = torch.cat([(v.abs() * lengths)[~la.keep] for v, la in zip(codes, layers, strict=True)])
    assert kept.min() >= cut.max()
    assert len(kept) == sum(layer.kept for layer in layers)


def test_training_with_kept_masks_lowers_the_loss_and_packs_back() -> None:
    made = group()
    layers = members(made)
    before = [layer.weight.detach().clone() for layer in layers]
    masks = [layer.kept_places() for layer in layers]
    trainer = CodeTrainer(layers)
    assert all(torch.equal(la.weight.detach(), w) for la, w in zip(layers, before, strict=True))
    train(made, trainer)
    trainer.finish()
    trainer.finish()  # again does nothing
    assert all(torch.equal(la.kept_places(), mask) for la, mask in zip(layers, masks, strict=True))
    assert not any(torch.equal(la.weight, w) for la, w in zip(layers, before, strict=True))


def test_padded_columns_learn_from_the_first_step() -> None:
    made = group(rank=20, param_ratio=0.9)
    layers = members(made)
    assert not made.basis[:, 12:].any()
    codes = [torch.ones(layer.code_shape, dtype=torch.float64) for layer in layers]
    CodeTrainer(layers, codes=codes)
    for layer in layers:
        layer.keep = torch.ones_like(layer.keep)
    layers[0](torch.randn(3, 12, dtype=torch.float64)).square().sum().backward()
    assert made.basis.grad[:, 12:].abs().min() > 0
    assert not layers[0].codes.grad[12:].any()  # their columns are zero still


def test_a_frozen_basis_keeps_earlier_members_to_the_bit() -> None:
    made = group()
    first, last = members(made)[0], members(made)[2]
    x = torch.randn(5, 12, dtype=torch.float64)
    expected = first(x).detach()

    def step() -> None:
        parameters = [p for p in (last.basis, last.values, last.bias) if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-2)
        last(x).square().sum().backward()
        optimizer.step()

    frozen_basis(members(made))
    step()
    assert torch.equal(first(x), expected)
    made.basis.requires_grad_(True)
    step()
    assert not torch.equal(first(x), expected)  # without it the basis drifts, and the test sees it


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="shares of the steps"):
        PruningSchedule(10, 0.5, begin=0.8, end=0.5)
    with pytest.raises(ValueError, match="sparsities"):
        PruningSchedule(10, 1.0)
    with pytest.raises(ValueError, match="at least one"):
        CodeTrainer([])
    with pytest.raises(ValueError, match="score"):
        CodeTrainer(members(group()), score="random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="codes must be of shape"):
        CodeTrainer(members(group()), codes=[torch.zeros(2, 2)] * 4)
    assert math.isclose(PruningSchedule(100, 0.3).sparsity(0), 0.05)
    assert PruningSchedule(100, 0.3).middle == 0.3
