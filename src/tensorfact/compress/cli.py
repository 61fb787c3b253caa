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

from tensorfact.compress._arguments import data_arguments, data_of, output_arguments, plan_arguments

__all__ = ["main"]

_EPILOG = """\
examples:
  tensorfact estimate ./model --param-ratio 0.5
  tensorfact compress ./model ./model-small --param-ratio 0.5 --rng 0
  tensorfact compress ./model ./model-mpo --param-ratio 0.5 --method mpo --option order=3
  tensorfact compress ./model ./model-fit --param-ratio 0.5 --calibration texts.txt
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
        **data_of(arguments),
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
        "factor_bits": arguments.factor_bits,
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
    plan_arguments(command)
    command.add_argument("--rng", type=int, metavar="SEED", help="seed: same seed, same bits, on every executor")
    data_arguments(command)
    command.add_argument("--no-compare", action="store_true", help="do not measure outputs and latency of both models")
    output_arguments(command)

    command = add("estimate", _estimate, "say what compress would do, without writing")
    command.add_argument("model", metavar="MODEL", help="Hugging Face checkpoint directory (safetensors)")
    plan_arguments(command)
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
    output_arguments(command)

    command = add("info", _info, "say what a checkpoint holds")
    command.add_argument("path", metavar="PATH")
    return parser


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
