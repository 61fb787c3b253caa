"""Matrix product operators against low rank on a real encoder, at equal bytes: error, STS-B, latency.

    python -m bench.mpo_checkpoints --stsb FILE     # quality, then latency

The model is all-MiniLM-L6-v2 from its package. Each row is a run of `tensorfact.compress` at the same share of the
parameters of the linear weights, loaded again through transformers; FILE is one of the STS benchmark (.tsv, .tsv.xz).
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import timing
from tensorfact.compress import compress
from tensorfact.compress._sentences import ScoredPairs, read_stsb
from tensorfact.compress._study import Embedder
from tensorfact.compress.demo import find_minilm
from tensorfact.compress.fidelity import measure_latency, measure_layers

RATIOS = (0.8, 0.65, 0.5)
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "low rank": ("lowrank", {}),
    "mpo, 2 cores": ("mpo", {"order": 2}),
    "mpo, 3 cores": ("mpo", {"order": 3}),
}
ALLOCATIONS = ("uniform", "spectrum")


def run(result: dict[str, Any], ratios: Sequence[float], pairs: ScoredPairs, folder: Path, most: int) -> None:
    """Compress the encoder by every method at every ratio; at most ``most`` rows that ``result`` has not yet."""
    from transformers import AutoModel, AutoTokenizer

    source = find_minilm()
    embed = Embedder(AutoTokenizer.from_pretrained(source), pairs.sentences)
    known = folder / "dense.npy"
    if not known.is_file():
        np.save(known, embed(AutoModel.from_pretrained(source).eval()))
    before = np.load(known)
    result |= {"sentences": embed.sentences, "dense_spearman": pairs.spearman(before)}
    rows = result.setdefault("rows", [])
    done = {(row["param_ratio"], row["method"], row["allocation"]) for row in rows}
    wanted = [key for key in itertools.product(ratios, METHODS, ALLOCATIONS) if key not in done]
    for ratio, label, allocation in wanted[:most]:
        method, options = METHODS[label]
        out = folder / f"{method}-{options.get('order', 0)}-{allocation}-{ratio}"
        report = compress(
            source,
            out,
            method=method,
            options=options,
            allocation=allocation,
            param_ratio=ratio,
            rank_multiple=1,  # else rounding down costs three cores a sixth of a uniform share
            rng=0,
            overwrite=True,
        )
        after = embed(AutoModel.from_pretrained(out).eval())
        errors = [layer.error or 0.0 for layer in report.layers] + [0.0 for item in report.dense if item.targeted]
        rows.append(
            {
                "param_ratio": ratio,
                "method": label,
                "allocation": allocation,
                "kept": report.achieved_ratio,
                "bytes": sum(file.stat().st_size for file in out.glob("*.safetensors")),
                "replaced": len(report.layers),
                "mean_error": float(np.mean(errors)),
                "cosine": float(np.mean(np.sum(before * after, axis=1))),
                "spearman": pairs.spearman(after),
                "factor_seconds": report.seconds["spectra"] + report.seconds["factor"],
            }
        )
        print(rows[-1], flush=True)
        timing.save("mpo_checkpoints", result)
    order = list(itertools.product(RATIOS, METHODS, ALLOCATIONS))
    rows.sort(key=lambda row: order.index((row["param_ratio"], row["method"], row["allocation"])))


def latency(ratios: Sequence[float], folder: Path) -> list[dict[str, Any]]:
    """Time whole models and single layers, dense and compressed in turn, with the uniform ranks of each ratio."""
    source = find_minilm()
    rows = []
    for ratio in ratios:
        for label, (method, options) in METHODS.items():
            out = folder / f"time-{method}-{options.get('order', 0)}-{ratio}"
            report = compress(
                source, out, method=method, options=options, allocation="uniform", param_ratio=ratio, rng=0
            )
            model = measure_latency(source, out)
            layers, words = measure_layers(report.layers, method)
            times = [(la.latency_before_ms or 0.0, la.latency_after_ms or 0.0) for la in layers]
            rows.append(
                {
                    "param_ratio": ratio,
                    "method": label,
                    "input": model.input,
                    "layer_input": words,
                    "before_ms": model.before_ms,
                    "after_ms": model.after_ms,
                    "layers_before_ms": sum(before for before, _ in times),
                    "layers_after_ms": sum(after for _, after in times),
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Write ``results/mpo_checkpoints.json``; rows that are there already are not run again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stsb", type=Path, help="file of the STS benchmark; without it only the latency is measured")
    parser.add_argument("--no-latency", action="store_true", help="only the quality")
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    parser.add_argument("--rows", type=int, default=99, help="at most so many new rows, to take a long run in parts")
    parser.add_argument("--work", type=Path, help="keep the checkpoints there")
    parser.add_argument("--ratios", type=float, nargs="+", default=list(RATIOS), choices=RATIOS)
    arguments = parser.parse_args()
    result = {} if arguments.again else dict(timing.load("mpo_checkpoints"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if arguments.stsb is not None:
            run(result, arguments.ratios, read_stsb(arguments.stsb), folder, arguments.rows)
        if not arguments.no_latency:
            result["latency"] = latency(arguments.ratios, folder)
    result["environment"] = timing.environment("torch", "transformers")
    timing.save("mpo_checkpoints", result)


if __name__ == "__main__":
    main()
