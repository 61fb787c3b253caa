"""The dense weight that evaluation keeps until a core changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class DenseCache:
    """One weight and the state of the cores that it was made of. Copies and pickles are empty."""

    def __init__(self) -> None:
        self._weight: Tensor | None = None
        self._key: tuple[Any, ...] = ()
        self._held: tuple[Any, ...] = ()  # the cores and their memory: no other may take an id or address of the key

    def usable(self, cores: Sequence[Tensor]) -> bool:
        """Whether a weight may be kept: no gradient is wanted of the cores, and their changes are counted."""
        if torch.is_grad_enabled() and any(core.requires_grad for core in cores):
            return False
        return not any(core.is_inference() or core.is_meta for core in cores)

    def get(self, cores: Sequence[Tensor], make: Callable[[], Tensor]) -> Tensor:
        """The kept weight, or a new one where a core was changed, replaced, moved or cast."""
        key = tuple((id(core), core._version, core.data_ptr(), core.dtype, core.device) for core in cores)
        if self._weight is None or key != self._key or self._weight.is_inference() != torch.is_inference_mode_enabled():
            with torch.no_grad():
                self._weight = make()
            self._key, self._held = key, (*cores, *(core.detach() for core in cores))
        return self._weight

    def clear(self) -> None:
        """Forget the weight."""
        self._weight, self._key, self._held = None, (), ()

    def __deepcopy__(self, memo: Any) -> DenseCache:
        return DenseCache()

    def __reduce__(self) -> tuple[Any, ...]:
        return DenseCache, ()
