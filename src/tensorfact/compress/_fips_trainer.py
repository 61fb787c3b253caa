"""What fips adds to the training of a group. torch is imported inside the functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from tensorfact.compress._units import Trainer

if TYPE_CHECKING:
    from tensorfact.torch import SharedBasisLinear

__all__ = ["FipsTrainer"]


class FipsTrainer(Trainer):
    """Dense codes under masks: those of the stored start, which may move, or pruned from `basis` and dense `codes`."""

    def __init__(
        self,
        layers: Sequence[SharedBasisLinear],
        steps: int,
        *,
        basis: npt.NDArray[Any] | None = None,
        codes: Sequence[npt.NDArray[Any]] | None = None,
        prune: str = "start",
    ) -> None:
        import torch

        from tensorfact.torch import CodeTrainer, PatternTrainer, PruningSchedule, RiglTrainer
        from tensorfact.torch._quantized import numbers_of

        self._codes: CodeTrainer
        if basis is None or codes is None:
            moving = {"rigl": RiglTrainer, "sr-ste": PatternTrainer}.get(prune)
            self._codes = CodeTrainer(layers) if moving is None else moving(layers, steps)
            return
        places = sum(layer.code_shape[0] * layer.code_shape[1] for layer in layers)
        schedule = PruningSchedule(steps, 1 - sum(layer.kept for layer in layers) / places)
        with torch.no_grad():
            numbers_of(layers[0].basis).copy_(torch.from_numpy(basis))
        # each layer keeps as many values as it was given, so the stored shapes are known beforehand
        dense = [torch.from_numpy(part) for part in codes]
        self._codes = CodeTrainer(layers, schedule, codes=dense, score="magnitude", together=False)

    def after_step(self, step: int, optimizer: Any) -> None:
        """Prune where it is due, and keep pruned entries at zero."""
        self._codes.after_step(step, optimizer)

    def admissible(self, step: int) -> bool:
        """Whether the masks are as sparse as they must be."""
        return self._codes.settled(step)

    def finish(self) -> None:
        """Pack the codes."""
        self._codes.finish()
