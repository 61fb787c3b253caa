"""The models that are compared: names, layers, parameters and where each begins.

==================  ==================================================================================================
``dense``           the model as published
``dense-spared``    the same without weight decay on LayerNorm and biases
``dense-tuned``     the trained ``dense`` after the steps that ``svd`` and ``lowrank`` are tuned for
``mpo16``           MPO layers with bond 16 from random cores of the dense model's standard deviation, 0.02
``mpo16-paper``     the same from the published initialisation
``mpo16-scaled``    ``mpo16`` with the cores' learning rates in proportion to the size of their entries
``narrow16``        dense, narrower, with no more parameters than ``mpo16``, from scratch
``svd16``           TT-SVD of the trained ``dense`` with bond 16, then fine-tuned
``lowrank16``       SVD of the trained ``dense`` with no more parameters than ``svd16``, then fine-tuned
==================  ==================================================================================================

Bonds are 4, 8, 16 and 32.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bench.picogpt.model import STD, Make, PicoGPT, Size, count, dense
from bench.resumable import stored_model
from tensorfact.torch import LowRankLinear, MPOLinear

BONDS = (4, 8, 16, 32)
COUNTS = {None: 808_448, 4: 42_336, 8: 79_168, 16: 177_408, 32: 472_192}
PUBLISHED_COUNTS = {None: 1_020_224, 4: 78_336, 8: 110_592, 16: 191_872, 32: 408_832}
EVERYTHING = (
    "dense",
    *(f"mpo{bond}" for bond in (16, 8, 4, 32)),
    *(f"{family}{bond}" for bond in (16, 8, 4, 32) for family in ("svd", "lowrank")),
    "dense-tuned",
    *(f"narrow{bond}" for bond in (16, 8, 4, 32)),
    "mpo16-scaled",
    "mpo16-paper",
)
SHAPES = {
    "attention": ((8, 16), (8, 16)),
    "up": ((8, 8, 8), (4, 4, 8)),
    "down": ((4, 4, 8), (8, 8, 8)),
    "head": ((5, 13), (8, 16)),
}
NAME = re.compile(r"(dense|mpo|narrow|svd|lowrank)(\d+)?(?:-(\w+))?")


@dataclass(frozen=True)
class Arm:
    """One kind of model: ``family`` and bond, with an optional variant."""

    family: str
    bond: int | None = None
    variant: str = ""

    @classmethod
    def of(cls, name: str) -> Arm:
        """Read a name such as "mpo16-paper".

        Raises
        ------
        ValueError
            If there is no such arm.
        """
        match = NAME.fullmatch(name)
        if match:
            arm = cls(match[1], int(match[2]) if match[2] else None, match[3] or "")
            variants = {"dense": ("", "spared", "tuned"), "mpo": ("", "paper", "scaled")}.get(arm.family, ("",))
            if arm.variant in variants and ((arm.bond is None) if arm.family == "dense" else (arm.bond in BONDS)):
                return arm
        raise ValueError(f"arms must be named as in `python -m bench.picogpt --help`, got {name!r}")

    @property
    def name(self) -> str:
        """What `of` reads."""
        return f"{self.family}{self.bond or ''}{'-' * bool(self.variant)}{self.variant}"

    @property
    def tuned(self) -> bool:
        """Whether it begins from the trained dense model."""
        return self.family in ("svd", "lowrank") or self.variant == "tuned"


def build(arm: Arm, seed: int, source: Path | None = None) -> PicoGPT:
    """The model before its first step; ``source`` is the checkpoint of the trained dense model, for arms that need it.

    Raises
    ------
    ValueError
        If a model has not the number of parameters that it must have.
    """
    if arm.tuned:
        assert source is not None
        model = PicoGPT()
        model.load_state_dict(stored_model(source))
        if arm.bond is not None:
            (to_mpo if arm.family == "svd" else to_low_rank)(model, arm.bond)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            size = narrower(COUNTS[arm.bond]) if arm.family == "narrow" else Size()
            model = PicoGPT(size, mpo(arm.bond or 0, arm.variant) if arm.family == "mpo" else dense)
    found, wanted = count(model), COUNTS[arm.bond]
    exact = arm.family in ("dense", "mpo", "svd")
    if found != wanted if exact else not 0.99 * wanted < found <= wanted:
        raise ValueError(f"{arm.name} must have {wanted} parameters, got {found}")
    return model


def mpo(bond: int, variant: str = "") -> Make:
    """Maker of random MPO layers: standard deviation as in the dense model, or as published; biases 0."""

    def make(kind: str, in_features: int, out_features: int, bias: bool) -> nn.Module:
        rows, cols = SHAPES[kind]
        layer = MPOLinear(in_features, out_features, rank=bond, row_shape=rows, col_shape=cols, bias=bias)
        if variant == "paper":
            # Every core N(0, s^2) with s = in^(-1/4) / bond^((L-1)/(2L)), as published.
            std = in_features ** (-0.25) / bond ** ((len(rows) - 1) / (2 * len(rows)))
            for core in layer.cores:
                nn.init.normal_(core, std=std)
        else:
            layer.reset_parameters(std=STD)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        return layer

    return make


def narrower(parameters: int, heads: int = 4) -> Size:
    """Sizes of the dense model with no more parameters whose feed-forward is nearest to four times its width."""

    def size(width: int) -> Size:
        one, two = (Size(width=width, hidden=hidden).parameters for hidden in (1, 2))
        return Size(width=width, hidden=max(1, 1 + (parameters - one) // (two - one)))

    return min((size(width) for width in range(heads, 129, heads)), key=lambda s: abs(s.hidden / s.width - 4))


def replace(model: PicoGPT, name: str, layer: nn.Module) -> None:
    """Put ``layer`` in the place of the linear layer of that name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def kind_of(name: str) -> str:
    """Kind of layer ("attention", "up", "down", "head") of a name."""
    last = name.rpartition(".")[2]
    return last if last in SHAPES else "attention"


def to_mpo(model: PicoGPT, bond: int) -> None:
    """Replace every linear layer by the TT-SVD of its weight, the singular values of a bond shared by both cores."""
    for name, layer in list(model.linears()):
        rows, cols = SHAPES[kind_of(name)]
        replace(model, name, MPOLinear.from_linear(layer, rank=bond, row_shape=rows, col_shape=cols, rng=0))  # type: ignore[arg-type]


def to_low_rank(model: PicoGPT, bond: int) -> None:
    """Replace every linear layer by a truncated SVD of its weight with as many parameters as the MPO's.

    Each layer gets the largest rank that its MPO's parameters pay for. What is left over goes, rank by rank, where it
    buys most of the discarded energy: so the control has the same total, to within one rank of the cheapest layer.
    """
    layers = dict(model.linears())
    ranks, spectra = {}, {}
    left = COUNTS[bond] - count(model)
    for name, layer in layers.items():
        m, n = layer.weight.shape
        rows, cols = SHAPES[kind_of(name)]
        with torch.device("meta"):
            paid = count(MPOLinear(n, m, rank=bond, row_shape=rows, col_shape=cols, bias=False))
        ranks[name] = paid // (m + n)
        spectra[name] = torch.linalg.svdvals(layer.weight.detach())
        left += m * n - ranks[name] * (m + n)
    while True:
        gains = {
            name: float(spectra[name][rank] ** 2) / cost
            for name, rank in ranks.items()
            if rank < len(spectra[name]) and (cost := sum(layers[name].weight.shape)) <= left
        }
        if not gains:
            break
        best = max(gains, key=gains.__getitem__)
        ranks[best] += 1
        left -= sum(layers[best].weight.shape)
    for name, layer in layers.items():
        replace(model, name, LowRankLinear.from_linear(layer, rank=ranks[name], rng=0))  # type: ignore[arg-type]
