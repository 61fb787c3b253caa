"""Training of shared bases: dense codes under masks that are pruned on the way, then a frozen mask and basis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tensorfact.torch.shared_basis import SharedBasisLinear

__all__ = ["CodeTrainer", "PruningSchedule"]


class PruningSchedule:
    """Gradual magnitude pruning: which sparsity is due after which step.

    ``initial`` until ``begin``; then ``final + (middle - final) (1 - (t - begin) / (end - begin))^3``, so that `final`
    is reached at `end` exactly; the public code of FiPS divides by ``end`` and stops short of it. Updates are due every
    `every` steps up to `end`, and at `end` itself. A larger `initial` or `middle` than `final` is taken as `final`.

    Parameters
    ----------
    steps : int
        Steps of the whole training.
    final : float
        Sparsity in the end.
    begin, end : float
        As shares of `steps`; the mask is frozen after `end`.
    initial, middle : float
        Sparsity before `begin`, and at it.
    every : int
        Steps between updates; at most a tenth of the pruning time is used.
    """

    def __init__(
        self,
        steps: int,
        final: float,
        *,
        begin: float = 0.25,
        end: float = 0.75,
        initial: float = 0.05,
        middle: float = 0.5,
        every: int = 50,
    ) -> None:
        if not 0 <= final < 1 or not 0 <= initial <= 1 or not 0 <= middle <= 1:
            raise ValueError(f"sparsities must be in [0, 1), got {initial}, {middle}, {final}")
        if not 0 <= begin < end <= 1:
            raise ValueError(f"begin and end must be shares of the steps with begin < end, got {begin}, {end}")
        self.begin, self.end = round(begin * steps), max(1, round(end * steps))
        self.initial, self.middle, self.final = min(initial, final), min(middle, final), final
        self.every = max(1, min(every, (self.end - self.begin) // 10 or 1))

    def due(self, step: int) -> bool:
        """Whether the mask changes after `step`, counted from 1 (0: before training)."""
        return step == 0 or step == self.end or (self.begin <= step < self.end and step % self.every == 0)

    def sparsity(self, step: int) -> float:
        """The sparsity that is due after `step`."""
        if step >= self.end:
            return self.final
        if step < self.begin:
            return self.initial
        rest = 1 - (step - self.begin) / (self.end - self.begin)
        return self.final + (self.middle - self.final) * rest**3


class CodeTrainer:
    """Trains the codes of layers as dense matrices under masks; see `SharedBasisLinear`.

    Creating it gives every layer a dense parameter ``codes`` and the mask ``keep``, in place of its packed values;
    `finish` packs them. In between `parameters` are what an optimiser takes, and `after_step` prunes.

    Parameters
    ----------
    layers : sequence of SharedBasisLinear
        Members of one group; codes are pruned over all of them together.
    schedule : PruningSchedule, optional
        None keeps the masks that the layers have.
    codes : sequence of Tensor, optional
        Dense codes (rank, n) to start from, instead of the packed ones.
    score : {"contribution", "magnitude"}
        ``|V_ij| ||U_i||``, what an entry adds to the product, or ``|V_ij|`` as FiPS. Until the basis has grown the
        columns that padding left at zero, only the magnitude tells their codes apart.
    together : bool
        Prune over all layers together, so that each ends with a share of its own; else each with the values it has.
    """

    def __init__(
        self,
        layers: Sequence[SharedBasisLinear],
        schedule: PruningSchedule | None = None,
        *,
        codes: Sequence[Tensor] | None = None,
        score: Literal["contribution", "magnitude"] = "contribution",
        together: bool = True,
    ) -> None:
        if not layers:
            raise ValueError("layers must hold at least one SharedBasisLinear, got none")
        if score not in ("contribution", "magnitude"):
            raise ValueError(f'score must be "contribution" or "magnitude", got {score!r}')
        for layer in layers:
            if layer.bits is not None:
                raise ValueError(f"layers must not be stored in few bits, got {layer}")
        self.layers = list(layers)
        self.schedule = schedule
        self.score = score
        self.together = together
        with torch.no_grad():
            for i, layer in enumerate(self.layers):
                keep = layer.kept_places()
                dense = layer.dense_codes() if codes is None else codes[i].to(layer.values)
                if tuple(dense.shape) != layer.code_shape:
                    raise ValueError(f"codes must be of shape {layer.code_shape}, got {tuple(dense.shape)} at {i}")
                layer.codes = nn.Parameter(dense.clone())
                layer.keep = keep if schedule is None else torch.ones_like(keep)
        if schedule is not None:
            self._prune(0, None)

    def parameters(self) -> list[nn.Parameter]:
        """The basis, the dense codes and the biases."""
        found = [self.layers[0].basis, *(_opened(layer)[0] for layer in self.layers)]
        return [*found, *(layer.bias for layer in self.layers if layer.bias is not None)]

    def after_step(self, step: int, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Prune where the schedule says so after optimiser step `step`, counted from 1.

        Pruned entries lose their state in `optimizer`, in every step, so momentum cannot move them.
        """
        if self.schedule is not None and self.schedule.due(step) and step <= self.schedule.end:
            self._prune(step, optimizer)
        else:
            self._clear(optimizer)

    def settled(self, step: int) -> bool:
        """Whether the codes are as sparse as they must be in the end."""
        return self.schedule is None or step >= self.schedule.end

    @torch.no_grad()
    def _prune(self, step: int, optimizer: torch.optim.Optimizer | None) -> None:
        assert self.schedule is not None
        sparsity = 1.0 if step >= self.schedule.end else self.schedule.sparsity(step)
        lengths = torch.linalg.vector_norm(self.layers[0].basis, dim=0)
        scale = torch.ones_like(lengths) if self.score == "magnitude" else lengths
        groups = [self.layers] if self.together else [[layer] for layer in self.layers]
        for group in groups:
            # what a mask has cut stays cut: its values are zero
            masked = [(codes * keep).abs() * scale[:, None] for codes, keep in map(_opened, group)]
            flat = torch.cat([part.reshape(-1) for part in masked])
            kept = max(sum(layer.kept for layer in group), round(flat.numel() * (1 - sparsity)))
            chosen = torch.zeros_like(flat, dtype=torch.bool)
            # a stable order breaks ties by place, the same way in every run
            chosen[torch.sort(flat, descending=True, stable=True).indices[:kept]] = True
            parts = torch.split(chosen, [part.numel() for part in masked])
            for layer, part in zip(group, parts, strict=True):
                layer.keep = part.reshape(layer.code_shape)
        self._clear(optimizer)

    @torch.no_grad()
    def _clear(self, optimizer: torch.optim.Optimizer | None) -> None:
        for layer in self.layers:
            codes, keep = _opened(layer)
            codes.mul_(keep)
            state: dict[str, Any] = {} if optimizer is None else optimizer.state.get(codes, {})
            for value in state.values():
                if isinstance(value, Tensor) and value.shape == codes.shape:
                    value.mul_(keep)

    @torch.no_grad()
    def finish(self) -> None:
        """Pack the codes; the layers are in their stored form again, each with as many values as its mask keeps."""
        for layer in self.layers:
            if layer.codes is None:
                continue
            codes, keep = _opened(layer)
            values = codes[keep]
            layer.kept = values.numel()
            layer.values = nn.Parameter(values.clone(), requires_grad=layer.values.requires_grad)
            layer.set_places(keep)
            layer.codes = None
            layer.keep = None


def _opened(layer: SharedBasisLinear) -> tuple[nn.Parameter, Tensor]:
    """The dense codes and the mask of a layer in training."""
    if layer.codes is None or layer.keep is None:
        raise ValueError(f"layers must not be packed while they are trained, got {layer}")
    return layer.codes, layer.keep


def frozen_basis(layers: Sequence[SharedBasisLinear]) -> None:
    """Freeze the basis that the layers share: members trained later cannot change what the others compute."""
    for layer in layers:
        layer.basis.requires_grad_(False)
        layer.basis.grad = None


def density(layers: Sequence[SharedBasisLinear]) -> float:
    """Share of the codes of all layers together that is kept."""
    return sum(layer.kept for layer in layers) / sum(math.prod(layer.code_shape) for layer in layers)
