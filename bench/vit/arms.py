"""Three ways to make an MLP smaller, at equal numbers of parameters: decoupling, SVD, DRONE.

Each takes the dense MLPs of a trained model and what they see, and returns a copy with smaller ones. SVD cuts both
weights by themselves (Eckart, Young). DRONE cuts each so that its outputs on the data change least (Chen, Yu, Dhillon,
Hsieh, NeurIPS 2021): fc1 on the inputs of the dense model, fc2 on the hidden values behind the compressed fc1.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tensorfact.torch import DecoupledMLP, LowRankLinear

METHODS = ("decouple", "svd", "drone")
N_BASIS = 6  # more of them follow the samples, not the network


def dense_size(m: int, h: int, n: int) -> int:
    """Parameters of an MLP."""
    return m * h + h + h * n + n


def decoupled_rank(m: int, h: int, n: int, share: float, n_basis: int = N_BASIS) -> int:
    """Branches that `share` of the parameters pays: weights, coefficients, bias and the two ends of the knots."""
    return int((share * dense_size(m, h, n) - n) // (m + n + n_basis + 2))


def low_rank(m: int, h: int, n: int, share: float) -> int:
    """Rank of both factorised weights that `share` of the parameters pays."""
    return int((share * dense_size(m, h, n) - h - n) // (m + h + h + n))


def sizes(mlp: Any) -> tuple[int, int, int]:
    """Inputs, hidden units, outputs."""
    return mlp.fc1.in_features, mlp.fc1.out_features, mlp.fc2.out_features


@torch.no_grad()
def inputs_of(model: Any, x: Tensor) -> list[Tensor]:
    """What each MLP of the dense model sees, tokens as rows."""
    found: list[Tensor] = []
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, given: found.append(given[0].reshape(-1, given[0].shape[-1])))
        for layer in model.vit.layers
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return found


def compressed(teacher: Any, seen: list[Tensor], method: str, share: float, *, seed: int, samples: int = 4000) -> Any:
    """A copy of `teacher` whose MLPs have `share` of their parameters."""
    student = copy.deepcopy(teacher)
    for layer, tokens in zip(student.vit.layers, seen, strict=True):
        m, h, n = sizes(layer.mlp)
        if method == "decouple":
            rank = decoupled_rank(m, h, n, share)
            rows = np.random.default_rng(seed).permutation(len(tokens))[:samples]
            layer.mlp = decoupled(layer.mlp, tokens[torch.from_numpy(rows)], rank, seed)
        else:
            rank = low_rank(m, h, n, share)
            before = tokens.double()
            layer.mlp.fc1 = cut(layer.mlp.fc1, rank, before if method == "drone" else None)
            with torch.no_grad():
                behind = layer.mlp.activation_fn(layer.mlp.fc1.double()(before))
            layer.mlp.fc1.float()
            layer.mlp.fc2 = cut(layer.mlp.fc2, rank, behind if method == "drone" else None)
    return student


def decoupled(mlp: Any, tokens: Tensor, rank: int, seed: int, **options: Any) -> DecoupledMLP:
    """The MLP as a decoupling, values and Jacobians at equal shares."""
    given = {"n_basis": N_BASIS, "weight": 1.0, "max_iter": 20, "polish_iter": 60, "rng": seed} | options
    return DecoupledMLP.from_dense(mlp.fc1, mlp.activation_fn, mlp.fc2, tokens, rank=rank, **given)


def cut(linear: nn.Linear, rank: int, x: Tensor | None) -> LowRankLinear:
    """The nearest weight of `rank`, or the one whose outputs at x (N, in) are nearest."""
    weight = linear.weight.detach().double()
    if x is None:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        up, down = u[:, :rank] * s[:rank], vh[:rank]
    else:
        outputs = weight @ (x.T @ x / len(x)) @ weight.T  # the left singular vectors of the outputs, by their Gram
        up = torch.linalg.eigh(outputs)[1][:, -rank:]
        down = up.T @ weight
    made = LowRankLinear(linear.in_features, linear.out_features, rank=rank)
    with torch.no_grad():
        made.down.weight.copy_(down)
        made.up.weight.copy_(up)
        made.up.bias.copy_(linear.bias)
    return made


def mlp_parameters(model: Any) -> int:
    """Parameters of all MLPs, with two numbers a branch for knots."""
    mlps = [layer.mlp for layer in model.vit.layers]
    extra = sum(2 * mlp.rank for mlp in mlps if isinstance(mlp, DecoupledMLP))
    return sum(p.numel() for mlp in mlps for p in mlp.parameters()) + extra
