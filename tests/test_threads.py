"""The thread pool: same bits for any number of threads, concurrent callers, fork, exceptions."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tensorfact import _core, kernels


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_same_bits_for_any_number_of_threads(dtype):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((1500, 701)).astype(dtype)
    for view in (a, a.T, a[:, :97], a[:, :1], a[:1]):
        assert len({kernels.sum_squares(view, workers=workers) for workers in (1, 2, 7)}) == 1
    b = a[:700, :600]
    for accumulate in ("native", "double"):
        one, two, seven = (kernels.gram(b, accumulate=accumulate, workers=w) for w in (1, 2, 7))
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, seven)
        factors = [kernels.cholesky_qr(b, accumulate=accumulate, workers=w) for w in (1, 2, 7)]
        for q, r, spread in factors[1:]:
            np.testing.assert_array_equal(q, factors[0][0])
            np.testing.assert_array_equal(r, factors[0][1])
            assert spread == factors[0][2]


def test_every_element_is_visited_once():
    for nthreads in (1, 2, 7, 1000):
        assert _core.probe_pool(nthreads, False) == 64


def test_six_callers_at_once():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((300, 500))
    x = rng.standard_normal((500, 8))
    expected = kernels.sum_squares(a), kernels.normal_apply(a, x)
    start = threading.Barrier(6)

    def caller(_):
        start.wait()
        for _ in range(50):
            assert kernels.sum_squares(a, workers=3) == expected[0]
            np.testing.assert_allclose(kernels.normal_apply(a, x), expected[1], rtol=1e-12, atol=1e-12)
            assert _core.probe_pool(3, False) == 64
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(caller, range(6), timeout=60))


@pytest.mark.parametrize("nthreads", [1, 2, 7])
def test_an_exception_in_a_worker_reaches_the_caller(nthreads):
    for _ in range(20):
        with pytest.raises(np.linalg.LinAlgError, match="failure in a chunk"):
            _core.probe_pool(nthreads, True)
        assert _core.probe_pool(nthreads, False) == 64  # and the pool goes on


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_can_use_pool_and_blas():
    a = np.random.default_rng(0).standard_normal((600, 500))
    expected = kernels.sum_squares(a, workers=4), kernels.gram(a)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns that threads exist: that is the point
        child = os.fork()
    if child == 0:
        signal.alarm(20)  # a hang becomes a signal, hence a failure
        good = kernels.sum_squares(a, workers=4) == expected[0] and np.allclose(kernels.gram(a), expected[1])
        os._exit(0 if good else 1)
    _, status = os.waitpid(child, 0)
    assert os.WIFEXITED(status), f"the child was killed by signal {os.WTERMSIG(status)}"
    assert os.WEXITSTATUS(status) == 0
    assert kernels.sum_squares(a, workers=4) == expected[0]


def test_number_of_threads_is_a_setting():
    default = kernels.get_num_threads()
    assert default >= 1
    try:
        kernels.set_num_threads(3)
        assert kernels.get_num_threads() == 3
    finally:
        kernels.set_num_threads(None)
    assert kernels.get_num_threads() == default


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_helpers_keep_the_cpus_that_they_may_use():
    """Each is kept off the caller's CPU while it wakes up, and only then; with one CPU there is nowhere to go."""
    code = (
        "import os, numpy as np\n"
        "from tensorfact import kernels\n"
        "first = min(os.sched_getaffinity(0))\n"
        "def masks():\n"
        "    return [os.sched_getaffinity(int(task)) for task in os.listdir('/proc/self/task')]\n"
        "a = np.ones((4000, 500))\n"
        "whole = os.sched_getaffinity(0)\n"
        "for _ in range(20):\n"
        "    assert kernels.sum_squares(a, workers=3) == a.size\n"
        "assert all(mask == whole for mask in masks()), masks()\n"
        "for task in os.listdir('/proc/self/task'):\n"
        "    os.sched_setaffinity(int(task), {first})\n"
        "for _ in range(20):\n"
        "    assert kernels.sum_squares(a, workers=3) == a.size\n"
        "assert all(mask == {first} for mask in masks()), masks()\n"
        "assert len(masks()) >= 3\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr[-2000:]
