"""MPOLinear against the dense layer, tensorly-torch's FactorizedLinear and the best-order einsum.

    python -m bench.mpo                       # every cell; finished ones are kept, so it resumes
    python -m bench.mpo --fresh --only "768->3072 4096 tokens" --seconds 140

A cell is one shape, number of tokens, number of cores and bond: forward without gradients in training mode (nothing
is kept between calls), forward with the weight that evaluation keeps, and forward plus backward. All routines of a
cell run in one process, interleaved, and each ratio is of medians. Values are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from bench import timing
from tensorfact.torch import MPOLinear

SHAPES = ((768, 3072), (3072, 768), (768, 768))
TOKENS = (4096, 64, 1)
SITES = (2, 3, 4)
BONDS = (4, 8, 16, 32, 64)


def tensorly(layer: MPOLinear, implementation: str) -> nn.Module:
    """A FactorizedLinear with the cores of `layer`."""
    import tltorch

    order = len(layer.cores)
    peer = tltorch.FactorizedLinear(
        layer.col_shape,
        layer.row_shape,
        bias=True,
        factorization="blocktt",
        rank=layer.ranks,
        implementation=implementation,
        n_layers=1,
    )
    with torch.no_grad():
        for k in range(order):
            peer.weight.factors[k].copy_(layer.cores[k])
        peer.bias.copy_(layer.bias.reshape(peer.bias.shape))
    return peer


def best_einsum(layer: MPOLinear, tokens: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """One einsum over the input and all cores, in the order that opt_einsum finds best."""
    import opt_einsum

    order = len(layer.cores)
    names = "abcdefghijklmnopqrstuvwxyz"
    rows, cols, bonds = names[:order], names[order : 2 * order], names[2 * order : 3 * order + 1]
    cores = [f"{bonds[k]}{rows[k]}{cols[k]}{bonds[k + 1]}" for k in range(order)]
    text = f"z{cols},{','.join(cores)}->z{rows}"
    shapes = [(tokens, *layer.col_shape), *(tuple(core.shape) for core in layer.cores)]
    contract = opt_einsum.contract_expression(text, *shapes, optimize="optimal")

    def run(x: torch.Tensor) -> torch.Tensor:
        y = contract(x.reshape(tokens, *layer.col_shape), *layer.cores, backend="torch")
        return y.reshape(tokens, layer.out_features) + layer.bias

    return run


def backward_of(
    run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, scale: torch.Tensor
) -> Callable[[], None]:
    """Forward and backward, gradients of the input and of all parameters."""

    def both() -> None:
        x.grad = None
        run(x).backward(scale)

    return both


def quiet(run: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Callable[[], None]:
    """Forward without gradients."""

    def forward() -> None:
        with torch.no_grad():
            run(x)

    return forward


def measure(inner: int, out: int, tokens: int, order: int, bond: int, rounds: int, budget: float) -> dict[str, Any]:
    """One cell: medians in seconds and ratios to the dense layer."""
    torch.manual_seed(0)
    layer = MPOLinear(inner, out, rank=bond, order=order)
    dense = layer.to_linear()
    x, scale = torch.randn(tokens, inner), torch.randn(tokens, out)
    with torch.no_grad():
        expected = dense(x)
    kept = MPOLinear(inner, out, rank=bond, order=order).eval()
    kept.load_state_dict(layer.state_dict())
    rivals: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"dense": dense, "tensorfact": layer}
    for name in ("factorized", "reconstructed"):
        rivals[f"tensorly-torch {name}"] = tensorly(layer, name)
    if 2 * tokens * bond * bond * max(inner, out) < 3e11:
        rivals["best einsum"] = best_einsum(layer, tokens)
    for name, run in rivals.items():
        with torch.no_grad():
            error = (run(x) - expected).norm() / expected.norm()
        assert error < 1e-5, f"{name}: {error}"
    forward = {name: quiet(run, x) for name, run in rivals.items()}
    forward["tensorfact kept weight"] = quiet(kept, x)
    y = x.clone().requires_grad_()
    both = {name: backward_of(run, y, scale) for name, run in rivals.items()}
    cell: dict[str, Any] = {"plan": str(layer.plan(tokens)), "plan_kept": ""}
    with torch.no_grad():
        cell["plan_kept"] = str(kept.plan(tokens))
    for what, routines in (("forward", forward), ("forward_backward", both)):
        seconds = timing.interleaved(routines, rounds, budget)
        medians = {name: float(np.median(times)) for name, times in seconds.items()}
        ratios = {name: medians[name] / medians["dense"] for name in medians}
        cell[what] = {"seconds": medians, "of_dense": ratios, "rounds": len(seconds["dense"])}
    return cell


def cells() -> Iterator[tuple[str, tuple[int, int, int, int, int]]]:
    """Names and sizes, the cells of the issue's bars first."""
    for tokens in TOKENS:
        for inner, out in SHAPES:
            for order in SITES:
                for bond in BONDS:
                    yield f"{inner}->{out} {tokens} tokens {order} sites bond {bond}", (inner, out, tokens, order, bond)


def main() -> None:
    """Measure what is missing and write ``results/mpo.json`` after each cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="forget stored cells")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="cells whose name has this")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this long, to be resumed")
    args = parser.parse_args()
    result: dict[str, Any] = timing.load("mpo")
    result.setdefault("cells", {})
    result["environment"] = timing.environment("torch", "tensorly-torch", "tensorly", "opt_einsum")
    started = time.perf_counter()
    for name, sizes in cells():
        if args.only and not any(text in name for text in args.only):
            continue
        if name in result["cells"] and not args.fresh:
            continue
        if time.perf_counter() - started > args.seconds:
            break
        result["cells"][name] = cell = measure(*sizes, args.rounds, 12.0)
        timing.save("mpo", result)
        shown = {k: round(v, 2) for k, v in cell["forward"]["of_dense"].items()}
        trained = round(cell["forward_backward"]["of_dense"]["tensorfact"], 2)
        print(f"{name}: {cell['plan']}: {shown}, trained {trained}", flush=True)


if __name__ == "__main__":
    main()
