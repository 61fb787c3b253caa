"""The command line: ``tensorfact compress | estimate | report | verify | to-dense | info``.

Exit codes: 0 done, 1 `verify` found a problem, 2 wrong input or a failure (one line on stderr), 130 Ctrl-C, 143
terminated.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["main"]

_EPILOG = """\
examples:
  tensorfact estimate ./model --param-ratio 0.5
  tensorfact compress ./model ./model-small --param-ratio 0.5 --rng 0
  tensorfact compress ./model ./model-mpo --param-ratio 0.5 --method mpo --option order=3
  tensorfact report ./model-small --html page.html
  tensorfact to-dense ./model-small ./model-plain
"""


class _Terminated(KeyboardInterrupt):
    """SIGTERM, treated as Ctrl-C so that nothing half written is left."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args(argv)
    # Nothing may be fetched behind the user's back; set before transformers is imported, which reads it once.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with contextlib.suppress(ValueError):  # not the main thread: the caller handles signals
        signal.signal(signal.SIGTERM, _terminate)
    code: int
    try:
        code, text = arguments.run(arguments)
        _show(text)
        return code
    except KeyboardInterrupt as error:
        return _leave(143 if isinstance(error, _Terminated) else 130, getattr(error, "__notes__", ()))
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        else:
            print(f"tensorfact: error: {_message(error)}", file=sys.stderr)
        return 2


def _show(text: str) -> None:
    try:
        if text:
            print(text)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has left, as in `tensorfact report x | head`: the exit code still counts
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _compress(arguments: argparse.Namespace) -> tuple[int, str]:
    from tensorfact.compress.report import render_terminal
    from tensorfact.compress.run import compress

    report = compress(
        arguments.model,
        arguments.out,
        **_shared(arguments),
        rng=arguments.rng,
        overwrite=arguments.overwrite,
        max_shard_size=arguments.max_shard_size,
        compare=False if arguments.no_compare else None,
    )
    return 0, render_terminal(report)


def _estimate(arguments: argparse.Namespace) -> tuple[int, str]:
    from tensorfact.compress.report import render_terminal
    from tensorfact.compress.run import estimate

    report = estimate(arguments.model, **_shared(arguments))
    return 0, report.to_json().rstrip() if arguments.json else render_terminal(report)


def _report(arguments: argparse.Namespace) -> tuple[int, str]:
    from tensorfact.compress._atomic import replace_text
    from tensorfact.compress.records import Report
    from tensorfact.compress.report import render_terminal
    from tensorfact.compress.report_html import render_html

    report = Report.read(arguments.path)
    if arguments.html:
        replace_text(Path(arguments.html), render_html(report))
    if arguments.json:
        return 0, report.to_json().rstrip()
    return 0, "" if arguments.html else render_terminal(report)


def _verify(arguments: argparse.Namespace) -> tuple[int, str]:
    from tensorfact.compress.verify import verify

    problems = verify(arguments.path, deep=arguments.deep)
    with contextlib.suppress(BrokenPipeError):
        for problem in problems:
            print(problem, file=sys.stderr)
    count = f"{len(problems)} problem{'s' * (len(problems) > 1)}" if problems else "as it was written"
    return (1 if problems else 0), f"{arguments.path}: {count}"


def _to_dense(arguments: argparse.Namespace) -> tuple[int, str]:
    from tensorfact.compress.dense import to_dense

    to_dense(
        arguments.path,
        arguments.out,
        overwrite=arguments.overwrite,
        max_shard_size=arguments.max_shard_size,
        progress=not arguments.no_progress,
    )
    return 0, f"written to {arguments.out}"


def _info(arguments: argparse.Namespace) -> tuple[int, str]:
    from tensorfact.compress.info import describe_checkpoint

    return 0, describe_checkpoint(arguments.path)


def _shared(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments that `compress` and `estimate` have in common."""
    return {
        "param_ratio": arguments.param_ratio,
        "method": arguments.method,
        "allocation": arguments.allocation,
        "rank_pattern": dict(arguments.rank) or None,
        "rank_multiple": arguments.rank_multiple,
        "options": dict(arguments.option),
        "target_modules": arguments.target,
        "exclude_modules": arguments.exclude,
        "executor": arguments.executor,
        "progress": not arguments.no_progress,
        "trust_remote_code": arguments.trust_remote_code,
    }


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
    parser = argparse.ArgumentParser(
        prog="tensorfact",
        description="Make a pretrained transformer smaller, and say what it cost.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tensorfact {version('tensorfact')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], tuple[int, str]], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, parents=[common], help=text, description=text)
        command.set_defaults(run=run)
        return command

    command = add("compress", _compress, "write a smaller version of a checkpoint")
    command.add_argument("model", metavar="MODEL", help="Hugging Face checkpoint directory (safetensors)")
    command.add_argument("out", metavar="OUT", help="directory to be written; it appears when it is complete")
    _plan_arguments(command)
    command.add_argument("--rng", type=int, metavar="SEED", help="seed: same seed, same bits, on every executor")
    command.add_argument("--no-compare", action="store_true", help="do not measure outputs and latency of both models")
    _output_arguments(command)

    command = add("estimate", _estimate, "say what compress would do, without writing")
    command.add_argument("model", metavar="MODEL", help="Hugging Face checkpoint directory (safetensors)")
    _plan_arguments(command)
    command.add_argument("--json", action="store_true", help="print the report as JSON")

    command = add("report", _report, "show the report of a compressed checkpoint again")
    command.add_argument("path", metavar="PATH")
    command.add_argument("--html", metavar="FILE", help="write the page to FILE")
    command.add_argument("--json", action="store_true", help="print the report as JSON")

    command = add("verify", _verify, "check that a compressed checkpoint is as it was written")
    command.add_argument("path", metavar="PATH")
    command.add_argument("--deep", action="store_true", help="also load the model")

    command = add("to-dense", _to_dense, "write a compressed checkpoint as a plain one")
    command.add_argument("path", metavar="PATH")
    command.add_argument("out", metavar="OUT")
    command.add_argument("--no-progress", action="store_true", help="no progress bar")
    _output_arguments(command)

    command = add("info", _info, "say what a checkpoint holds")
    command.add_argument("path", metavar="PATH")
    return parser


def _plan_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--param-ratio",
        type=float,
        required=True,
        metavar="R",
        help="share of the targeted parameters that stays, in (0, 1]",
    )
    command.add_argument("--method", default="lowrank", help="lowrank or mpo (default: lowrank)")
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


def _output_arguments(command: argparse.ArgumentParser) -> None:
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


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename is not None else error.strerror
    else:
        text = str(error)
    if not isinstance(error, ValueError | OSError | ImportError):
        text = f"{type(error).__name__}: {text} (--debug shows where)"
    return " ".join("; ".join([text, *getattr(error, "__notes__", ())]).split())


def _terminate(number: int, frame: Any) -> NoReturn:
    raise _Terminated


def _leave(code: int, notes: Sequence[str]) -> NoReturn:
    """Leave at once, or threads that still compute would be waited for. Everything was removed on the way here."""
    with contextlib.suppress(OSError):
        print(f"tensorfact: interrupted, {'; '.join(notes) or 'nothing was written'}", file=sys.stderr, flush=True)
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
