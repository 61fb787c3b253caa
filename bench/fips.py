"""all-MiniLM-L6-v2 with its MLPs in fewer bytes: STS-B after SVD, whitened SVD and FiPS, at equal bytes.

    python -m bench.fips --data SHARED_DATA            # every arm that is not in the results yet
    python -m bench.fips --data SHARED_DATA --arm fips --ratio 0.5

SHARED_DATA holds ``cls/stsb_{train,test}.tsv.xz`` and, for the other domain, ``cls/ag_news_train_subset.csv.xz``. Each
arm is a fresh process that compresses the model with `tensorfact.compress.compress`, loads the result with AutoModel
and scores the STS-B test pairs. Bytes are those of the tensors in the file, masks included. Arms that are in
``results/fips.json`` already are skipped, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
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


def score(model: Any, source: Path, data: Path) -> dict[str, float]:
    """Spearman on STS-B test in percent, and the mean cosine with the embeddings of the dense model."""
    import numpy as np
    from transformers import AutoModel, AutoTokenizer

    from tensorfact.compress._sentences import read_stsb
    from tensorfact.compress._study import Embedder

    pairs = read_stsb(data / "cls/stsb_test.tsv.xz")
    embed = Embedder(AutoTokenizer.from_pretrained(source), pairs.sentences)
    ours, dense = embed(model.eval()), embed(AutoModel.from_pretrained(source).eval())
    return {"spearman": pairs.spearman(ours), "cosine": float(np.mean(np.sum(ours * dense, axis=1)))}


def run(arm: str, ratio: float, data: Path, steps: int, threads: int) -> dict[str, Any]:
    """Compress, load and score one arm; in a process of its own."""
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    from tensorfact.compress import Calibration, Refinement, compress
    from tensorfact.compress.checkpoint import Checkpoint
    from tensorfact.compress.demo import find_minilm

    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    source = find_minilm()
    if arm == "dense":
        return score(AutoModel.from_pretrained(source), source, data)
    settings = ARMS[arm]
    kind = settings.get("data", "sentences")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
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
            else False if kind else None,
            executor=f"threads:{threads}",
            rng=0,
        )
        seconds = time.perf_counter() - begin
        top = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        dense, small = Checkpoint.open(source), Checkpoint.open(folder / "out")
        mlps = sum(layer.bytes_before for layer in report.layers)
        stored = sum(info.nbytes for info in small.tensors.values())
        rest = sum(info.nbytes for info in dense.tensors.values()) - mlps
        return {
            **score(AutoModel.from_pretrained(folder / "out"), source, data),
            "mlp_bytes": (stored - rest) / mlps,
            "reported_bytes": report.bytes_after,
            "stored_bytes": stored,
            "seconds": seconds,
            "peak_mib_above_start": (top - peak) / 1024,
            "error": sum(layer.error or 0 for layer in report.layers) / len(report.layers),
            "blocks": [
                {"name": b.name, "loss_before": b.loss_before, "loss_after": b.loss_after}
                for b in (report.calibration.blocks if report.calibration else ())
            ],
        }
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Run the arms that are missing and write ``results/fips.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--arm", choices=ARMS, action="append")
    parser.add_argument("--ratio", type=float, action="append")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    file = timing.RESULTS / "fips.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"rows": {}}
    found["environment"] = timing.environment("transformers", "torch")
    found["settings"] = {"steps": arguments.steps, "samples": SAMPLES, "threads": arguments.threads}
    tasks = [("dense", 1.0)]
    for ratio in arguments.ratio or RATIOS:
        for arm in arguments.arm or ARMS:
            if arguments.arm or arm not in ONCE or ratio == RATIOS[0]:
                tasks.append((arm, ratio))
    for arm, ratio in tasks:
        key = f"{arm} @ {ratio:g}"
        if key in found["rows"]:
            continue
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(run, (arm, ratio, arguments.data, arguments.steps, arguments.threads))
        found["rows"][key] = {"arm": arm, "ratio": ratio, **row}
        print(key, {k: v for k, v in row.items() if k != "blocks"}, flush=True)
        timing.save("fips", found)


if __name__ == "__main__":
    main()
