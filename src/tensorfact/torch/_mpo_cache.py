"""The dense weight that evaluation keeps until a core changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class DenseCache:
    """One weight and the state of the cores that it was made of. Copies and pickles are empty."""

    def __init__(self) -> None:
        # Key, weight, and the cores with their memory, whose ids and addresses no other may take. One assignment
        # replaces all three: threads may share a layer.
        self._state: tuple[tuple[Any, ...], Tensor, tuple[Any, ...]] | None = None

    def usable(self, cores: Sequence[Tensor]) -> bool:
        """Whether a weight may be kept: no gradient is wanted of the cores, and their changes are counted."""
        if torch.is_grad_enabled() and any(core.requires_grad for core in cores):
            return False
        # changes in another process are not counted
        shared = (core.device.type == "cpu" and core.is_shared() for core in cores)  # type: ignore[no-untyped-call]
        return not any(shared) and not any(core.is_inference() or core.is_meta for core in cores)

    def get(self, cores: Sequence[Tensor], make: Callable[[], Tensor]) -> Tensor:
        """The kept weight, or a new one where a core was changed, replaced, moved or cast."""
        key = tuple((id(core), core._version, core.data_ptr(), core.dtype, core.device) for core in cores)
        state = self._state
        if state is None or state[0] != key or state[1].is_inference() != torch.is_inference_mode_enabled():
            held = (*cores, *(core.detach() for core in cores))
            with torch.no_grad(), torch.autocast(cores[0].device.type, enabled=False):  # kept for other regions, too
                state = (key, make(), held)
            self._state = state
        return state[1]

    def clear(self) -> None:
        """Forget the weight."""
        self._state = None

    def __deepcopy__(self, memo: Any) -> DenseCache:
        return DenseCache()

    def __reduce__(self) -> tuple[Any, ...]:
        return DenseCache, ()
