"""Stages: the units that are factored together with the blocks that are then refined together, in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tensorfact.compress._method import Layer
from tensorfact.compress._units import Unit

__all__ = ["Stage", "make_stages"]


@dataclass(frozen=True, slots=True)
class Stage:
    """Units, and the range of blocks that they touch; `first` is None where they touch none."""

    name: str
    units: tuple[Unit, ...]
    first: int | None = None
    last: int | None = None

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Layers of all units."""
        return tuple(layer for unit in self.units for layer in unit.layers)

    @property
    def blocks(self) -> range:
        """Numbers of the blocks."""
        return range(0) if self.first is None or self.last is None else range(self.first, self.last + 1)


def make_stages(units: Sequence[Unit], names: Mapping[str, str], blocks: Sequence[str]) -> list[Stage]:
    """Put units into stages: one a unit without blocks, else one for each run of blocks that units hold together.

    `names` maps layers to modules, `blocks` are names of modules. Stages without blocks come first.
    """
    where = {f"{block}.": index for index, block in enumerate(blocks)}

    def block_of(module: str) -> int | None:
        return next((index for prefix, index in where.items() if module.startswith(prefix)), None)

    outside: list[Stage] = []
    spans: list[tuple[int, int, list[Unit]]] = []
    for unit in units:
        touched = [index for layer in unit.layers if (index := block_of(names[layer.name])) is not None]
        if not touched:
            outside.append(Stage(unit.name, (unit,)))
            continue
        low, high, mine = min(touched), max(touched), [unit]
        apart = []
        for span in spans:
            if span[1] < low or high < span[0]:
                apart.append(span)
            else:
                low, high, mine = min(low, span[0]), max(high, span[1]), [*span[2], *mine]
        spans = [*apart, (low, high, mine)]
    inside = []
    for low, high, found in sorted(spans, key=lambda span: span[0]):
        name = blocks[low] if low == high else f"{blocks[low]} to {blocks[high]}"
        inside.append(Stage(name, tuple(found), low, high))
    return [*outside, *inside]
