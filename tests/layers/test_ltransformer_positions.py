"""Positions of slices: the scales of the paper, given ones, and a learned table."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from l_encoders import WIDE, B, D, T, data, make  # noqa: E402
from tensorfact.torch import LTransformerEncoderLayer  # noqa: E402


@pytest.mark.parametrize("kind", ["standard", "linear", "exponential", "harmonic"])
def test_positions_are_those_of_the_formula(kind):
    layer = make(slices=4, positions=kind, max_len=T)
    alpha = {
        "standard": lambda k: 1,
        "linear": lambda k: k / 4,
        "exponential": lambda k: 2 ** ((k - 1) / 3),
        "harmonic": lambda k: k,
    }
    table = layer.positions(T)
    for k, t, j in ((1, 0, 1), (2, 3, 1), (3, 5, 2), (4, 6, 3), (4, 6, 4)):
        angle = alpha[kind](k) * t / 10000 ** (2 * ((j - 1) // 2) / (D // 4))
        wanted = math.sin(angle) if j % 2 else math.cos(angle)
        assert table[k - 1, t, j - 1].item() == pytest.approx(wanted, abs=1e-14)
    hat = torch.einsum("uk,ktj->utj", layer.mixing.matrices()[0], table)
    if kind == "standard":
        torch.testing.assert_close(hat[0], 2 * table[0])
        assert hat[1:].abs().max() < 1e-14
    plain = make(slices=4, positions=None)
    x = data()
    dense = table.permute(1, 0, 2).reshape(T, D)  # only attention reads them: the residual does not
    first = plain.norm1(slices_of(x) + attention_of(plain, x + dense))
    wanted = plain.norm2(first + feed_of(plain, first))
    torch.testing.assert_close(layer(x), joined(wanted), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="src must have at most max_len=7 positions, got 8"):
        layer(data(1, 8, D))


def slices_of(x):
    return x.reshape(-1, 4, D // 4).transpose(0, 1)


def joined(s):
    return s.transpose(0, 1).reshape(B, T, D)


def attention_of(layer, x):
    z, inverse = layer.mixing.matrices()
    found = layer.self_attn(torch.einsum("uk,knj->unj", z, slices_of(x)), B, None, False)
    return torch.einsum("uk,knj->unj", inverse, found)


def feed_of(layer, s):
    z, inverse = layer.mixing.matrices()
    return torch.einsum("uk,knj->unj", inverse, layer._feed(torch.einsum("uk,knj->unj", z, s)))


def test_learned_positions_and_transforms_are_trained_and_stay_orthogonal():
    layer = make(slices=4, transform="learned", positions="learnable", max_len=T)
    layer(data()).square().sum().backward()
    for name in ("mixing.generator", "positions.table"):
        assert dict(layer.named_parameters())[name].grad.abs().max() > 0
    z, inverse = layer.mixing.matrices()
    torch.testing.assert_close(z @ z.T, torch.eye(4, dtype=WIDE))
    torch.testing.assert_close(inverse, z.T)


def test_given_scales():
    named, given = make(slices=4, positions="linear"), make(slices=4, positions=[0.25, 0.5, 0.75, 1])
    assert torch.equal(given.positions.table, named.positions.table)
    assert "(0.25, 0.5, 0.75, 1.0), max_len=512" in repr(given)
    still = make(slices=4, positions=[0, 0, 0, 0])  # cosines of nothing: the same at every position
    assert (still.positions.table - still.positions.table[:, :1]).abs().max() == 0
    for wrong in ([1, 2, 3], [1, 2, 3, math.inf]):
        with pytest.raises(ValueError, match="positions must be one finite scale for each of 4 slices, got"):
            make(slices=4, positions=wrong)


@pytest.mark.parametrize("kind", ["linear", "exponential", "harmonic"])
def test_all_slices_of_the_transform_domain_see_positions_but_standard_ones(kind):
    """Specification 8.5: shares of the slices in the energy of the positions, at 32 features and 128 positions."""
    wanted = {
        "linear": [0.69, 0.13, 0.09, 0.08],
        "exponential": [0.67, 0.14, 0.10, 0.09],
        "harmonic": [0.59, 0.17, 0.13, 0.12],
    }
    for name, shares in ((kind, wanted[kind]), ("standard", [1, 0, 0, 0])):
        layer = LTransformerEncoderLayer(128, 4, 512, slices=4, positions=name, max_len=128, dtype=WIDE)
        hat = torch.einsum("uk,ktj->utj", layer.mixing.matrices()[0], layer.positions(128))
        energy = hat.square().sum((1, 2))
        assert (energy / energy.sum()).tolist() == pytest.approx(shares, abs=0.006)


def test_permuted_tokens_are_told_apart_by_positions_alone():
    order = torch.randperm(T, generator=torch.Generator().manual_seed(0))
    x = data()
    for positions, told in ((None, False), ("linear", True), ([0, 0, 0, 0], False)):
        layer = make(slices=4, positions=positions)
        assert ((layer(x[:, order]) - layer(x)[:, order]).abs().max() > 1e-3) == told
