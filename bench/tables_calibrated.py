"""Tables of README.md on compression with data: calibrated low rank, shared bases, and sparse products."""

from __future__ import annotations

from typing import Any

from bench import timing
from bench.fips import page, plot
from bench.fips.arms import MAIN

__all__ = ["calibration", "fips", "sparse"]


def calibration() -> str:
    """STS-B of low rank, plain and whitened, with and without refinement, by the share of parameters kept."""
    result = timing.load("calibration")
    rows: list[dict[str, Any]] = result.get("rows", [])
    ratios = sorted({row["param_ratio"] for row in rows}, reverse=True)
    cells = {(row["variant"], row["domain"], row["param_ratio"]): row for row in rows}
    lines = [
        "| low rank | calibration text | " + " | ".join(f"{ratio:.0%} kept" for ratio in ratios) + " |",
        "| --- | --- |" + " --- |" * len(ratios),
    ]
    for variant, domain in dict.fromkeys((row["variant"], row["domain"]) for row in rows):
        found = [cells.get((variant, domain, ratio)) for ratio in ratios]
        texts = ["-" if row is None else f"{row['test_spearman']:.1f} ({row['cosine']:.2f})" for row in found]
        lines.append(f"| {variant} | {domain} | " + " | ".join(texts) + " |")
    where, cost = result.get("environment", {}), result.get("cost", {})
    above = cost["peak_mib"] - cost["model_mib"]
    lines += [
        "",
        "STS-B test Spearman and, in brackets, the mean cosine to the dense model's embeddings; dense "
        f"{result['dense']['test_spearman']:.1f} (1.00). All linear weights of all-MiniLM-L6-v2 share the budget; "
        f"{rows[1]['samples']:,} sentences without their scores, {rows[1]['positions']:,} tokens. Whitened and "
        f"refined, one run takes {cost['cpu_seconds']:.0f} s of one core and {above:.0f} MiB above "
        f"the model. `python -m bench.calibration --data FOLDER`, {where.get('cores')} cores.",
    ]
    return "\n".join(lines)


def fips() -> str:
    """Shared bases beside their controls at equal bytes: STS-B of the encoder, then the other models."""
    result = timing.load("fips")
    names = page.models(result)
    encoder = page.rows_of(result, "all-MiniLM-L6-v2")
    compared = [name for name in names if len(result["models"][name]["rows"]) >= plot.COMPARED]
    others = [name for name in compared if name != encoder.subject.name]
    steps = ", ".join(map(str, page.steps_of(result)))
    lines = [
        f"STS-B test Spearman, dense {encoder.dense:.2f}, by the share of the bytes of the MLPs:",
        "",
        page.table(encoder, MAIN),
    ]
    if others:
        lines += ["", "Other models, in the same way:", "", page.overview(result, others)]
    return "\n".join(
        [
            *lines,
            "",
            "Bytes of the stored tensors, masks included. Calibrated on a few hundred unlabelled samples, SVD on none; "
            f"refined: {steps} steps for each group of blocks, one seed. own basis: the same method without sharing. "
            "A dash: not run. Protocols, further measures and what wins: [docs/fips.md](docs/fips.md). "
            "`python -m bench.fips --data SHARED_DATA`.",
        ]
    )


def sparse() -> str:
    """The sparse product over the dense one, and peers over ours."""
    result = timing.load("sparse")
    lines = [
        "| float32 | density | of the dense product | torch CSR | SciPy CSR | bytes of dense |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for key, cell in result.get("cells", {}).items():
        _, tokens, _, k, _, n, density = key.split()
        times = cell["of_dense"]
        if (k, n) not in (("768", "3072"), ("3072", "768")):
            continue
        peers = [
            f"{times[name] / times['sparse']:.1f}x" if name in times else "-" for name in ("torch CSR", "scipy CSR")
        ]
        shown = density if ":" in density else f"{float(density):.0%}"
        lines.append(
            f"| {tokens} x {k} x {n} | {shown} | {times['sparse']:.2f} | {' | '.join(peers)} | "
            f"{cell['bytes_of_dense']:.2f} |"
        )
    where = result.get("environment", {})
    lines += [
        "",
        "Time over that of the faster dense product, SciPy's or torch's, and how many times longer the peers take than "
        f"we do. `python -m bench.sparse`, {where.get('cores')} cores, commit {where.get('commit')}.",
    ]
    return "\n".join(lines)
