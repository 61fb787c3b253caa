"""The models that are compared, by name.

=================  =====================================================================================================
``std``            PyTorch's own encoder, 4 layers
``shallow``        the same with one layer: about the parameters of ``t4``
``narrow``         the same with 4 layers of half the width behind a projection: about the parameters of ``t4``
``t4-dct``         four slices, DCT, positions "linear"; ``t2``, ``t8`` likewise
``t4-identity``    the control: no transform, so that slices meet in the classifier only
``t4-random``      the control: an orthogonal matrix drawn for each seed
=================  =====================================================================================================

Behind ``t4-dct`` and its like may stand ``-standard``, ``-exponential``, ``-harmonic``, ``-learnable`` (other
positions), ``-nopos`` (none) or ``-own``, and then ``-ln``: layer normalisation in the transform domain. Controls get
the positions that ``t4-dct`` sees, in the transform domain; with ``-own`` those of the formula in their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bench.ltransformer.data import Task
from bench.ltransformer.model import Classifier
from tensorfact import Transform
from tensorfact.torch import LTransformerEncoder, LTransformerEncoderLayer

LAYERS = 4
FIRST = ("std", "t4-dct", "t4-identity", "t4-random")
CONTROLS = ("t2-dct", "t4-dct-ln", "narrow", "shallow")
POSITIONS = ("standard", "exponential", "harmonic", "learnable", "nopos")
EVERYTHING = (
    *FIRST,
    *CONTROLS,
    *(f"t4-dct-{positions}" for positions in POSITIONS),
    *("t4-identity-own", "t4-random-own", "t4-identity-standard", "t4-dct-standard-ln", "t4-random-ln"),
)
NAME = re.compile(
    r"(?:(std|shallow|narrow)|t([248])-(dct|identity|random)(?:-(standard|exponential|harmonic|learnable|nopos|own))?(-ln)?)"
)


@dataclass(frozen=True)
class Arm:
    """One kind of model."""

    name: str
    slices: int = 0  # none: a dense encoder
    transform: str = ""
    positions: str = "linear"
    own: bool = False
    domain: str = "original"

    @classmethod
    def of(cls, name: str) -> Arm:
        """Read a name such as "t4-dct-standard-ln".

        Raises
        ------
        ValueError
            If there is no such arm.
        """
        match = NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"arms must be named as in `python -m bench.ltransformer --help`, got {name!r}")
        if match[1]:
            return cls(name)
        positions = match[4] if match[4] not in (None, "own") else "linear"
        return cls(name, int(match[2]), match[3], positions, match[4] == "own", "transform" if match[5] else "original")


def build(arm: Arm, task: Task, seed: int, settings: Any) -> Classifier:
    """The model before its first step; one seed draws the same embedding for every arm.

    ``settings`` has ``width`` (or None for the task's), ``heads``, ``length``, ``vocabulary``, ``dropout``,
    ``attention_dropout`` and ``embedding_dropout``.
    """
    width = settings.width or task.width
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        embedding = nn.Embedding(settings.vocabulary, width)
        nn.init.normal_(embedding.weight, std=width**-0.5)
        inner = width // 2 if arm.name == "narrow" else width
        layers = 1 if arm.name == "shallow" else LAYERS
        given: dict[str, Any] = {
            "d_model": inner,
            "nhead": settings.heads,
            "dim_feedforward": 4 * inner,
            "dropout": settings.dropout,
            "activation": "gelu",
            "batch_first": True,
        }
        encoder = _slices(arm, given, settings.length) if arm.slices else _dense(given, layers)
        for layer in encoder.layers:
            layer.self_attn.dropout = settings.attention_dropout
        return Classifier(
            embedding,
            encoder,
            inner,
            task.classes,
            length=None if arm.slices else settings.length,
            dropout=settings.embedding_dropout,
        )


def _dense(given: dict[str, Any], layers: int) -> nn.Module:
    """PyTorch's encoder, its layers drawn one by one (its own constructor copies one of them)."""
    made = nn.TransformerEncoder(nn.TransformerEncoderLayer(**given), layers, enable_nested_tensor=False)
    made.layers = nn.ModuleList(nn.TransformerEncoderLayer(**given) for _ in range(layers))
    return made


def _slices(arm: Arm, given: dict[str, Any], length: int) -> nn.Module:
    """Our encoder, its layers drawn one by one; controls see the positions that the DCT sees."""
    positions = None if arm.positions == "nopos" else arm.positions
    p = arm.slices
    transform = (
        Transform.random_orthogonal(p, int(torch.randint(2**62, ()))) if arm.transform == "random" else arm.transform
    )
    layers = [
        LTransformerEncoderLayer(
            **given,
            slices=p,
            transform=transform,
            ln_domain=arm.domain,
            positions=positions,
            max_len=length,  # type: ignore[arg-type]
        )
        for _ in range(LAYERS)
    ]
    made = LTransformerEncoder(layers[0], LAYERS)
    for layer in layers:
        layer.mixing, layer.positions = made.layers[0].mixing, made.layers[0].positions
    made.layers = nn.ModuleList(layers)
    first = made.layers[0]
    if positions not in (None, "learnable") and arm.transform != "dct" and not arm.own:
        dct = torch.tensor(Transform.dct(p).matrix)
        back = torch.tensor(first.mixing.transform.inverse_matrix) @ dct
        table = first.positions.table
        first.positions.table = torch.einsum("uk,ktj->utj", back, table.double()).to(table.dtype)
    return made
