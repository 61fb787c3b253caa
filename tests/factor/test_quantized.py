"""Numbers in few bits: packing against strings of bits, and rounding against bounds in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tensorfact.compress._types import decode, encode
from tensorfact.factor._quantized import (
    GROUP,
    dequantize,
    pack_codes,
    packed_bits,
    packed_shape,
    quantize,
    round_scale,
    scale_shape,
    unpack_codes,
)

BITS = range(2, 9)
SHAPES = [(1,), (7,), (64,), (65,), (1, 1), (3, 5), (8, 64), (13, 130), (9, 2, 3)]


def random_codes(shape, bits, seed=0):
    half = 1 << (bits - 1)
    return np.random.default_rng(seed).integers(-half, half, shape).astype(np.int8)


def as_written(codes, bits):
    """Bytes of one column: the codes as bits, lowest first, one after the other."""
    text = "".join(format(int(code) + (1 << (bits - 1)), f"0{bits}b")[::-1] for code in codes)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8][::-1], 2) for i in range(0, len(text), 8)]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_packing_is_a_string_of_bits(bits, shape):
    codes = random_codes(shape, bits)
    packed = pack_codes(codes, bits)
    assert packed.shape == packed_shape(shape, bits)
    assert packed.dtype == np.uint8
    np.testing.assert_array_equal(unpack_codes(packed, bits, shape[0]), codes)
    columns, found = codes.reshape(shape[0], -1), packed.reshape(packed.shape[0], -1)
    for column in range(columns.shape[1]):
        assert found[:, column].tolist() == as_written(columns[:, column], bits)


def test_two_codes_a_byte_and_eight_in_three_bytes():
    assert pack_codes(np.array([-8, 7], np.int8), 4).tolist() == [0xF0]
    assert pack_codes(np.zeros(8, np.int8), 3).nbytes == 3
    assert packed_bits((384, 1536), 4) == 384 * 1536 * 4 + 16 * 384 * 24
    assert packed_bits((3,), 3) == 16 + 16


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1,), (5, 63), (4, 64), (3, 200)])
def test_rounding_is_to_nearest(bits, dtype, shape):
    values = np.random.default_rng(bits).standard_normal(shape).astype(dtype)
    codes, scale = quantize(values, bits)
    half = 1 << (bits - 1)
    assert codes.shape == shape
    assert scale.shape == scale_shape(shape)
    assert codes.min() >= -half
    assert codes.max() <= half - 1
    exact = values.astype(np.float64)
    step = np.repeat(scale.astype(np.float64), GROUP, axis=-1)[..., : shape[-1]]
    lost = np.abs(dequantize(codes, scale).astype(np.float64) - exact)
    # what the range reaches is met to half a step, what it does not is cut to its end
    reached = (exact / step >= -half - 0.5) & (exact / step <= half - 0.5)
    slack = 1 + 4 * half * np.finfo(np.float32).eps
    assert (lost[reached] <= slack * np.abs(step[reached]) / 2).all()
    np.testing.assert_array_equal(codes[~reached], np.where(exact / step < 0, -half, half - 1)[~reached])
    assert reached.mean() > 0.7


@pytest.mark.parametrize("bits", BITS)
def test_a_searched_scale_is_not_worse_than_the_one_that_reaches_all(bits):
    values = np.random.default_rng(1).standard_t(3, (20, 64))
    codes, scale = quantize(values, bits)
    farthest = np.take_along_axis(values, np.abs(values).argmax(-1)[:, None], -1)
    step = round_scale(farthest / -(1 << (bits - 1))).astype(np.float64)
    plain = np.clip(np.rint(values / step), -(1 << (bits - 1)), (1 << (bits - 1)) - 1) * step
    ours = ((dequantize(codes, scale) - values) ** 2).sum(-1)
    theirs = ((plain - values) ** 2).sum(-1)
    assert (ours <= theirs * (1 + 1e-12)).all()
    if bits <= 4:
        assert ours.sum() < 0.95 * theirs.sum()


@pytest.mark.parametrize("bits", BITS)
def test_a_symmetric_group_fits_at_both_ends(bits):
    high = (1 << (bits - 1)) - 1
    values = np.outer([0.375, 3.0], np.arange(-high, high + 1)[:GROUP])
    values[:, -1] = -values[:, 0]
    np.testing.assert_array_equal(dequantize(*quantize(values, bits)), values)
    short = np.random.default_rng(4).standard_normal((500, 8))
    codes, scale = quantize(short, bits)
    lost = ((dequantize(codes, scale) - short) ** 2).sum(-1)
    step = round_scale(np.abs(short).max(-1, keepdims=True) / high).astype(np.float64)
    plain = ((np.clip(np.rint(short / step), -high - 1, high) * step - short) ** 2).sum(-1)
    assert (lost <= plain * (1 + 1e-12)).all()


@pytest.mark.parametrize("size", [1e-33, 1e-30, 1e-23, 1e10, 1e19, 1e30, 1e37, 3e38])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_codes_do_not_depend_on_the_size(bits, size):
    values = np.random.default_rng(5).standard_normal((20, 70))
    values /= np.abs(values).max()
    power = np.exp2(np.floor(np.log2(size)))
    codes, scale = quantize(values.astype(np.float32), bits)
    found, step = quantize(values.astype(np.float32) * np.float32(power), bits)
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_array_equal(step, scale * np.float32(power))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [np.finfo(np.float32).max, 1e39, 1e300, 1e-41, 1e-300])
@pytest.mark.parametrize("bits", BITS)
def test_numbers_without_a_scale_stay_finite(bits, value):
    values = np.array([[1.0, -1.0, 0.5], [-1.0, 0.25, 0.0]]) * value
    codes, scale = quantize(values, bits)
    half = 1 << (bits - 1)
    assert np.isfinite(scale * np.float32(-half)).all()
    found = dequantize(codes, scale)
    assert np.isfinite(found).all()
    assert (np.abs(found - values) <= np.abs(values) * (1 + 1e-6)).all()


def test_more_bits_lose_less():
    values = np.random.default_rng(2).standard_normal((50, 128))
    errors = [np.linalg.norm(dequantize(*quantize(values, bits)) - values) for bits in BITS]
    assert all(b < 0.62 * a for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_scales_survive_every_type(dtype):
    _, scale = quantize(np.random.default_rng(3).standard_normal((30, 100)), 4)
    np.testing.assert_array_equal(decode(encode(scale, dtype), dtype), scale)


def test_zeros_stay_zeros():
    values = np.zeros((3, 70))
    values[1, :64] = np.linspace(-1, 1, 64)
    codes, scale = quantize(values, 3)
    assert (scale != 0).tolist() == [[False, False], [True, False], [False, False]]
    found = dequantize(codes, scale)
    np.testing.assert_array_equal(found[values == 0], 0)
    assert quantize(np.zeros((0, 5)), 4)[0].shape == (0, 5)
    assert quantize(np.zeros(0), 4)[1].shape == (0,)


@pytest.mark.parametrize("tiny", [1e-30, 1e-38, 1e-44])
def test_tiny_numbers_do_no_harm(tiny):
    found = dequantize(*quantize(np.array([tiny, -tiny / 2]), 8))
    assert np.abs(found - [tiny, -tiny / 2]).max() <= max(0.01 * tiny, 1e-40)


@pytest.mark.parametrize("bits", [1, 9, True, 4.0, "4"])
def test_bits_out_of_range(bits):
    with pytest.raises(ValueError, match="bits must be an integer from 2 to 8"):
        quantize(np.ones(3), bits)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_must_be_finite(bad):
    with pytest.raises(ValueError, match="values must be finite"):
        quantize(np.array([1.0, bad]), 4)
