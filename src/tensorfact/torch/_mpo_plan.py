"""Which way through an MPO is expected to be fastest: a cost model in seconds, its constants fitted to measurements.

Flop counts do not predict these times: a product with one thin side runs at a tenth of the speed of a fat one. The
model counts what the tiles of the fused kernel do, and for the rest bytes, calls and the rate of a fat product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal

from tensorfact import kernels
from tensorfact.kernels.chain import MAX_SITES, vector_bytes

Sizes = tuple[tuple[int, int, int, int], ...]  # (r, m, n, s) of each core
Path = Literal["auto", "chain", "reconstruct"]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a layer maps a number of tokens.

    `how` is "reconstruct", "fused" (the compiled chain) or "chain" (a chain of torch products). `groups` says how many
    neighbouring cores are merged before the chain, `direction` where it begins. `seconds` is the estimate.
    """

    how: Literal["reconstruct", "fused", "chain"]
    direction: Literal["left", "right"]
    groups: tuple[int, ...]
    seconds: float

    def __str__(self) -> str:
        if self.how == "reconstruct":
            return "reconstruct"
        merged = "" if all(g == 1 for g in self.groups) else f", cores merged {self.groups}"
        return f"{self.how} from the {self.direction}{merged}"


@dataclass(frozen=True, slots=True)
class Machine:
    """Constants of the model; rates are for one thread and in float32."""

    gemm: float  # flop/s of a fat product
    thin: float  # rows at which a product reaches half of that
    clock: float  # cycles/s of the fused kernel, stalls included
    tile: float  # cycles a tile costs beside its multiplications, per vector of its result
    stream: float  # byte/s of a result that is written to memory for the first time
    weights: float  # byte/s of a weight that is read once
    shuffle: float  # byte/s of permuting copies, all threads
    call: float  # seconds of one torch call
    fused: float  # seconds of one call of the fused kernel


CPU = Machine(
    gemm=140e9, thin=6.0, clock=2.2e9, tile=2.0, stream=4e9, weights=15e9, shuffle=8e9, call=6e-6, fused=30e-6
)
# A GPU has no fused kernel here; what decides is the number of launches and the permuting copies.
GPU = Machine(
    gemm=20e12, thin=64.0, clock=1.0, tile=0.0, stream=1e12, weights=1e12, shuffle=1e12, call=8e-6, fused=math.inf
)


def plan(
    sizes: Sizes, tokens: int, *, itemsize: int = 4, threads: int = 1, path: Path = "auto", gpu: bool = False,
    rebuilt: bool = False,
) -> Plan:  # fmt: skip
    """The cheapest plan for cores of `sizes`. `rebuilt` says that the dense weight is at hand."""
    fused = not gpu and kernels.active() == "cpp"
    return _cheapest(sizes, _bucket(tokens), max(4, itemsize), threads, path, gpu, rebuilt, fused)


def _bucket(tokens: int) -> int:
    """Three leading bits of the number of tokens: plans are made once for all that share them."""
    shift = max(0, tokens.bit_length() - 3)
    return max(1, tokens >> shift << shift)


@lru_cache(maxsize=4096)
def _cheapest(
    sizes: Sizes, tokens: int, itemsize: int, threads: int, path: Path, gpu: bool, rebuilt: bool, fused: bool
) -> Plan:
    machine = GPU if gpu else CPU
    found = []
    if path != "chain":
        seconds = dense_seconds(machine, sizes, tokens, itemsize, threads)
        if not rebuilt:
            seconds += rebuild_seconds(machine, sizes, itemsize, threads)
        found.append(Plan("reconstruct", "left", (len(sizes),), seconds))
    if path != "reconstruct":
        for groups in groupings(len(sizes)):
            if len(groups) == 1 and len(sizes) > 1:
                continue
            merged = merged_sizes(sizes, groups)
            before = sum(merge_seconds(machine, sizes, groups, itemsize))
            for direction in ("left", "right"):
                if fused and len(groups) <= MAX_SITES:
                    seconds = before + fused_seconds(machine, merged, tokens, itemsize, threads, direction)
                    found.append(Plan("fused", direction, groups, seconds))
                else:
                    seconds = before + chain_seconds(machine, merged, tokens, itemsize, threads, direction)
                    found.append(Plan("chain", direction, groups, seconds))
    return min(found, key=lambda each: each.seconds)


def groupings(order: int) -> list[tuple[int, ...]]:
    """All ways to cut a chain into runs of neighbours; from five cores on only the finest and those of two runs."""
    cuts = [cut for k in range(order) for cut in combinations(range(1, order), k) if order < 5 or k in (1, order - 1)]
    return [tuple(b - a for a, b in zip((0, *cut), (*cut, order), strict=True)) for cut in cuts]


def merged_sizes(sizes: Sizes, groups: tuple[int, ...]) -> Sizes:
    """Sizes of the cores once each run of neighbours is one."""
    found, begin = [], 0
    for count in groups:
        run = sizes[begin : begin + count]
        found.append((run[0][0], math.prod(c[1] for c in run), math.prod(c[2] for c in run), run[-1][3]))
        begin += count
    return tuple(found)


def steps(sizes: Sizes, direction: str) -> list[tuple[int, int, int, int, bool]]:
    """Products of a chain for one token: (how many, rows, terms, columns, whether tokens share one product)."""
    found = []
    so_far, to_come = 1, math.prod(n for _, _, n, _ in sizes)
    ordered = sizes if direction == "left" else sizes[::-1]
    for k, (r, m, n, s) in enumerate(ordered):
        to_come //= n
        if direction == "left" and k + 1 == len(sizes):
            found.append((1, so_far, r * n, m, True))
        elif direction == "left":
            found.append((so_far, m * s, r * n, to_come, False))
        elif k == 0:
            found.append((1, to_come, n, r * m, True))
        else:
            found.append((to_come, r * m, n * s, so_far, False))
        so_far *= m
    return found


def tile_cycles(rows: int, terms: int, columns: int, itemsize: int, machine: Machine) -> float:
    """Cycles of one product in register tiles, as csrc/core/tiled.hpp cuts it, operands in the nearest caches."""
    wide = vector_bytes() == 64
    heights = (16, 12, 8, 6) if wide else (8, 6)
    lanes = vector_bytes() // itemsize
    vectors = -(-columns // lanes)
    panels = -(-vectors // len(heights))
    total = 0.0
    for q in range(panels):
        width = vectors * (q + 1) // panels - vectors * q // panels
        tiles = -(-rows // heights[width - 1])
        height = rows / tiles
        # two multiply-adds and two loads a cycle, and four cycles until a sum can be added to again
        step = max(height * width / 2, (height + width) / 2, 4.0)
        total += tiles * (terms * step + machine.tile * height * width + 12)
    return total


def fused_seconds(machine: Machine, sizes: Sizes, tokens: int, itemsize: int, threads: int, direction: str) -> float:
    """Seconds of the compiled chain."""
    together = min(8, max(1, tokens // threads))
    cycles = 0.0
    for count, rows, terms, columns, shared in steps(sizes, direction):
        if shared:
            cycles += count * tile_cycles(rows * together, terms, columns, itemsize, machine) / together
        else:
            cycles += count * tile_cycles(rows, terms, columns, itemsize, machine)
    used = min(threads, tokens)
    out = math.prod(m for _, m, _, _ in sizes)
    turned = sum(r * m * n * s for r, m, n, s in sizes)
    written = tokens * out * itemsize / (machine.stream * used) if tokens * out * itemsize > 1 << 20 else 0.0
    return machine.fused + turned * 0.5e-9 + tokens * cycles / (machine.clock * used) + written


def dense_seconds(machine: Machine, sizes: Sizes, tokens: int, itemsize: int, threads: int) -> float:
    """Seconds of one product with the dense weight."""
    out, inner = math.prod(m for _, m, _, _ in sizes), math.prod(n for _, _, n, _ in sizes)
    rate = machine.gemm * threads * 4 / itemsize * tokens / (tokens + machine.thin)
    read = out * inner * itemsize / (machine.weights * threads)
    written = tokens * out * itemsize / (machine.stream * threads) if tokens * out * itemsize > 1 << 20 else 0.0
    return machine.call + max(2 * tokens * out * inner / rate, read) + written


def rebuild_seconds(machine: Machine, sizes: Sizes, itemsize: int, threads: int) -> float:
    """Seconds until the dense weight is in memory."""
    if len(sizes) == 1:
        return 0.0
    out, inner = math.prod(m for _, m, _, _ in sizes), math.prod(n for _, _, n, _ in sizes)
    cut = split(sizes)
    bond = sizes[cut][0]
    small = sum(merge_seconds(machine, sizes, (cut, len(sizes) - cut), itemsize))
    flops = 2 * out * inner * bond
    return (
        machine.fused
        + small
        + flops * itemsize / 4 / (0.5 * machine.gemm * threads)
        + out * inner * itemsize / (machine.stream * threads)
    )


def merge_seconds(machine: Machine, sizes: Sizes, groups: tuple[int, ...], itemsize: int) -> list[float]:
    """Seconds of each product that merges neighbours, from the right of each run."""
    found, begin = [], 0
    for count in groups:
        run = sizes[begin : begin + count]
        begin += count
        for k in range(count - 2, -1, -1):
            rows, cols = (math.prod(core[axis] for core in run[k:]) for axis in (1, 2))
            size = run[k][0] * rows * cols * run[-1][3]
            found.append(3 * machine.call + 2 * size * run[k][3] / machine.gemm + 3 * size * itemsize / machine.shuffle)
    return found


def chain_seconds(machine: Machine, sizes: Sizes, tokens: int, itemsize: int, threads: int, direction: str) -> float:
    """Seconds of a chain of torch products with its permuting copies."""
    total = 0.0
    for count, rows, terms, columns, _ in steps(sizes, direction):
        thin = min(rows, terms, columns)
        rate = machine.gemm * threads * 4 / itemsize * thin / (thin + machine.thin)
        moved = 3 * tokens * count * columns * (terms + rows) * itemsize
        total += 4 * machine.call + 2 * tokens * count * rows * terms * columns / rate + moved / machine.shuffle
    return total


def split(sizes: Sizes) -> int:
    """Where to cut the chain in two before it is multiplied out: a thin bond, and long rows behind it."""
    order = len(sizes)
    if order < 3:
        return order - 1
    return min(range(1, order), key=lambda cut: sizes[cut][0] * (1 + 16 / math.prod(n for _, _, n, _ in sizes[cut:])))
