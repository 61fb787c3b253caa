"""Side-by-side timing: every routine once a round, in alternating order, medians and ratios; and where it was run."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results"
REST = 0.2  # seconds: after a product OpenBLAS's idle threads keep their cores busy for 2^28 cycles, 0.13 s at 2.1 GHz
WARM = 0.02  # seconds: cores and threads that rested are slow for a while


def interleaved(routines: Mapping[str, Callable[[], Any]], rounds: int, budget: float = 60.0) -> dict[str, list[float]]:
    """Seconds of each routine in each round, every second one backwards; stops early when ``budget`` is spent.

    Each has the cores to itself: it begins when other libraries' idle threads have gone to sleep, and is timed warm.
    """
    seconds: dict[str, list[float]] = {name: [] for name in routines}
    started = time.perf_counter()
    for turn in range(rounds):
        for name in list(routines) if turn % 2 == 0 else list(routines)[::-1]:
            time.sleep(REST)
            begin = time.perf_counter()
            routines[name]()
            if time.perf_counter() - begin < 0.2:  # a short one would mostly measure how its own threads wake up
                while time.perf_counter() - begin < WARM:
                    routines[name]()
                begin = time.perf_counter()
                routines[name]()
            seconds[name].append(time.perf_counter() - begin)
        if time.perf_counter() - started > budget:
            break
    return seconds


def gemm_gflops(size: int = 2048, dtype: Any = np.float32, rounds: int = 5) -> float:
    """What a square product reaches here and now: the roof that other numbers are a share of."""
    a = np.random.default_rng(0).standard_normal((size, size)).astype(dtype)
    out = np.empty_like(a)
    seconds = interleaved({"gemm": lambda: np.matmul(a, a, out=out)}, rounds)["gemm"]
    return 2 * size**3 / min(seconds) / 1e9


def environment(*packages: str) -> dict[str, Any]:
    """Machine, versions and commit, for the head of a result."""
    try:
        cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
        cpu = cpu.partition(":")[2].strip()
    except (OSError, StopIteration):
        cpu = platform.processor()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    found = {}
    for package in ("tensorfact", "numpy", "scipy", *packages):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": found,
        "commit": commit.stdout.strip(),
        "gemm_gflops_float32": round(gemm_gflops(), 1),
    }


def save(name: str, result: Mapping[str, Any]) -> Path:
    """Write ``results/name.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def load(name: str) -> dict[str, Any]:
    """Read ``results/name.json``; an empty dictionary where there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}
