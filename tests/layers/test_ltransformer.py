"""L-Transformer encoders against loops over slices, PyTorch's own layers, and the algebra of their paper."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from tensorfact import Transform  # noqa: E402
from tensorfact.torch import LTransformerEncoder, LTransformerEncoderLayer  # noqa: E402

D, H, F, B, T = 16, 4, 32, 3, 7
WIDE = torch.float64


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


GAINS = ("norm1.weight", "norm2.weight")


def data(*shape, seed=1, dtype=WIDE):
    return torch.randn(*(shape or (B, T, D)), dtype=dtype, generator=torch.Generator().manual_seed(seed))


def padding():
    mask = torch.zeros(B, T, dtype=torch.bool)
    mask[1, 5:] = mask[2, 3:] = True
    return mask


CAUSAL = torch.ones(T, T, dtype=torch.bool).triu(1)


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


def test_parameter_counts():
    def count(width, p, layers=4):
        layer = LTransformerEncoderLayer(width, 8, 4 * width, slices=p, device="meta")
        return sum(x.numel() for x in LTransformerEncoder(layer, layers).parameters())

    # specification, section 7; the 15 w^2 rows belong to a layer with one projection more, which is not built
    assert (count(768, 1), count(768, 4)) == (28_351_488, 7_117_824)
    assert (count(128, 1), count(128, 4)) == (793_088, 203_264)
    for width, p in ((128, 2), (256, 4), (768, 16)):
        assert count(width, p) == 4 * (12 * width**2 // p + 13 * width)
    table = LTransformerEncoderLayer(128, 4, 512, positions="learnable", max_len=128, device="meta")
    shared = sum(x.numel() for x in LTransformerEncoder(table, 4).parameters())
    assert shared == 203_264 + 128 * 128  # one table for all layers


def test_layouts_of_the_input():
    layer, swapped = make(slices=4), make(slices=4, batch_first=False)
    x = data()
    torch.testing.assert_close(swapped(x.transpose(0, 1)).transpose(0, 1), layer(x))
    torch.testing.assert_close(layer(x[0]), layer(x)[0])
    torch.testing.assert_close(layer(x[1], None, padding()[1])[:5], layer(x, None, padding())[1, :5])
    inside = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)  # ours in PyTorch's stack
    torch.testing.assert_close(inside(x, CAUSAL, padding()), LTransformerEncoder(layer, 2)(x, CAUSAL, padding()))


def test_causal_attention_sees_no_later_position():
    layer = make(slices=4)
    x = data()
    later = x.clone()
    later[:, 4:] += 1
    for arguments in ({"is_causal": True}, {"src_mask": CAUSAL}, {"src_mask": CAUSAL, "is_causal": True}):
        torch.testing.assert_close(layer(x, **arguments)[:, :4], layer(later, **arguments)[:, :4])
    torch.testing.assert_close(layer(x, is_causal=True), layer(x, CAUSAL))
    together = layer(x, None, padding(), is_causal=True)
    torch.testing.assert_close(together[0], layer(x, CAUSAL)[0])


def test_dropout_acts_in_training_only():
    layer = make(slices=4, dropout=0.5)
    x = data()
    torch.manual_seed(0)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    torch.testing.assert_close(layer(x), make(slices=4)(x))


def test_state_dict_copies_precision_and_devices():
    layer = make(slices=4, transform="random", positions="linear", max_len=T)
    assert {"mixing.matrix", "self_attn.in_proj_weight", "linear1.weight", "norm1.bias"} <= set(layer.state_dict())
    assert "mixing.matrix" not in make(slices=4).state_dict()
    other = make(seed=9, slices=4, transform="random", positions="linear", max_len=T)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(data()), layer(data()), rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(layer)(data()), layer(data()), rtol=0, atol=0)
    named = make(slices=4, positions="linear", max_len=T, dtype=torch.float32).double()
    exact = torch.from_numpy(np.array(Transform.dct(4).matrix))
    torch.testing.assert_close(named.mixing.matrix, exact, rtol=0, atol=0)  # made again, not widened
    half = make(slices=4).bfloat16()
    assert half(data().bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(half(data().bfloat16()).double(), make(slices=4)(data()), rtol=0.1, atol=0.1)
    meta = LTransformerEncoderLayer(D, H, F, slices=4, device="meta")
    assert all(parameter.is_meta for parameter in meta.parameters())
    assert "slices=4, ln_domain='original'" in repr(meta)
    with torch.autocast("cpu", torch.bfloat16):
        assert make(slices=4, dtype=torch.float32)(data(dtype=torch.float32)).shape == (B, T, D)


def test_gradcheck_over_input_and_weights():
    layer = make(slices=2, transform="learned")
    parameters = dict(layer.named_parameters())

    def run(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (data(1, 3, D).requires_grad_(), *parameters.values()), fast_mode=True)


def test_compile_and_export():
    torch.manual_seed(0)
    layer = LTransformerEncoderLayer(D, H, F, batch_first=True, slices=4, positions="harmonic")
    encoder = LTransformerEncoder(layer, 2).eval()
    x = data(dtype=torch.float32)
    compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, CAUSAL, padding()), encoder(x, CAUSAL, padding()))
    exported = torch.export.export(encoder, (x, None, padding())).module()
    torch.testing.assert_close(exported(x, None, padding()), encoder(x, None, padding()))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu():
    encoder = LTransformerEncoder(make(slices=4, positions="linear"), 2)
    wanted = encoder(data(), CAUSAL, padding())
    found = encoder.cuda()(data().cuda(), CAUSAL.cuda(), padding().cuda())
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LTransformerEncoderLayer(18, 4, slices=4), "d_model must be a multiple of slices=4, got 18"),
        (lambda: LTransformerEncoderLayer(16, 4, 30), "dim_feedforward must be a multiple of slices=4, got 30"),
        (lambda: LTransformerEncoderLayer(16, 12, slices=4), "must divide its 4 features, got 3"),
        (lambda: LTransformerEncoderLayer(16, 4, slices=0), "slices must be at least 1, got 0"),
        (lambda: make(ln_domain="both"), "ln_domain must be 'original' or 'transform', got 'both'"),
        (lambda: make(activation="swish"), "activation must be 'relu', 'gelu' or a function"),
        (lambda: make(transform="dft"), r"transform must be real in a layer, got Transform.dft\(4\)"),
        (lambda: make(transform=np.ones((4, 4))), "m must be invertible"),
        (lambda: make(transform=Transform.dct(3)), "transform must have the length of slices, 4, got 3"),
        (lambda: make(positions="absolute"), "positions must be None or one of standard"),
        (lambda: make(positions="linear", max_len=0), "max_len must be at least 1"),
        (lambda: make()(data(B, T, D + 1)), r"src must be \(length, 16\) or a batch of these, got \(3, 7, 17\)"),
        (lambda: make()(data(dtype=torch.float32)), "src must be of the dtype of the weights, torch.float64"),
        (lambda: make()(data(), CAUSAL[:6]), r"mask must be of shape \(7, 7\) or \(12, 7, 7\), got \(6, 7\)"),
        (lambda: make()(data(), None, padding()[:2]), r"src_key_padding_mask must be of shape \(3, 7\), got \(2, 7\)"),
        (lambda: make()(data(), CAUSAL.long()), "mask must be bool or floating-point, got torch.int64"),
        (lambda: LTransformerEncoder(nn.Linear(2, 2), 2), "encoder_layer must be an LTransformerEncoderLayer"),
        (lambda: LTransformerEncoder(make(), 0), "num_layers must be at least 1, got 0"),
        (lambda: make(positions="linear").to_dense(), "positions must be None"),
        (
            lambda: LTransformerEncoderLayer.from_dense(nn.Linear(2, 2)),
            "layer must be a torch.nn.TransformerEncoderLayer",
        ),
        (lambda: LTransformerEncoder.from_dense(nn.Linear(2, 2)), "encoder must be a torch.nn.TransformerEncoder"),
        (
            lambda: LTransformerEncoderLayer.from_dense(nn.TransformerEncoderLayer(16, 2)),
            "slices=4 must divide the 2 heads",
        ),
    ],
)
def test_refusals_name_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
