"""pytest-benchmark entry points: ``make bench``. Accuracy is asserted before anything is timed."""

from __future__ import annotations

import pytest

import tensorfact
from bench import cases
from bench.low_rank import error_ratios, peer_settings


@pytest.fixture(scope="module", params=[(384, 1536), (768, 3072)], ids=str)
def matrix(request):
    return cases.power_law(*request.param)


@pytest.mark.parametrize("share", cases.SHARES)
def test_tensorfact(benchmark, matrix, share):
    a, s = matrix
    rank = int(share * min(a.shape))
    frobenius, spectral = error_ratios(a, s, tuple(tensorfact.randomized_svd(a, rank=rank, rng=0)), rank)
    assert frobenius <= 1.005
    assert spectral <= 1.02
    benchmark.group = f"{a.shape} rank {rank}"
    benchmark(lambda: tensorfact.randomized_svd(a, rank=rank, rng=0))


@pytest.mark.parametrize("share", cases.SHARES)
@pytest.mark.parametrize("peer", ["scikit-learn default", "torch.svd_lowrank niter=2", "fbpca n_iter=2", "gesdd"])
def test_peer(benchmark, matrix, share, peer):
    a, s = matrix
    rank = int(share * min(a.shape))
    routine = peer_settings(a, rank)[peer]
    assert error_ratios(a, s, routine(), rank)[0] <= 1.1
    benchmark.group = f"{a.shape} rank {rank}"
    benchmark(routine)
