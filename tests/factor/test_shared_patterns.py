"""Codes that keep 1 or 2 of every 4 rows: the pattern, its bytes, and what it costs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tensorfact.factor import SharedBasis, SparseCodes, shared_basis
from tensorfact.factor._shared_budget import budget_shares
from tensorfact.factor._shared_codes import PATTERNS, code_bytes, pack_places, unpack_places


def patterned(rows, columns, keep, seed=0):
    order = np.random.default_rng(seed).random((rows // 4, 4, columns)).argsort(1)
    return (order < keep).reshape(rows, columns)


@pytest.mark.parametrize("form", PATTERNS)
@pytest.mark.parametrize("shape", [(4, 1), (8, 5), (20, 7), (48, 33)])
def test_places_take_two_bits_each(form, shape):
    keep = PATTERNS[form]
    mask = patterned(*shape, keep)
    bits = pack_places(mask, keep)
    assert bits.shape == (math.ceil(shape[0] * keep / 16), shape[1])
    np.testing.assert_array_equal(unpack_places(bits, shape[0], keep), mask)
    text = "".join(format(row % 4, "02b")[::-1] for row in np.flatnonzero(mask[:, 0]))
    text += "0" * (-len(text) % 8)
    assert bits[:, 0].tolist() == [int(text[i : i + 8][::-1], 2) for i in range(0, len(text), 8)]
    dense = np.random.default_rng(1).standard_normal(shape)
    codes = SparseCodes.pack(dense, mask, form)
    assert codes.format == form
    assert codes.nbytes == codes.values.nbytes + codes.mask.nbytes == code_bytes(shape, len(codes.values), 8, form)
    again = SparseCodes.from_arrays(codes.to_arrays())
    np.testing.assert_array_equal(again.dense(), np.where(mask, dense, 0))
    assert again.density == keep / 4


@pytest.mark.parametrize("form", PATTERNS)
@pytest.mark.parametrize("bits", [None, 4])
def test_the_budget_pays_for_two_bits_a_value(form, bits):
    shares = budget_shares(64, [256, 256, 192], 0.4, 0.9, itemsize=4, form=form, bits=bits)
    assert shares.rank % 4 == 0
    assert shares.kept == shares.rank // 4 * PATTERNS[form] * 704

    def used(rank):
        basis, kept = 64 * rank, rank // 4 * PATTERNS[form] * 704
        width = 32 if bits is None else bits
        scales = (
            0
            if bits is None
            else 16
            * (64 * math.ceil(rank / 64) + sum(math.ceil(rank // 4 * PATTERNS[form] * n / 64) for n in (256, 256, 192)))
        )
        return width * (basis + kept) + scales + 2 * kept

    limit = 0.4 * 64 * 704 * 32
    assert used(shares.rank) <= limit * (1 + 1e-3)
    assert used(shares.rank + 4) > limit * (1 - 1e-3)
    with pytest.raises(ValueError, match="a multiple of 4"):
        budget_shares(64, [256], 0.4, 0.9, itemsize=4, form=form, rank=7)


@pytest.mark.parametrize("form", PATTERNS)
@pytest.mark.parametrize("sweeps", [0, 6])
def test_every_column_keeps_its_share(form, sweeps):
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((16, 16)) / np.arange(1, 17)
    weights = [rng.standard_normal((48, 16)) @ mix, (rng.standard_normal((40, 16)) @ mix).T]
    made = shared_basis(weights, param_ratio=0.6, format=form, sweeps=sweeps, rng=0)
    assert isinstance(made, SharedBasis)
    assert made.nbytes <= 0.6 * sum(w.nbytes for w in weights)
    for codes in made.codes:
        groups = codes.kept().reshape(-1, 4, codes.shape[1])
        assert (groups.sum(1) == PATTERNS[form]).all()
    lost = sum(np.linalg.norm(made.reconstruct(i) - w) ** 2 for i, w in enumerate(weights))
    whole = sum(np.linalg.norm(w) ** 2 for w in weights)
    assert made.error == pytest.approx(math.sqrt(lost / whole), rel=1e-9)
    if sweeps:
        rough = shared_basis(weights, param_ratio=0.6, format=form, sweeps=0, rng=0)
        assert made.error < 0.97 * rough.error


def test_other_masks_are_refused():
    with pytest.raises(ValueError, match="mask must keep 2 of every 4 rows"):
        pack_places(patterned(8, 3, 1), 2)
    with pytest.raises(ValueError, match="keep must be 1 or 2"):
        SparseCodes(shape=(8, 3), values=np.ones(6), mask=np.zeros((1, 3), np.uint8), keep=3)
    with pytest.raises(ValueError, match="values must be as many"):
        SparseCodes(shape=(8, 3), values=np.ones(5), mask=np.zeros((1, 3), np.uint8), keep=1)
