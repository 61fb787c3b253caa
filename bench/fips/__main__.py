"""Models with their MLPs in fewer bytes: SVD, whitened SVD, FiPS and its control without sharing, at equal bytes.

    python -m bench.fips --data SHARED_DATA                          # every arm that is not in the results yet
    python -m bench.fips --data SHARED_DATA --model stories260K --arm FiPS --ratio 0.5
    python -m bench.fips --report                                    # no run: page and plot from the results

SHARED_DATA is the folder of shared data with cls/, text/, images/ and models/. Each arm compresses a model with
`tensorfact.compress.compress`, loads the result and scores it. Bytes are those of the stored tensors, masks included.
Arms that are in ``results/fips.json`` already are skipped, so a run that was stopped goes on; within an arm it goes on
from the last block that was finished.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from bench import timing
from bench.fips import page, runs
from bench.fips.arms import ARMS, STEPS
from bench.fips.subjects import SUBJECTS

ROOT = timing.RESULTS.parent.parent


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m bench.fips", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of shared data")
    result.add_argument("--model", choices=SUBJECTS, action="append", help="which models (default: all)")
    result.add_argument("--arm", choices=ARMS, action="append", help="which arms (default: all that are missing)")
    result.add_argument("--ratio", type=float, action="append", help="shares of the bytes of the MLPs to keep")
    result.add_argument(
        "--steps", type=int, default=STEPS, help="of refinement, for each group of blocks (%(default)s)"
    )
    result.add_argument("--threads", type=int, default=1)
    result.add_argument("--work", type=Path, default=ROOT / "data" / "fips", help="folder of checkpoints (data/fips)")
    result.add_argument("--out", type=Path, default=timing.RESULTS / "fips.json", help="file of the results")
    result.add_argument("--report", action="store_true", help="only write page and plot from the results")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the arms that are missing, write ``results/fips.json``, then page and plot."""
    options = parser().parse_args(arguments)
    if not options.report:
        for name in options.model or SUBJECTS:
            measure(name, options)
    page.write(options.out, ROOT / "docs")


def measure(name: str, options: argparse.Namespace) -> None:
    """Run what is missing of one model."""
    subject = SUBJECTS[name]
    with runs.updated(options.out) as result:
        found = result.setdefault("models", {}).setdefault(name, {"rows": {}})
        found["protocol"] = subject.protocol
    tasks = runs.wanted(subject, found, options.arm, options.ratio)
    if not tasks and "dense" in found:
        return
    import torch
    from transformers.utils import logging

    from bench.fips import models

    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    options.work.mkdir(parents=True, exist_ok=True)
    loaded = models.OPEN[name](options.data, options.work)
    if "dense" not in found:
        from tensorfact.compress._inputs import load_dense

        keep(options.out, name, dense=loaded.score(load_dense(loaded.source)))
    environment = timing.environment("transformers", "torch")
    for arm, ratio in tasks:
        if runs.key(arm, ratio) in json.loads(options.out.read_text())["models"][name]["rows"]:
            continue  # another process was quicker
        folder = options.work / re.sub(r"\W+", "-", f"{name} {runs.key(arm, ratio)}")
        row = runs.run(subject, loaded, arm, ratio, folder, steps=options.steps, threads=options.threads)
        print(name, arm, ratio, json.dumps({k: v for k, v in row.items() if k != "blocks"}), flush=True)
        keep(options.out, name, {runs.key(arm, ratio): {"arm": arm, "ratio": ratio, **row}}, environment=environment)


def keep(file: Path, name: str, rows: runs.Result | None = None, **others: object) -> None:
    """Add to what is stored of a model."""
    with runs.updated(file) as result:
        found = result["models"][name]
        found["rows"].update(rows or {})
        found.update(others)


if __name__ == "__main__":
    main()
