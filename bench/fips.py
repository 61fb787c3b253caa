"""all-MiniLM-L6-v2 with its MLPs in fewer bytes: STS-B after SVD, whitened SVD and FiPS, at equal bytes.

    python -m bench.fips --data SHARED_DATA            # every arm that is not in the results yet
    python -m bench.fips --data SHARED_DATA --arm FiPS --ratio 0.5
    python -m bench.fips --table                       # what the results say, as a table

SHARED_DATA holds ``cls/stsb_{train,test}.tsv.xz`` and, for the other domain, ``cls/ag_news_train_subset.csv.xz``. Each
arm compresses the model with `tensorfact.compress.compress`, loads the result with AutoModel and scores the STS-B test
pairs. Bytes are those of the tensors in the file, masks included. Arms that are in
``results/fips.json`` already are skipped, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import timing

RATIOS = (0.5, 0.33, 0.8, 0.67, 0.4)
STEPS = 300
SAMPLES = 512
MLPS = r"re:\.(intermediate|(?<!attention\.)output)\.dense$"
ARMS: dict[str, dict[str, Any]] = {
    "SVD": {"method": "lowrank", "data": None},
    "whitened SVD": {"method": "lowrank"},
    "whitened SVD, refined": {"method": "lowrank", "refine": True},
    "own basis, no data": {"method": "fips", "data": None, "options": {"share": False}},
    "own basis": {"method": "fips", "options": {"share": False}},
    "own basis, refined": {"method": "fips", "refine": True, "options": {"share": False}},
    "FiPS, no data": {"method": "fips", "data": None, "options": {}},
    "FiPS": {"method": "fips", "options": {}},
    "FiPS, refined": {"method": "fips", "refine": True, "options": {}},
    "FiPS, one basis, refined": {"method": "fips", "refine": True, "options": {"group_size": 6}},
    "FiPS, 75 % sparse, refined": {"method": "fips", "refine": True, "options": {"sparsity": 0.75}},
    "FiPS as published, refined": {
        "method": "fips",
        "refine": True,
        "options": {"sparsity": 0.75, "prune": "gradual", "sweeps": 0},
    },
    "FiPS, refined, teacher inputs": {"method": "fips", "refine": True, "options": {}, "inputs": "teacher"},
    "FiPS, refined, AG News": {"method": "fips", "refine": True, "options": {}, "data": "news"},
    "whitened SVD, refined, AG News": {"method": "lowrank", "refine": True, "data": "news"},
}
ONCE = ("FiPS, refined, teacher inputs", "FiPS, refined, AG News", "whitened SVD, refined, AG News")


def texts(kind: str, data: Path) -> list[str]:
    """Unlabelled sentences of STS-B train, or of AG News."""
    import csv
    import lzma

    if kind == "news":
        with lzma.open(data / "cls/ag_news_train_subset.csv.xz", "rt", encoding="utf-8", newline="") as file:
            return [f"{title} {text}" for _, title, text in list(csv.reader(file))[1:]]
    from tensorfact.compress._sentences import read_stsb

    return list(read_stsb(data / "cls/stsb_train.tsv.xz").sentences)


class Scorer:
    """Scores models on STS-B test; keeps the tokens and the embeddings of the dense model."""

    def __init__(self, source: Path, data: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        from tensorfact.compress._sentences import read_stsb
        from tensorfact.compress._study import Embedder

        self.pairs = read_stsb(data / "cls/stsb_test.tsv.xz")
        self.embed = Embedder(AutoTokenizer.from_pretrained(source), self.pairs.sentences)
        self.dense = self.embed(AutoModel.from_pretrained(source).eval())

    def __call__(self, model: Any) -> dict[str, float]:
        """Spearman in percent, and the mean cosine with the embeddings of the dense model."""
        import numpy as np

        ours = self.embed(model.eval())
        return {"spearman": self.pairs.spearman(ours), "cosine": float(np.mean(np.sum(ours * self.dense, axis=1)))}


def run(arm: str, ratio: float, source: Path, data: Path, score: Scorer, steps: int, threads: int) -> dict[str, Any]:
    """Compress, load and score one arm."""
    from transformers import AutoModel

    from tensorfact.compress import Calibration, Refinement, compress
    from tensorfact.compress.checkpoint import Checkpoint

    settings = ARMS[arm]
    kind = settings.get("data", "sentences")
    resident = _resident_mib()
    begin = time.perf_counter()
    folder = Path(tempfile.mkdtemp())
    try:
        report = compress(
            source,
            folder / "out",
            method=settings["method"],
            param_ratio=ratio,
            options=settings.get("options"),
            target_modules=MLPS,
            calibration=None if kind is None else Calibration(texts(kind, data), samples=SAMPLES),
            refine=Refinement(steps=steps, inputs=settings.get("inputs", "propagated"))
            if settings.get("refine")
            else False
            if kind
            else None,
            executor=f"threads:{threads}",
            rng=0,
        )
        seconds = time.perf_counter() - begin
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        dense, small = Checkpoint.open(source), Checkpoint.open(folder / "out")
        mlps = sum(layer.bytes_before for layer in report.layers)
        stored = sum(info.nbytes for info in small.tensors.values())
        rest = sum(info.nbytes for info in dense.tensors.values()) - mlps
        return {
            **score(AutoModel.from_pretrained(folder / "out")),
            "mlp_bytes": (stored - rest) / mlps,
            "reported_bytes": report.bytes_after,
            "stored_bytes": stored,
            "seconds": seconds,
            # of the process so far: of this arm alone only where it ran first
            "peak_mib": peak,
            "resident_mib_before": resident,
            "error": sum(layer.error or 0 for layer in report.layers) / len(report.layers),
            "blocks": [
                {"name": b.name, "loss_before": b.loss_before, "loss_after": b.loss_after} for b in report.blocks
            ],
        }
    finally:
        shutil.rmtree(folder)


def table(found: dict[str, Any]) -> str:
    """Spearman of every arm, one column a ratio; the best of each column is bold."""
    rows = found["rows"].values()
    ratios = sorted({row["ratio"] for row in rows}, reverse=True)
    cells = {(row["arm"], row["ratio"]): row["spearman"] for row in rows}
    best = {ratio: max(value for (_, at), value in cells.items() if at == ratio) for ratio in ratios}
    lines = [
        f"STS-B test Spearman, dense {found['dense']['spearman']:.2f}, by the share of the bytes of the MLPs:",
        "",
        "| method | " + " | ".join(f"{ratio:g}" for ratio in ratios) + " |",
        "| --- |" + " --- |" * len(ratios),
    ]
    for arm in ARMS:
        if not any((arm, ratio) in cells for ratio in ratios):
            continue
        texts = []
        for ratio in ratios:
            value = cells.get((arm, ratio))
            bold = "**" if value == best[ratio] else ""
            texts.append("" if value is None else f"{bold}{value:.2f}{bold}")
        lines.append(f"| {arm} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the arms that are missing and write ``results/fips.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--arm", choices=ARMS, action="append")
    parser.add_argument("--ratio", type=float, action="append")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.table:
        print(table(timing.load("fips")))
        return
    if arguments.data is None:
        parser.error("--data is required")
    file = timing.RESULTS / "fips.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"rows": {}}
    found["environment"] = timing.environment("transformers", "torch")
    tasks = []
    for ratio in arguments.ratio or RATIOS:
        for arm in arguments.arm or ARMS:
            if arguments.arm or arm not in ONCE or ratio == RATIOS[0]:
                tasks.append((arm, ratio))
    tasks = [(arm, ratio) for arm, ratio in tasks if f"{arm} @ {ratio:g}" not in found["rows"]]
    if not tasks:
        return
    import torch
    from transformers.utils import logging

    from tensorfact.compress.demo import find_minilm

    torch.set_num_threads(arguments.threads)
    logging.disable_progress_bar()
    source = find_minilm()
    score = Scorer(source, arguments.data)
    found["dense"] = {"spearman": score.pairs.spearman(score.dense)}
    for arm, ratio in tasks:
        row = run(arm, ratio, source, arguments.data, score, arguments.steps, arguments.threads)
        found["rows"][f"{arm} @ {ratio:g}"] = {"arm": arm, "ratio": ratio, **row}
        if ARMS[arm].get("refine"):
            found["rows"][f"{arm} @ {ratio:g}"]["steps"] = arguments.steps
        print(arm, ratio, {k: v for k, v in row.items() if k != "blocks"}, flush=True)
        timing.save("fips", found)


def _resident_mib() -> float:
    """What the process holds now."""
    words = Path("/proc/self/statm").read_text().split()
    return int(words[1]) * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
