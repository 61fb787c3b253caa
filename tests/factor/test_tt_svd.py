"""tt_svd keeps its promise: the error it returns is the true one, at most what was asked, in any shape and type."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tensorfact import TensorTrain, kernels, tt_svd, useful_ranks
from tensorfact.testing import tol as rounding
from trains import classical_error, dense_of, left_defect, tensor, true_error

DTYPES = [np.float32, np.float64, np.complex64, np.complex128]
MODES = [1, 2, 3, 4, 5, 7, 8, 16]  # ones and primes included
CASES, PARTS = 500, 10


def random_case(seed):
    rng = np.random.default_rng(seed)
    while True:
        shape = tuple(int(n) for n in rng.choice(MODES, size=rng.integers(1, 10)))
        if np.prod(shape) <= 100_000:
            break
    dtype = DTYPES[seed % 4]
    decay, noise = rng.choice([1.0, 0.5, 0.1]), rng.choice([0.0, 1e-8, 1e-4, 1e-1, 1.0])
    a = tensor(shape, int(rng.integers(1, 6)), dtype, rng, decay, noise)
    layout = rng.integers(4)
    if layout == 1:
        a = np.asfortranarray(a)
    elif layout == 2:
        a = a.transpose(rng.permutation(a.ndim))
    elif layout == 3:
        a = a[::-1]
    wishes = [
        {"rank": int(rng.integers(1, 8))},
        {"tol": max(float(10 ** rng.uniform(-8, -0.1)), 11 * float(np.finfo(a.dtype).eps))},
        {"tol": float(10 ** rng.uniform(-4, -0.1)), "max_rank": int(rng.integers(1, 6))},
    ]
    return a, wishes[seed // 4 % 3]


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("method", ["tsqr", "sketch"])
def test_promise(method, part, monkeypatch):
    # Only large unfoldings are worth a step: without this the random cases would all be split directly.
    monkeypatch.setattr("tensorfact.factor.tensor_train._FORCED", 64)
    paths = set()
    for seed in range(part, CASES, PARTS):
        a, wish = random_case(seed)
        before = a.copy()
        train = tt_svd(a, method=method, rng=seed, **wish)
        np.testing.assert_array_equal(a, before)
        paths.add(train.info.path)
        unit, what = rounding(a.dtype), (seed, a.shape, a.dtype, wish)
        actual = true_error(a, train)
        assert abs(train.error - actual) <= max(1e-3 * actual, unit), what
        assert left_defect(train) <= unit, what
        assert train.canonical == "left"
        assert train.shape == a.shape
        assert train.dtype == a.dtype
        left, right = np.cumprod(a.shape)[:-1], np.cumprod(a.shape[::-1])[::-1][1:]
        assert all(r <= min(pair) for r, *pair in zip(train.ranks[1:-1], left, right, strict=True)), what
        if "rank" in wish:
            assert all(r <= wish["rank"] for r in train.ranks[1:-1]), what
        else:
            assert train.info.converged == (train.error <= wish["tol"]), what
            if "max_rank" not in wish:
                assert actual <= wish["tol"], what
        total = np.sqrt(np.sum(np.square(train.info.site_errors)))
        assert abs(total - train.error * train.info.norm) <= 1e-6 * train.info.norm, what
    assert any(method in path for path in paths)  # the cases reach the step that they are about


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2,) * 16, (10,) * 5, (40, 40, 40), (3, 2000, 7), (6, 5, 3000), (3000, 5, 6)])
def test_errors_are_close_to_those_of_the_textbook(shape, dtype):
    rng = np.random.default_rng(1)
    a = tensor(shape, 12, dtype, rng, decay=0.6, noise=1e-2)
    for method, factor in (("tsqr", 1.02), ("sketch", 1.05), ("auto", 1.05)):
        train = tt_svd(a, rank=4, method=method, rng=0)
        assert train.error <= factor * classical_error(a, train.ranks[1:-1])
        assert train.error == pytest.approx(true_error(a, train), rel=1e-3)


@pytest.mark.parametrize("level", [1e-1, 1e-3, 1e-5, 1e-7, 1e-9, 1e-12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", ["tsqr", "sketch"])
def test_error_is_exact_at_every_size(method, dtype, level):
    # where the difference of two squared norms has no digits left, too
    a = tensor((2,) * 17, 5, dtype, np.random.default_rng(2), noise=level)
    train = tt_svd(a, rank=5, method=method, rng=0)
    actual = true_error(a, train)
    assert abs(train.error - actual) <= max(1e-3 * actual, rounding(dtype))
    if level > 10 * np.finfo(dtype).eps:
        assert actual == pytest.approx(level, rel=0.1)


@pytest.mark.parametrize(("dtype", "digits"), [(np.float64, 1e-4), (np.float32, 1e-2)])
def test_gram_matrix_serves_where_squares_have_the_digits(dtype, digits):
    # A loss far above `digits` needs no reflectors, one below them must not come from squares; both are near the best.
    for level, path in ((10 * digits, "gram"), (digits / 10, "tsqr")):
        a = tensor((2,) * 17, 5, dtype, np.random.default_rng(2), noise=level)
        for wish in ({"rank": 5}, {"tol": 2 * level}):
            train = tt_svd(a, method="tsqr", **wish)
            assert path in train.info.path, (level, wish)
            assert train.error <= 1.001 * classical_error(a, train.ranks[1:-1])
            assert train.error == pytest.approx(true_error(a, train), rel=1e-3)
        if path == "tsqr":
            assert "gram" not in tt_svd(a, method="tsqr", tol=2 * level).info.path  # nor is it tried in vain


@pytest.mark.parametrize("method", ["tsqr", "sketch", "auto"])
def test_data_in_a_part_of_the_tensor_only(method):
    rng = np.random.default_rng(0)
    a = np.zeros((64, 64, 16, 16))
    a[:, :, 8:] = tensor((64, 64, 8, 16), 8, np.float64, rng, noise=1e-3)
    train = tt_svd(a, rank=8, method=method, rng=0)
    assert train.error <= 1.05 * classical_error(a, train.ranks[1:-1])


@pytest.mark.parametrize("share2", [1.02e-3, 2e-3, 0.9e-2, 1.1e-2])
def test_errors_are_exact_where_sums_of_squares_are_shifted_one_way(share2):
    # the same row again and again: every product is rounded alike, and one row is what a rank of 1 loses
    row = np.array([1.478921890258789, 1.3121918439865112], np.float32)
    wide = row.astype(np.float64)
    a = np.tile(row, (100_000, 1))
    a[50_000] = np.sqrt(share2 * np.sum(wide**2) * 1e5) * np.array([-wide[1], wide[0]]) / np.linalg.norm(wide)
    a = a.reshape(50, 2000, 2)
    train = tt_svd(a, rank=[20, 1], method="tsqr")
    assert train.error == pytest.approx(true_error(a, train), rel=1e-3)


def test_a_step_that_is_too_narrow_does_not_end_gram_matrices():
    rng = np.random.default_rng(6)
    left, right = (np.linalg.qr(rng.standard_normal((1024, 60)))[0] for _ in range(2))
    a, noise = left @ right.T, rng.standard_normal((1024, 1024))
    a = a / np.linalg.norm(a) + 0.02 * noise / np.linalg.norm(noise)
    assert tt_svd(a.reshape((2,) * 20), tol=0.1, method="tsqr").info.path == "gram"


def test_tolerance_finds_the_ranks():
    a = tensor((4, 5, 6, 7, 8, 9), 3, np.float64, np.random.default_rng(3), noise=1e-9)
    for method in ("auto", "tsqr", "sketch"):
        assert tt_svd(a, tol=1e-6, method=method, rng=0).ranks == (1, 3, 3, 3, 3, 3, 1)


def test_ranks_for_each_bond_and_clipping():
    a = np.random.default_rng(4).standard_normal((3, 4, 5, 2))
    assert tt_svd(a, rank=(2, 7, 1)).ranks == (1, 2, 5, 1, 1)
    assert tt_svd(a, rank=1000).ranks == (1, 3, 10, 2, 1)
    assert tt_svd(a, rank=1000).error <= rounding(np.float64)
    assert tt_svd(a, tol=1e-9, max_rank=[2, 7, 1]).ranks == (1, 2, 5, 1, 1)


def test_one_mode_is_a_copy():
    a = np.arange(1.0, 6.0)
    train = tt_svd(a, rank=1)
    np.testing.assert_array_equal(np.asarray(train.cores[0])[0, :, 0], a)
    assert train.error == 0.0
    assert not np.shares_memory(train.cores[0], a)


@pytest.mark.parametrize("shape", [(6,), (3, 4, 5), (2,) * 14])
def test_zeros(shape):
    train = tt_svd(np.zeros(shape), tol=1e-3)
    assert train.error == 0.0
    assert train.ranks == (1,) * (len(shape) + 1)
    assert not dense_of(train).any()
    if len(shape) > 1:
        full = tt_svd(np.zeros(shape), rank=2)
        assert max(full.ranks) == 2
        assert left_defect(full) == 0.0


def test_sketch_that_misses_a_part_is_noticed():
    # Two rows that fall into one bucket with the same sign would look like one: auto must see it and step otherwise.
    a = np.zeros((2048, 128))
    a[:2] = np.random.default_rng(0).standard_normal((2, 128))
    a = a.reshape((2,) * 18)

    class Colliding:
        bit_generator = None

        def integers(self, low, high, size, dtype):
            return np.zeros(size, dtype)

    from tensorfact.factor import _tt_sweep, tensor_train
    from tensorfact.factor._tt_cores import Budget
    from tensorfact.factor._tt_input import as_tensor

    source = as_tensor(a, None)
    plan = _tt_sweep.Plan(useful_ranks(a.shape, 20), True, "sketch", 256)
    log, budget = _tt_sweep.Log(size=a.size), Budget(None)
    _tt_sweep.sweep(source.side(False), plan, budget, Colliding(), log, False)
    assert log.notes == ["sketch-missed"]
    assert log.steps[0] == "tsqr"
    assert budget.spent2 <= 1e-20
    assert tensor_train.tt_svd(a, rank=128, rng=0).error <= 1e-12


def test_results_do_not_depend_on_threads():
    for dtype in (np.float32, np.float64):
        a = tensor((2,) * 18, 5, dtype, np.random.default_rng(5), noise=1e-3)
        for view in (a, np.asfortranarray(a)):
            for method in ("tsqr", "sketch"):
                one, two = (tt_svd(view, rank=6, method=method, rng=7, workers=workers) for workers in (1, 3))
                assert one.error == two.error
                for x, y in zip(one.cores, two.cores, strict=True):
                    np.testing.assert_array_equal(x, y)


def test_the_same_seed_gives_the_same_train():
    a = tensor((2,) * 17, 5, np.float64, np.random.default_rng(6), noise=1e-1)
    one, two = (tt_svd(a, rank=3, method="sketch", rng=np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(one.cores[3], two.cores[3])


MEMORY = """
import resource, sys
import numpy as np
from tensorfact import tt_svd, kernels
a = np.empty((2,) * {order})
flat = a.reshape(-1)
rng = np.random.default_rng(0)
for lo in range(0, a.size, 1 << 18):
    flat[lo : lo + (1 << 18)] = rng.standard_normal(1 << 18) + lo
tt_svd(a.reshape(-1)[: 1 << 16].reshape((2,) * 16), rank=5, method={method!r}, rng=0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
check = kernels.sum_squares(flat[None])
train = tt_svd(a, rank=5, method={method!r}, rng=0)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
assert check == kernels.sum_squares(flat[None])
print((after - before) / a.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
@pytest.mark.parametrize(("method", "share"), [("tsqr", 5 / 16), ("sketch", 15 / 128)])
def test_memory_is_the_first_projected_tensor_and_a_tenth(method, share):
    code = MEMORY.format(order=24, method=method)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(result.stdout) <= 0.1 + share


def test_overwrite_gives_the_same_numbers_in_less_memory():
    a = tensor((2,) * 17, 5, np.float64, np.random.default_rng(8), noise=1e-3)
    copy = a.copy()
    train = tt_svd(a, rank=5, method="tsqr")
    again = tt_svd(copy, rank=5, method="tsqr", overwrite=True)
    assert again.error == pytest.approx(train.error, rel=1e-12)
    assert true_error(a, again) == pytest.approx(train.error, rel=1e-3)
    copy.flags.writeable = False
    assert tt_svd(copy, rank=5, method="tsqr", overwrite=True).order == 17


def test_a_file_is_never_held_whole(tmp_path):
    a = tensor((2,) * 18, 4, np.float32, np.random.default_rng(9), noise=1e-2)
    on_disk = np.memmap(tmp_path / "a.bin", dtype=np.float32, mode="w+", shape=a.shape)
    on_disk[:] = a
    on_disk.flush()
    source = np.memmap(tmp_path / "a.bin", dtype=np.float32, mode="r", shape=a.shape)
    for method in ("tsqr", "sketch"):
        train = tt_svd(source, rank=4, method=method, rng=0)
        assert train.error == tt_svd(a, rank=4, method=method, rng=0).error
        assert train.error == pytest.approx(true_error(a, train), rel=1e-3)


def test_kernels_of_other_rungs_serve_too():
    from tensorfact.kernels import _dispatch

    a = tensor((2,) * 13, 3, np.float64, np.random.default_rng(10), noise=1e-2)
    with _dispatch.use("python"):
        assert kernels.active() == "python"
        for method in ("tsqr", "sketch"):
            train = tt_svd(a, rank=3, method=method, rng=0)
            assert train.error == pytest.approx(true_error(a, train), rel=1e-3)


@pytest.mark.parametrize("method", ["tsqr", "sketch"])
@pytest.mark.parametrize(
    ("dtype", "scale"), [(np.float32, 1e8), (np.float32, 1e-8), (np.float64, 1e-90), (np.float64, 1e95)]
)
def test_errors_do_not_depend_on_the_scale(method, dtype, scale):
    unit = tensor((40, 30, 40, 30), 6, np.float64, np.random.default_rng(3), noise=1e-2)
    unit /= np.linalg.norm(unit)
    train = tt_svd((unit * scale).astype(dtype), rank=4, method=method, rng=0)
    cores = [core.astype(np.float64) for core in train.cores]
    cores[-1] /= scale
    actual = true_error(unit, TensorTrain(cores=cores))
    assert abs(train.error - actual) <= 1e-3 * actual
    assert actual <= 1.05 * tt_svd(unit, rank=4, method="tsqr").error
