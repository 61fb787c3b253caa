"""The equations of L-Transformer layers: slice after slice, the algebra of their paper, its exact counts."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from l_encoders import WIDE, B, D, T, data, make  # noqa: E402
from tensorfact.torch import LTransformerEncoder, LTransformerEncoderLayer  # noqa: E402
from tensorfact.torch._lslices import SliceLinear  # noqa: E402

COUNTED = [(128, 1, 1, 247_808), (256, 1, 1, 987_136), (128, 4, 4, 254_016), (256, 4, 4, 999_552), (128, 2, 4, 499_840)]


def by_slices(layer, x, z, zinv):
    """One post-norm layer by the equations of the paper, slice after slice and head after head."""
    p, width, heads = layer.slices, D // layer.slices, layer.slice_heads

    def mixed(m, slices):
        return [sum(m[u, k] * slices[k] for k in range(p)) for u in range(p)]

    def norm(slices, module):
        return [functional.layer_norm(s, (width,), module.weight[i], module.bias[i]) for i, s in enumerate(slices)]

    def attend(i, s):
        attn = layer.self_attn
        q, k, v = (s @ attn.in_proj_weight[i] + attn.in_proj_bias[i]).split(width, dim=-1)
        parts = []
        for h in range(heads):
            place = slice(h * width // heads, (h + 1) * width // heads)
            scores = q[..., place] @ k[..., place].mT / math.sqrt(width // heads)
            parts.append(scores.softmax(-1) @ v[..., place])
        return torch.cat(parts, -1) @ attn.out_proj.weight[i] + attn.out_proj.bias[i]

    def feed(i, s):
        hidden = functional.gelu(s @ layer.linear1.weight[i] + layer.linear1.bias[i])
        return hidden @ layer.linear2.weight[i] + layer.linear2.bias[i]

    slices = list(x.split(width, dim=-1))
    hats = mixed(z, slices)
    if layer.ln_domain == "transform":
        slices, z, zinv = hats, torch.eye(p, dtype=WIDE), torch.eye(p, dtype=WIDE)
        back = torch.linalg.inv(layer.mixing.matrices()[0])
    else:
        back = torch.eye(p, dtype=WIDE)
    found = mixed(zinv, [attend(i, s) for i, s in enumerate(mixed(z, slices))])
    slices = norm([s + f for s, f in zip(slices, found, strict=True)], layer.norm1)
    found = mixed(zinv, [feed(i, s) for i, s in enumerate(mixed(z, slices))])
    slices = norm([s + f for s, f in zip(slices, found, strict=True)], layer.norm2)
    return torch.cat(mixed(back, slices), -1)


@pytest.mark.parametrize("domain", ["original", "transform"])
@pytest.mark.parametrize("transform", ["dct", "identity", "random", "learned", "matrix"])
@pytest.mark.parametrize("p", [1, 2, 4])
def test_all_slices_at_once_equal_one_after_the_other(p, transform, domain):
    given = np.eye(p) + np.triu(np.ones((p, p))) if transform == "matrix" else transform
    layer = make(slices=p, transform=given, ln_domain=domain)
    x, y = data().requires_grad_(), data().requires_grad_()
    z, inverse = layer.mixing.matrices()
    found, wanted = layer(x), by_slices(layer, y, z, inverse)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    weights = data(B, T, D, seed=2)
    first = torch.autograd.grad((found * weights).sum(), [x, *layer.parameters()])
    second = torch.autograd.grad((wanted * weights).sum(), [y, *layer.parameters()])
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("transform", ["dct", "random"])
def test_the_cores_are_standard_ones_of_the_width_of_a_slice(transform):
    layer, p, width = make(slices=4, transform=transform, slice_heads=2), 4, D // 4
    x = data(p, B * T, width)
    found = layer.self_attn(x, B, None, False)
    hidden = layer._feed(x)
    for i in range(p):
        attn = nn.MultiheadAttention(width, 2, batch_first=True, dtype=WIDE)
        with torch.no_grad():
            attn.in_proj_weight.copy_(layer.self_attn.in_proj_weight[i].T)
            attn.in_proj_bias.copy_(layer.self_attn.in_proj_bias[i])
            attn.out_proj.weight.copy_(layer.self_attn.out_proj.weight[i].T)
            attn.out_proj.bias.copy_(layer.self_attn.out_proj.bias[i])
        s = x[i].view(B, T, width)
        torch.testing.assert_close(found[i].view(B, T, width), attn(s, s, s, need_weights=False)[0])
        inner = functional.gelu(functional.linear(x[i], layer.linear1.weight[i].T, layer.linear1.bias[i]))
        second = functional.linear(inner, layer.linear2.weight[i].T, layer.linear2.bias[i])
        torch.testing.assert_close(hidden[i], second)


def cross_jacobian(layer):
    """Largest response, in the transform domain, of one slice to another."""
    z, inverse = layer.mixing.matrices()
    width = D // layer.slices

    def mixed(m, x):
        return torch.einsum("uk,tkj->tuj", m, x.view(-1, layer.slices, width)).reshape(x.shape)

    jacobian = torch.autograd.functional.jacobian(lambda x: mixed(z, layer(mixed(inverse, x))), data(T, D))
    blocks = jacobian.view(T, layer.slices, width, T, layer.slices, width).abs().amax((0, 2, 3, 5))
    return (blocks - torch.diag(blocks.diagonal())).max().item()


def test_slices_meet_in_the_norm_of_the_original_domain_only():
    assert cross_jacobian(make(slices=4, transform="identity")) == 0.0
    assert cross_jacobian(make(slices=4, transform="dct", ln_domain="transform")) < 1e-13
    assert cross_jacobian(make(slices=4, transform="dct")) > 1e-3


def test_the_norm_seen_from_the_transform_domain():
    """Specification 8.3: LN is Z diag(gamma / sigma) Z^T on the centred tubes, plus Z beta."""
    layer = make(slices=4)
    z, _ = layer.mixing.matrices()
    norm, x = layer.norm1, data(4, 20, D // 4)
    hat = torch.einsum("uk,knj->unj", z, x)
    centred = hat - hat.mean(-1, keepdim=True)
    sigma = (x.var(-1, unbiased=False) + norm.eps).sqrt()  # of the slices in the original domain
    gain = norm.weight[:, None, :] / sigma[..., None]
    wanted = torch.einsum("uk,knj,vk,vnj->unj", z, gain, z, centred) + (z @ norm.bias)[:, None]
    torch.testing.assert_close(torch.einsum("uk,knj->unj", z, norm(x)), wanted, rtol=1e-12, atol=1e-12)


def test_the_transform_can_be_absorbed_where_the_norm_is_in_its_domain():
    """Specification 8.4 (b): embedding, positions and classifier mapped, a DCT model is one with the identity."""
    layer = make(slices=4, transform="dct", ln_domain="transform", positions="linear", max_len=T)
    model = LTransformerEncoder(layer, 2)
    z, _ = layer.mixing.matrices()
    plain = LTransformerEncoder(
        make(slices=4, transform="identity", ln_domain="transform", positions="linear", max_len=T), 2
    )
    plain.load_state_dict(model.state_dict())
    plain.layers[0].positions.table.copy_(torch.einsum("uk,ktj->utj", z, layer.positions.table))
    big = torch.kron(z, torch.eye(D // 4, dtype=WIDE))
    table, classifier, ids = data(30, D), data(5, D, seed=3), torch.arange(B * T).view(B, T)
    logits = model(table[ids]).mean(1) @ classifier.T
    mapped = plain((table @ big.T)[ids]).mean(1) @ (classifier @ torch.linalg.inv(big)).T
    torch.testing.assert_close(mapped, logits, rtol=1e-12, atol=1e-12)


def test_parameter_counts():
    def count(width, p, layers=4):
        layer = LTransformerEncoderLayer(width, 8, 4 * width, slices=p, device="meta")
        return sum(x.numel() for x in LTransformerEncoder(layer, layers).parameters())

    # specification, section 7
    assert (count(768, 1), count(768, 4)) == (28_351_488, 7_117_824)
    assert (count(128, 1), count(128, 4)) == (793_088, 203_264)
    for width, p in ((128, 2), (256, 4), (768, 16)):
        assert count(width, p) == 4 * (12 * width**2 // p + 13 * width)
    table = LTransformerEncoderLayer(128, 4, 512, positions="learnable", max_len=128, device="meta")
    shared = sum(x.numel() for x in LTransformerEncoder(table, 4).parameters())
    assert shared == 203_264 + 128 * 128  # one table for all layers


@pytest.mark.parametrize(("width", "p", "layers", "wanted"), COUNTED)
def test_counts_of_the_published_small_models(width, p, layers, wanted):
    """Specification, section 7: there each layer has one Q, K, V projection more, and slices one norm at the end."""
    with torch.device("meta"):
        layer = LTransformerEncoderLayer(width, 4, 4 * width, slices=p)
        again = SliceLinear(p, width // p, 3 * width // p)
        last = nn.LayerNorm(width // p)
    found = layers * sum(x.numel() for x in (*layer.parameters(), *again.parameters()))
    assert found + (sum(x.numel() for x in last.parameters()) if p > 1 else 0) == wanted


def test_counts_of_whole_models():
    """30,000 tokens, 4 classes, width 768: 51.4 and 30.2 million."""
    for p, wanted in ((1, 51_394_564), (4, 30_160_900)):
        with torch.device("meta"):
            encoder = LTransformerEncoder(LTransformerEncoderLayer(768, 8, 3072, slices=p), 4)
            model = nn.ModuleList([nn.Embedding(30_000, 768), encoder, nn.Linear(768, 4)])
        assert sum(x.numel() for x in model.parameters()) == wanted
