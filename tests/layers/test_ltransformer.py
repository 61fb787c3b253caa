"""L-Transformer encoders as torch modules: layouts, masks, precision, derivatives, export, refusals."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from l_encoders import CAUSAL, B, D, F, H, T, data, make, padding  # noqa: E402
from tensorfact import Transform  # noqa: E402
from tensorfact.torch import LTransformerEncoder, LTransformerEncoderLayer  # noqa: E402


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
        mixed = make(slices=4, dtype=torch.float32, norm_first=True)(data(dtype=torch.float32))
        assert mixed.dtype == torch.float32  # the residual is not rounded


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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_go_through_as_in_pytorch(value):
    x = data()
    x[1, 2, 3] = value
    layer = make(slices=4)
    found, wanted = layer(x), layer.to_dense()(x)
    assert found[1].isnan().all()  # attention reads the whole sequence
    assert found[[0, 2]].isfinite().all()
    assert torch.equal(found.isnan(), wanted.isnan())
    layer(x).sum().backward()
    with torch.no_grad():
        layer.linear1.weight[2, 0, 0] = value
    assert not layer(data()).isfinite().all()


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
        (lambda: make(positions="absolute"), "positions must be None, scales or one of standard"),
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
