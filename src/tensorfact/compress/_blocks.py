"""The repeated blocks of a transformer, and what flows between them. torch is imported inside the functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from tensorfact.compress.calibration import Batches

__all__ = ["Activations", "Calls", "find_blocks", "hidden_of", "run_block", "watch_blocks"]


def find_blocks(model: Any) -> list[tuple[str, Any]]:
    """Return name and module of the blocks: the longest `nn.ModuleList` whose modules are of one class.

    Empty where there is none of at least two modules; of equally long ones, that with the most parameters.
    """
    import torch

    best: tuple[tuple[int, int], list[tuple[str, Any]]] = ((1, 0), [])
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and len({type(child) for child in module}) == 1:
            size = (len(module), sum(p.numel() for p in module.parameters()))
            if size > best[0]:
                best = size, [(f"{name}.{i}", child) for i, child in enumerate(module)]
    return best[1]


@dataclass(slots=True)
class Calls:
    """How the dense model calls its blocks, batch by batch.

    Parameters
    ----------
    first : list of tensor
        Inputs of block 0.
    rest : list of list
        ``rest[block][batch]``: the other arguments and keyword arguments.
    breaks : dict of int to list of tensor
        Inputs of the blocks that do not take the output of the block before as it is.
    """

    first: list[torch.Tensor] = field(default_factory=list)
    rest: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = field(default_factory=list)
    breaks: dict[int, list[torch.Tensor]] = field(default_factory=dict)


class _Watch:
    """Hooks on all blocks during a run of the dense model."""

    def __init__(self, blocks: Sequence[Any]) -> None:
        self.calls = Calls(rest=[[] for _ in blocks])
        self.last: torch.Tensor | None = None
        self.order: list[int] = []
        self.regular = True
        self.handles = []
        for index, block in enumerate(blocks):
            self.handles.append(block.register_forward_pre_hook(self._before(index), with_kwargs=True))
            self.handles.append(block.register_forward_hook(self._after))

    def _before(self, index: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            import torch

            self.order.append(index)
            hidden, rest = _split(args, kwargs)
            if not isinstance(hidden, torch.Tensor):  # called in a way of its own
                self.regular = False
                return
            self.calls.rest[index].append(rest)
            if index == 0:
                self.calls.first.append(hidden.detach().clone())
            elif self.last is None or not (hidden is self.last or torch.equal(hidden, self.last)):
                self.calls.breaks.setdefault(index, []).append(hidden.detach().clone())

        return hook

    def _after(self, module: Any, args: Any, output: Any) -> None:
        import torch

        self.last = hidden_of(output)
        self.regular = self.regular and isinstance(self.last, torch.Tensor)


def watch_blocks(model: Any, blocks: Sequence[Any], batches: Batches, run: Any) -> Calls | None:
    """Call ``run()``, which runs the model over all batches, and return how it called the blocks.

    None where a block does not run exactly once, in order, for each batch, or not every batch takes the same way.
    """
    watch = _Watch(blocks)
    try:
        run()
    finally:
        for handle in watch.handles:
            handle.remove()
    count = len(batches.inputs)
    regular = watch.regular and watch.order == list(range(len(blocks))) * count
    regular = regular and all(len(inputs) == count for inputs in watch.calls.breaks.values())
    return watch.calls if regular else None


def _split(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[tuple[Any, ...], dict[str, Any]]]:
    """Part the hidden state from the rest, without the caches: those would remember one call in the next."""
    from transformers import Cache

    hidden, rest = (args[0], args[1:]) if args else (kwargs.get("hidden_states"), ())
    others = {key: value for key, value in kwargs.items() if args or key != "hidden_states"}
    kept = {key: None if isinstance(value, Cache) else value for key, value in others.items()}
    return hidden, (tuple(None if isinstance(value, Cache) else value for value in rest), kept)


def hidden_of(output: Any) -> torch.Tensor:
    """Return the hidden state that a block gives on."""
    return output[0] if isinstance(output, tuple | list) else output  # type: ignore[no-any-return]


def run_block(block: Any, hidden: torch.Tensor, call: tuple[tuple[Any, ...], dict[str, Any]]) -> torch.Tensor:
    """Run one block on another hidden state, the rest as it was called."""
    return hidden_of(block(hidden, *call[0], **call[1]))


class Activations:
    """One tensor a batch, in memory or, where they take more than `limit` bytes, in a file that is mapped.

    The file has no name any more once it is open, so nothing is left of it whatever happens.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], limit: int, folder: Path) -> None:
        import torch

        sizes = [int(np.prod(shape)) for shape in shapes]
        self.nbytes = 4 * sum(sizes)
        if self.nbytes <= limit:
            self._values = [torch.empty(shape) for shape in shapes]
            return
        import tempfile

        with tempfile.TemporaryFile(dir=folder) as file:
            flat = np.memmap(file, dtype=np.float32, mode="w+", shape=(sum(sizes),))
        starts = np.cumsum([0, *sizes])
        self._values = [
            torch.from_numpy(flat[start : start + size]).view(shape)
            for start, size, shape in zip(starts, sizes, shapes, strict=False)
        ]

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor], limit: int, folder: Path) -> Activations:
        """Return a copy of `tensors`."""
        made = cls([tuple(values.shape) for values in tensors], limit, folder)
        for index, values in enumerate(tensors):
            made[index] = values
        return made

    def like(self, limit: int, folder: Path) -> Activations:
        """Return an uninitialised one of the same shapes."""
        return Activations([tuple(values.shape) for values in self._values], limit, folder)

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._values[index]

    def __setitem__(self, index: int, values: torch.Tensor) -> None:
        self._values[index].copy_(values)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self._values)
