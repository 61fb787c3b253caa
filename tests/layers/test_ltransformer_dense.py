"""Between L-Transformer encoders and ordinary ones: one slice, there and back, the nearest structure."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from l_encoders import CAUSAL, WIDE, B, D, F, H, T, data, make, padding  # noqa: E402
from tensorfact.torch import LTransformerEncoder, LTransformerEncoderLayer  # noqa: E402


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu", torch.tanh])
def test_one_slice_is_the_ordinary_layer(norm_first, activation):
    torch.manual_seed(0)
    dense = nn.TransformerEncoderLayer(
        D, H, F, 0.0, activation, batch_first=True, norm_first=norm_first, dtype=WIDE
    ).train()
    layer = LTransformerEncoderLayer.from_dense(dense, slices=1)
    own = dict(layer.named_parameters())
    for name, parameter in dense.named_parameters():
        assert own[name].numel() == parameter.numel()
    for mask, pad, causal in (
        (None, None, False),
        (CAUSAL, None, True),
        (CAUSAL, padding(), False),
        (None, padding(), False),
    ):
        x, y = data().requires_grad_(), data().requires_grad_()
        found = layer(x, mask, pad, is_causal=causal)
        wanted = dense(y, mask, pad, is_causal=causal)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        found.square().sum().backward()
        wanted.square().sum().backward()
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-12, atol=1e-12)


def test_a_fresh_layer_draws_like_the_ordinary_one():
    torch.manual_seed(0)
    dense = nn.TransformerEncoderLayer(256, 8, 1024)
    layer = LTransformerEncoderLayer(256, 8, 1024, slices=1)
    own = dict(layer.named_parameters())
    for name, parameter in dense.named_parameters():
        spread = own[name].std().item()
        assert spread == pytest.approx(parameter.std().item(), rel=0.1, abs=1e-12), name
        assert own[name].mean().item() == pytest.approx(parameter.mean().item(), abs=0.02), name


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("domain", ["original", "transform"])
@pytest.mark.parametrize(
    ("p", "transform"), [(1, "dct"), (2, "dct"), (4, "random"), (4, "identity"), (4, "matrix"), (2, "learned")]
)
def test_dense_and_back(p, transform, domain, norm_first):
    given = np.eye(p) + np.triu(np.ones((p, p))) if transform == "matrix" else transform
    layer = make(slices=p, transform=given, ln_domain=domain, norm_first=norm_first)
    encoder = LTransformerEncoder(layer, 2, nn.LayerNorm(D, dtype=WIDE))
    encoder.layers[1].load_state_dict(
        {**make(seed=5, slices=p, transform=given).state_dict(), **layer.mixing.state_dict(prefix="mixing.")}
    )
    dense = encoder.to_dense()
    scores = data(T, T, seed=4)
    per_head = data(B * p * layer.slice_heads, T, T, seed=4)
    for mask, pad in (
        (None, None),
        (CAUSAL, None),
        (None, padding()),
        (CAUSAL, padding()),
        (scores, padding()),
        (per_head, None),
    ):
        for mode in (True, False):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch on bool and float masks together
                wanted = dense.train(mode)(data(), mask, pad)
            torch.testing.assert_close(encoder.train(mode)(data(), mask, pad), wanted, rtol=1e-11, atol=1e-11)
    z = layer.mixing.matrices()[0].detach()
    again = LTransformerEncoder.from_dense(dense, slices=p, transform=z, ln_domain=domain)
    torch.testing.assert_close(again(data()), encoder(data()), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("transform", ["dct", "matrix"])
def test_from_dense_takes_the_nearest_structured_weights(transform):
    """The residual is orthogonal, in the Frobenius inner product, to every structured weight."""
    from tensorfact.torch._ldense import spread_in, spread_out

    given = np.eye(4) + np.triu(np.ones((4, 4))) if transform == "matrix" else transform
    torch.manual_seed(0)
    dense = nn.TransformerEncoderLayer(D, H, F, 0.0, batch_first=True, dtype=WIDE)
    layer = LTransformerEncoderLayer.from_dense(dense, slices=4, transform=given)
    z, inverse = layer.mixing.matrices()
    pairs = [
        (dense.linear1.weight, layer.linear1.weight, lambda w: spread_in(w, z)),
        (dense.linear2.weight, layer.linear2.weight, lambda w: spread_out(w, inverse)),
        (dense.self_attn.out_proj.weight, layer.self_attn.out_proj.weight, lambda w: spread_out(w, inverse)),
        (dense.self_attn.in_proj_weight[:D], layer.self_attn.in_proj_weight[..., : D // 4], lambda w: spread_in(w, z)),
    ]
    for full, blocks, spread in pairs:
        missed = full - spread(blocks)
        assert missed.norm() > 0.1 * full.norm()
        other = spread(data(*blocks.shape))
        assert abs((missed * other).sum()) <= 1e-12 * missed.norm() * other.norm()


@pytest.mark.parametrize("name", ["self_attn.in_proj_weight", "linear2.bias", "norm1.weight"])
def test_from_dense_refuses_weights_that_are_not_finite(name):
    dense = nn.TransformerEncoderLayer(D, H, F)
    with torch.no_grad():
        dense.get_parameter(name).view(-1)[1] = torch.nan
    with pytest.raises(ValueError, match=f"weights of layer must be finite, got NaN or infinity in {name}"):
        LTransformerEncoderLayer.from_dense(dense)
