"""Arguments of the command line, and what they stand for."""

from __future__ import annotations

import argparse
from typing import Any

from tensorfact.compress._method import methods

__all__ = ["data_arguments", "data_of", "output_arguments", "plan_arguments"]


def plan_arguments(command: argparse.ArgumentParser) -> None:
    """Add what `compress` and `estimate` have in common."""
    command.add_argument(
        "--param-ratio",
        type=float,
        required=True,
        metavar="R",
        help="share of the targeted parameters that stays, in (0, 1]; fips and quantize count bytes",
    )
    command.add_argument("--method", default="lowrank", help=f"one of {', '.join(methods())} (default: lowrank)")
    command.add_argument(
        "--allocation", choices=("spectrum", "uniform"), help="how ranks share the budget (default: spectrum)"
    )
    command.add_argument(
        "--target",
        action="append",
        metavar="NAME",
        help="module name, suffix or re:EXPRESSION to compress; may be repeated",
    )
    command.add_argument("--exclude", action="append", metavar="NAME", help="module to leave dense; may be repeated")
    command.add_argument(
        "--rank",
        action="append",
        default=[],
        type=_rank,
        metavar="NAME=R",
        help="rank of a module, or its bonds as in NAME=8,12; may be repeated",
    )
    command.add_argument("--rank-multiple", type=int, metavar="N", help="ranks are multiples of N (default: 8)")
    command.add_argument(
        "--factor-bits",
        type=int,
        metavar="N",
        help="bits of a number of the factors, 2 to 8 (default: as the weights); for lowrank the ratio still counts "
        "numbers, and weights left dense keep their type",
    )
    command.add_argument(
        "--option",
        action="append",
        default=[],
        type=_option,
        metavar="NAME=VALUE",
        help="option of the method; may be repeated",
    )
    command.add_argument(
        "--executor",
        metavar="WHERE",
        help="serial, threads:N, processes:N or dask:ADDRESS (default: one thread a core)",
    )
    command.add_argument("--no-progress", action="store_true", help="no progress bar")
    command.add_argument("--trust-remote-code", action="store_true", help="run code that lies in the checkpoint")


def data_arguments(command: argparse.ArgumentParser) -> None:
    """Add what concerns calibration."""
    add = command.add_argument
    add("--calibration", metavar="PATH", help=".txt, .jsonl, .tsv, .csv or .safetensors file, folder or tar of images")
    add("--calibration-samples", type=int, metavar="N", help="most sequences or images to use (default: 256)")
    add("--calibration-length", type=int, metavar="N", help="tokens of a sequence (default: the context, at most 2048)")
    add("--calibration-column", metavar="NAME", help="field or column of the texts, or several as in 5,6")
    add(
        "--refine",
        action=argparse.BooleanOptionalAction,
        help="train each block to the outputs of the dense one (default: with --calibration)",
    )
    add("--refine-steps", type=int, metavar="N", help="optimiser steps a block (default: 300)")
    add("--refine-lr", type=float, metavar="X", help="largest step size (default: 0.001)")


def output_arguments(command: argparse.ArgumentParser) -> None:
    """Add what concerns the directory that is written."""
    command.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    command.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="largest weight file (default: 5GB)")


def _rank(text: str) -> tuple[str, int | tuple[int, ...]]:
    name, _, rank = text.rpartition("=")
    numbers = rank.split(",")
    if not name or not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"must look like q_proj=64 or q_proj=8,12, got {text!r}")
    return name, int(rank) if len(numbers) == 1 else tuple(map(int, numbers))


def _option(text: str) -> tuple[str, bool | int | float | str]:
    name, found, value = text.partition("=")
    if not name or not found:
        raise argparse.ArgumentTypeError(f"must look like n_iter=4, got {text!r}")
    if value in ("true", "false"):
        return name, value == "true"
    for convert in (int, float):
        try:
            return name, convert(value)
        except ValueError:
            continue
    return name, value


def data_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `compress` that concern calibration."""
    from tensorfact.compress._refine import Refinement
    from tensorfact.compress.calibration import Calibration

    sizes = {"samples": arguments.calibration_samples, "length": arguments.calibration_length}
    given = {name: value for name, value in sizes.items() if value is not None}
    training = {name: value for name in ("steps", "lr") if (value := getattr(arguments, f"refine_{name}")) is not None}
    if arguments.calibration is None:
        if given or training or arguments.refine or arguments.calibration_column is not None:
            raise ValueError("--calibration must be given with the options that concern it and --refine")
        return {}
    if training and arguments.refine is False:
        raise ValueError("--no-refine must not be given with options of the refinement")
    return {
        "calibration": Calibration(arguments.calibration, column=arguments.calibration_column, **given),
        "refine": Refinement(**training) if training else arguments.refine,
    }
