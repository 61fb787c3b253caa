"""Times of single layers, dense and factored, one beside the other. torch is imported inside the functions."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from tensorfact.compress._grouping import format_count
from tensorfact.compress._method import Method, Rank, create, stored_size
from tensorfact.compress.records import LayerRecord

if TYPE_CHECKING:
    import torch

__all__ = ["interleaved", "measure_layers"]

_TOKENS = 128
_LAYERS_SECONDS = 4.0
_GROUP = 1 << 26  # numbers in the dense weights of the layers that are timed in turn


def measure_layers(
    layers: Iterable[LayerRecord], method: str = "lowrank", *, tokens: int = _TOKENS, seconds: float = _LAYERS_SECONDS
) -> tuple[tuple[LayerRecord, ...], str]:
    """Time every distinct shape and rank alone: one dense product against the module of the method, in ``eval()``.

    Returns the records with `latency_before_ms` and `latency_after_ms` set, and what was measured in words. The time
    taken is about `seconds`, but at least three runs of each. Weights are random: their values do not matter to it.
    """
    import torch

    layers = tuple(layers)
    cases = sorted({(layer.shape, layer.rank) for layer in layers}, key=str)
    if not cases:
        return layers, ""
    made = create(method)
    if not made.alone:
        return layers, ""
    generator = torch.Generator().manual_seed(0)
    largest = max(max(math.prod(shape), stored_size(made, shape, rank)) for shape, rank in cases)
    pool = torch.randn(largest, generator=generator)
    x = torch.randn(tokens, max(shape[1] for shape, _ in cases), generator=generator)
    times: dict[tuple[tuple[int, int], Rank], tuple[float, float]] = {}
    repeats = []
    with torch.inference_mode():
        for group in _groups(cases):
            runs: list[Callable[[], object]] = []
            for shape, rank in group:
                runs += [_dense_layer(x, pool, *shape), _factored_layer(x, pool, made, shape, rank)]
            medians, count = interleaved(runs, repeats=15, seconds=seconds * len(group) / len(cases))
            times |= {case: (medians[2 * i], medians[2 * i + 1]) for i, case in enumerate(group)}
            repeats.append(count)
    done = []
    for layer in layers:
        before, after = times[(layer.shape, layer.rank)]
        done.append(dataclasses.replace(layer, latency_before_ms=before, latency_after_ms=after))
    threads = format_count(torch.get_num_threads(), "thread")
    words = f"{tokens} tokens, float32, {threads}, median of {min(repeats)} interleaved runs"
    return tuple(done), words


def _groups(cases: Sequence[tuple[tuple[int, int], Rank]]) -> Iterator[list[tuple[tuple[int, int], Rank]]]:
    """Cases to be timed together. A module may keep its dense weight, so there are only so many of them at once."""
    group: list[tuple[tuple[int, int], Rank]] = []
    size = 0
    for shape, rank in cases:
        if group and size + math.prod(shape) > _GROUP:
            yield group
            group, size = [], 0
        group.append((shape, rank))
        size += math.prod(shape)
    yield group


def _dense_layer(x: torch.Tensor, pool: torch.Tensor, m: int, n: int) -> Callable[[], object]:
    from torch.nn.functional import linear

    rows, weight = x[:, :n].contiguous(), pool[: m * n].view(m, n)
    return lambda: linear(rows, weight)


def _factored_layer(
    x: torch.Tensor, pool: torch.Tensor, method: Method, shape: tuple[int, int], rank: Rank
) -> Callable[[], object]:
    rows = x[:, : shape[1]].contiguous()
    module = method.module(shape, rank, bias=False, device="meta", dtype=pool.dtype)
    state, start = {}, 0
    for key, value in module.state_dict().items():  # all modules share one pool of numbers
        state[key] = pool[start : start + value.numel()].view(value.shape)
        start += value.numel()
    module.load_state_dict(state, assign=True)
    module.requires_grad_(False).eval()
    return lambda: module(rows)


def interleaved(runs: Sequence[Callable[[], object]], *, repeats: int, seconds: float) -> tuple[list[float], int]:
    """Median milliseconds of each run: all runs in turn, again and again, so that a slow moment hits all of them."""
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    start = time.perf_counter()
    for _ in range(repeats):
        for run, mine in zip(runs, times, strict=True):
            t = time.perf_counter()
            run()
            mine.append(1e3 * (time.perf_counter() - t))
        runs, times = runs[::-1], times[::-1]  # neither of two neighbours is always the one that finds a warm cache
        if len(times[0]) >= 3 and time.perf_counter() - start > seconds:
            break
    done = len(times[0])
    return [statistics.median(mine) for mine in (times if done % 2 == 0 else times[::-1])], done
