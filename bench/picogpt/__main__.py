"""PicoGPT on Tiny Shakespeare, dense and in MPO layers of bond 4 to 32, with equal-parameter controls.

    python -m bench.picogpt                          # everything; finished runs are kept, broken ones resume
    python -m bench.picogpt --arms dense mpo16       # some arms
    python -m bench.picogpt --report                 # no training: results, page and plot from what is in --out
    python -m bench.picogpt --report --speed         # and time a training step of each kind of model, now

Arms: dense; dense-spared (no weight decay on LayerNorm and biases); dense-tuned (trained on as long as svdB); and for
B = 4, 8, 16, 32: mpoB (trained from random cores), mpoB-paper (from the published initialisation), mpoB-scaled (with
the cores' learning rates in proportion to their entries), narrowB (a smaller dense model, from scratch), svdB and
lowrankB (TT-SVD and SVD of the trained dense model, then fine-tuned). The number of parameters is the same for one B.

A run is killed and resumed at will: each arm and seed has its own checkpoint, written under a passing name and renamed.
With one thread a job, results have the same bits however often that happened.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.picogpt import data, report, workers
from bench.picogpt.arms import EVERYTHING, Arm
from bench.picogpt.runs import Plan
from bench.picogpt.training import Protocol


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m bench.picogpt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument(
        "--out", type=Path, default=data.ROOT / "data" / "picogpt", help="folder of checkpoints and logs (data/picogpt)"
    )
    result.add_argument("--data", type=Path, help="Tiny Shakespeare as .txt or .xz (default: shared data, or download)")
    result.add_argument(
        "--arms", nargs="+", default=list(EVERYTHING), metavar="ARM", help="what to train (default: all)"
    )
    result.add_argument(
        "--seeds", nargs="+", type=int, default=[42], metavar="N", help="seeds of runs from scratch (42)"
    )
    result.add_argument(
        "--tune-seeds", nargs="+", type=int, default=[42, 43, 44], metavar="N", help="seeds of fine-tunings (42 43 44)"
    )
    result.add_argument("--steps", type=int, default=2000, help="steps from scratch (%(default)s)")
    result.add_argument("--tune-steps", type=int, default=80, help="steps of a fine-tuning (%(default)s)")
    result.add_argument("--tune-lr", type=float, default=1e-3, help="learning rate of a fine-tuning (%(default)s)")
    result.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at once (%(default)s)")
    result.add_argument("--threads", type=int, default=1, help="threads of a run (%(default)s)")
    result.add_argument("--report", action="store_true", help="only write results, page and plot from what is there")
    result.add_argument("--speed", action="store_true", help="with --report: time training steps, on a quiet machine")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is asked for, then report."""
    options = parser().parse_args(arguments)
    plan = Plan(options.out, Protocol(steps=options.steps), options.tune_steps, options.tune_lr)
    if not options.report:
        chosen = [Arm.of(name) for name in options.arms]
        turns = range(max(len(options.seeds), len(options.tune_seeds)))  # every arm once, then every arm again
        seeds = [(a, options.tune_seeds if a.tuned else options.seeds) for a in chosen]
        wanted = [(arm, its[turn]) for turn in turns for arm, its in seeds if turn < len(its)]
        if not workers.train(plan, wanted, options.data, options.jobs, options.threads):
            sys.exit("a run failed: see above; the finished ones are kept")
    report.write(plan, options.data, speed=options.speed)


if __name__ == "__main__":
    main()
