"""What fips adds to the training of a group; apart from the method, because it needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch

from tensorfact.compress._units import Trainer
from tensorfact.torch import CodeTrainer, PruningSchedule, SharedBasisLinear

__all__ = ["FipsTrainer"]


class FipsTrainer(Trainer):
    """Dense codes under masks: the masks of the start, or pruned gradually from the projections of the weights."""

    def __init__(
        self,
        layers: Sequence[SharedBasisLinear],
        steps: int,
        *,
        basis: npt.NDArray[Any] | None = None,
        codes: Sequence[npt.NDArray[Any]] | None = None,
    ) -> None:
        if basis is None or codes is None:
            self._codes = CodeTrainer(layers)
            return
        with torch.no_grad():
            layers[0].basis.copy_(torch.from_numpy(basis))
        self._codes = CodeTrainer(
            layers,
            PruningSchedule(steps, _sparsity(layers)),
            codes=[torch.from_numpy(part) for part in codes],
            score="magnitude",
            together=False,
        )

    def after_step(self, step: int, optimizer: Any) -> None:
        """Prune where it is due, and keep pruned entries at zero."""
        self._codes.after_step(step, optimizer)

    def admissible(self, step: int) -> bool:
        """Whether the masks are as sparse as they must be."""
        return self._codes.settled(step)

    def finish(self) -> None:
        """Pack the codes."""
        self._codes.finish()


def _sparsity(layers: Sequence[SharedBasisLinear]) -> float:
    places = sum(layer.code_shape[0] * layer.code_shape[1] for layer in layers)
    return 1 - sum(layer.kept for layer in layers) / places
