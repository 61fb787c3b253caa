"""Train the factors of a few blocks, with their norms and biases, until the blocks give the dense model's outputs.

Block by block with the inputs that the compressed blocks before give (AA-SVD, arXiv 2604.02119, section on block
refinement), or with those of the dense model (FiPS, arXiv 2411.09816). The loss of a block is the squared error of its
output relative to that output's squared norm, on real positions. torch is imported inside the functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tensorfact.compress._blocks import Activations, run_block
from tensorfact.compress._types import is_positive_int

if TYPE_CHECKING:
    import torch

    from tensorfact.compress._units import Trainer

__all__ = ["Refinement", "Span", "block_loss", "held_out", "refine"]

_CHECKS = 8  # how often the held-out loss is measured


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """How blocks are trained to give the outputs of the dense model.

    Parameters
    ----------
    steps : int
        Optimiser steps a block, or a group of blocks that share arrays; each takes one batch.
    lr : float
        Largest step size of AdamW; after a linear warm-up it falls to zero like a cosine.
    weight_decay : float
        Of AdamW, decoupled.
    warmup : float
        Share of the steps that the warm-up takes, in [0, 1).
    inputs : {"propagated", "teacher"}
        Train on what the compressed blocks before give, or on what the dense ones give.
    """

    steps: int = 300
    lr: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.1
    inputs: Literal["propagated", "teacher"] = "propagated"

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not is_positive_int(self.steps):
            raise ValueError(f"steps of the refinement must be an integer >= 1, got {self.steps!r}")
        for name, value, low, high in (
            ("lr", self.lr, 0.0, 1.0),
            ("weight_decay", self.weight_decay, 0.0, 1.0),
            ("warmup", self.warmup, 0.0, 1.0),
        ):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not low <= value < high or (name == "lr" and value == 0):
                raise ValueError(f"{name} of the refinement must be in [{low:g}, {high:g}), got {value!r}")
        if self.inputs not in ("propagated", "teacher"):
            raise ValueError(f"inputs of the refinement must be propagated or teacher, got {self.inputs!r}")


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive blocks to be trained together, what goes into them and what must come out, batch by batch.

    Parameters
    ----------
    blocks : sequence of nn.Module
        In order.
    calls : sequence
        ``calls[block][batch]``: their other arguments.
    inputs : Activations
        Inputs of the first block.
    given : sequence
        For each further block its inputs, or None where it takes the output of the block before.
    targets : sequence of Activations
        Outputs of the dense blocks.
    masks : sequence
        Real positions of each batch, or None for all.
    """

    blocks: Sequence[Any]
    calls: Sequence[Sequence[tuple[tuple[Any, ...], dict[str, Any]]]]
    inputs: Activations
    given: Sequence[Activations | None]
    targets: Sequence[Activations]
    masks: Sequence[torch.Tensor | None]

    def loss(self, batch: int, device: Any) -> torch.Tensor:
        """Return the relative squared error of one batch, the mean over the blocks; differentiable."""
        import torch

        mask = self.masks[batch]
        hidden = self.inputs[batch].to(device)
        total = torch.zeros((), device=device)
        inputs = (None, *self.given)
        for block, calls, given, targets in zip(self.blocks, self.calls, inputs, self.targets, strict=True):
            hidden = run_block(block, hidden if given is None else given[batch].to(device), calls[batch])
            target = targets[batch].to(device)
            lost = hidden - target
            if mask is not None and target.shape[:2] == mask.shape:
                lost, target = lost[mask.to(device)], target[mask.to(device)]
            total = total + lost.square().sum() / target.square().sum().clamp_min(1e-30)
        return total / len(self.blocks)


def held_out(count: int) -> tuple[list[int], list[int]]:
    """Return which batches train and which only measure: an eighth of them, spread evenly; of one batch, itself."""
    if count < 2:
        return [0], [0]
    wanted = max(1, count // 8)
    measure = [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]
    return [i for i in range(count) if i not in measure], measure


def block_loss(span: Span, batches: Sequence[int], device: Any) -> float:
    """Return the mean loss over some batches, without gradients."""
    import torch

    with torch.no_grad():
        return float(np.mean([float(span.loss(i, device)) for i in batches]))


def refine(
    span: Span,
    parameters: Sequence[Any],
    trainers: Sequence[Trainer],
    options: Refinement,
    *,
    rng: np.random.Generator,
    step: Callable[[], object],
    device: Any = "cpu",
) -> tuple[int, bool]:
    """Train and leave the best state that the held-out batches saw in the modules, in the form that is stored.

    Parameters
    ----------
    span : Span
        Blocks with their inputs and targets.
    parameters : sequence of nn.Parameter
        What is trained.
    trainers : sequence of Trainer
        What the method adds.
    rng : Generator
        Order of the batches.
    step : callable
        Called after every optimiser step.

    Returns
    -------
    (int, bool)
        Steps taken, fewer than asked for where the loss was not finite any more; and whether there was a state that may
        be kept. Without one, what is in the modules is of no use.
    """
    import torch

    train, measure = held_out(len(span.inputs))
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, weight_decay=options.weight_decay)
    warm = max(1, round(options.warmup * options.steps))
    best: tuple[float, list[dict[str, torch.Tensor]]] | None = None
    marks = {round(options.steps * (i + 1) / _CHECKS) for i in range(_CHECKS)}
    queue: list[int] = []
    for number in range(1, options.steps + 1):
        if not queue:
            queue = [train[i] for i in rng.permutation(len(train))]
        done = max(0.0, (number - 1 - warm) / max(1, options.steps - warm))
        for group in optimizer.param_groups:
            group["lr"] = options.lr * min(1.0, number / warm) * 0.5 * (1.0 + math.cos(math.pi * done))
        optimizer.zero_grad(set_to_none=True)
        loss = span.loss(queue.pop(), device)
        if not bool(torch.isfinite(loss)):
            break
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for trainer in trainers:
            trainer.after_step(number, optimizer)
        if number in marks and all(trainer.admissible(number) for trainer in trainers):
            found = block_loss(span, measure, device)
            if math.isfinite(found) and (best is None or found < best[0]):
                best = found, [_copy(block) for block in span.blocks]
        step()
    optimizer.zero_grad(set_to_none=True)
    if best is not None:
        for block, state in zip(span.blocks, best[1], strict=True):
            _restore(block, state)
        for trainer in trainers:
            trainer.finish()
    return number, best is not None


def _copy(block: Any) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in block.state_dict().items()}


def _restore(block: Any, state: dict[str, torch.Tensor]) -> None:
    import torch

    with torch.no_grad():
        for key, value in block.state_dict().items():
            value.copy_(state[key])
