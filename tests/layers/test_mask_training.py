"""Masks that move: RigL and SR-STE find codes that fixed masks cannot have."""

from __future__ import annotations

import math
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tensorfact.torch import CodeTrainer, PatternTrainer, RiglTrainer, SharedBasisLinear  # noqa: E402

STEPS = 200


def problem(pattern: Any, kept: int) -> tuple[SharedBasisLinear, Any]:
    """A layer with a mask at random, and the weight of one with another mask and the same basis."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        wanted, layer = (
            SharedBasisLinear(16, 40, rank=16, kept=kept, bias=False, pattern=pattern, path="dense") for _ in range(2)
        )
        layer.load_state_dict({**layer.state_dict(), "basis": wanted.basis.detach()})
        return layer, wanted.weight.detach()


def train(layer: SharedBasisLinear, target: Any, trainer: CodeTrainer) -> tuple[float, list[Any]]:
    assert layer.codes is not None
    optimizer = torch.optim.Adam([layer.codes], lr=0.02)
    masks = []
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        (layer.weight - target).square().sum().backward()
        optimizer.step()
        trainer.after_step(step, optimizer)
        assert layer.keep is not None
        assert int(layer.keep.sum()) == layer.kept
        masks.append(layer.keep)
    trainer.finish()
    with torch.no_grad():
        return float((layer.weight - target).square().sum()), masks


@pytest.mark.parametrize(("kind", "pattern", "kept"), [(RiglTrainer, None, 128), (PatternTrainer, "1:4", 160)])
def test_moving_masks_find_what_fixed_ones_miss(kind: Any, pattern: Any, kept: int) -> None:
    fixed, target = problem(pattern, kept)
    stuck, masks = train(fixed, target, CodeTrainer([fixed]))
    assert all(torch.equal(mask, masks[0]) for mask in masks)
    layer, target = problem(pattern, kept)
    trainer = kind([layer], STEPS)
    found, masks = train(layer, target, trainer)
    assert found < 0.5 * stuck
    assert [trainer.settled(step) for step in (1, 149, 150, 200)] == [False, False, True, True]
    assert all(torch.equal(mask, masks[-1]) for mask in masks[149:])
    assert not torch.equal(masks[0], masks[-1])
    assert torch.equal(layer.kept_places(), masks[-1])
    assert layer.codes is None
    if pattern is not None:
        assert all(bool((mask.reshape(4, 4, 40).sum(1) == 1).all()) for mask in masks)
    again, target = problem(pattern, kept)
    assert train(again, target, kind([again], STEPS))[0] == found


def test_grown_codes_begin_at_zero_and_fewer_move_each_time() -> None:
    layer, target = problem(None, 128)
    trainer = RiglTrainer([layer], 100, every=10, fraction=0.3)
    optimizer = torch.optim.SGD([layer.codes], lr=0.0)
    moved = []
    for step in range(1, 101):
        optimizer.zero_grad()
        (layer.weight - target).square().sum().backward()
        before = layer.keep.clone()
        trainer.after_step(step, optimizer)
        grown = layer.keep & ~before
        assert float(layer.codes.detach()[grown].abs().sum()) == 0
        assert float(layer.codes.detach()[~layer.keep].abs().sum()) == 0
        if bool(grown.any()):
            moved.append((step, int(grown.sum())))
    assert [step for step, _ in moved][:3] == [7, 14, 21]  # a tenth of the time until the end
    counts = [count for _, count in moved]
    assert counts[0] == int(0.15 * (1 + math.cos(math.pi * 7 / 75)) * 128)
    assert counts == sorted(counts, reverse=True)


def test_mistakes_are_named() -> None:
    layer = SharedBasisLinear(16, 40, rank=16, kept=10)
    with pytest.raises(ValueError, match="layers must have a pattern"):
        PatternTrainer([layer], 10)
    with pytest.raises(ValueError, match="fraction and end must be shares"):
        RiglTrainer([layer], 10, fraction=2.0)
