"""Transformer encoders on slices of the embedding against ordinary ones: IMDB and AG News, from scratch.

    python -m bench.ltransformer                                    # the CPU subset; broken runs resume
    python -m bench.ltransformer --arms std t4-dct --tasks imdb     # some of it
    python -m bench.ltransformer --protocol paper --device cuda     # the full protocol
    python -m bench.ltransformer --protocol paper --device cuda --width 768 --tasks ag_news --out data/ltransformer768
    python -m bench.ltransformer --report                           # results, page and plot from what is in --out
    python -m bench.ltransformer --report --speed                   # and time training and reading, now

Arms: std (PyTorch's encoder), shallow and narrow (smaller ones of T4's size), tP-Z with P slices (2, 4 or 8) and Z one
of dct, identity, random; behind it -standard, -exponential, -harmonic, -learnable, -nopos (positions; none: linear) or
-own (a control with the positions of the formula in its own domain), then -ln (norms in the transform domain).

A run is killed and resumed at will; on a CPU with one thread a job, results have the same bits however often that
happened.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import pool
from bench.ltransformer import data, runs
from bench.ltransformer.runs import Plan


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m bench.ltransformer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument(
        "--out", type=Path, default=data.ROOT / "data" / "ltransformer", help="checkpoints, logs (data/ltransformer)"
    )
    result.add_argument("--data", type=Path, help="folder of the data files (../shared/data/cls)")
    result.add_argument("--tasks", nargs="+", choices=list(data.TASKS), default=list(data.TASKS), help="(both)")
    result.add_argument("--arms", nargs="+", metavar="ARM", help="what to train (default: what the protocol has)")
    result.add_argument("--seeds", nargs="+", type=int, default=list(runs.SEEDS), metavar="N", help="(1 2 3)")
    result.add_argument("--protocol", choices=["cpu", "paper"], default="cpu", help="subset or everything (cpu)")
    result.add_argument("--device", default="cpu", help="cpu, or cuda (cpu)")
    result.add_argument("--width", type=int, help="width of the embedding (128 for IMDB, 256 for AG News)")
    result.add_argument("--steps", type=int, help="steps of a training (by the protocol)")
    result.add_argument("--jobs", type=int, help="runs at once (as many as cores; 1 on a GPU)")
    result.add_argument("--threads", type=int, default=1, help="threads of a run (%(default)s)")
    result.add_argument("--report", action="store_true", help="only write results, page and plot from what is there")
    result.add_argument("--speed", action="store_true", help="with --report: time and weigh, on a quiet machine")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is asked for, then report."""
    options = parser().parse_args(arguments)
    plan = Plan(options.out, options.protocol, options.data, options.device, options.width, options.steps)
    if not options.report:
        missing = [name for name in options.tasks if data.find(data.TASKS[name], options.data) is None]
        if missing:
            sys.exit(
                f"no files of {', '.join(missing)} in {options.data or data.SHARED}: give their folder with --data"
            )
        jobs = options.jobs or (1 if options.device == "cuda" else os.cpu_count() or 1)
        if not pool.train(
            runs.work, (plan, options.threads), runs.wanted(plan, options.tasks, options.arms, options.seeds), jobs
        ):
            sys.exit("a run failed: see above; the finished ones are kept")
    from bench.ltransformer import report

    report.write(plan, speed=options.tasks if options.speed else ())


if __name__ == "__main__":
    main()
