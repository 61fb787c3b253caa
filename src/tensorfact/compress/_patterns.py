"""Module names against patterns, in PEFT's vocabulary."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

__all__ = ["matches", "matching"]


def matches(pattern: str, name: str) -> bool:
    """Return whether `pattern` is the name, a dotted suffix of it, or a ``re:`` expression found in it."""
    if pattern.startswith("re:"):
        try:
            return re.search(pattern[3:], name) is not None
        except re.error as error:
            raise ValueError(
                f"a module pattern must be a valid regular expression, got {pattern!r}: {error}"
            ) from error
    return name == pattern or name.endswith("." + pattern)


def matching(patterns: Iterable[str], names: Sequence[str], *, argument: str) -> list[str]:
    """Return the names that any pattern matches, in the order of `names`.

    Raises
    ------
    ValueError
        If a pattern matches no name: a typing error would otherwise be silent.
    """
    found: set[str] = set()
    for pattern in patterns:
        hits = [name for name in names if matches(pattern, name)]
        if not hits:
            last = sorted({name.rsplit(".", 1)[-1] for name in names})
            near = difflib.get_close_matches(pattern.rsplit(".", 1)[-1], last, n=3) or last[:8]
            raise ValueError(
                f"{argument} must match a linear weight, got {pattern!r}; the weights end in {', '.join(near)}"
            )
        found.update(hits)
    return [name for name in names if name in found]
