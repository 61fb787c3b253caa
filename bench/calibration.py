"""Low rank with calibration data on a real encoder: plain, whitened and refined at equal parameters.

    python -m bench.calibration --data FOLDER           # quality at every ratio, then time and memory of one run
    python -m bench.calibration --data FOLDER --rows 2  # two rows more, to take a long run in parts

The model is all-MiniLM-L6-v2 from its package. FOLDER has the STS benchmark (stsb_train.tsv.xz, stsb_dev, stsb_test):
the model learns from sentences of the training part, without their scores, and is scored on the other two. The rows of
another domain learn from sentences of the Python language reference instead: what a change of domain costs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import timing
from tensorfact.compress import Calibration, Refinement, compress
from tensorfact.compress._sentences import offline_sentences, read_stsb
from tensorfact.compress._study import Embedder
from tensorfact.compress.demo import find_minilm

RATIOS = (0.8, 0.67, 0.5, 0.4)
OTHER_DOMAIN = 0.5  # the ratio at which the rows of another domain are run
SAMPLES, STEPS = 2048, 300
# name -> (whitened, refined, domain)
VARIANTS: dict[str, tuple[bool, bool, str]] = {
    "plain SVD": (False, False, "none"),
    "plain SVD, refined": (False, True, "STS-B"),
    "whitened SVD": (True, False, "STS-B"),
    "whitened SVD, refined": (True, True, "STS-B"),
    "whitened SVD, other domain": (True, False, "Python reference"),
    "whitened SVD, refined, other domain": (True, True, "Python reference"),
}


def cases() -> list[tuple[float, str]]:
    """Return ratio and variant of every row, in order."""
    every = itertools.product(RATIOS, VARIANTS)
    return [(ratio, name) for ratio, name in every if "other" not in name or ratio == OTHER_DOMAIN]


class Scores:
    """Spearman correlation on the parts of STS-B, and embeddings against those of the dense model."""

    def __init__(self, folder: Path, source: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source)
        self.pairs = {part: read_stsb(folder / f"stsb_{part}.tsv.xz") for part in ("dev", "test")}
        self.embed = {part: Embedder(tokenizer, pairs.sentences) for part, pairs in self.pairs.items()}
        model = AutoModel.from_pretrained(source).eval()
        self.dense = {part: embed(model) for part, embed in self.embed.items()}

    def __call__(self, path: Path | None) -> dict[str, float]:
        from transformers import AutoModel

        found = self.dense
        if path is not None:
            model = AutoModel.from_pretrained(path).eval()
            found = {part: embed(model) for part, embed in self.embed.items()}
        row = {f"{part}_spearman": pairs.spearman(found[part]) for part, pairs in self.pairs.items()}
        return {**row, "cosine": float(np.mean(np.sum(found["test"] * self.dense["test"], axis=1)))}


def run(result: dict[str, Any], folder: Path, out: Path, most: int) -> None:
    """Compress at every ratio by every variant; at most ``most`` rows that ``result`` has not yet."""
    source = find_minilm()
    scores = Scores(folder, source)
    result["dense"] = scores(None)
    rows = result.setdefault("rows", [])
    done = {(row["param_ratio"], row["variant"]) for row in rows}
    data = {
        "none": None,
        "STS-B": Calibration(folder / "stsb_train.tsv.xz", column="5,6", samples=SAMPLES),
        "Python reference": Calibration(offline_sentences(SAMPLES), samples=SAMPLES),
    }
    for ratio, name in [key for key in cases() if key not in done][:most]:
        whiten, refined, domain = VARIANTS[name]
        begin = time.perf_counter()
        report = compress(
            source,
            out / "small",
            param_ratio=ratio,
            options={"whiten": whiten},
            calibration=data[domain],
            refine=Refinement(steps=STEPS) if refined else False,
            rng=0,
            overwrite=True,
        )
        outputs = [layer.output_error for layer in report.layers if layer.output_error is not None]
        rows.append(
            {
                "param_ratio": ratio,
                "variant": name,
                "domain": domain,
                "kept": report.achieved_ratio,
                "bytes": sum(file.stat().st_size for file in (out / "small").glob("*.safetensors")),
                "seconds": time.perf_counter() - begin,
                "weight_error": float(np.mean([layer.error or 0.0 for layer in report.layers])),
                "output_error": float(np.mean(outputs)) if outputs else None,
                "blocks": [(block.loss_before, block.loss_after) for block in report.blocks],
                "samples": report.calibration.samples if report.calibration else 0,
                "positions": report.calibration.positions if report.calibration else 0,
                **scores(out / "small"),
            }
        )
        print({key: value for key, value in rows[-1].items() if key != "blocks"}, flush=True)
        timing.save("calibration", result)
    rows.sort(key=lambda row: cases().index((row["param_ratio"], row["variant"])))


def cost(folder: Path, out: Path) -> dict[str, Any]:
    """Time and memory of one run of the command line, in a process of its own."""
    command = [sys.executable, "-m", "tensorfact.compress", "compress", str(find_minilm()), str(out / "cost")]
    command += ["--param-ratio", "0.5", "--rng", "0", "--no-compare", "--calibration-samples", str(SAMPLES)]
    command += ["--calibration", str(folder / "stsb_train.tsv.xz"), "--calibration-column", "5,6"]
    command += ["--refine-steps", str(STEPS)]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        raise SystemExit(f"the run failed: {status}")
    report = json.loads((out / "cost" / "report.json").read_text())
    return {
        "seconds": seconds,
        "phases": report["seconds"],
        "blocks_seconds": [block["seconds"] for block in report["blocks"]],
        "peak_mib": report["peak_memory_bytes"] / 2**20,
        "model_mib": report["bytes_before"] / 2**20,
        "cpu_seconds": used.ru_utime + used.ru_stime,
    }


def main() -> None:
    """Write ``results/calibration.json``; rows that are there already are not run again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the STS benchmark")
    parser.add_argument("--rows", type=int, default=99, help="at most so many new rows")
    parser.add_argument("--cost", action="store_true", help="only time and memory of one run")
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    arguments = parser.parse_args()
    result = {} if arguments.again else dict(timing.load("calibration"))
    with tempfile.TemporaryDirectory() as temporary:
        if not arguments.cost:
            run(result, arguments.data, Path(temporary), arguments.rows)
        if arguments.cost or (len(result.get("rows", ())) == len(RATIOS) * len(VARIANTS) and "cost" not in result):
            result["cost"] = cost(arguments.data, Path(temporary))
            print(result["cost"])
    result["environment"] = timing.environment("torch", "transformers")
    timing.save("calibration", result)


if __name__ == "__main__":
    main()
