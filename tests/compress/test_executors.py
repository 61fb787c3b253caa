"""The same bits on every executor, bounded work in flight, and a clean end."""

from __future__ import annotations

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

from tensorfact.compress import LowRankMethod, compress, executors
from tensorfact.compress._method import Layer
from tensorfact.compress.checkpoint import Checkpoint
from tensorfact.compress.executors import _LIMIT, open_pool, run_factor, run_tasks, single_threaded, task_rng

RUN = {"param_ratio": 0.3, "options": {"solver": "subspace", "n_iter": 0}}


@pytest.fixture
def reference(write_checkpoint, tmp_path, weights_digest):
    # So wide and without iterations the result depends on the seed, which the exact route for small weights would hide.
    source = write_checkpoint(width=160, blocks=3)
    compress(source, tmp_path / "serial", **RUN, executor="serial", rng=7)
    return source, weights_digest(tmp_path / "serial")


def test_the_reference_depends_on_the_seed(reference, tmp_path, weights_digest):
    source, expected = reference
    compress(source, tmp_path / "out", **RUN, executor="serial", rng=8)
    assert weights_digest(tmp_path / "out") != expected


@pytest.mark.parametrize("executor", [None, "threads:1", "threads:3", "processes:2"])
def test_same_bits(reference, tmp_path, weights_digest, executor):
    source, expected = reference
    report = compress(source, tmp_path / "out", **RUN, executor=executor, rng=7)
    assert weights_digest(tmp_path / "out") == expected
    if executor:
        assert report.executor == executor
    assert any("without its workers" in note for note in report.notes) == (executor == "processes:2")


def test_an_executor_of_the_caller_stays_open(reference, tmp_path, weights_digest):
    source, expected = reference
    with ThreadPoolExecutor(2) as pool:
        compress(source, tmp_path / "out", **RUN, executor=pool, rng=7)
        assert pool.submit(int, "3").result() == 3
    assert weights_digest(tmp_path / "out") == expected


def test_dask_cluster(reference, tmp_path, weights_digest):
    distributed = pytest.importorskip("distributed")
    source, expected = reference
    options = {"processes": True, "n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:
        report = compress(source, tmp_path / "out", **RUN, executor=f"dask:{cluster.scheduler_address}", rng=7)
    assert report.executor == "dask:2"
    assert weights_digest(tmp_path / "out") == expected


def test_no_more_workers_than_memory_holds(monkeypatch):
    monkeypatch.setattr(executors, "_cores", lambda: 8)
    for executor, most, workers in (
        (None, 3, 3),
        (None, 0, 1),
        (None, None, 8),
        ("threads", 2, 2),
        ("threads:5", 2, 5),
    ):
        with open_pool(executor, most=most) as pool:
            assert pool.workers == workers


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        # one bad number among many: a sample would miss it
        (lambda a: a.__setitem__((3, 5), np.inf), 0.5, r"down\.weight of 'model\.layers\.0\.up_proj' does not fit F32"),
        (lambda a: None, float("nan"), r"the error of 'model\.layers\.0\.up_proj' must be finite, got nan"),
    ],
)
def test_nothing_that_is_not_finite_is_stored(write_checkpoint, arrays, error, message):
    checkpoint = Checkpoint.open(write_checkpoint(width=160, blocks=1))
    layer = Layer("model.layers.0.up_proj", "linear", (480, 160), checkpoint.tensors["model.layers.0.up_proj.weight"])

    class Broken(LowRankMethod):
        def factor(self, weight, rank, /, *, rng):
            made = super().factor(weight, rank, rng=rng)
            arrays(made.arrays["down.weight"])
            return dataclasses.replace(made, error=error)

    with pytest.raises(ValueError, match=message):
        run_factor(Broken(), layer, 64, 0)


def test_seeds_differ_by_name_and_run():
    def draw(seed, name):
        return task_rng(seed, name).standard_normal()

    assert draw(0, "a") == draw(0, "a")
    assert len({draw(0, "a"), draw(0, "b"), draw(1, "a")}) == 3


def test_at_most_one_more_in_flight_than_workers():
    started, most, lock = 0, 0, threading.Lock()

    def task(i):
        nonlocal started, most
        with lock:
            started += 1
            most = max(most, started - consumed)
        time.sleep(0.002)
        return i

    consumed = 0
    with open_pool("threads:3") as pool:
        seen = []
        for index, result in run_tasks(pool, task, [(i,) for i in range(40)]):
            with lock:
                consumed += 1
            seen.append(index)
            assert index == result
    assert sorted(seen) == list(range(40))
    assert 1 <= most <= 5  # three running, one waiting, one handed over


def test_the_first_error_ends_the_run():
    ran = []

    def task(i):
        ran.append(i)
        if i == 2:
            raise ValueError("number two")
        return i

    with pytest.raises(ValueError, match="number two"), open_pool("threads:1") as pool:
        for _ in run_tasks(pool, task, [(i,) for i in range(1000)]):
            pass
    assert len(ran) < 10


def test_blas_is_at_one_thread_while_any_task_runs():
    libraries = ThreadpoolController().select(user_api="blas").lib_controllers

    def counts():
        return [library.get_num_threads() for library in libraries]

    def call(function):
        """Run in a thread of its own: the setting must not depend on who makes it."""
        thread = threading.Thread(target=function)
        thread.start()
        thread.join()

    before = counts()
    for _ in range(3):
        call(_LIMIT.enter)
        assert set(counts()) == {1}
        with single_threaded():
            call(_LIMIT.leave)
            assert set(counts()) == {1}
        assert counts() == before


@pytest.mark.parametrize("executor", ["gpu", "threads:0", "threads:x", "dask:", "processes:-1", "", 4, True])
def test_unknown_executors(write_checkpoint, tmp_path, executor):
    with pytest.raises(
        ValueError, match="executor must be serial, threads:N, processes:N, dask:ADDRESS or an Executor"
    ):
        compress(write_checkpoint(), tmp_path / "out", param_ratio=0.5, executor=executor)
    assert not (tmp_path / "out").exists()


def test_no_dask_scheduler(write_checkpoint, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")

    def refuse(*args, **kwargs):
        raise OSError("timed out")

    monkeypatch.setattr(distributed, "Client", refuse)
    with pytest.raises(ValueError, match="executor must name a running Dask scheduler"):
        compress(write_checkpoint(), tmp_path / "out", param_ratio=0.5, executor="dask:tcp://127.0.0.1:9")
