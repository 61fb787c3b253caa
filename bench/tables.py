"""Write the tables of README.md from the committed results: nobody types a number.

python -m bench.tables            # rewrite README.md
python -m bench.tables --check    # exit 1 if it would change
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import tables_calibrated, timing

README = Path(__file__).resolve().parent.parent / "README.md"


def low_rank() -> str:
    """Times faster than each peer at equal or better error, one row a size and rank."""
    result = timing.load("low_rank")
    peers = {
        "scikit-learn": ("scikit-learn default",),
        "torch.svd_lowrank": ("torch.svd_lowrank niter=2", "torch.svd_lowrank niter=7"),
        "fbpca": ("fbpca n_iter=2",),
        "librla": ("librla power_iter=2",),
        "svds": ("svds",),
        "gesdd": ("gesdd",),
    }
    lines = [
        "| float32 matrix | rank | error / optimum: Frobenius, spectral | " + " | ".join(peers) + " |",
        "| --- | --- | --- |" + " --- |" * len(peers),
    ]
    for cell in result["cells"].values():
        faster = cell["faster"]
        ours = cell["rows"]["tensorfact default"]
        row = []
        for settings in peers.values():
            found = [_times(faster[name]["times_faster"]) for name in settings if name in faster]
            row.append(", ".join(found) or "-")
        m, n = cell["shape"]
        lines.append(
            f"| {m} x {n} | {cell['rank']} | {ours['frobenius']:.4f}, {ours['spectral']:.3f} | {' | '.join(row)} |"
        )
    where = result["environment"]
    return "\n".join(
        [
            "Each number: how many times faster than the peer our fastest setting is whose Frobenius *and* spectral "
            "errors are no larger (within 0.1 % and 2 %, by which one sketch differs from the next); exact peers "
            "against our default. Spectrum i^-0.5; medians, interleaved in one process. torch.svd_lowrank at niter=2 "
            "and 7, the others as they come, fbpca and librla at two power iterations. The error column is our "
            "default. A dash: not run at this size, it would take minutes.",
            "",
            *lines,
            "",
            f"{where['cpu']}, {where['cores']} cores, GEMM {where['gemm_gflops_float32']:.0f} GFLOP/s; "
            + ", ".join(f"{name} {number}" for name, number in where["versions"].items())
            + f". `python -m bench.low_rank`, last run at commit {where['commit']}.",
        ]
    )


def _times(value: float | None) -> str:
    return "error not reached" if value is None else f"{value:.1f}x"


def demo() -> str:
    """Quality of the demo's encoder by share of parameters and number of iterations: STS-B, then cosine to dense."""
    result = timing.load("demo")
    variants = list(dict.fromkeys(row["variant"] for row in result["rows"]))
    lines = [
        "| parameters kept | " + " | ".join(variants) + " |",
        "| --- |" + " --- |" * len(variants),
    ]
    for ratio in dict.fromkeys(row["param_ratio"] for row in result["rows"]):
        cells = {row["variant"]: row for row in result["rows"] if row["param_ratio"] == ratio}
        found = (f"{cells[v]['spearman']:.1f} ({cells[v]['cosine']:.2f})" for v in variants)
        lines.append(f"| {ratio:.0%} | " + " | ".join(found) + " |")
    lines += [
        "",
        f"STS-B Spearman, and in brackets the mean cosine to the dense model's embeddings; dense "
        f"{result['dense_spearman']:.1f} (1.00). `make demo`; with the STS-B column: "
        "`python -m tensorfact.compress.demo --stsb FILE`.",
    ]
    return "\n".join(lines)


def mpo_checkpoints() -> str:
    """Matrix product operators beside low rank at equal bytes: quality by allocation, then latency."""
    result = timing.load("mpo_checkpoints")
    allocations = list(dict.fromkeys(row["allocation"] for row in result.get("rows", [])))
    timed = {(row["param_ratio"], row["method"]): row for row in result.get("latency", [])}
    headers = ["linear weights kept", "method", "file, MB"]
    headers += [f"{name} ranks: error, STS-B (cosine)" for name in allocations]
    if timed:
        headers.append("times as long as dense: forward pass, linear layers")
    lines = [f"| {' | '.join(headers)} |", "|" + " --- |" * len(headers)]
    cells: dict[tuple[float, str], dict[str, dict[str, Any]]] = {}
    for row in result.get("rows", []):
        cells.setdefault((row["param_ratio"], row["method"]), {})[row["allocation"]] = row
    for (ratio, method), found in cells.items():
        sizes = ", ".join(dict.fromkeys(f"{row['bytes'] / 1e6:.1f}" for row in found.values()))
        words = [f"{ratio:.0%}", method, sizes]
        for row in map(found.__getitem__, allocations):
            words.append(f"{row['mean_error']:.3f}, {row['spearman']:.1f} ({row['cosine']:.2f})")
        if timed:
            time = timed.get((ratio, method))
            pairs = [] if time is None else [(time[f"{of}before_ms"], time[f"{of}after_ms"]) for of in ("", "layers_")]
            words.append(", ".join(f"{after / before:.2f}" for before, after in pairs) or "-")
        lines.append(f"| {' | '.join(words)} |")
    where = result.get("environment", {})
    lines += [
        "",
        "Error: mean relative error of the weights; those left dense count with none. STS-B Spearman and, in brackets, "
        f"the mean cosine to the dense model's embeddings; dense {result.get('dense_spearman', 0.0):.1f} (1.00). "
        + (
            "Times: uniform ranks, two dozen sentences; each replaced layer alone on 128 tokens, summed. "
            if timed
            else ""
        )
        + "`python -m bench.mpo_checkpoints --stsb FILE`, "
        f"{where.get('cores')} cores, commit {where.get('commit')}.",
    ]
    return "\n".join(lines)


def tensor_train() -> str:
    """Reads of the data that a decomposition takes, and times faster than peers."""
    result = timing.load("tensor_train")
    cells = result.get("cells", {})
    lines = [
        "| array | bond | sketch: reads of the data | deterministic: reads | by reflections only | "
        "error of the sketch / deterministic |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, cell in cells.items():
        if name.startswith("peers"):
            continue
        dtype, size, _, rank = name.split()
        size = size.replace("2^27", "2^27 (27 modes of 2)").replace("10^8", "10^8 (8 modes of 10)")
        lines.append(
            f"| {size}, {dtype} | {rank} | {cell['sketch']['reads']:.1f} | {cell['tsqr']['reads']:.1f} | "
            f"{cell['reflections']['reads']:.1f} | {cell['error_ratio']:.3f} |"
        )
    peers = [
        f"{name.removeprefix('peers ')} {cell['reads']:,.0f} reads ({cell['times_faster']['tsqr']:.0f}x, "
        f"{cell['times_faster']['sketch']:.0f}x)"
        for name, cell in cells.items()
        if name.startswith("peers")
    ]
    where = result.get("environment", {})
    gb_s = [cell["read_gb_s"] for cell in cells.values() if "read_gb_s" in cell]
    lines += [
        "",
        f"One read: our own sum of squares of the same array in the same run, on all threads ({min(gb_s):.0f} to "
        f"{max(gb_s):.0f} GB/s). "
        + (
            f"At 2^24 float64 numbers and bond 20: {', '.join(peers)}; in brackets how many times faster our "
            "deterministic method and our sketch are on that array. "
            if peers
            else ""
        )
        + f"`python -m bench.tensor_train`, {where.get('cores')} cores, commit {where.get('commit')}.",
    ]
    return "\n".join(lines)


def mpo() -> str:
    """Time of MPO layers relative to the dense layer, 4096 tokens."""
    result = timing.load("mpo")
    bonds: list[int] = []
    rows: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for name, cell in result.get("cells", {}).items():
        shape, tokens, _, order, _, _, bond = name.split()
        if tokens == "4096":
            rows.setdefault((shape.replace("->", " → "), order), {})[int(bond)] = cell
            bonds.append(int(bond))
    bonds = sorted(set(bonds))
    lines = [
        "| layer | cores | " + " | ".join(f"bond {bond}" for bond in bonds) + " |",
        "| --- | --- |" + " --- |" * len(bonds),
    ]
    for (shape, order), found in rows.items():
        words = []
        for bond in bonds:
            if bond not in found:
                words.append("-")
                continue
            times = found[bond]["forward"]["of_dense"]
            peer = min(value for key, value in times.items() if key.startswith("tensorly"))
            trained = found[bond]["forward_backward"]["of_dense"]
            words.append(f"{times['tensorfact']:.2f} ({peer:.2f}), {trained['tensorfact']:.2f}")
        lines.append(f"| {shape} | {order} | {' | '.join(words)} |")
    where = result.get("environment", {})
    lines += [
        "",
        "Each cell: forward pass of 4096 tokens over that of the dense float32 layer, in brackets the faster of "
        "tensorly-torch's two implementations, then forward and backward together over dense. "
        f"`python -m bench.mpo`, {where.get('cores')} cores, commit {where.get('commit')}.",
    ]
    return "\n".join(lines)


def lproduct() -> str:
    """The tensor-tensor product over its faces alone, peers over ours, and encoder steps over dense ones."""
    result = timing.load("lproduct")
    cells = result.get("cells", {})
    peers = ("torch-dct + bmm", "scipy.fft + matmul", "mprod-package", "dense product")
    lines = [
        "| p | lproduct / faces alone: NumPy, torch | into given memory | torch adapter | " + " | ".join(peers) + " |",
        "| --- | --- | --- | --- |" + " --- |" * len(peers),
    ]
    for key, cell in cells.items():
        kind, _, p = key.partition(" p=")
        if kind == "product":
            times = cell["times_slower_than_ours"]
            ours = [1 / times[name] for name in ("faces alone", "faces alone, torch.bmm")]
            torch, warm = times["tensorfact.torch"], times.get("tensorfact, into memory that is there", 1.0)
            bounds = cell.get("times_slower_than_floor", {})
            others = " | ".join(
                (f"{times[name]:.1f}" if name in times else "-") + (f" ({bounds[name]:.1f})" if name in bounds else "")
                for name in peers
            )
            lines.append(
                f"| {p} | {ours[0]:.2f}, {ours[1]:.2f} | {warm * ours[0]:.2f}, {warm * ours[1]:.2f} | "
                f"{torch * ours[0]:.2f}, {torch * ours[1]:.2f} | {others} |"
            )
    lines += ["", "| training step | torch.nn, dense | loop over slices |", "| --- | --- | --- |"]
    for key, cell in cells.items():
        if key.startswith("encoder"):
            times = cell["times_slower_than_ours"]
            lines.append(f"| {key}, p = 4 | {times['torch.nn']:.2f} | {times['loop over slices']:.2f} |")
    where = result.get("environment", {})
    lines += [
        "",
        "4096 tokens of width 768 in p slices, float32, tubes in the last axis. First columns: time over that of the "
        "batched product of the faces alone, of NumPy's BLAS and of torch's, into memory that is there; the others: "
        "how many times longer than ours, in brackets how many times longer than the faster of the two products of "
        "faces alone, the most that any product of all faces can gain. Steps: forward and backward of a two-layer "
        "encoder of equal width. Medians of ratios within interleaved "
        f"rounds. `python -m bench.lproduct`, {where.get('cores')} cores, commit {where.get('commit')}.",
    ]
    return "\n".join(lines)


def checkpoints() -> str:
    """Seconds, memory and size of whole checkpoints."""
    result = timing.load("checkpoints")
    lines = [
        "| checkpoint | linear weights kept | whole file | seconds, start to end | peak memory | CPU used | verify |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result.get("rows", []):
        lines.append(
            f"| {row['model']} ({row['parameters'] / 1e6:.1f} M) | {row['kept']:.1%} | "
            f"{row['bytes_before'] / 1e6:.0f} → {row['bytes_after'] / 1e6:.0f} MB | {row['seconds']:.1f} | "
            f"{row['peak_mib']:.0f} MiB | {row['cpu_share']:.0%} | {row['verify']} |"
        )
    where = result.get("environment", {})
    lines += [
        "",
        "Fresh processes of the command line; planning imports torch and transformers on one core, the factorisation "
        f"keeps all busy. `python -m bench.checkpoints`, {where.get('cores')} cores, commit {where.get('commit')}.",
    ]
    lines += _footprint()
    return "\n".join(lines)


def _footprint() -> list[str]:
    result = timing.load("footprint")
    if not result:
        return []
    stream, imports = result["streaming_2_gib_rank_64"], result["import"]
    text = (
        f"A 2 GiB matrix on disk at rank 64 takes {stream['peak_mib']:.0f} MiB of memory; `import tensorfact` takes "
        f"{imports['ratio']:.2f} times as long as `import numpy, scipy.linalg`"
    )
    if "install" in result:
        text += f"; `pip install .` {result['install']['cached_downloads_seconds']:.0f} s"
    return ["", text + " (`python -m bench.footprint --install`)."]


TABLES: dict[str, Callable[[], str]] = {
    "low_rank": low_rank,
    "demo": demo,
    "mpo_checkpoints": mpo_checkpoints,
    "tensor_train": tensor_train,
    "mpo": mpo,
    "lproduct": lproduct,
    "checkpoints": checkpoints,
    "calibration": tables_calibrated.calibration,
    "fips": tables_calibrated.fips,
    "sparse": tables_calibrated.sparse,
}


def rendered(text: str) -> str:
    """``text`` with every marked table replaced."""

    def fill(match: re.Match[str]) -> str:
        return f"{match[1]}\n{TABLES[match[2]]()}\n<!-- end -->"

    return re.sub(r"(<!-- table: (\w+) -->)\n.*?<!-- end -->", fill, text, flags=re.DOTALL)


def main() -> None:
    """Rewrite the README, or check that it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments: Any = parser.parse_args()
    before = README.read_text()
    after = rendered(before)
    if arguments.check:
        sys.exit(0 if after == before else "README.md is not what bench/results says: run python -m bench.tables")
    README.write_text(after)


if __name__ == "__main__":
    main()
