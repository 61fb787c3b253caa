"""What a promise is, how it is searched for a counter-example, and the table that comes back.

Shared by every ``check_*`` function: a new one brings its promises and an adapter for the routine, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, overload

import numpy as np
from hypothesis import HealthCheck, Phase, Verbosity, example, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

__all__ = [
    "BadInput",
    "BrokenPromise",
    "CheckReport",
    "CheckResult",
    "NotOffered",
    "Promise",
    "Status",
    "first_line",
    "refused",
    "require",
    "run_promises",
    "select",
]

R = TypeVar("R")
Status = Literal["kept", "broken", "not offered"]


class BrokenPromise(AssertionError):  # noqa: N818 - it is the name of the outcome
    """Raised by a promise's check; the text says what was found, `measured` the number if there is one."""

    def __init__(self, text: str, measured: float | None = None) -> None:
        super().__init__(text)
        self.measured = measured


class NotOffered(Exception):  # noqa: N818 - it is the name of the outcome
    """Raised by a promise's check when the routine refuses, in so many words, to offer the feature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise(Generic[R]):
    """One named property of a routine.

    Attributes
    ----------
    name : str
        Short, stable, kebab-case: it is quoted in failures and heads a row of the table.
    text : str
        The promise in one line.
    cases : callable
        routine -> strategy of cases. May raise `NotOffered`.
    check : callable
        (routine, case) -> a number worth reporting (the largest is kept) or None; raises `BrokenPromise`.
    always : tuple
        Cases that are tried first on every run.
    """

    name: str
    text: str
    cases: Callable[[R], st.SearchStrategy[Any]]
    check: Callable[[R, Any], float | None]
    always: tuple[Any, ...] = ()


def require(holds: bool, otherwise: str, measured: float | None = None) -> None:
    """Break the promise unless it `holds`."""
    if not holds:
        raise BrokenPromise(otherwise, measured)


@dataclass(frozen=True, slots=True)
class BadInput:
    """Input that must be refused, described for the failure message."""

    what: str
    args: tuple[Any, ...]
    errors: tuple[type[Exception], ...] = (ValueError,)

    def __str__(self) -> str:
        return self.what


def refused(bad: BadInput, call: Callable[[], Any], describe: Callable[[Any], str]) -> None:
    """Break the promise unless `call` raises one of the errors that fit; `describe` says what it returned."""
    try:
        found = call()
    except np.linalg.LinAlgError as error:  # a ValueError by inheritance, but LAPACK found out and not the routine
        raise BrokenPromise(f"not refused: LinAlgError after the work ({first_line(error)})") from error
    except bad.errors:
        return
    except Exception as error:
        raise BrokenPromise(f"{type(error).__name__}, not ValueError: {first_line(error)}") from error
    raise BrokenPromise(f"accepted; {describe(found)}")


def first_line(error: BaseException) -> str:
    """First line of an exception's text, cut to 160 characters: tables and failures quote it."""
    return (str(error).strip().splitlines() or [""])[0][:160]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """Outcome of one promise.

    Attributes
    ----------
    promise, text : str
        Name and one-line text of the promise.
    status : "kept", "broken" or "not offered"
    detail : str
        What went wrong and the smallest case found that shows it; empty when kept.
    worst : float or None
        Largest number that the check measured (an error ratio, a defect in eps), None where it measures none.
    examples : int
        Cases tried.
    """

    promise: str
    text: str
    status: Status
    detail: str = ""
    worst: float | None = None
    examples: int = 0


@dataclass(frozen=True, slots=True)
class CheckReport(Sequence[CheckResult]):
    """The results of a check, a sequence that prints as a table."""

    results: tuple[CheckResult, ...]

    @overload
    def __getitem__(self, index: int) -> CheckResult: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[CheckResult, ...]: ...
    def __getitem__(self, index: int | slice) -> CheckResult | tuple[CheckResult, ...]:
        return self.results[index]

    def __len__(self) -> int:
        return len(self.results)

    def __iter__(self) -> Iterator[CheckResult]:
        return iter(self.results)

    def names(self, status: Status) -> tuple[str, ...]:
        """Names of the promises with this outcome, in table order."""
        return tuple(result.promise for result in self.results if result.status == status)

    @property
    def broken(self) -> tuple[CheckResult, ...]:
        """Results of the promises that were broken."""
        return tuple(result for result in self.results if result.status == "broken")

    def raise_if_broken(self) -> None:
        """Raise AssertionError that lists every broken promise with its smallest case."""
        if self.broken:
            lines = [f"  {r.promise}: {r.text}\n    {r.detail}" for r in self.broken]
            raise AssertionError(f"{len(lines)} of {len(self)} promises broken:\n" + "\n".join(lines))

    def __str__(self) -> str:
        width = max((len(r.promise) for r in self.results), default=0)
        rows = (
            f"{r.promise:<{width}}  {r.status:<11}  {'' if r.worst is None else f'{r.worst:.3g}':<9}  {r.detail}"
            for r in self.results
        )
        return "\n".join(row.rstrip() for row in rows)


def select(promises: Sequence[Promise[R]], names: Iterable[str] | None) -> list[Promise[R]]:
    """Pick the promises called `names`, all of them for None; ValueError names an unknown one."""
    if names is None:
        return list(promises)
    wanted = list(names)
    known = {promise.name: promise for promise in promises}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"promises must be among {', '.join(known)}, got {unknown[0]!r}")
    return [known[name] for name in wanted]


def run_promises(routine: R, promises: Iterable[Promise[R]], *, max_examples: int, seed: int) -> CheckReport:
    """Search every promise for a counter-example; same seed, same cases."""
    return CheckReport(tuple(_run(routine, promise, max_examples=max_examples, seed=seed) for promise in promises))


def _run(routine: R, promise: Promise[R], *, max_examples: int, seed: int) -> CheckResult:
    tried = 0
    worst: float | None = None
    last = ""

    def body(case: Any) -> None:
        nonlocal tried, worst, last
        tried += 1
        measured: float | None = None
        try:
            measured = promise.check(routine, case)
        except BrokenPromise as broken:
            last = f"{broken}; case: {case}"  # Hypothesis replays the smallest case last
            measured = broken.measured
            raise
        finally:
            if measured is not None:
                worst = measured if worst is None else max(worst, measured)

    def result(status: Status, detail: str = "") -> CheckResult:
        return CheckResult(
            promise=promise.name, text=promise.text, status=status, detail=detail, worst=worst, examples=tried
        )

    try:
        search = given(promise.cases(routine))(body)
        for case in reversed(promise.always):
            search = example(case)(search)
        search = settings(
            max_examples=max_examples,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            verbosity=Verbosity.quiet,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.explicit, Phase.generate, Phase.shrink),
        )(hypothesis_seed(seed)(search))
        search()
    except NotOffered as refusal:
        return result("not offered", str(refusal))
    except Exception:
        # Whatever Hypothesis wraps the failure in (a routine with hidden state is reported as flaky), the last
        # counter-example is ours. Without one the error is a bug of the check, and is not hidden.
        if not last:
            raise
        return result("broken", last)
    return result("kept")
