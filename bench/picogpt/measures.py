"""What is measured beside the trainings: errors of truncated weights, and seconds of a training step."""

from __future__ import annotations

import time
from collections import defaultdict
from statistics import mean, median

import torch
from torch import nn

from bench.picogpt import arms, runs
from bench.picogpt.arms import BONDS, SHAPES, Arm
from bench.picogpt.data import Corpus
from bench.picogpt.model import PicoGPT
from bench.picogpt.runs import Plan
from bench.picogpt.training import Protocol, Trainer
from bench.resumable import quiet_torch, stored_model
from tensorfact.torch import MPOLinear

Errors = dict[str, dict[str, float]]


@torch.no_grad()
def truncation_errors(model: PicoGPT) -> Errors:
    """``||W - What|| / ||W||`` of TT-SVD, by kind of layer and bond; the mean over the layers of a kind."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, layer in model.linears():
        kind = arms.kind_of(name)
        rows, cols = SHAPES[kind]
        weight = layer.weight.double()
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
        linear.weight.copy_(weight)
        for bond in BONDS:
            small = MPOLinear.from_linear(linear, rank=bond, row_shape=rows, col_shape=cols)
            found[kind][str(bond)].append(float((small.weight - weight).norm() / weight.norm()))
    return {kind: {bond: round(mean(values), 4) for bond, values in row.items()} for kind, row in found.items()}


def errors(plan: Plan) -> dict[str, Errors]:
    """Errors for random weights N(0, 0.02^2), and for trained ones where the dense model is finished."""
    result = {"random": truncation_errors(arms.build(Arm("dense"), 0))}
    if plan.done(Arm("dense"), runs.SOURCE_SEED):
        model = PicoGPT()
        model.load_state_dict(stored_model(plan.source()))
        result["trained"] = truncation_errors(model)
    return result


def step_seconds(corpus: Corpus, rounds: int = 5) -> dict[str, float]:
    """Median seconds of a training step on one thread, dense and MPO interleaved."""
    quiet_torch(1)
    trainers = {
        name: Trainer(arms.build(Arm.of(name), 0), corpus, Protocol(), 0)
        for name in ("dense", *(f"mpo{bond}" for bond in BONDS))
    }
    for trainer in trainers.values():
        trainer.advance()
    seconds: dict[str, list[float]] = defaultdict(list)
    for turn in range(rounds):
        for name in list(trainers) if turn % 2 == 0 else list(trainers)[::-1]:
            began = time.perf_counter()
            trainers[name].advance()
            seconds[name].append(time.perf_counter() - began)
    return {name: round(median(values), 4) for name, values in seconds.items()}
