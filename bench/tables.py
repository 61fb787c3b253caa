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

from bench import timing

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
    lines = [
        "| linear weights kept | method | file, MB | "
        + " | ".join(f"{name} ranks: error, STS-B (cosine)" for name in allocations)
        + " | forward pass, linear layers, against dense |",
        "| --- | --- | --- |" + " --- |" * (len(allocations) + 1),
    ]
    cells: dict[tuple[float, str], dict[str, dict[str, Any]]] = {}
    for row in result.get("rows", []):
        cells.setdefault((row["param_ratio"], row["method"]), {})[row["allocation"]] = row
    for (ratio, method), found in cells.items():
        sizes = ", ".join(dict.fromkeys(f"{row['bytes'] / 1e6:.1f}" for row in found.values()))
        quality = (
            f"{row['mean_error']:.3f}, {row['spearman']:.1f} ({row['cosine']:.2f})"
            for row in map(found.__getitem__, allocations)
        )
        time = timed.get((ratio, method))
        speed = (
            "-"
            if time is None
            else f"{time['after_ms'] / time['before_ms']:.2f}, "
            f"{time['layers_after_ms'] / time['layers_before_ms']:.2f} times as long"
        )
        lines.append(f"| {ratio:.0%} | {method} | {sizes} | {' | '.join(quality)} | {speed} |")
    where = result.get("environment", {})
    lines += [
        "",
        "Error: mean relative error of the weights; those left dense count with none. STS-B Spearman and, in brackets, "
        f"the mean cosine to the dense model's embeddings; dense {result.get('dense_spearman', 0.0):.1f} (1.00). "
        "Latency: uniform ranks, the whole model on two dozen sentences, and the sum over its replaced layers alone on "
        "128 tokens. `python -m bench.mpo_checkpoints --stsb FILE`, "
        f"{where.get('cores')} cores, commit {where.get('commit')}.",
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
    "checkpoints": checkpoints,
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
