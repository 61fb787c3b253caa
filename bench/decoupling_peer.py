"""Ours beside the JAX package `decoupling` 0.0.9 on the same data: errors on the synthetic problems, seconds a sweep.

    python -m bench.decoupling_peer --python PATH     # PATH: a Python >= 3.12 with `pip install decoupling==0.0.9`
    python -m bench.decoupling_peer --python PATH --sweeps

The peer needs a newer Python than we do, so it runs in a process of its own, which reads the problems from files; this
file is also what that process runs. Both fit with ten to twelve cubic basis functions, 80 sweeps and the best of three
starts. Errors are those of the functions that come out: of their values (eF) and Jacobians (eJ), relative, unsquared.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SWEEPS, STARTS = 80, 3
MODES = {"float64": {"smooth": False, "x64": "1"}, "float32, smoothing": {"smooth": True, "x64": "0"}}


def peer(folder: Path, smooth: bool) -> None:
    """Runs in the peer's Python: fit every problem in `folder`, write ``peer.json`` there."""
    import jax
    from decoupling import Algorithm

    found = {}
    for file in sorted(folder.glob("*.npz")):
        data = np.load(file)
        x, f, jac = (data[key] for key in ("x", "f", "jac"))
        rank, basis, sweeps, starts = (int(data[key]) for key in ("rank", "basis", "sweeps", "starts"))
        given = jax.numpy.asarray(x), jax.numpy.asarray(f), jax.numpy.asarray(jac.transpose(1, 2, 0))
        options: dict[str, Any] = {"rank": rank, "key": jax.random.key(int(data["seed"])), "splines_dof": basis}
        options |= {"ninits": starts, "use_smoothing": smooth, "show_progress": False}
        row: dict[str, Any] = {}
        try:
            if data["timed"]:
                seconds = []
                for count in (3, 3, 3 + sweeps, 3, 3 + sweeps):  # the first call compiles
                    begin = time.perf_counter()
                    Algorithm(niters=count, **options).run(*given)
                    seconds.append(time.perf_counter() - begin)
                row["first_call"] = seconds[0]
                row["sweep_ms"] = 1e3 * (min(seconds[2], seconds[4]) - min(seconds[1], seconds[3])) / sweeps
            else:
                begin = time.perf_counter()
                made = Algorithm(niters=sweeps, **options).run(*given)
                row["seconds"] = time.perf_counter() - begin
                values = np.asarray(jax.vmap(made)(given[0]), float)
                slopes = np.asarray(jax.vmap(jax.jacfwd(made))(given[0]), float)
                row["error"] = float(np.linalg.norm(values - f) / np.linalg.norm(f))
                row["jacobian_error"] = float(np.linalg.norm(slopes - jac) / np.linalg.norm(jac))
        except Exception as error:  # a restart that degenerates raises in the peer
            row["failed"] = f"{type(error).__name__}: {error}"[:200]
        found[file.stem] = row
        (folder / "peer.json").write_text(json.dumps(found))


def run_peer(python: str, folder: Path, mode: str) -> dict[str, Any]:
    """Start the peer on the problems of a folder."""
    chosen = MODES[mode]
    environment = {**os.environ, "JAX_ENABLE_X64": str(chosen["x64"]), "JAX_PLATFORMS": "cpu"}
    environment.pop("PYTHONPATH", None)
    command = [
        python,
        "-P",  # a module here has the name of the peer's package
        str(Path(__file__).resolve()),
        "--worker",
        str(folder),
        *(["--smooth"] if chosen["smooth"] else []),
    ]
    subprocess.run(command, env=environment, check=True, cwd=folder)
    result: dict[str, Any] = json.loads((folder / "peer.json").read_text())
    return result


def store(folder: Path, name: str, problem: tuple[Any, ...], **numbers: Any) -> None:
    """Write one problem."""
    x, f, jac = problem[:3]
    np.savez(folder / f"{name}.npz", x=x, f=f, jac=jac, **numbers)


def errors(python: str, seeds: int) -> dict[str, Any]:
    """Both on every problem and seed: worst and median errors, and where ours is worse."""
    import tensorfact
    from bench.decoupling import PROBLEMS, problem

    table: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, (kind, n, m, r, basis) in PROBLEMS.items():
            for seed in range(seeds):
                store(
                    folder, f"{name} {seed}", problem(kind, n, m, r, seed),
                    rank=r, basis=basis, sweeps=SWEEPS, starts=STARTS, seed=seed, timed=False,
                )  # fmt: skip
        peers = {mode: run_peer(python, folder, mode) for mode in MODES}
    for name, (kind, n, m, r, basis) in PROBLEMS.items():
        rows: dict[str, list[dict[str, Any]]] = {f"decoupling 0.0.9, {mode}": [] for mode in MODES}
        rows["ours"] = []
        for seed in range(seeds):
            x, f, jac, *_ = problem(kind, n, m, r, seed)
            begin = time.perf_counter()
            found = tensorfact.decouple(x, f, jac, rank=r, n_basis=basis, max_iter=SWEEPS, n_restarts=STARTS, rng=seed)
            seconds = time.perf_counter() - begin
            rows["ours"].append({"error": found.error, "jacobian_error": found.jacobian_error, "seconds": seconds})
            for mode in MODES:
                rows[f"decoupling 0.0.9, {mode}"].append(peers[mode][f"{name} {seed}"])
        table[name] = {who: summary(found) for who, found in rows.items()}
        theirs = [rows[who] for who in rows if who != "ours"]
        table[name]["ours worse in"] = sum(
            mine[key] > its.get(key, np.inf) * (1 + 1e-9)
            for other in theirs
            for mine, its in zip(rows["ours"], other, strict=True)
            for key in ("error", "jacobian_error")
        )
        print(name, json.dumps(table[name]), flush=True)
    return table


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and worst of each number; how many runs failed."""
    fine = [row for row in rows if "failed" not in row]
    found: dict[str, Any] = {"failed": len(rows) - len(fine)}
    for key in ("jacobian_error", "error", "seconds"):
        if fine:
            numbers = [row[key] for row in fine]
            found[key] = {"median": float(np.median(numbers)), "worst": float(np.max(numbers))}
    return found


def sweeps(python: str) -> dict[str, Any]:
    """Milliseconds of a warm sweep of one start at N = 1000, and of the peer's first call, with what it compiles."""
    from bench.decoupling import problem, sweep_seconds

    found: dict[str, Any] = {}
    for n, r in ((10, 10), (32, 16)):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            data = problem("tanh", n, n, r, 0, 1000)
            store(folder, "timed", data, rank=r, basis=12, sweeps=20, starts=1, seed=0, timed=True)
            theirs = {mode: run_peer(python, folder, mode)["timed"] for mode in MODES}
        ours = sweep_seconds(n, n, r)["1 starts"]
        row: dict[str, Any] = {"ours_ms": ours, "peer": theirs}
        row["times_faster"] = {m: row["sweep_ms"] / ours for m, row in theirs.items() if "sweep_ms" in row}
        found[f"N=1000 ({n},{n},{r})"] = row
        print(n, r, json.dumps(row), flush=True)
    return found


def main() -> None:
    """Fill the tables ``peer`` of ``results/decoupling.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", help="the peer's Python")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sweeps", action="store_true", help="seconds a sweep, on a quiet machine")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--smooth", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        peer(arguments.worker, arguments.smooth)
        return
    if not arguments.python:
        sys.exit("--python must name the peer's Python")
    from bench import timing

    made = sweeps(arguments.python) if arguments.sweeps else errors(arguments.python, arguments.seeds)
    result = timing.load("decoupling")
    result["peer sweeps" if arguments.sweeps else "peer errors"] = {"environment": timing.environment(), "rows": made}
    timing.save("decoupling", result)


if __name__ == "__main__":
    main()
