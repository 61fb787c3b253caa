"""Small L-Transformer layers in float64, and inputs and masks for them."""

from __future__ import annotations

import torch

from tensorfact.torch import LTransformerEncoderLayer

D, H, F, B, T = 16, 4, 32, 3, 7
WIDE = torch.float64
GAINS = ("norm1.weight", "norm2.weight")
CAUSAL = torch.ones(T, T, dtype=torch.bool).triu(1)


def make(seed=0, **options):
    """A layer with weights that are far from symmetric: gains, shifts and biases drawn too."""
    given = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "dtype": WIDE, **options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = LTransformerEncoderLayer(D, H, F, **given)
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                if parameter.ndim == 2 and "generator" not in name:
                    parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if name in GAINS else 0.0))
                elif "generator" in name:
                    parameter.copy_(0.1 * torch.randn_like(parameter))
    return layer


def data(*shape, seed=1, dtype=WIDE):
    return torch.randn(*(shape or (B, T, D)), dtype=dtype, generator=torch.Generator().manual_seed(seed))


def padding():
    mask = torch.zeros(B, T, dtype=torch.bool)
    mask[1, 5:] = mask[2, 3:] = True
    return mask
